"""Pings idle connections before a server or a firewall drops them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from gsocketpool._records import PINGING, Entry
from gsocketpool._state import State
from gsocketpool._upkeep import Upkeep
from gsocketpool.settings import timer_seconds


class Keepalive:
    """Pings the idle connections of one pool, one at a time, when `interval` seconds have passed without an exchange.

    A timer of the event loop starts it, because a sleeping greenlet could be killed. It does not refer to the pool.
    """

    def __init__(self, interval: float, state: State, clock: Callable[[], float], upkeep: Upkeep) -> None:
        self._interval = interval
        self._state = state
        self._clock = clock
        self._upkeep = upkeep
        self._loop: Any = None
        self._timer: Any = None
        #: The entries to ping next, each with its generation, because a caller may use it first.
        self._due: deque[tuple[Entry, int]] = deque()
        #: The entry that is being pinged.
        self._pinged: Entry | None = None

    def start(self, loop: Any) -> None:
        """Start in this event loop."""
        self._loop = loop
        self._ping_next()

    def stop(self) -> None:
        """Stop pinging."""
        self._pinged = None
        self._due.clear()
        self._stop_timer()

    def ping_due(self) -> None:
        """Start pinging the connections that are due, the longest overdue first."""
        now = self._clock()
        silent = [(since, entry) for since, entry in self._state.pingable(now) if now - since >= self._interval]
        self._due = deque((entry, entry.generation) for _, entry in sorted(silent, key=itemgetter(0)))
        self._ping_next()

    def ended(self, entry: Entry) -> None:
        """Ping the next connection, now that the ping of `entry` has ended."""
        if self._pinged is entry:
            self._pinged = None
            self._ping_next()

    def _ping_next(self) -> None:
        """Ping the next connection that is due; if none is, set the timer."""
        self._stop_timer()
        if self._pinged is not None:
            return
        while self._due:
            entry, generation = self._due.popleft()
            if self._state.begin_ping(entry, generation):
                self._pinged = entry
                self._loop.run_callback(self._start_ping, entry)
                return
        now = self._clock()
        first = min((since for since, _ in self._state.pingable(now)), default=now)
        self._timer = self._loop.timer(timer_seconds(first + self._interval - now))
        self._timer.start(self.ping_due, update=True)

    def _start_ping(self, entry: Entry) -> None:
        if entry.status is PINGING:
            self._upkeep.start(entry)
        else:
            # It was discarded before its ping began.
            self.ended(entry)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None
