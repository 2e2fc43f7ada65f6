"""``resize()`` changes ``max_connections`` while the pool is in use."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from gsocketpool import InvalidArgumentError, Pool
from tests.support.scripted import PATIENCE, Backend, numbers, settle, spawn_acquire


def test_a_raised_limit_serves_the_waiters(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    pool.acquire()
    waiter = spawn_acquire(pool)
    pool.resize(2)
    assert waiter.get(timeout=PATIENCE).number == 1
    assert pool.stats().max_connections == 2


def test_shrinking_retires_idle_connections_then_others_on_their_return(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=4)
    connections = [pool.acquire() for _ in range(4)]
    pool.release(connections[0])
    pool.release(connections[1])
    pool.resize(3)
    assert [connection.is_open for connection in connections] == [False, True, True, True]
    pool.resize(1)
    assert [connection.is_open for connection in connections] == [False, False, True, True]
    pool.release(connections[2])
    pool.release(connections[3])
    settle()
    assert [connection.is_open for connection in connections] == [False, False, False, True]
    assert pool.stats().retired == {"surplus": 3}


def test_shrinking_counts_connections_that_are_being_opened(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=4, max_opening=None)
    held = [pool.acquire(), pool.acquire()]
    backend.opens.clear()
    callers = [spawn_acquire(pool) for _ in range(2)]
    settle()
    gevent.killall(callers)
    assert numbers(pool) == (2, 0, 2, 0), "openings go on without their callers"
    pool.resize(2)
    for connection in held:
        pool.release(connection)
    assert pool.size == 2
    backend.opens.set()
    settle()
    assert numbers(pool) == (0, 2, 0, 0)


@pytest.mark.parametrize("limit", [0, 1, -1, None, 2.0, "3"])
def test_a_bad_size_is_refused(backend: Backend, limit: Any) -> None:
    pool = Pool(backend.connect, min_connections=2)
    with pytest.raises(InvalidArgumentError, match="max_connections must be a whole number of at least 2"):
        pool.resize(limit)
    pool.close(timeout=0)
