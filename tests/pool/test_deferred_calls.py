"""Where even the event loop has no room for a call, near the recursion limit, the call is made later.

``test_recursion_limit.py`` goes near the limit. Here the event loop says no by itself, once for each way to ask it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gsocketpool import Pool, PoolExhaustedError
from tests.support.scripted import Plain, numbers, settle, spawn_acquire


class Deep(Plain):
    """A connection whose answer takes more of the stack than there is, once."""

    is_too_deep = False

    def is_connected(self) -> bool:
        if self.is_too_deep:
            self.is_too_deep = False
            raise RecursionError
        return self.is_open


def full_loop(pool: Pool[Any], times: int = 1) -> None:
    """Let the event loop refuse the next calls that the pool asks it for."""
    run_callback = pool._run_callback

    def refuse(method: Callable[..., object], *arguments: Any) -> object:
        nonlocal times
        times -= 1
        if times >= 0:
            raise RecursionError
        return run_callback(method, *arguments)

    # No program can bring about that this very call fails, and nothing else.
    pool._run_callback = refuse


def test_a_give_back_near_the_recursion_limit_is_made_by_the_event_loop() -> None:
    pool = Pool(Deep, max_connections=1)
    connection = pool.acquire()
    connection.is_too_deep = True
    pool.release(connection)
    assert numbers(pool) == (1, 0, 0, 0)
    settle()
    assert numbers(pool) == (0, 1, 0, 0)
    assert pool.acquire() is connection
    pool.release(connection)
    pool.close()


def test_a_give_back_that_the_event_loop_could_not_take_is_made_when_a_caller_waits() -> None:
    pool = Pool(Deep, max_connections=1)
    connection = pool.acquire()
    connection.is_too_deep = True
    full_loop(pool)
    pool.release(connection)
    settle()
    assert numbers(pool) == (1, 0, 0, 0)
    assert pool.acquire(timeout=1) is connection
    pool.release(connection)
    pool.close()


def test_a_waiter_that_the_event_loop_could_not_wake_is_woken_when_another_times_out() -> None:
    pool = Pool(Deep, max_connections=1)
    connection = pool.acquire()
    first, second = spawn_acquire(pool, timeout=60), spawn_acquire(pool, timeout=0.05)
    full_loop(pool)
    pool.release(connection)
    settle()
    assert not first.ready(), "it has the connection, but nothing has woken it"
    assert first.get(timeout=5) is connection
    with pytest.raises(PoolExhaustedError, match=r"within 0\.05 s"):
        second.get(timeout=5)
    pool.release(connection)
    pool.close()


def test_a_child_makes_no_calls_that_its_parent_has_deferred() -> None:
    pool = Pool(Deep, max_connections=1)
    connection = pool.acquire()
    connection.is_too_deep = True
    full_loop(pool)
    pool.release(connection)
    # What a fork calls in the child.
    pool._after_fork()
    other = pool.acquire(timeout=1)
    assert other is not connection
    settle()
    assert numbers(pool) == (1, 0, 0, 0)
    pool.release(other)
    pool.close()
