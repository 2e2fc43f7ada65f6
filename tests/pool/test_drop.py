"""``drop()`` takes an idle connection out, or forgets a broken one that was just released, as in gsocketpool 0.1.6."""

from __future__ import annotations

from typing import Any

import pytest

from gsocketpool import ConnectionNotFoundError, Pool
from tests.support.connections import Classic
from tests.support.connections import no_hanging as no_hanging
from tests.support.scripted import Backend, ScriptedConnection, eventually, numbers


def broken(backend: Backend, pool: Pool[Any]) -> Any:
    """A connection in use that says that it is closed."""
    connection = pool.acquire()
    connection.is_open = False
    return connection


def test_a_broken_connection_may_be_released_and_then_dropped(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    connection = broken(backend, pool)
    pool.release(connection)
    before = pool.stats()
    pool.drop(connection)
    after = pool.stats()
    assert (after.opened, after.discarded, after.retired) == (before.opened, before.discarded, before.retired)
    assert numbers(pool) == (0, 0, 0, 0)
    assert pool.acquire() is not connection


def test_a_broken_connection_of_a_0_1_6_class_may_be_released_and_then_dropped() -> None:
    pool = Pool(Classic)
    connection = pool.acquire()
    connection.close()
    pool.release(connection)
    pool.drop(connection)
    assert numbers(pool) == (0, 0, 0, 0)


def test_a_pool_remembers_at_most_64_broken_connections(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=100, max_opening=None)
    connections = [broken(backend, pool) for _ in range(100)]
    for connection in connections:
        pool.release(connection)
    for connection in connections[-64:]:
        pool.drop(connection)
    for connection in connections[:-64]:
        with pytest.raises(ConnectionNotFoundError):
            pool.drop(connection)


def test_a_pool_remembers_broken_connections_until_the_next_sweep(backend: Backend) -> None:
    class Counting(ScriptedConnection):
        sweeps = 0

        def is_expired(self) -> bool:
            self.sweeps += 1
            return False

    pool = Pool(lambda: Counting(backend, {}), reap_interval=0.01)
    try:
        idle, first, second = pool.acquire(), broken(backend, pool), broken(backend, pool)
        pool.release(idle)
        pool.release(first)
        pool.drop(first)
        pool.release(second)
        idle.sweeps = 0
        eventually(lambda: idle.sweeps >= 2)
        with pytest.raises(ConnectionNotFoundError):
            pool.drop(second)
    finally:
        pool.close(timeout=0)


def test_drop_refuses_a_connection_that_another_pool_has_closed(backend: Backend) -> None:
    pools = [Pool(backend.connect) for _ in range(2)]
    connection = broken(backend, pools[0])
    pools[0].release(connection)
    with pytest.raises(ConnectionNotFoundError):
        pools[1].drop(connection)


def test_drop_closes_an_idle_connection_and_refuses_any_other(backend: Backend) -> None:
    pool = Pool(backend.connect)
    idle, held = pool.acquire(), pool.acquire()
    pool.release(idle)
    for wrong in (held, None, backend.connect()):
        with pytest.raises(ConnectionNotFoundError, match="is not idle in pool 'connect'"):
            pool.drop(wrong)
    pool.drop(idle)
    assert not idle.is_open
    assert numbers(pool) == (1, 0, 0, 0)
    assert pool.stats().retired == {"dropped": 1}
