"""A pool has at most ``max_connections``, serves waiters in their order, and its error says how full it is."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from gsocketpool import Pool, PoolExhaustedError
from tests.support.callers import ended_by
from tests.support.scripted import PATIENCE, Backend, Plain, numbers, settle, spawn_acquire


def test_a_pool_opens_a_connection_when_it_has_none_and_reuses_it(backend: Backend) -> None:
    pool = Pool(backend.connect, {"answer": 42})
    with pool.connection() as first:
        assert first.is_open
        assert first.options == {"answer": 42}
    with pool.connection() as second:
        assert second is first
    assert len(backend.connections) == 1


def test_a_pool_never_opens_more_than_max_connections(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=3, max_opening=None)
    most = 0

    def work() -> None:
        nonlocal most
        for _ in range(5):
            with pool.connection():
                most = max(most, sum(numbers(pool)[:3]))
                assert pool.size <= 3
                gevent.sleep(0)

    gevent.joinall([gevent.spawn(work) for _ in range(20)], raise_error=True)
    assert most == 3
    assert backend.most_open == 3
    assert len(backend.connections) == 3


def test_openings_count_towards_the_limit(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, max_connections=2)
    callers = [spawn_acquire(pool) for _ in range(5)]
    assert numbers(pool) == (0, 0, 2, 5)
    assert pool.size == 2
    backend.opens.set()
    settle()
    assert [caller.ready() for caller in callers] == [True, True, False, False, False]
    gevent.killall(callers)


def test_waiters_are_served_first_come_first_served(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    order: list[int] = []

    def work(number: int) -> None:
        with pool.connection():
            order.append(number)
            gevent.sleep(0)

    gevent.joinall([gevent.spawn(work, number) for number in range(20)], raise_error=True)
    assert order == list(range(20))


def test_a_released_connection_is_handed_over_at_once_and_no_caller_overtakes(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    waiter = spawn_acquire(pool)
    pool.release(held)
    # No switch has happened, and it is the waiter's already.
    assert numbers(pool) == (1, 0, 0, 0)
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    assert waiter.get(timeout=PATIENCE) is held


def test_a_waiter_whose_connection_turns_out_bad_keeps_its_place(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    first, second = spawn_acquire(pool), spawn_acquire(pool)
    pool.release(held)
    held.is_open = False  # After it was handed over, before the waiter has run.
    settle()
    assert first.ready()
    assert first.value is not held
    assert not second.ready()
    second.kill()


def test_waiters_whose_connections_turn_out_bad_keep_their_order(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=2, max_opening=1)
    held = [pool.acquire(), pool.acquire()]
    order: list[str] = []

    def work(name: str) -> None:
        pool.acquire()
        order.append(name)

    waiters = [gevent.spawn(work, name) for name in "abcd"]
    settle()
    for connection in held:
        pool.release(connection)
        connection.is_open = False
    settle()
    assert order == ["a", "b"]
    gevent.killall(waiters)


def test_a_released_connection_reaches_its_waiter_in_one_turn_of_the_event_loop(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    waiter = spawn_acquire(pool)
    pool.release(held)
    # One turn of the event loop is all it takes.
    gevent.sleep(0)
    assert waiter.ready()


def test_idle_connections_are_reused_last_in_first_out(backend: Backend) -> None:
    pool = Pool(backend.connect)
    first, second, third = (pool.acquire() for _ in range(3))
    for connection in (second, third, first):
        pool.release(connection)
    assert [pool.acquire().number for _ in range(3)] == [first.number, third.number, second.number]


def test_an_error_does_not_count_connections_of_other_greenlets_as_held_by_its_caller(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    holder = gevent.spawn(lambda: (pool.acquire(), gevent.sleep(PATIENCE)))
    settle()
    with pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(timeout=0)
    assert caught.value.held_by_caller == 0
    assert "already" not in str(caught.value)
    holder.kill()


def test_the_queue_is_bounded_by_max_waiting(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1, max_waiting=2)
    held = pool.acquire()
    waiters = [spawn_acquire(pool), spawn_acquire(pool)]
    with pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(timeout=PATIENCE)
    assert caught.value.waiting == 2
    assert str(caught.value).startswith("max_waiting (2) callers already wait for pool 'connect': 1 in use")
    assert caught.value.waited < 1
    assert pool.stats().refused == 1
    pool.release(held)
    assert waiters[0].get(timeout=PATIENCE) is held
    gevent.killall(waiters)


def test_a_pool_without_a_queue_still_opens_connections(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1, max_waiting=0)
    connection = pool.acquire()
    with pytest.raises(PoolExhaustedError):
        pool.acquire()
    pool.release(connection)
    assert pool.acquire() is connection


def test_the_error_of_a_full_pool_reports_the_last_open_error(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=2)
    pool.acquire()
    backend.failures.append(ConnectionRefusedError(111, "no"))
    with pytest.raises(ConnectionRefusedError):
        pool.acquire()
    backend.opens.clear()
    with pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(timeout=0.01)
    assert caught.value.last_open_error == "ConnectionRefusedError: [Errno 111] no"
    assert "ConnectionRefusedError: [Errno 111] no" in str(caught.value)


def test_two_pools_share_neither_connections_nor_waiters(backend: Backend) -> None:
    first, second = Pool(backend.connect, max_connections=1), Pool(backend.connect, max_connections=1)
    connection = first.acquire()
    other = second.acquire()
    waiter = spawn_acquire(first)
    second.release(other)
    settle()
    assert not waiter.ready()
    with pytest.raises(PoolExhaustedError):
        first.acquire(timeout=0)
    first.release(connection)
    assert waiter.get(timeout=PATIENCE) is connection


# What the error says


def test_an_error_reports_how_many_connections_its_caller_held_when_it_was_raised() -> None:
    pool: Pool[Any] = Pool(Plain, max_connections=3)
    for _ in range(3):
        pool.acquire()
    with pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(timeout=0)
    pool.resize(4)
    pool.acquire()
    assert caught.value.held_by_caller == 3
    assert caught.value.in_use == 3
    assert "3 in use" in str(caught.value)
    assert "this greenlet holds 3 of them already" in str(caught.value)


def test_an_error_does_not_count_a_connection_that_its_caller_gave_back() -> None:
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


def test_an_error_counts_a_connection_that_its_caller_has_just_acquired() -> None:
    pool: Pool[Any] = Pool(Plain, max_connections=1)
    connection = pool.acquire()
    refused = gevent.spawn(ended_by, pool.acquire, timeout=0)
    assert isinstance(refused.get(timeout=PATIENCE), PoolExhaustedError)
    pool.release(connection)
    acquired = gevent.spawn(acquire_two, pool)
    assert acquired.get(timeout=PATIENCE).held_by_caller == 1


def acquire_two(pool: Pool[Any]) -> PoolExhaustedError:
    with pool.connection(), pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(timeout=0)
    return caught.value
