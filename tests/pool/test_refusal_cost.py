"""Refusing a caller costs the same, however many connections are in use."""

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
from tests.support.scripted import PATIENCE, Plain, settle


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but what is measured goes on.

    A look for dead holders is made once, however long a measurement takes. Greenlets of other tests have ended: Python
    3.15.2 may crash when they go on under a trace.
    """
    monkeypatch.setattr("gsocketpool._reaper.CHECK_INTERVAL", 1000.0)
    gc.collect()
    settle()


def full_pool(in_use: int, **settings: Any) -> Pool[Any]:
    pool: Pool[Any] = Pool(Plain, max_connections=in_use, max_opening=None, reap_expired_connections=False, **settings)
    for _ in range(in_use):
        pool.acquire(timeout=math.inf)
    return pool


def lines_of(act: Callable[[], object]) -> int:
    """How many lines of Python a call runs, and other greenlets meanwhile."""
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
def test_a_refusal_takes_no_more_steps_where_many_are_in_use(way: str) -> None:
    def lines(pool: Pool[Any]) -> int:
        # The least of some, for a pool may do more now and then.
        return min(lines_of(lambda: refuse(pool, **WAYS[way])) for _ in range(5))

    few, many = (full_pool(in_use, max_waiting=0) for in_use in (10, 1000))
    assert lines(many) < 2 * lines(few)


@pytest.mark.parametrize("way", WAYS)
def test_a_refusal_takes_no_more_time_where_many_are_in_use(way: str) -> None:
    def seconds(pool: Pool[Any]) -> float:
        began = time.perf_counter()
        for _ in range(20):
            refuse(pool, **WAYS[way])
        return time.perf_counter() - began

    few, many = (full_pool(in_use, max_waiting=0) for in_use in (10, 4000))
    # No line of Python tells what goes through a list. Four hundred times as many in ten times the time is far from any
    # noise.
    assert min(seconds(many) for _ in range(5)) < 10 * min(seconds(few) for _ in range(5))


def test_waiters_that_time_out_together_take_no_more_steps_where_many_are_in_use() -> None:
    def wait(pool: Pool[Any]) -> None:
        # So many that what a pool does once for all of them, such as to look for dead holders, does not count.
        waiters = [gevent.spawn(refuse, pool, timeout=0.02) for _ in range(200)]
        gevent.joinall(waiters, raise_error=True)

    few, many = (full_pool(in_use) for in_use in (10, 1000))
    assert lines_of(lambda: wait(many)) < 4 * lines_of(lambda: wait(few))


def test_an_error_knows_what_its_caller_held_at_that_moment() -> None:
    pool = full_pool(3)
    with pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(timeout=0)
    pool.resize(4)
    pool.acquire()
    assert caught.value.held_by_caller == 3
    assert caught.value.in_use == 3
    assert "3 in use" in str(caught.value)
    assert "this greenlet holds 3 of them already" in str(caught.value)


def test_an_error_does_not_count_what_its_caller_has_given_back() -> None:
    pool: Pool[Any] = Pool(Plain, max_connections=1)
    connection = pool.acquire()
    with pytest.raises(PoolExhaustedError, match="this greenlet holds 1 of them already"):
        pool.acquire(timeout=0)
    holder = gevent.spawn(hold, pool)
    gevent.sleep(0)
    pool.release(connection)
    gevent.sleep(0)
    try:
        with pytest.raises(PoolExhaustedError) as caught:
            pool.acquire(timeout=0)
        assert caught.value.in_use == 1
        assert caught.value.held_by_caller == 0
        assert "this greenlet" not in str(caught.value)
    finally:
        holder.kill()


def hold(pool: Pool[Any]) -> None:
    with pool.connection():
        gevent.sleep(PATIENCE)


def test_an_error_counts_what_its_caller_has_acquired_a_moment_ago() -> None:
    pool: Pool[Any] = Pool(Plain, max_connections=1)
    connection = pool.acquire()
    refused = gevent.spawn(refuse, pool, timeout=0)
    refused.get(timeout=PATIENCE)
    pool.release(connection)
    acquired = gevent.spawn(acquire_two, pool)
    assert acquired.get(timeout=PATIENCE).held_by_caller == 1


def acquire_two(pool: Pool[Any]) -> PoolExhaustedError:
    with pool.connection(), pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(timeout=0)
    return caught.value
