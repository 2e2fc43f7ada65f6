"""Wakes waiters. One timer serves all of them, because one for each would double the cost of a wait."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gsocketpool._records import Waiter
from gsocketpool._state import State
from gsocketpool.settings import timer_seconds

#: How late a timeout may fire, in seconds per queued waiter, because each timeout visits all of them.
LATENESS = 1e-6


class Waiters:
    """The waiters of one pool."""

    def __init__(self, state: State, clock: Callable[[], float]) -> None:
        self._state = state
        self._clock = clock
        self._hub: Any = None
        #: When the timer fires; infinity if none is set.
        self.fires_at = math.inf
        self._timer: Any = None
        #: Calls that could not be passed to the event loop, near the recursion limit.
        self.deferred: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def attach(self, hub: Any) -> None:
        """Use the event loop of `hub`."""
        self._hub = hub

    def wake(self, waiter: Waiter) -> None:
        """Resume a waiter that has left the queue, in the next turn of the event loop."""
        self._hub.loop.run_callback(waiter.hub_waiter.switch, None)

    def run_deferred(self) -> None:
        """Let the event loop make the deferred calls."""
        if self.deferred:
            self._hub.loop.run_callback(self._call_deferred)

    def _call_deferred(self) -> None:
        while self.deferred:
            method, arguments = self.deferred.pop(0)
            method(*arguments)

    def time_out(self) -> None:
        """Wake the waiters whose deadline has passed."""
        self.stop_timer()
        if self.deferred:
            # First, because a deferred call may serve a waiter.
            self.run_deferred()
            self._hub.loop.run_callback(self.time_out)
            return
        now = self._clock()
        for waiter in self._state.pop_timed_out(now):
            self.wake(waiter)
        first = self._state.next_deadline()
        if first < math.inf:
            self.start_timer(max(first, now + len(self._state.waiters) * LATENESS))

    def after_fork(self) -> None:
        """Stop the copied timer in a forked child, unless there are copied waiters."""
        self.deferred.clear()
        if not self._state.waiters:
            self.stop_timer()

    def start_timer(self, at: float) -> None:
        """Set the timer to the time `at`."""
        self.stop_timer()
        self._timer = self._hub.loop.timer(timer_seconds(at - self._clock()))
        # With an update, because the loop's time is that of the start of its current turn, which may be a long one.
        self._timer.start(self.time_out, update=True)
        self.fires_at = at

    def stop_timer(self) -> None:
        """Stop the timer."""
        self.fires_at = math.inf
        if self._timer is not None:
            self._timer.close()
            self._timer = None
