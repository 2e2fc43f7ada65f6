"""The state of a pool in words and numbers."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

from gsocketpool._state import State
from gsocketpool.exceptions import PoolExhaustedError
from gsocketpool.stats import PoolStats


def census(state: State) -> str:
    return (
        f"{state.in_use} in use, {len(state.idle)} idle, {len(state.opening)} opening,"
        f" at most {state.max_connections}; {len(state.waiters)} waiting"
    )


def snapshot(name: str, state: State) -> PoolStats:
    return PoolStats(
        name=name,
        max_connections=state.max_connections,
        idle=len(state.idle),
        in_use=state.in_use,
        opening=len(state.opening),
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
    caller: Any,
    last_open_error: str | None,
) -> PoolExhaustedError:
    """The error for `caller`, who gives up or is turned away."""
    if is_refused:
        what = f"max_waiting ({state.max_waiting}) callers wait for pool {name!r} already"
    elif timeout:
        what = f"no connection from pool {name!r} within {timeout:g} s (waited {waited:.3f} s)"
    else:
        what = f"no idle connection in pool {name!r}"
    held = sum(entry.holder is caller for entry in state.entries_in_use())
    itself = f"; this greenlet holds {held} of them already" if held else ""
    return PoolExhaustedError(
        f"{what}: {census(state)}{itself}{open_error_note(last_open_error)}",
        in_use=state.in_use,
        idle=len(state.idle),
        opening=len(state.opening),
        waiting=len(state.waiters),
        max_connections=state.max_connections,
        timeout=None if timeout == math.inf else timeout,
        waited=waited,
        held_by_caller=held,
        last_open_error=last_open_error,
    )


def open_error_note(last_open_error: str | None) -> str:
    return "" if last_open_error is None else f"; opening one last failed with {last_open_error}"
