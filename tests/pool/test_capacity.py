"""How many, in which order, and for how long: acquiring and releasing."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

import gevent
import pytest

from gsocketpool import InvalidArgumentError, Pool, PoolExhaustedError
from tests.support.scripted import PATIENCE, Backend, numbers, settle, spawn_acquire


def test_a_connection_is_opened_when_there_is_none_and_reused_afterwards(backend: Backend) -> None:
    pool = Pool(backend.connect, {"answer": 42})
    with pool.connection() as first:
        assert first.is_open
        assert first.options == {"answer": 42}
    with pool.connection() as second:
        assert second is first
    assert len(backend.connections) == 1


def test_never_more_than_max_connections(backend: Backend) -> None:
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


def test_a_released_connection_is_handed_over_at_once_and_nobody_overtakes(backend: Backend) -> None:
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


def test_nothing_polls(backend: Backend) -> None:
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


class Cheap:
    """The least that a pool takes for a connection."""

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def is_connected(self) -> bool:
        return True


def count_steps(pool: Pool[Any]) -> int:
    """How many lines of Python one acquire and release run."""
    import sys

    steps = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += 1
        return trace

    pool.release(pool.acquire())
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        pool.release(pool.acquire())
    finally:
        sys.settrace(before)
    return steps


def test_the_cost_does_not_depend_on_how_many_are_in_use_or_idle() -> None:
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


def test_the_timeout_bounds_waiting(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1, name="the pool")
    pool.acquire()
    waiter = spawn_acquire(pool)
    with pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(timeout=0.02)
    error = caught.value
    assert (error.in_use, error.idle, error.opening, error.waiting) == (1, 0, 0, 1)
    assert error.max_connections == 1
    assert error.timeout == 0.02
    assert 0.015 < error.waited < PATIENCE
    assert error.held_by_caller == 1
    assert error.last_open_error is None
    assert "'the pool'" in str(error)
    assert "1 in use, 0 idle, 0 opening" in str(error)
    assert "this greenlet holds 1 of them already" in str(error)
    waiter.kill()


def test_the_timeout_is_not_cut_short_by_a_busy_caller(backend: Backend) -> None:
    """Its turn of the event loop began long ago, and so did the loop's idea of the time."""
    pool = Pool(backend.connect, max_connections=1)
    pool.acquire()
    gevent.sleep(0.001)
    busy_until = time.monotonic() + 0.1
    while time.monotonic() < busy_until:
        pass
    with pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(timeout=0.1)
    assert caught.value.waited > 0.09


def test_those_who_wait_share_a_timer_and_each_is_woken_in_time(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    ended: list[float] = []

    def wait(timeout: float) -> None:
        with contextlib.suppress(PoolExhaustedError):
            pool.release(pool.acquire(timeout=timeout))
        ended.append(timeout)

    waiting = [gevent.spawn(wait, timeout) for timeout in (PATIENCE, math.inf, 0.03, 0.01, 0.02)]
    gevent.joinall(waiting[2:], timeout=PATIENCE)
    # On a busy machine, their times may all be over at once.
    assert sorted(ended) == [0.01, 0.02, 0.03]
    waiting[0].kill()
    settle()
    # An armed timer would keep the event loop alive, though nobody waits for anything that it brings.
    gevent.sleep(0.001)
    pool.release(held)
    gevent.joinall(waiting, timeout=PATIENCE)
    assert ended[3:] == [math.inf]
    assert pool._waiters.fires_at == math.inf
    assert pool._waiters._timer is None


def test_no_timer_is_left_for_those_who_wait_without_a_limit(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    waiting = [spawn_acquire(pool, timeout=timeout) for timeout in (math.inf, 0.001)]
    waiting[1].join(PATIENCE)
    assert pool._waiters._timer is None
    pool.release(held)
    assert waiting[0].get(timeout=PATIENCE) is held


def test_no_timer_is_left_after_a_wait_that_was_interrupted(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1, reap_expired_connections=False)
    pool.acquire()
    waiting = [spawn_acquire(pool, timeout=PATIENCE) for _ in range(2)]
    waiting[0].kill()
    assert pool._waiters._timer is not None
    waiting[1].kill()
    assert pool._waiters._timer is None
    assert pool._waiters.fires_at == math.inf


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.torture)])
def test_many_who_wait_for_different_times(backend: Backend, count: int) -> None:
    pool = Pool(backend.connect, max_connections=1)
    pool.acquire()
    waiting = [gevent.spawn(pool.acquire, timeout=0.2 + number / 1e5) for number in range(count)]
    for greenlet in waiting:
        # Or each would be printed.
        greenlet._report_error = lambda error: None
    with gevent.Timeout(PATIENCE * 3):
        gevent.joinall(waiting)
    assert numbers(pool) == (1, 0, 0, 0)
    assert pool.stats().timed_out == count


def test_another_greenlets_connections_are_not_held_by_the_caller(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    holder = gevent.spawn(lambda: (pool.acquire(), gevent.sleep(PATIENCE)))
    settle()
    with pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(timeout=0)
    assert caught.value.held_by_caller == 0
    assert "already" not in str(caught.value)
    holder.kill()


def test_the_timeout_bounds_opening(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect)
    with gevent.Timeout(PATIENCE), pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(timeout=0.02)
    assert (caught.value.opening, caught.value.waiting) == (1, 0)


def test_the_timeout_bounds_checking(backend: Backend) -> None:
    pool = Pool(backend.connect_checked)
    connections = [pool.acquire(), pool.acquire()]
    for connection in connections:
        pool.release(connection)
    backend.checks.clear()
    with gevent.Timeout(PATIENCE), pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0.02)
    settle()
    assert numbers(pool) == (0, 1, 0, 0), "the other one is left as it is"
    assert len(backend.open) == 1


def test_a_check_whose_timer_is_early_gets_the_rest_of_its_time(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As one of libuv's may be, by a millisecond.
    monkeypatch.setattr("gsocketpool._adapter.timer_seconds", lambda seconds: max(0.001, seconds / 2))
    test_the_timeout_bounds_checking(backend)


def test_the_timeout_bounds_all_steps_together(backend: Backend) -> None:
    """A bad idle connection, a slow check, then a slow opening: one deadline."""
    pool = Pool(backend.connect_checked)
    pool.release(pool.acquire())
    backend.answer = False
    backend.opens.clear()
    with gevent.Timeout(PATIENCE), pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(timeout=0.05)
    assert caught.value.opening == 1


def test_the_default_timeout_is_the_pools(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1, acquire_timeout=0.01)
    pool.acquire(timeout=PATIENCE)
    with pytest.raises(PoolExhaustedError) as caught:
        pool.acquire()
    assert caught.value.timeout == 0.01
    with pytest.raises(PoolExhaustedError), pool.connection():
        pass
    with pytest.raises(PoolExhaustedError) as caught, pool.connection(timeout=0):
        pass
    assert caught.value.timeout == 0
    assert Pool(backend.connect)._settings.acquire_timeout == 5.0


@pytest.mark.parametrize("settings", [{"acquire_timeout": None}, {"acquire_timeout": 0.001}])
def test_waiting_without_a_limit(backend: Backend, settings: dict[str, Any]) -> None:
    pool = Pool(backend.connect, max_connections=1, **settings)
    held = pool.acquire(timeout=math.inf)
    waiter = spawn_acquire(pool, timeout=None if settings["acquire_timeout"] is None else math.inf)
    gevent.sleep(0.01)
    assert not waiter.ready()
    pool.release(held)
    assert waiter.get(timeout=PATIENCE) is held


def test_a_timeout_of_0_never_waits(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    switches = 0

    def count() -> None:
        nonlocal switches
        switches += 1

    gevent.spawn(count)
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    assert switches == 0
    settle()
    # But it has seen to it that the next one gets something.
    assert numbers(pool) == (0, 1, 0, 0)
    gevent.spawn(count)
    connection = pool.acquire(timeout=0)
    assert switches == 1
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    pool.release(connection)


def test_a_timeout_of_0_has_no_time_for_a_check_that_may_block(backend: Backend) -> None:
    pool = Pool(backend.connect_checked)
    pool.release(pool.acquire())
    backend.checks.clear()
    connection = pool.acquire(timeout=0)
    pool.release(connection)
    connection.is_open = False
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)


def test_the_queue_is_bounded_by_max_waiting(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1, max_waiting=2)
    held = pool.acquire()
    waiters = [spawn_acquire(pool), spawn_acquire(pool)]
    with pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(timeout=PATIENCE)
    assert caught.value.waiting == 2
    assert str(caught.value).startswith("max_waiting (2) callers wait for pool 'connect' already: 1 in use")
    assert caught.value.waited < 1
    assert pool.stats().refused == 1
    pool.release(held)
    assert waiters[0].get(timeout=PATIENCE) is held
    gevent.killall(waiters)


def test_without_a_queue_a_connection_can_still_be_opened(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1, max_waiting=0)
    connection = pool.acquire()
    with pytest.raises(PoolExhaustedError):
        pool.acquire()
    pool.release(connection)
    assert pool.acquire() is connection


def test_a_full_pool_tells_the_last_open_error(backend: Backend) -> None:
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


def test_retries_and_a_timeout_do_not_go_together(backend: Backend) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout must be left out where retry is given, not 3"):
        Pool(backend.connect).acquire(retry=1, timeout=3)


@pytest.mark.parametrize("timeout", [-1, math.nan, "1", True, [1]])
def test_a_bad_timeout_is_refused(backend: Backend, timeout: Any) -> None:
    pool = Pool(backend.connect)
    with pytest.raises(InvalidArgumentError, match="timeout must be a number of seconds of at least 0"):
        pool.acquire(timeout=timeout)
    assert pool.size == 0
