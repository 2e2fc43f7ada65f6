"""The state of a pool, driven over gevent: waiting and deadlines, checking, giving back, opening and forks.

Every method here decides first, by one step of the state, and acts afterwards: wakes, closes, opens.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from random import uniform
from typing import Any

import gevent
from gevent import getcurrent
from gevent.event import Event
from gevent.hub import Waiter, get_hub
from gevent.monkey import get_original

from gsocketpool import _report, _steps, _where
from gsocketpool._aside import Closer, Context, close_all, is_usable_within, open_within
from gsocketpool._forking import keep_alive, tell_after_fork
from gsocketpool._state import GONE, IN_USE, Entry, State, Ticket
from gsocketpool.exceptions import (
    ConnectionNotFoundError,
    PoolClosedError,
    PoolError,
    PoolExhaustedError,
    WrongThreadError,
    add_note,
    shown,
)
from gsocketpool.reaper import start_reaper
from gsocketpool.settings import Settings, check_seconds

logger = logging.getLogger("gsocketpool")

# Patched, it would tell greenlets apart.
get_ident = get_original("_thread", "get_ident")

#: Seconds between attempts to fill up to ``min_connections`` after a failure: the first, and the most.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0


class Driver:
    """What a pool does with its entries. What users call is :class:`~gsocketpool.Pool`'s."""

    _clock: Callable[[], float] = time.monotonic

    #: Makes what surrounds a connection's own code where a greenlet of the pool's runs it. Set before this is made.
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
        self._acquire_timeout = math.inf if settings.acquire_timeout is None else settings.acquire_timeout
        self._closer = Closer(settings.close_timeout, self._context)
        self._reaper: gevent.Greenlet | None = None
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

    def _was_exhausted(self, error: PoolExhaustedError) -> None:
        pass

    # Acquiring

    def _acquire(self, timeout: float | None) -> Entry:
        if get_hub() is not self._hub:
            self._enter()
        state = self._state
        caller = getcurrent()
        now = self._clock()
        if timeout is None:
            timeout = self._acquire_timeout
        else:
            check_seconds("timeout", timeout, zero=True, endless=True)
        entry = state.take(now, caller)
        if entry is not None and self._is_fit(entry, now, now + timeout):
            state.acquired_at_once += 1
        else:
            entry = self._acquire_slowly(caller, now, timeout, is_again=entry is not None)
        if self._settings.leak_threshold is not None:
            entry.where = _where.callers()
        return entry

    def _acquire_slowly(self, caller: Any, began: float, timeout: float, is_again: bool) -> Entry:
        """Waits in the queue until there is a connection that is fit.

        :param is_again: whether the caller was given a bad one already. It keeps its place among those who wait.
        """
        state = self._state
        deadline = began + timeout
        now = self._clock() if is_again else began
        try:
            while True:
                if state.closed:
                    raise self._closed_error()
                if not is_again and state.must_refuse():
                    state.refused += 1
                    raise self._exhausted_error(caller, now - began, timeout, is_refused=True)
                entry = state.take(now, caller) if now < deadline or not timeout else None
                if entry is None and now < deadline:
                    entry = self._wait(caller, began, deadline - now, is_again)
                    now = self._clock()
                if entry is None:
                    state.timed_out += 1
                    if not timeout:
                        # The next one who can't wait shall be luckier.
                        self._start_openings(more=1)
                    raise self._exhausted_error(caller, now - began, timeout)
                # A new one need not be checked: it may even have something to read, a greeting for instance.
                is_fit = entry.is_new or self._is_fit(entry, now, deadline)
                if is_fit and entry.status is IN_USE:
                    entry.is_new = False
                    state.acquired_after_wait += 1
                    return entry
                is_again = True
                now = self._clock()
        finally:
            state.wait_time += self._clock() - began

    def _wait(self, caller: Any, began: float, seconds: float, is_again: bool) -> Entry | None:
        """Queues, and returns what has been handed over; None if nothing was in time."""
        self._enter()
        state, loop = self._state, self._hub.loop
        waiter = Waiter(self._hub)
        wake = waiter.switch
        ticket = Ticket(caller, began, wake)
        timer = None if seconds == math.inf else loop.timer(seconds)
        if is_again:
            state.enqueue_again(ticket)
        else:
            state.enqueue(ticket)
        try:
            self._start_openings()
            if timer is not None:
                # The event loop's idea of the time is as old as its present turn, which may have been a long one.
                timer.start(wake, None, update=True)
            waiter.get()
        except BaseException:
            # What was handed over while the exception was on its way belongs to the next one.
            entry = state.withdraw(ticket)
            if entry is not None and entry.status is IN_USE:
                self._put_back(entry)
            raise
        finally:
            if timer is not None:
                timer.close()
        if ticket.error is not None:
            try:
                raise ticket.error
            finally:
                # The error's traceback has this frame, and so this frame must not have the error.
                del ticket
        return state.withdraw(ticket)

    def _is_fit(self, entry: Entry, now: float, deadline: float) -> bool:
        """Whether an entry that was idle or in use a moment ago may be handed out. One that may not is let go of."""
        if now >= entry.retire_at:
            self._retire(entry, "lifetime" if now >= entry.expires_at else "idle")
            return False
        connection = entry.connection
        try:
            if not entry.is_asked_aside:
                usable = _steps.is_usable(connection)
            elif now < deadline:
                usable = is_usable_within(deadline - now, connection, self._context)
            else:
                usable = _steps.is_usable(connection, at_a_glance=True)
        except BaseException:
            self._discard(entry, "interrupted")
            raise
        if not usable or entry.status is not IN_USE:
            self._discard(entry, "unusable")
            return False
        if entry.is_asked_aside:
            # Much may have happened meanwhile.
            reason = self._state.reason_to_retire(entry, self._clock())
            if reason is not None:
                self._retire(entry, reason)
                return False
        return True

    # Giving back

    def _find(self, connection: object, status: str) -> Entry:
        entry = self._state.find(connection, status)
        if entry is None:
            raise ConnectionNotFoundError(f"{shown(connection)} is not {status} in pool {self.name!r}")
        return entry

    def _give_back(self, entry: Entry, error: BaseException | None) -> None:
        closing = self._hand_in(entry, error)
        if closing is not None:
            self._wait_for([closing])

    def _hand_in(self, entry: Entry, error: BaseException | None) -> gevent.Greenlet | None:
        """Gives an entry back, and returns what closes it, if it is closed."""
        if get_hub() is not self._hub:
            self._enter()
        uses = entry.uses
        try:
            reusable = _steps.is_reusable(entry.connection, error)
        except BaseException:
            if entry.status is IN_USE and entry.uses == uses:
                self._discard(entry, "interrupted")
            raise
        if entry.status is not IN_USE or entry.uses != uses:
            # A step that switched, though it should not, has let somebody else give it back.
            return None
        if reusable:
            return self._put_back(entry)
        return self._discard(entry, "not reusable" if error is None else "error")

    def _put_back(self, entry: Entry) -> gevent.Greenlet | None:
        now = self._clock()
        reason = self._state.reason_to_retire(entry, now)
        if reason is not None:
            return self._retire(entry, reason)
        ticket = self._state.put_back(entry, now)
        if ticket is not None:
            self._hub.loop.run_callback(ticket.wake, None)
        return None

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
        # It is noted before it is open, so that it is not lost if opening it gets interrupted.
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
        entry.is_asked_aside = _steps.may_block_when_asked(connection)
        lifetime = self._settings.max_lifetime
        expires_at = math.inf if lifetime is None else now + lifetime * uniform(0.9, 1.0)
        self._state.open_time += now - began
        self._state.land(entry, connection, now, expires_at)
        self._last_open_error = None
        self._pause = FIRST_PAUSE
        self._put_back(entry)
        self._look_around()
        self._was_opened(connection)

    def _opening_failed(self, entry: Entry, error: BaseException, began: float) -> BaseException | None:
        if entry.status is GONE:
            # As above.
            return None
        self._state.open_time += self._clock() - began
        ticket = self._state.fail_opening(entry, error)
        if entry.connection is not None:
            self._closer.close(entry.connection)
        self._last_open_error = "; ".join(line.strip() for line in traceback.format_exception_only(error))
        add_note(error, f"while opening a connection for pool {self.name!r}")
        if ticket is None:
            self._pause_filling()
        else:
            self._hub.loop.run_callback(ticket.wake, None)
        self._look_around()
        return error if ticket is None else None

    def _pause_filling(self) -> None:
        state = self._state
        if state.size < state.min_connections and not state.filling_paused and not state.closed:
            state.filling_paused = True
            gevent.spawn_later(self._pause, _call_if_alive, weakref.WeakMethod(self._resume_filling))
            logger.warning(
                "pool %r has %s of min_connections (%s) open, and tries again in %s s: %s",
                self.name,
                state.size,
                state.min_connections,
                self._pause,
                self._last_open_error,
            )
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _resume_filling(self) -> None:
        if self._hub is None:
            # The timer was copied by a fork, into a process that has not used the pool.
            return
        self._state.filling_paused = False
        self._start_openings()

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
        idle = [entry.connection for entry in self._state.take_idle_out()]
        if idle or self._reaper is not None:
            loop.run_callback_threadsafe(_bury, self._reaper, idle, self._settings.close_timeout)

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
        for connection in [*state.forget(), *self._closer.forget()]:
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

    # What to raise

    def _closed_error(self) -> PoolClosedError:
        return PoolClosedError(f"pool {self.name!r} is closed")

    def _exhausted_error(
        self, caller: Any, waited: float, timeout: float, is_refused: bool = False
    ) -> PoolExhaustedError:
        error = _report.exhausted(
            self.name,
            self._state,
            is_refused=is_refused,
            timeout=timeout,
            waited=waited,
            caller=caller,
            last_open_error=self._last_open_error,
        )
        self._was_exhausted(error)
        return error


def _call_if_alive(reference: weakref.WeakMethod[Callable[[], None]]) -> None:
    method = reference()
    if method is not None:
        method()


def _bury(reaper: gevent.Greenlet | None, connections: list[Any], close_timeout: float) -> None:
    """What is left to do, in the event loop, for a pool that has been collected."""
    if reaper is not None:
        reaper.kill(block=False)
    close_all(connections, close_timeout)
