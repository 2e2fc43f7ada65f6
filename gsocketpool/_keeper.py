"""The connections of a pool, from being opened to being closed, and whose they are.

Each change of the state is one step of its own; opening, waking and closing come after it.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from random import uniform
from typing import Any

import gevent
from gevent import getcurrent
from gevent.event import Event
from gevent.hub import get_hub
from gevent.monkey import get_original

from gsocketpool import _steps
from gsocketpool._aside import Closer, Context, open_within
from gsocketpool._entry import GONE, Entry, Ticket
from gsocketpool._forking import keep_alive, tell_after_fork
from gsocketpool._state import State
from gsocketpool.exceptions import PoolError, WrongThreadError, add_note, described
from gsocketpool.reaper import start_reaper
from gsocketpool.settings import Settings

logger = logging.getLogger("gsocketpool")

# Patched, it would tell greenlets apart.
get_ident = get_original("_thread", "get_ident")

#: Seconds between attempts to fill up to ``min_connections`` after a failure: the first, and the most.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0


class Keeper:
    """What a pool does with its connections while nobody uses them."""

    _clock: Callable[[], float] = time.monotonic

    #: Makes what surrounds a connection's own code where a greenlet of the pool's runs it. A subclass that has one sets
    #: it before it calls ``__init__``.
    _context: Context = nullcontext

    #: The event loop that the pool belongs to, from its first use on. Also there where making a pool has failed.
    _hub: Any = None

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self._settings = settings
        self._state = State(
            max_connections=settings.max_connections,
            min_connections=settings.min_connections,
            max_opening=settings.max_opening,
            max_waiting=settings.max_waiting,
            idle_timeout=settings.idle_timeout,
        )
        # Python looks up what an instance has of its own faster.
        self._clock = self._clock
        self._closer = Closer(settings.close_timeout, self._context)
        self._reaper: gevent.Greenlet | None = None
        #: Set when a place has become free, or an opening has ended.
        self._changed = Event()
        self._pause = FIRST_PAUSE
        self._last_open_error: str | None = None
        tell_after_fork(self)

    def _create_connection(self) -> Any:
        raise NotImplementedError

    def _sweep(self) -> None:
        raise NotImplementedError

    # For who builds on a pool: told of what has happened. These must not switch, nor raise.

    def _was_opened(self, connection: Any) -> None:
        pass

    def _was_closed(self, connection: Any, reason: str) -> None:
        pass

    # Opening

    def _start_openings(self, more: int = 0) -> None:
        for _ in range(self._state.openings_due(more=more)):
            self._start_opening()

    def _start_opening(self) -> gevent.Greenlet:
        opener = gevent.Greenlet(self._open)
        self._state.begin_opening(opener)
        opener.rawlink(self._opener_ended)
        opener.start()
        return opener

    def _open(self) -> BaseException | None:
        """Opens the connection that the state expects of the current greenlet.

        Returns the error of an opening that failed, if nobody waits for it.
        """
        entry = self._state.opening[getcurrent()]
        began = self._clock()
        try:
            open_within(self._settings.open_timeout, self._make, entry)
        except gevent.GreenletExit:
            return self._opening_failed(entry, self._killed_error(), began)
        except BaseException as error:
            return self._opening_failed(entry, error, began)
        self._opening_succeeded(entry, began)
        return None

    def _make(self, entry: Entry) -> None:
        # It is noted before it is open, so that it is not lost if opening it gets interrupted. Somebody's own
        # _create_connection() may return one that is closed.
        with self._context():
            entry.connection = self._create_connection()
            _steps.open_if_closed(entry.connection)

    def _opener_ended(self, opener: gevent.Greenlet) -> None:
        entry = self._state.opening.get(opener)
        if entry is not None:
            # Killed before it began.
            self._opening_failed(entry, self._killed_error(), self._clock())

    def _killed_error(self) -> PoolError:
        # Passed on as it is, a GreenletExit would end the greenlet of some caller, and nobody would hear of it.
        return PoolError(f"pool {self.name!r} was opening a connection, and somebody has killed the greenlet that did")

    def _opening_succeeded(self, entry: Entry, began: float) -> None:
        connection = entry.connection
        if entry.status is GONE:
            # This greenlet was copied by a fork.
            _steps.let_go(connection)
            return
        now = self._clock()
        entry.asked = _steps.how_to_ask(connection)
        lifetime = self._settings.max_lifetime
        expires_at = math.inf if lifetime is None else now + lifetime * uniform(0.9, 1.0)
        self._state.open_time += now - began
        self._state.land(entry, connection, now, expires_at)
        self._last_open_error = None
        self._pause = FIRST_PAUSE
        self._was_opened(connection)
        self._put_back(entry)
        self._look_around()

    def _opening_failed(self, entry: Entry, error: BaseException, began: float) -> BaseException | None:
        if entry.status is GONE:
            # As above.
            return None
        self._state.open_time += self._clock() - began
        ticket = self._state.fail_opening(entry, error)
        if entry.connection is not None:
            self._closer.close(entry.connection)
        if ticket is not None:
            self._hub.loop.run_callback(ticket.wake, None)
        pause = self._pause_filling() if ticket is None else None
        self._look_around()
        self._last_open_error = described(error)
        add_note(error, f"while opening a connection for pool {self.name!r}")
        if pause is not None:
            logger.warning(
                "pool %r has %s of min_connections (%s) open, and tries again in %s s: %s",
                self.name,
                self._state.size,
                self._state.min_connections,
                pause,
                self._last_open_error,
            )
        return error if ticket is None else None

    def _pause_filling(self) -> float | None:
        """Does not insist on ``min_connections`` for a while. Returns the seconds; None where it does not insist."""
        state = self._state
        if state.size >= state.min_connections or state.filling_paused or state.closed:
            return None
        pause = self._pause
        state.filling_paused = True
        gevent.spawn_later(pause, _call_if_alive, weakref.WeakMethod(self._resume_filling))
        self._pause = min(2 * pause, LONGEST_PAUSE)
        return pause

    def _resume_filling(self) -> None:
        if self._hub is None:
            # The timer was copied by a fork, into a process that has not used the pool.
            return
        self._state.filling_paused = False
        self._start_openings()

    # Handing on

    def _put_back(self, entry: Entry) -> None:
        """Gives back an entry that need not be asked."""
        outcome = self._state.put_back(entry, self._clock())
        if outcome is not None:
            self._follow(outcome, entry)

    def _follow(self, outcome: Ticket | str, entry: Entry) -> gevent.Greenlet | None:
        """Does what the state says of an entry that was given back, and does not lie idle now."""
        if isinstance(outcome, str):
            return self._retire(entry, outcome)
        self._hub.loop.run_callback(outcome.wake, None)
        return None

    # Closing

    def _discard(self, entry: Entry, reason: str) -> gevent.Greenlet | None:
        return self._close_entry(entry, self._state.discarded, reason)

    def _retire(self, entry: Entry, reason: str) -> gevent.Greenlet | None:
        return self._close_entry(entry, self._state.retired, reason)

    def _close_entry(self, entry: Entry, counter: Counter[str], reason: str) -> gevent.Greenlet | None:
        if entry.status is GONE:
            return None
        self._state.remove(entry, self._clock())
        return self._close_removed(entry, counter, reason)

    def _close_removed(self, entry: Entry, counter: Counter[str], reason: str) -> gevent.Greenlet:
        counter[reason] += 1
        closing = self._closer.close(entry.connection)
        self._look_around()
        self._was_closed(entry.connection, reason)
        return closing

    def _look_around(self) -> None:
        """To be called when a place has become free, or an opening has ended."""
        self._start_openings()
        self._changed.set()

    def _wait_for(self, closings: Sequence[gevent.Greenlet | None]) -> None:
        # The event loop's own greenlet, in whose callbacks a connection may be released, can't wait.
        if getcurrent() is not self._hub:
            under_way = [closing for closing in closings if closing is not None]
            gevent.joinall(under_way, timeout=self._settings.close_timeout)

    # Whose it is

    def _enter(self) -> None:
        """Makes sure that this is the thread whose pool this is. The first to come makes it its own."""
        hub = get_hub()
        if hub is self._hub:
            if self._reaper is not None and self._reaper.dead and not self._state.closed:
                # Somebody who kills every greenlet there is has killed it, too.
                self._reaper = start_reaper(self._sweep, self._settings.sweep_interval)
            return
        if self._hub is not None:
            raise WrongThreadError(
                f"pool {self.name!r} is in use by another thread, and its sockets belong to the event loop there;"
                " every thread needs a pool of its own"
            )
        self._hub = hub
        if self._state.closed:
            return
        if self._settings.reap_expired_connections:
            self._reaper = start_reaper(self._sweep, self._settings.sweep_interval)
        self._start_openings()

    def __del__(self) -> None:
        # This may run anywhere, in the middle of another pool's bookkeeping or in another thread. So nothing is closed
        # here: it is left to the event loop, by a call that takes no lock.
        loop = None if self._hub is None else self._hub.loop
        if loop is None:
            # Never used, or the thread has ended and its event loop with it.
            return
        self._closer.leave([entry.connection for entry in self._state.take_idle_out()])
        loop.run_callback_threadsafe(_bury, self._reaper, self._closer)

    def _abandon(self) -> None:
        """Lets go of the idle connections of a thread that ends, or has ended: its event loop will not close them."""
        hub = self._hub
        if hub is None or (hub.loop is not None and hub.loop.default):
            # That of the main thread is there until the end.
            return
        if hub.thread_ident == get_ident() or hub.thread_ident not in sys._current_frames():
            for entry in self._state.take_idle_out():
                _steps.let_go(entry.connection)

    def _after_fork(self) -> None:
        """In a forked child: the connections are the parent's, and so are the greenlets that this pool had at work."""
        state, hub = self._state, self._hub
        if hub is None:
            return
        helpers: list[Any] = [*state.opening, self._reaper]
        for connection in state.forget():
            _steps.let_go(connection)
            keep_alive(connection)
        for helper in helpers:
            if helper is not None:
                helper.kill(block=False)
        if hub.thread_ident != get_ident():
            # Whoever waits does so in a thread that the child does not have.
            state.waiters.clear()
        elif state.waiters:
            # Their greenlets were copied by the fork, too, and go on waiting.
            hub.loop.run_callback(_call_if_alive, weakref.WeakMethod(self._enter))
        # An event belongs to the event loop where it was first waited for.
        self._changed.set()
        self._changed = Event()
        self._pause = FIRST_PAUSE
        self._last_open_error = None
        self._hub = self._reaper = None


def _call_if_alive(reference: weakref.WeakMethod[Callable[[], None]]) -> None:
    method = reference()
    if method is not None:
        method()


def _bury(reaper: gevent.Greenlet | None, closer: Closer) -> None:
    """What is left to do, in the event loop, for a pool that has been collected."""
    if reaper is not None:
        reaper.kill(block=False)
    closer.close_left()
