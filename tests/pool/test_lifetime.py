"""``max_lifetime`` and ``idle_timeout`` retire connections."""

from __future__ import annotations

import math

from gsocketpool import Pool
from tests.support.internals import ends_of_lifetimes
from tests.support.scripted import PATIENCE, Backend, Clock, eventually, numbers, settle, spawn_acquire


def test_a_connection_is_retired_at_the_end_of_its_lifetime(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, max_lifetime=100)
    first = pool.acquire()
    pool.release(first)
    clock.advance(89)
    assert pool.acquire() is first
    clock.advance(11)
    pool.release(first)
    settle()
    assert not first.is_open, "in use: on its return"
    second = pool.acquire()
    pool.release(second)
    clock.advance(100)
    assert pool.acquire() is not second, "idle: when it would be handed out"
    assert pool.stats().retired == {"lifetime": 2}


def test_a_connection_whose_lifetime_ends_before_its_waiter_wakes_is_replaced(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, max_connections=1, max_lifetime=100)
    first = pool.acquire()
    waiter = spawn_acquire(pool, timeout=math.inf)
    pool.release(first)
    clock.advance(101)
    assert waiter.get(timeout=PATIENCE) is not first
    assert pool.stats().retired == {"lifetime": 1}


def test_lifetimes_are_shortened_at_random_by_up_to_a_tenth(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, max_lifetime=100, max_opening=None)
    for connection in [pool.acquire() for _ in range(200)]:
        pool.release(connection)
    ends = [end - clock.now for end in ends_of_lifetimes(pool)]
    assert all(90 <= end <= 100 for end in ends)
    assert max(ends) - min(ends) > 5
    before = list(ends)
    for connection in [pool.acquire() for _ in range(200)]:
        pool.release(connection)
    assert sorted(end - clock.now for end in ends_of_lifetimes(pool)) == sorted(before), "computed once"


def test_a_connection_with_the_shortest_lifetime_serves_one_use(backend: Backend) -> None:
    pool = Pool(backend.connect, max_lifetime=1e-9)
    with pool.connection() as connection:
        assert backend.connections == [connection]
    assert pool.stats().retired == {"lifetime": 1}
    settle()
    assert not connection.is_open


def test_a_connection_idle_for_too_long_is_retired(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, idle_timeout=10, max_connections=1)
    first = pool.acquire()
    clock.advance(50)
    pool.release(first)
    clock.advance(9)
    assert pool.acquire() is first
    clock.advance(50)
    waiter = spawn_acquire(pool)
    pool.release(first)
    assert waiter.get(timeout=PATIENCE) is first, "handed over, it was not idle at all"
    pool.release(first)
    clock.advance(10)
    assert pool.acquire() is not first
    assert pool.stats().retired == {"idle": 1}


def test_a_sweep_retires_connections_idle_for_too_long(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, idle_timeout=60, max_lifetime=1000, reap_interval=0.005)
    for connection in [pool.acquire() for _ in range(3)]:
        pool.release(connection)
    clock.advance(59)
    used = pool.acquire()
    pool.release(used)
    clock.advance(1)
    eventually(lambda: len(backend.open) == 1)
    assert used.is_open
    assert numbers(pool) == (0, 1, 0, 0)
    assert pool.stats().retired == {"idle": 2}
    pool.close()
