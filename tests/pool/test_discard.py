"""A block discards its connection after an error, and a pool keeps no connection that it can't use again."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from gsocketpool import Pool
from tests.support.scripted import PATIENCE, Backend, ScriptedConnection, numbers, settle, spawn_acquire


@pytest.mark.parametrize(
    "error",
    [ValueError(), gevent.Timeout(1), gevent.GreenletExit(), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_a_block_left_by_an_exception_discards_its_connection(backend: Backend, error: BaseException) -> None:
    pool = Pool(backend.connect)
    with pytest.raises(type(error)) as caught, pool.connection() as connection:
        raise error
    assert caught.value is error
    assert numbers(pool) == (0, 0, 0, 0)
    assert pool.stats().discarded == {"error": 1}
    settle()
    assert not connection.is_open


def test_a_generator_closed_inside_its_block_discards_its_connection(backend: Backend) -> None:
    pool = Pool(backend.connect)

    def rows() -> Any:
        with pool.connection() as connection:
            yield connection
            yield connection

    iterator = rows()
    connection = next(iterator)
    iterator.close()
    assert numbers(pool) == (0, 0, 0, 0)
    settle()
    assert not connection.is_open


def test_is_reusable_can_keep_a_connection_after_an_error(backend: Backend) -> None:
    class Wise(ScriptedConnection):
        def is_reusable(self, error: BaseException | None) -> bool:
            return not isinstance(error, OSError)

    pool = Pool(lambda: backend.add(Wise(backend, {})))
    with pytest.raises(LookupError), pool.connection():
        raise LookupError
    assert numbers(pool) == (0, 1, 0, 0)
    with pytest.raises(OSError, match="gone"), pool.connection():
        raise OSError("gone")
    assert numbers(pool) == (0, 0, 0, 0)


def test_is_reusable_must_return_exactly_true(backend: Backend) -> None:
    """A mock returns something true for every call."""

    class Vague(ScriptedConnection):
        def is_reusable(self, error: BaseException | None) -> Any:
            return "maybe"

    pool = Pool(lambda: backend.add(Vague(backend, {})))
    with pytest.raises(LookupError), pool.connection():
        raise LookupError
    assert numbers(pool) == (0, 0, 0, 0)
    settle()
    assert not backend.open


def test_discard_closes_a_connection_and_counts_it_as_explicit(backend: Backend) -> None:
    pool = Pool(backend.connect)
    connection = pool.acquire()
    pool.discard(connection)
    assert numbers(pool) == (0, 0, 0, 0)
    assert pool.stats().discarded == {"explicit": 1}
    settle()
    assert not connection.is_open
    with pool.connection() as connection:
        pool.discard(connection)
        other = pool.acquire()
    settle()
    assert not connection.is_open
    assert other.is_open, "the end of the block concerns its own connection alone"
    assert numbers(pool) == (1, 0, 0, 0)


def test_an_idle_connection_may_be_discarded(backend: Backend) -> None:
    pool = Pool(backend.connect)
    connection, other = pool.acquire(), pool.acquire()
    pool.release(connection)
    pool.release(other)
    pool.discard(connection)
    assert numbers(pool) == (0, 1, 0, 0)
    assert pool.stats().discarded == {"explicit": 1}
    settle()
    assert not connection.is_open
    assert pool.acquire(timeout=0) is other


def test_a_block_can_be_entered_only_once(backend: Backend) -> None:
    pool = Pool(backend.connect)
    block = pool.connection()
    with block, pytest.raises(RuntimeError, match="call connection\\(\\) again for another"):
        block.__enter__()
    with pytest.raises(RuntimeError):
        block.__enter__()
    assert numbers(pool) == (0, 1, 0, 0)


def test_a_block_does_not_give_back_a_connection_that_was_acquired_again(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    with pool.connection() as connection:
        pool.release(connection)
        assert pool.acquire() is connection
    assert numbers(pool) == (1, 0, 0, 0)


def test_a_detached_connection_stays_open_and_makes_room_for_another(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    with pool.connection() as connection:
        assert pool.detach(connection) is connection
        assert numbers(pool) == (0, 0, 0, 0)
        waiter = spawn_acquire(pool)
        assert waiter.get(timeout=PATIENCE) is not connection
    assert connection.is_open
    assert numbers(pool) == (1, 0, 0, 0)


def test_a_connection_closed_by_its_user_is_not_kept(backend: Backend) -> None:
    pool = Pool(backend.connect)
    with pool.connection() as connection:
        connection.close()
    assert numbers(pool) == (0, 0, 0, 0)
    assert pool.stats().discarded == {"not_reusable": 1}
    assert connection.closings == 1, "it was closed already"
