"""The life of a connection in the pool: opening, upkeep between two uses, and removal.

Each connection is opened in a greenlet of its own, for a waiter or for ``min_connections``, and closed in the
background.
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

#: Seconds between attempts to fill up to ``min_connections`` after failures: the first pause and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0

NO_CHECKS: Checks = (None, "", None, False)


class OpeningPool(Protocol):
    """The part of a pool that opening needs."""

    @property
    def name(self) -> str: ...
    def _create_connection(self) -> Any: ...


class Lifecycle:
    """Opens and removes the connections of one pool, and keeps ``min_connections`` open.

    :param pool: kept as a weak reference, so that it can be collected; only openers hold the pool itself.
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
        #: How many forks lie between this process and the one that made the pool. A fork also copies the event loop's
        #: pending callbacks, which must do nothing in the child.
        self._forks = 0
        self._refill: Any = None
        resets = Task("resetting", "reset", adapter.reset, settings.reset_timeout, self._reset_ended)
        # Throttled, because a server that drops idle connections usually drops all of them.
        admit = Throttle(clock=clock).admit
        pings = Task("pinging", "pinged", adapter.ping_idle, settings.ping_timeout, self._ping_ended, admit)
        self.upkeep = Upkeep({RESETTING: resets, PINGING: pings})
        #: None if idle connections are not pinged.
        self.keepalive: Keepalive | None = None
        self._warned_no_ping = False
        if settings.keepalive_interval is not None:
            self.keepalive = Keepalive(settings.keepalive_interval, state, clock, self.upkeep)
        self._pause = FIRST_PAUSE
        self._refill_warnings = Throttle(clock=clock)
        #: The last open error in words; None once an opening has succeeded.
        self.last_error: str | None = None
        #: Set when a place becomes free, an opening ends, or the pool is closed.
        self.changed = Event()

    def attach(self, hub: Any) -> None:
        """Use the event loop of `hub`."""
        self._loop = hub.loop
        self.upkeep.attach(hub)
        if self.keepalive is not None and not self._state.closed:
            self.keepalive.start(hub.loop)

    def start_openings(self, more: int = 0) -> None:
        """Start as many openings as are due: for the waiters, `more` callers and ``min_connections``."""
        # Without an event loop, a fork has copied the calling greenlet, and the child has not used the pool yet.
        while self._loop is not None and self._state.is_opening_due(self._clock(), more):
            if self.start_opening(more) is None:
                return

    def start_opening(self, more: int = 0) -> gevent.Greenlet | None:
        """Start one opening, if it is due, and return its greenlet."""
        pool = self._pool()
        if pool is None:
            return None
        opener = gevent.Greenlet(self._open, pool)
        opener.rawlink(self._opener_ended)
        entry = self._state.begin_opening(opener, self._clock(), more)
        if entry is None:
            return None
        try:
            opener.start()
        except BaseException:
            # It runs the callbacks of Greenlet.add_spawn_callback(), which are user code.
            self._state.cancel_opening(opener)
            raise
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
        # An event is bound to the event loop in which a greenlet first waits for it.
        self.changed.set()
        self.changed = Event()

    def stop(self) -> None:
        """Stop opening, resetting and pinging."""
        self._stop_refill()
        self.stop_upkeep()
        self.close_removed(self._state.pop_all_resetting(), "not_reset", cancel=True)
        self.close_removed(self._state.pop_all_pinging(), "not_pinged")
        self.changed.set()

    def stop_upkeep(self) -> None:
        """Stop resetting and pinging."""
        if self.keepalive is not None:
            self.keepalive.stop()
        self.upkeep.kill()

    def capacity_changed(self) -> None:
        """Start the closings and openings that are due, after a place became free or an opening ended."""
        self._waiters.run_deferred()
        self._closer.start()
        self.start_openings()
        self.changed.set()

    # One opening

    def _open(self, pool: OpeningPool) -> BaseException | None:
        """Open one connection. Return the error if opening failed and no waiter gets the error."""
        opener = getcurrent()
        entry = self._state.opening[opener]
        began = self._clock()
        error, checks = self._try_to_open(pool, entry)
        if error is not None:
            try:
                return self._opening_failed(pool, opener, entry, error, began)
            finally:
                # Break the cycle: the error's traceback refers to this frame.
                del error
        self._opening_succeeded(pool, opener, entry, began, checks)
        return None

    def _try_to_open(self, pool: OpeningPool, entry: Entry) -> tuple[BaseException | None, Checks]:
        """Make and open a connection. Return the error, if any, and the connection's checks."""
        timeout = self._settings.open_timeout
        limit = gevent.Timeout(timeout)
        try:
            with limit, self._adapter.in_context():
                # A subclass may return a closed connection. Note it before it opens, so that no interruption loses it.
                connection = pool._create_connection()
                self._state.note_connection(entry, connection)
                self._adapter.open_if_closed(connection)
                return None, self._adapter.choose_checks(connection)
            suppressed = f"the context of pool {pool.name!r} has suppressed the error that opening a connection raised"
            return PoolError(suppressed), NO_CHECKS
        except gevent.GreenletExit:
            return self._killed_error(pool), NO_CHECKS
        except BaseException as error:
            if error is not limit:
                return error, NO_CHECKS
            # The traceback would keep the locals of open() alive, such as a socket.
            error.__traceback__ = None
        return TimeoutError(f"opening a connection took longer than open_timeout ({timeout} s)"), NO_CHECKS

    def _opener_ended(self, opener: gevent.Greenlet) -> None:
        entry = self._state.opening.get(opener)
        pool = self._pool()
        if entry is not None and pool is not None:
            # It did not record its end: most likely it was killed before it started.
            self._opening_failed(pool, opener, entry, self._killed_error(pool), self._clock())

    def _killed_error(self, pool: OpeningPool) -> PoolError:
        # Raised in a caller, the GreenletExit itself would end the caller's greenlet silently.
        return PoolError(f"the greenlet that was opening a connection for pool {pool.name!r} was killed")

    def _opening_succeeded(self, pool: OpeningPool, opener: Any, entry: Entry, began: float, checks: Checks) -> None:
        connection = entry.connection
        if entry.status is REMOVED:
            # A fork has copied this greenlet.
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
                # The listener's own: the open timeout is over by now.
                logger.warning("listener %r failed", self._listener.opened, exc_info=True)
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
            # Logging may switch, which the event loop's own greenlet can't do.
            gevent.spawn(
                logger.warning,
                "pool %r has %s of min_connections (%s) open, and tries again in %s s: %s%s",
                pool.name,
                self._state.size,
                self._state.min_connections,
                pause,
                self.last_error,
                more,
            )
        return error if waiter is None else None

    # Giving back and removing. Nothing here switches.

    def give_back(self, entry: Entry) -> None:
        """Give back an entry without checking its connection."""
        self._deliver_or_retire(entry, self._state.give_back(entry, self._clock()))

    def _deliver_or_retire(self, entry: Entry, outcome: Waiter | str | None) -> bool:
        """Wake the waiter that got an entry, or retire the entry. Return False if it was retired."""
        if isinstance(outcome, str):
            self.remove(entry, RETIRED, outcome)
            return False
        if outcome is not None:
            self._waiters.wake(outcome)
        return True

    def remove(self, entry: Entry, cause: str, reason: str, *, cut_short: bool = False) -> None:
        """Remove an entry and close its connection in the background.

        :param cut_short: whether the connection is taken from its user.
        """
        # The server may still be at work for a discarded connection, unless it was idle or failed its check.
        is_idle = entry.status in (IDLE, PINGING)
        cancel = cut_short or (cause is DISCARDED and not is_idle and reason != "unusable")
        # The garbage collector may have removed it just now.
        if self._state.remove(entry, self._clock(), cause, reason):  # pragma: no branch
            self.close_removed([entry], reason, cancel=cancel)

    def close_removed(self, entries: list[Entry], reason: str, *, cancel: bool = False) -> None:
        """Close the connections of entries that the state has removed, in the background."""
        for entry in entries:
            self._closer.add(entry.connection, cancel=cancel)
        if entries:
            # For a listener, the callback keeps the pool alive. Otherwise it must not: if the event loop of its thread
            # never runs again, that would be for ever.
            pool = None if self._listener.closed is None else self._pool()
            connections = [entry.connection for entry in entries]
            self._loop.run_callback(self._removed, self._forks, pool, connections, reason)

    def _removed(self, forks: int, pool: OpeningPool | None, connections: list[Any], reason: str) -> None:
        """Tell the listener about removed connections, and refill their places. The event loop calls this."""
        if forks != self._forks:
            return
        self._adapter.clear_tls_errors()
        # Before the refill, so that the listener hears of the closing before the next opening.
        if pool is not None and self._listener.closed is not None:
            for connection in connections:
                tell_in_loop(self._listener.closed, pool, connection, reason)
        self.capacity_changed()

    # Between two uses

    def begin_reset(self, entry: Entry) -> None:
        """End a lease and reset the connection in the background. This does not switch."""
        # First, because near the recursion limit it may fail. Without the next line, the callback does nothing.
        self._loop.run_callback(self.upkeep.start, entry)
        self._state.begin_reset(entry, self._clock())

    def _reset_ended(self, entry: Entry, is_good: bool | None) -> None:
        if entry.status is not RESETTING:
            # The pool was closed during the reset.
            return
        if not is_good:
            self.remove(entry, DISCARDED, "not_reset")
            return
        is_kept = self._deliver_or_retire(entry, self._state.end_reset(entry, self._clock()))
        if is_kept and self._listener.released is not None:
            self.tell_released(entry.connection)

    def _ping_ended(self, entry: Entry, is_good: bool | None) -> None:
        # The connection may have been discarded during the ping.
        if entry.status is PINGING:
            if is_good:
                self._deliver_or_retire(entry, self._state.end_ping(entry, self._clock()))
            else:
                self.remove(entry, DISCARDED, "unusable" if is_good is None else "not_pinged")
        if self.keepalive is not None:  # pragma: no branch - only a keepalive has connections pinged
            self.keepalive.ended(entry)

    def tell_released(self, connection: Any) -> None:
        """Let the event loop tell the listener about a connection that came back."""
        self._loop.run_callback(self._released, self._forks, self._pool(), connection)

    def _released(self, forks: int, pool: OpeningPool | None, connection: Any) -> None:
        if pool is not None and self._listener.released is not None and forks == self._forks:
            tell_in_loop(self._listener.released, pool, connection)

    # Filling

    def _pause_filling(self, now: float) -> float | None:
        """Pause filling up, and return the seconds of the pause; None if there is nothing to fill."""
        pause = self._pause
        if not self._state.pause_filling(now, now + pause):
            return None
        self._pause = min(2 * pause, LONGEST_PAUSE)
        # A timer of the event loop, because a greenlet could be killed.
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


def close_opening(state: State, closer: Closer) -> None:
    """Close connections that are still opening although their greenlets were killed."""
    for entry in list(state.opening.values()):
        if entry.connection is not None:
            closer.add(entry.connection)


def abort_connections(state: State, adapter: Adapter) -> None:
    """Abort every connection, half-open ones included, and leave the state as it is."""
    for entry in [*state.all_entries(), *state.opening.values()]:
        if entry.connection is not None:
            adapter.abort(entry.connection)


def forget_connections(state: State, adapter: Adapter) -> None:
    """Abort the parent's connections and empty the state, in a forked child."""
    adapter.can_peek = None
    for connection in state.reset_after_fork():
        adapter.abort(connection)
        _fork.keep_reference(connection)
