"""Describes the state of a pool in words and numbers."""

from __future__ import annotations

import math
import time
from collections import Counter
from types import MappingProxyType
from typing import Any

from gsocketpool._state import State
from gsocketpool.exceptions import PoolExhaustedError
from gsocketpool.stats import PoolStats

#: Seconds for which a count is good enough for the text of an error.
COUNT_LIFETIME = 0.05
#: Up to so many connections in use, each error makes its own count.
FEW = 100


class HolderCounts:
    """Counts the connections of a pool that a greenlet holds.

    Counting visits every connection in use. If they are many, errors in quick succession share one count.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._counts: Counter[Any] = Counter()
        self._counted_at = -math.inf

    def of(self, holder: Any) -> int:
        """Return how many connections a greenlet holds or held a moment ago.

        :param holder: a weak reference to the greenlet.
        """
        if self._state.in_use <= FEW:
            return sum(entry.holder is holder for entry in self._state.entries_in_use())
        now = time.monotonic()
        if now - self._counted_at > COUNT_LIFETIME:
            # By identity: a reference to a dead greenlet can't be hashed.
            self._counts = Counter(id(entry.holder) for entry in self._state.entries_in_use())
            self._counted_at = now
        return self._counts[id(holder)]


def summary(state: State) -> str:
    resetting = f" {state.resetting} resetting," if state.resetting else ""
    return (
        f"{state.in_use} in use, {len(state.idle)} idle, {len(state.opening)} opening,{resetting}"
        f" at most {state.max_connections}; {len(state.waiters)} waiting"
    )


def snapshot(name: str, state: State, closing: int, can_peek: bool | None) -> PoolStats:
    return PoolStats(
        name=name,
        max_connections=state.max_connections,
        idle=len(state.idle),
        in_use=state.in_use,
        opening=len(state.opening),
        resetting=state.resetting,
        closing=closing,
        can_peek=can_peek,
        waiting=len(state.waiters),
        acquired_at_once=state.acquired_at_once,
        acquired_after_wait=state.acquired_after_wait,
        timed_out=state.timed_out,
        refused=state.refused,
        opened=state.opened,
        open_errors=state.open_errors,
        detached=state.detached,
        discarded=MappingProxyType(dict(state.discarded)),
        retired=MappingProxyType(dict(state.retired)),
        wait_time=state.wait_time,
        use_time=state.use_time,
        open_time=state.open_time,
    )


def exhausted(
    name: str,
    state: State,
    *,
    is_refused: bool,
    timeout: float,
    waited: float,
    held: int,
    last_open_error: str | None,
) -> PoolExhaustedError:
    """Return the error for a caller that times out or is refused, and that holds `held` connections itself."""
    if is_refused:
        what = f"max_waiting ({state.max_waiting}) callers already wait for pool {name!r}"
    elif timeout:
        what = f"no connection from pool {name!r} within {timeout:g} s (waited {waited:.3f} s)"
    else:
        what = f"no idle connection in pool {name!r}"
    itself = f"; this greenlet holds {held} of them already" if held else ""
    return PoolExhaustedError(
        f"{what}: {summary(state)}{itself}{open_error_note(last_open_error)}",
        in_use=state.in_use,
        idle=len(state.idle),
        opening=len(state.opening),
        waiting=len(state.waiters),
        max_connections=state.max_connections,
        timeout=None if timeout == math.inf else timeout,
        waited=waited,
        held_by_caller=held,
        last_open_error=last_open_error,
        pool_name=name,
    )


def open_error_note(last_open_error: str | None) -> str:
    return "" if last_open_error is None else f"; the last attempt to open one failed with {last_open_error}"
