"""A pool measures time by the clock that it is given."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import Pool, PoolExhaustedError
from tests.support.connections import outcome
from tests.support.scripted import (
    PATIENCE,
    Backend,
    Clock,
    ScriptedConnection,
    eventually,
    numbers,
    settle,
    spawn_acquire,
)


def pool_of(backend: Backend, clock: Clock, **settings: Any) -> Pool[Any]:
    usual: dict[str, Any] = {"max_connections": 1, "reap_expired_connections": False}
    return clock.pool(backend.connect, **{**usual, **settings})


def test_a_lifetime_is_measured_by_the_clock_of_the_pool(backend: Backend, clock: Clock) -> None:
    pool = pool_of(backend, clock, max_lifetime=100)
    first = pool.acquire()
    # A lifetime ends up to a tenth earlier.
    clock.advance(89)
    pool.release(first)
    assert pool.acquire(timeout=0) is first
    pool.release(first)
    clock.advance(11)
    assert pool.acquire() is not first
    settle()
    assert pool.stats().retired == {"lifetime": 1}
    assert not first.is_open


def test_a_lifetime_that_ends_in_use_is_measured_by_the_clock_of_the_pool(backend: Backend, clock: Clock) -> None:
    pool = pool_of(backend, clock, max_lifetime=100)
    pool.release(pool.acquire())
    with pool.connection() as first:
        clock.advance(100)
    settle()
    assert pool.stats().retired == {"lifetime": 1}
    assert not first.is_open


def test_an_idle_time_is_measured_by_the_clock_of_the_pool(backend: Backend, clock: Clock) -> None:
    pool = pool_of(backend, clock, idle_timeout=10)
    first = pool.acquire()
    clock.advance(50)
    pool.release(first)
    for _ in range(3):
        clock.advance(9)
        pool.release(pool.acquire())
    assert pool.acquire(timeout=0) is first
    pool.release(first)
    clock.advance(10)
    assert pool.acquire() is not first
    assert pool.stats().retired == {"idle": 1}


@pytest.mark.parametrize(("setting", "reason"), [("max_lifetime", "lifetime"), ("idle_timeout", "idle")])
def test_a_sweep_measures_limits_by_the_clock_of_the_pool(
    backend: Backend, clock: Clock, setting: str, reason: str
) -> None:
    asked = 0

    class Counting(ScriptedConnection):
        def is_expired(self) -> bool:
            nonlocal asked
            asked += 1
            return False

    settings: dict[str, Any] = {setting: 100, "reap_interval": 0.005}
    pool = clock.pool(lambda: backend.add(Counting(backend, {})), **settings)
    connection = pool.acquire()
    pool.release(connection)
    clock.advance(89)
    asked = 0
    eventually(lambda: asked >= 2)
    assert connection.is_open
    clock.advance(11)
    eventually(lambda: not connection.is_open)
    assert pool.stats().retired == {reason: 1}
    pool.close()


def test_the_timeout_of_an_acquire_is_measured_by_the_clock_of_the_pool(backend: Backend, clock: Clock) -> None:
    pool = pool_of(backend, clock=clock)
    pool.acquire()
    caller = gevent.spawn(outcome, lambda: pool.acquire(timeout=0.005))
    other = gevent.spawn(outcome, lambda: pool.acquire(timeout=60))
    settle()
    clock.advance(59)
    error = caller.get(timeout=PATIENCE)
    assert isinstance(error, PoolExhaustedError)
    assert error.waited == 59
    assert not other.ready()
    other.kill()


def test_callers_that_queue_again_keep_their_order_by_the_clock_of_the_pool(backend: Backend, clock: Clock) -> None:
    class Judged(ScriptedConnection):
        """Stalls in its check until it is judged."""

        def is_usable(self) -> bool:
            if self.number > 1:
                return True
            checks[self.number].wait()
            return False

    def acquire(number: int) -> None:
        pool.acquire()
        served.append(number)

    checks = [Event(), Event()]
    pool = clock.pool(
        lambda: backend.add(Judged(backend, {})), max_connections=2, max_opening=1, reap_expired_connections=False
    )
    taken = [pool.acquire(), pool.acquire()]
    served: list[int] = []
    callers = []
    for number in range(3):
        callers.append(gevent.spawn(acquire, number))
        settle()
        clock.advance(1)
    backend.opens.clear()
    for connection in taken:
        pool.release(connection)
    settle()
    # The second caller hears first that its connection is bad, and waits again; then the first does.
    for check in reversed(checks):
        check.set()
        settle()
    assert numbers(pool) == (0, 0, 1, 3)
    backend.opens.set()
    eventually(lambda: len(served) == 2)
    assert served == [0, 1]
    gevent.killall(callers)


def test_statistics_measure_times_by_the_clock_of_the_pool(backend: Backend, clock: Clock) -> None:
    backend.opens.clear()
    pool = pool_of(backend, clock=clock)
    caller = spawn_acquire(pool)
    clock.advance(3)
    backend.opens.set()
    connection = caller.get(timeout=PATIENCE)
    clock.advance(5)
    pool.release(connection)
    stats = pool.stats()
    assert (stats.open_time, stats.wait_time, stats.use_time) == (3, 3, 5)
