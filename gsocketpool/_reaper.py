"""The background greenlet of a pool. Each pass, a sweep, retires and checks connections, and looks for leaks."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import gevent

from gsocketpool import _callsite
from gsocketpool._adapter import Adapter
from gsocketpool._lifecycle import Lifecycle
from gsocketpool._records import IDLE, IN_USE, Entry
from gsocketpool._state import DISCARDED, RETIRED, State
from gsocketpool.events import Listener, tell
from gsocketpool.settings import Settings

logger = logging.getLogger("gsocketpool")

#: The least seconds between two checks for dead holders that callers trigger.
CHECK_INTERVAL = 0.05


class NamedPool(Protocol):
    """The part of a pool that a sweep needs."""

    @property
    def name(self) -> str: ...


class Reaper:
    """Sweeps one pool. It does not refer to the pool, so that the pool can be collected."""

    def __init__(
        self,
        state: State,
        settings: Settings,
        clock: Callable[[], float],
        adapter: Adapter,
        lifecycle: Lifecycle,
        listener: Listener,
    ) -> None:
        self._state = state
        self._settings = settings
        self._clock = clock
        self._adapter = adapter
        self._lifecycle = lifecycle
        self._listener = listener
        self._checked_at = -math.inf
        #: When the delayed check runs; until then, a caller need not trigger one.
        self.next_check_at = -math.inf
        #: Checks for dead holders a moment later, on behalf of callers that wait.
        self._delayed_check: gevent.Greenlet | None = None
        #: The background greenlet.
        self.greenlet: gevent.Greenlet | None = None

    def start(self, pool: NamedPool) -> None:
        """Start sweeping in the background, unless the settings forbid it or the reaper is running."""
        is_running = self.greenlet is not None and not self.greenlet.dead
        if self._settings.reap_expired_connections and not is_running and not self._state.closed:
            self.greenlet = gevent.spawn(
                _sweep_forever, self, weakref.ref(pool), pool.name, self._settings.sweep_interval
            )

    def stop(self) -> None:
        """Stop sweeping in the background."""
        for greenlet in (self.greenlet, self._delayed_check):
            if greenlet is not None:
                greenlet.kill(block=False)

    def after_fork(self) -> None:
        """Stop the copy of the parent's greenlet, in a forked child."""
        self.stop()
        self.greenlet = self._delayed_check = None
        self._checked_at = self.next_check_at = -math.inf

    def sweep(self, pool: NamedPool) -> None:
        """Retire old connections, close dead ones, and look for leaks."""
        now = self._clock()
        self._state.forget_all_closed()
        for entry in self._state.pop_expired(now):
            self._lifecycle.close_removed([entry], "lifetime" if now >= entry.expires_at else "idle")
        self.reclaim_from_dead_holders(pool)
        self._report_leaks(pool, now)
        self._close_dead()
        self.drop_expired()
        self._lifecycle.capacity_changed()

    def drop_expired(self) -> None:
        """Close every idle connection whose ``is_expired()`` returns True."""
        expired = self._find_idle_where(self._adapter.is_expired)
        self._lifecycle.close_removed(self._state.pop_unchanged(expired, RETIRED, "expired"), "expired")

    def _close_dead(self) -> None:
        dead = self._find_idle_where(lambda connection: not self._adapter.is_alive(connection))
        self._lifecycle.close_removed(self._state.pop_unchanged(dead, DISCARDED, "unusable"), "unusable")

    def _find_idle_where(self, predicate: Callable[[Any], bool]) -> list[tuple[Entry, int]]:
        """Return the idle entries that meet the predicate, each with its generation, because user code may switch."""
        found = []
        for entry in self._state.idle[:]:
            generation = entry.generation
            if entry.status is IDLE and predicate(entry.connection):
                found.append((entry, generation))
        return found

    def check_holders(self, pool: NamedPool, now: float) -> None:
        """Take connections back from dead greenlets: now or, if that was done just before, in a moment."""
        if now - self._checked_at >= CHECK_INTERVAL:
            self._checked_at = now
            self.reclaim_from_dead_holders(pool)
        elif self._delayed_check is None or self._delayed_check.dead:
            # The caller waits, and the delayed check finds holders that have died since the last one.
            self.next_check_at = now + CHECK_INTERVAL
            self._delayed_check = gevent.spawn_later(CHECK_INTERVAL, self._check_if_awaited, weakref.ref(pool))

    def _check_if_awaited(self, reference: weakref.ref[NamedPool]) -> None:
        self.next_check_at = -math.inf
        pool = reference()
        if pool is not None and self._state.waiters:
            self.reclaim_from_dead_holders(pool)

    def reclaim_from_dead_holders(self, pool: NamedPool) -> None:
        """Close the connections whose greenlets ended without giving them back."""
        in_use = [(entry, entry.generation) for entry in self._state.entries_in_use()]
        dead = [(entry, generation) for entry, generation in in_use if _is_dead(entry)]
        taken = [
            entry
            for entry, generation in dead
            if entry.is_leased(generation) and self._state.remove(entry, self._clock(), DISCARDED, "holder_dead")
        ]
        # The server may still be at work for them.
        self._lifecycle.close_removed(taken, "holder_dead", cancel=True)
        for entry in taken:
            logger.error(
                "pool %r took %r back: its greenlet has ended without releasing it. It was acquired %s",
                pool.name,
                entry.connection,
                _acquired_where(entry),
            )
            self._tell_of_leak(pool, entry)

    def _report_leaks(self, pool: NamedPool, now: float) -> None:
        threshold = self._settings.leak_threshold
        if threshold is None:
            return
        for entry in self._state.entries_in_use():
            in_use_for = now - entry.in_use_since
            # During its check, a connection is not yet the caller's, and its callsite is not noted.
            is_noted = entry.is_leased(entry.callsite_generation)
            if in_use_for <= threshold or not is_noted or entry.reported_generation == entry.generation:
                continue
            self._state.note_reported(entry)
            logger.warning(
                "%r of pool %r has been in use for %.1f s, longer than leak_threshold (%s s). It was acquired %s",
                entry.connection,
                pool.name,
                in_use_for,
                threshold,
                _acquired_where(entry),
            )
            self._tell_of_leak(pool, entry)

    def _tell_of_leak(self, pool: NamedPool, entry: Entry) -> None:
        if self._listener.leaked is not None:
            tell(self._listener.leaked, pool, entry.connection)


def _is_dead(entry: Entry) -> bool:
    # Read once, because the garbage collector may give the connection back at any line.
    holder = entry.holder
    if entry.status is not IN_USE or holder is None:
        return False
    greenlet = holder()
    return greenlet is None or getattr(greenlet, "dead", False) is True


def _acquired_where(entry: Entry) -> str:
    return _callsite.describe(entry.callsite if entry.generation == entry.callsite_generation else None)


def _sweep_forever(reaper: Reaper, pool: weakref.ref[NamedPool], name: str, interval: float) -> None:
    is_alive = True
    while is_alive:
        # Some programs throw exceptions at every greenlet they find.
        try:
            gevent.sleep(interval)
            is_alive = _sweep_if_alive(reaper, pool)
        except (Exception, gevent.Timeout):
            logger.exception("a sweep of pool %r failed", name)


def _sweep_if_alive(reaper: Reaper, reference: weakref.ref[NamedPool]) -> bool:
    # In its own frame, so that the next sleep does not keep the pool alive.
    pool = reference()
    if pool is None:
        return False
    reaper.sweep(pool)
    return True
