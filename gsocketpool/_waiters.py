"""Wakes waiting callers. One timer serves all of them: one for each would double what a wait costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gsocketpool._records import Waiter
from gsocketpool._state import State
from gsocketpool.settings import timer_seconds

#: How late a timeout may fire, in seconds per queued waiter: looking at all of them takes time.
LATENESS = 1e-6


class Waiters:
    """The waiting callers of one pool."""

    def __init__(self, state: State, clock: Callable[[], float]) -> None:
        self._state = state
        self._clock = clock
        self._hub: Any = None
        #: When the timer fires; infinite while there is none.
        self.fires_at = math.inf
        self._timer: Any = None
        #: Calls that the event loop could not be asked for, near the recursion limit.
        self.deferred: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def attach(self, hub: Any) -> None:
        """Work in the event loop of `hub` from now on."""
        self._hub = hub

    def wake(self, waiter: Waiter) -> None:
        """Let the greenlet of a waiter that has left the queue go on, in the next turn of the event loop."""
        self._hub.loop.run_callback(waiter.hub_waiter.switch, None)

    def run_deferred(self) -> None:
        """Have the event loop make the calls that it could not be asked for before."""
        if self.deferred:
            self._hub.loop.run_callback(self._call_deferred)

    def _call_deferred(self) -> None:
        while self.deferred:
            method, arguments = self.deferred.pop(0)
            method(*arguments)

    def time_out(self) -> None:
        """Wake the waiters whose time is over."""
        self.stop_timer()
        if self.deferred:
            # First, for one of these calls may serve a waiter.
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
        """Stop the copy of the parent's timer, in a forked child, unless waiters were copied, too."""
        self.deferred.clear()
        if not self._state.waiters:
            self.stop_timer()

    def start_timer(self, at: float) -> None:
        """Wake those whose time is over at the time `at`, and not before."""
        self.stop_timer()
        self._timer = self._hub.loop.timer(timer_seconds(at - self._clock()))
        # The event loop's idea of the time is as old as its present turn, which may have been a long one.
        self._timer.start(self.time_out, update=True)
        self.fires_at = at

    def stop_timer(self) -> None:
        """Let the timer rest: no caller waits."""
        self.fires_at = math.inf
        if self._timer is not None:
            self._timer.close()
            self._timer = None
