"""Acquiring, releasing and refusing cost the same, however many connections are in use or idle."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from gsocketpool import Pool, PoolExhaustedError
from tests.support.internals import look_once_for_dead_holders
from tests.support.scripted import Plain, settle


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but what is measured goes on.

    A look for dead holders is made once, however long a measurement takes. Greenlets of other tests have ended: Python
    3.15.2 may crash when they go on under a trace.
    """
    look_once_for_dead_holders(monkeypatch)
    gc.collect()
    settle()


def full_pool(in_use: int, **settings: Any) -> Pool[Any]:
    pool: Pool[Any] = Pool(Plain, max_connections=in_use, max_opening=None, reap_expired_connections=False, **settings)
    for _ in range(in_use):
        pool.acquire(timeout=math.inf)
    return pool


def lines_of(act: Callable[[], object]) -> int:
    """Return how many lines of Python a call runs, and other greenlets meanwhile."""
    lines = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return lines


def refuse(pool: Pool[Any], **arguments: Any) -> None:
    try:
        pool.acquire(**arguments)
    except PoolExhaustedError:
        return
    raise AssertionError("it was not refused")


#: The arguments of an acquire that is refused at once by a pool without a queue.
WAYS: dict[str, dict[str, Any]] = {"no queue": {"timeout": 1}, "no time": {"timeout": 0}, "no retry": {"retry": 0}}


@pytest.mark.parametrize("way", WAYS)
def test_a_refusal_runs_no_more_lines_with_many_connections_in_use(way: str) -> None:
    def lines(pool: Pool[Any]) -> int:
        # The least of some, for a pool may do more now and then.
        return min(lines_of(lambda: refuse(pool, **WAYS[way])) for _ in range(5))

    few, many = (full_pool(in_use, max_waiting=0) for in_use in (10, 1000))
    assert lines(many) < 2 * lines(few)


@pytest.mark.parametrize("way", WAYS)
def test_a_refusal_takes_no_more_time_with_many_connections_in_use(way: str) -> None:
    def seconds(pool: Pool[Any]) -> float:
        began = time.perf_counter()
        for _ in range(20):
            refuse(pool, **WAYS[way])
        return time.perf_counter() - began

    few, many = (full_pool(in_use, max_waiting=0) for in_use in (10, 4000))
    # No line of Python tells what goes through a list. Four hundred times as many in ten times the time is far from any
    # noise.
    assert min(seconds(many) for _ in range(5)) < 10 * min(seconds(few) for _ in range(5))


def test_waiters_that_time_out_together_run_no_more_lines_with_many_connections_in_use() -> None:
    def wait(pool: Pool[Any]) -> None:
        # So many that what a pool does once for all of them, such as to look for dead holders, does not count.
        waiters = [gevent.spawn(refuse, pool, timeout=0.02) for _ in range(200)]
        gevent.joinall(waiters, raise_error=True)

    few, many = (full_pool(in_use) for in_use in (10, 1000))
    assert lines_of(lambda: wait(many)) < 4 * lines_of(lambda: wait(few))


class Cheap:
    """The least that a pool takes for a connection."""

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def is_connected(self) -> bool:
        return True


def count_steps(pool: Pool[Any]) -> int:
    """Return how many lines of Python one acquire and release run."""
    pool.release(pool.acquire())
    return lines_of(lambda: pool.release(pool.acquire()))


def test_the_cost_of_a_use_does_not_depend_on_how_many_connections_are_in_use_or_idle() -> None:
    def pool_with(in_use: int, idle: int) -> Pool[Any]:
        pool: Pool[Any] = Pool(Cheap, max_connections=10_001, max_opening=None)
        connections = [pool.acquire() for _ in range(in_use + idle)]
        for connection in connections[:idle]:
            pool.release(connection)
        return pool

    steps = count_steps(pool_with(0, 0))
    assert count_steps(pool_with(2000, 0)) == steps
    assert count_steps(pool_with(0, 2000)) == steps

    def seconds(pool: Pool[Any]) -> float:
        began = time.perf_counter()
        for _ in range(200):
            pool.release(pool.acquire())
        return time.perf_counter() - began

    # What a list's remove() or an `in` would cost is no line of Python. Ten times is far from any noise, and far below
    # what walking through thousands would take.
    small, with_many_in_use, with_many_idle = (
        min(seconds(pool) for _ in range(3)) for pool in (pool_with(0, 0), pool_with(5000, 0), pool_with(0, 5000))
    )
    assert with_many_in_use < 10 * small + 0.001
    assert with_many_idle < 10 * small + 0.001
