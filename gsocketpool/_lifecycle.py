"""The life of a connection in the pool: how it is opened, kept in order between two uses, and how it leaves.

Each is opened in a greenlet of its own, for the waiters and for ``min_connections``. Each that leaves is closed behind
the caller's back.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable
from random import uniform
from typing import Any, Protocol

import gevent
from gevent import getcurrent
from gevent.event import Event

from gsocketpool import _fork
from gsocketpool._adapter import Adapter, Checks
from gsocketpool._closer import Closer
from gsocketpool._keepalive import Keepalive
from gsocketpool._records import IDLE, PINGING, REMOVED, RESETTING, Entry, Waiter
from gsocketpool._state import DISCARDED, RETIRED, State
from gsocketpool._upkeep import Task, Upkeep
from gsocketpool._waiters import Waiters
from gsocketpool.events import Listener, tell, tell_in_loop
from gsocketpool.exceptions import PoolError, add_note, described
from gsocketpool.settings import Settings
from gsocketpool.throttle import Throttle

logger = logging.getLogger("gsocketpool")

#: Seconds between attempts to fill up to ``min_connections`` after a failure: the first, and the most.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0

NO_CHECKS: Checks = (None, "", None, False)


class OpeningPool(Protocol):
    """What opening needs of a pool."""

    @property
    def name(self) -> str: ...
    def _create_connection(self) -> Any: ...


class Lifecycle:
    """Opens and removes the connections of one pool, and keeps ``min_connections`` open.

    :param pool: known weakly, or it would never be collected; only a greenlet that opens a connection holds it.
    """

    def __init__(
        self,
        pool: OpeningPool,
        state: State,
        settings: Settings,
        clock: Callable[[], float],
        adapter: Adapter,
        closer: Closer,
        waiters: Waiters,
        listener: Listener,
    ) -> None:
        self._pool = weakref.ref(pool)
        self._state = state
        self._settings = settings
        self._clock = clock
        self._adapter = adapter
        self._closer = closer
        self._waiters = waiters
        self._listener = listener
        self._loop: Any = None
        #: How many forks lie between this process and the one that made the pool. A fork copies the callbacks of the
        #: event loop, too, and those of the parent have nothing to do in the child.
        self._forks = 0
        self._refill: Any = None
        resets = Task("resetting", "reset", adapter.reset, settings.reset_timeout, self._reset_ended)
        # A server that drops what is silent drops all of it, as a rule.
        admit = Throttle(clock=clock).admit
        pings = Task("pinging", "pinged", adapter.ping_idle, settings.ping_timeout, self._ping_ended, admit)
        self.upkeep = Upkeep({RESETTING: resets, PINGING: pings})
        #: None where idle connections are not pinged.
        self.keepalive: Keepalive | None = None
        self._warned_no_ping = False
        if settings.keepalive_interval is not None:
            self.keepalive = Keepalive(settings.keepalive_interval, state, clock, self.upkeep)
        self._pause = FIRST_PAUSE
        self._refill_warnings = Throttle(clock=clock)
        #: What the last failure said; None once an opening has succeeded.
        self.last_error: str | None = None
        #: Set when a place has become free, an opening has ended, or the pool is closed.
        self.changed = Event()

    def attach(self, hub: Any) -> None:
        """Work in the event loop of `hub` from now on."""
        self._loop = hub.loop
        self.upkeep.attach(hub)
        if self.keepalive is not None and not self._state.closed:
            self.keepalive.start(hub.loop)

    def start_openings(self, more: int = 0) -> None:
        """Begin as many openings as are due: for the waiters, `more` callers and ``min_connections``."""
        # Without an event loop, this is a greenlet that a fork has copied, in a process that has not used the pool.
        while self._loop is not None and self._state.is_opening_due(self._clock(), more):
            if self.start_opening(more) is None:
                return

    def start_opening(self, more: int = 0) -> gevent.Greenlet | None:
        """Begin one opening, if it is due."""
        pool = self._pool()
        if pool is None:
            return None
        opener = gevent.Greenlet(self._open, pool)
        entry = self._state.begin_opening(opener, self._clock(), more)
        if entry is None:
            return None
        opener.rawlink(self._opener_ended)
        opener.start()
        return opener

    def after_fork(self) -> None:
        """Forget the parent's failures, greenlets and event loop, in a forked child."""
        self._stop_refill()
        self._forks += 1
        if self.keepalive is not None:
            self.keepalive.stop()
        self.upkeep.after_fork()
        self._loop = None
        self._pause = FIRST_PAUSE
        self._refill_warnings = Throttle(clock=self._clock)
        self.last_error = None
        # An event belongs to the event loop where it was first waited for.
        self.changed.set()
        self.changed = Event()

    def stop(self) -> None:
        """Open, reset and ping nothing more."""
        self._stop_refill()
        self.stop_upkeep()
        self.close_removed(self._state.pop_all_resetting(), "not_reset", cancel=True)
        self.close_removed(self._state.pop_all_pinging(), "not_pinged")
        self.changed.set()

    def stop_upkeep(self) -> None:
        """Cut short what is done to connections between two uses."""
        if self.keepalive is not None:
            self.keepalive.stop()
        self.upkeep.kill()

    def capacity_changed(self) -> None:
        """Close and open what is due, after a place has become free or an opening has ended."""
        self._waiters.run_deferred()
        self._closer.start()
        self.start_openings()
        self.changed.set()

    # One opening

    def _open(self, pool: OpeningPool) -> BaseException | None:
        """Open one connection. Return the error of an opening that failed, if no waiter gets it."""
        opener = getcurrent()
        entry = self._state.opening[opener]
        began = self._clock()
        error, checks = self._try_to_open(pool, entry)
        if error is not None:
            try:
                return self._opening_failed(pool, opener, entry, error, began)
            finally:
                # The error's traceback leads to this frame, and so this frame must not have the error.
                del error
        self._opening_succeeded(pool, opener, entry, began, checks)
        return None

    def _try_to_open(self, pool: OpeningPool, entry: Entry) -> tuple[BaseException | None, Checks]:
        """Make and open a connection. Return the error, if it fails, and how to ask the connection from now on."""
        timeout = self._settings.open_timeout
        limit = gevent.Timeout(timeout)
        try:
            with limit, self._adapter.in_context():
                # Noted before it is open, so that it is not lost if opening it is interrupted. A subclass's
                # _create_connection() may return one that is closed.
                connection = pool._create_connection()
                self._state.note_connection(entry, connection)
                self._adapter.open_if_closed(connection)
                return None, self._adapter.choose_checks(connection)
            suppressed = f"the context of pool {pool.name!r} has suppressed what opening a connection raised"
            return PoolError(suppressed), NO_CHECKS
        except gevent.GreenletExit:
            return self._killed_error(pool), NO_CHECKS
        except BaseException as error:
            if error is not limit:
                return error, NO_CHECKS
            # The traceback would keep whatever open() had in its locals, a socket for one.
            error.__traceback__ = None
        return TimeoutError(f"opening a connection took longer than open_timeout ({timeout} s)"), NO_CHECKS

    def _opener_ended(self, opener: gevent.Greenlet) -> None:
        entry = self._state.opening.get(opener)
        pool = self._pool()
        if entry is not None and pool is not None:
            # Killed before it began.
            self._opening_failed(pool, opener, entry, self._killed_error(pool), self._clock())

    def _killed_error(self, pool: OpeningPool) -> PoolError:
        # Passed on as it is, a GreenletExit would end the greenlet of a caller without a word.
        return PoolError(f"pool {pool.name!r} was opening a connection, and the greenlet that did so was killed")

    def _opening_succeeded(self, pool: OpeningPool, opener: Any, entry: Entry, began: float, checks: Checks) -> None:
        connection = entry.connection
        if entry.status is REMOVED:
            # This greenlet was copied by a fork.
            self._adapter.abort(connection)
            return
        now = self._clock()
        lifetime = self._settings.max_lifetime
        expires_at = math.inf if lifetime is None else now + lifetime * uniform(0.9, 1.0)
        self._state.opening_succeeded(opener, entry, now, now - began, expires_at, *checks)
        self.last_error = None
        self._pause = FIRST_PAUSE
        self.give_back(entry)
        self.capacity_changed()
        if self._listener.opened is not None:
            try:
                tell(self._listener.opened, pool, connection)
            except gevent.Timeout:
                # The listener's own: the pool throws none at this greenlet by now.
                logger.warning("%r has failed", self._listener.opened, exc_info=True)
        if self.keepalive is not None and not entry.can_ping and not self._warned_no_ping:
            self._warned_no_ping = True
            logger.warning(
                "keepalive_interval does nothing for %r of pool %r: its class has no ping()", connection, pool.name
            )

    def _opening_failed(
        self, pool: OpeningPool, opener: Any, entry: Entry, error: BaseException, began: float
    ) -> BaseException | None:
        if entry.status is REMOVED:
            # As above.
            return None
        now = self._clock()
        waiter = self._state.opening_failed(opener, entry, now - began, error)
        if entry.connection is not None:
            self._closer.add(entry.connection)
        if waiter is not None:
            self._waiters.wake(waiter)
        pause = self._pause_filling(now) if waiter is None else None
        self.capacity_changed()
        self.last_error = described(error)
        add_note(error, f"while opening a connection for pool {pool.name!r}")
        more = None if pause is None else self._refill_warnings.admit()
        if more is not None:
            logger.warning(
                "pool %r has %s of min_connections (%s) open, and tries again in %s s: %s%s",
                pool.name,
                self._state.size,
                self._state.min_connections,
                pause,
                self.last_error,
                more,
            )
        return error if waiter is None else None

    # Giving back and removing. None of this switches.

    def give_back(self, entry: Entry) -> None:
        """Give back an entry whose connection need not be asked."""
        self._deliver_or_retire(entry, self._state.give_back(entry, self._clock()))

    def _deliver_or_retire(self, entry: Entry, outcome: Waiter | str | None) -> bool:
        """Do what is due after an entry was given back. Return whether it was kept."""
        if isinstance(outcome, str):
            self.remove(entry, RETIRED, outcome)
            return False
        if outcome is not None:
            self._waiters.wake(outcome)
        return True

    def remove(self, entry: Entry, cause: str, reason: str, *, cut_short: bool = False) -> None:
        """Take an entry out, and have its connection closed behind the caller's back.

        :param cut_short: whether the connection is taken from its user.
        """
        # What is discarded may be in the middle of something, unless it is idle or was about to be handed out.
        is_idle = entry.status in (IDLE, PINGING)
        cancel = cut_short or (cause is DISCARDED and not is_idle and reason != "unusable")
        if self._state.remove(entry, self._clock(), cause, reason):
            self.close_removed([entry], reason, cancel=cancel)

    def close_removed(self, entries: list[Entry], reason: str, *, cancel: bool = False) -> None:
        """Have the connections closed of entries that the state has removed."""
        for entry in entries:
            self._closer.add(entry.connection, cancel=cancel)
        if entries:
            # The pool is kept until it has told of them. Without a listener it is not, for if the event loop of its
            # thread never runs again, it would be kept for good.
            pool = None if self._listener.closed is None else self._pool()
            connections = [entry.connection for entry in entries]
            self._loop.run_callback(self._removed, self._forks, pool, connections, reason)

    def _removed(self, forks: int, pool: OpeningPool | None, connections: list[Any], reason: str) -> None:
        """Tell of connections that were taken out, and fill their places. The event loop calls this."""
        if forks != self._forks:
            return
        # Told first, or else a connection that is opened in its place would be told of before.
        if pool is not None and self._listener.closed is not None:
            for connection in connections:
                tell_in_loop(self._listener.closed, pool, connection, reason)
        self.capacity_changed()

    # Between two uses

    def begin_reset(self, entry: Entry) -> None:
        """End a lease, and have the connection reset before its next one. This does not switch."""
        # First, for near the recursion limit it may fail. It does nothing unless the next step was done.
        self._loop.run_callback(self.upkeep.start, entry)
        self._state.begin_reset(entry, self._clock())

    def _reset_ended(self, entry: Entry, is_good: bool | None) -> None:
        if entry.status is not RESETTING:
            # The pool was closed meanwhile.
            return
        if not is_good:
            self.remove(entry, DISCARDED, "not_reset")
            return
        is_kept = self._deliver_or_retire(entry, self._state.end_reset(entry, self._clock()))
        if is_kept and self._listener.released is not None:
            self.tell_released(entry.connection)

    def _ping_ended(self, entry: Entry, is_good: bool | None) -> None:
        # It may have been discarded meanwhile.
        if entry.status is PINGING:
            if is_good:
                self._deliver_or_retire(entry, self._state.end_ping(entry, self._clock()))
            else:
                self.remove(entry, DISCARDED, "unusable" if is_good is None else "not_pinged")
        if self.keepalive is not None:
            self.keepalive.ended(entry)

    def tell_released(self, connection: Any) -> None:
        """Have the listener told of a connection that came back."""
        self._loop.run_callback(self._released, self._forks, self._pool(), connection)

    def _released(self, forks: int, pool: OpeningPool | None, connection: Any) -> None:
        if pool is not None and self._listener.released is not None and forks == self._forks:
            tell_in_loop(self._listener.released, pool, connection)

    # Filling

    def _pause_filling(self, now: float) -> float | None:
        """Stop filling for a while. Return the seconds; None if there is nothing to fill."""
        pause = self._pause
        if not self._state.pause_filling(now, now + pause):
            return None
        self._pause = min(2 * pause, LONGEST_PAUSE)
        # The event loop calls this itself: a greenlet for it could be killed.
        self._stop_refill()
        self._refill = self._loop.timer(pause)
        self._refill.start(self._resume_filling, update=True)
        return pause

    def _resume_filling(self) -> None:
        self._stop_refill()
        self._state.resume_filling()
        self.start_openings()

    def _stop_refill(self) -> None:
        if self._refill is not None:
            self._refill.close()
            self._refill = None


def close_half_open(state: State, closer: Closer) -> None:
    """Close what is still being opened although its greenlet was killed."""
    for entry in list(state.opening.values()):
        if entry.connection is not None:
            closer.add(entry.connection)


def abort_connections(state: State, adapter: Adapter) -> None:
    """Abort every connection, half-open ones included. The state is left as it is."""
    for entry in [*state.all_entries(), *state.opening.values()]:
        if entry.connection is not None:
            adapter.abort(entry.connection)


def forget_connections(state: State, adapter: Adapter) -> None:
    """Abort the connections of the parent process, in a forked child, and empty the state."""
    adapter.can_peek = None
    for connection in state.reset_after_fork():
        adapter.abort(connection)
        _fork.keep_reference(connection)
