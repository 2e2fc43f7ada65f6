"""Every wait ends when the pool is closed, and in the event loop's own greenlet no call waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import Pool, PoolClosedError, PoolError, PoolEvents, PoolExhaustedError
from tests.support.connections import outcome, spawn_waiting
from tests.support.processes import run_python
from tests.support.scripted import PATIENCE, Backend, ScriptedConnection, eventually, numbers, settle

# Every way to wait ends with the pool


def ends_soon(greenlet: gevent.Greenlet) -> bool:
    """Return whether a greenlet ends, given a while in which it would long have ended if it had been told to."""
    greenlet.join(timeout=0.5)
    return bool(greenlet.ready())


WAYS: dict[str, Callable[[Pool[Any]], object]] = {
    "acquire": lambda pool: pool.acquire(timeout=PATIENCE),
    "acquire without a limit": lambda pool: pool.acquire(timeout=float("inf")),
    "acquire and retry": lambda pool: pool.acquire(retry=100),
    "block": lambda pool: pool.connection(timeout=PATIENCE).__enter__(),
    "wait_ready": lambda pool: pool.wait_ready(),
    "wait_ready with a limit": lambda pool: pool.wait_ready(timeout=PATIENCE),
}


@pytest.mark.parametrize("way", WAYS)
def test_closing_the_pool_ends_a_wait_for_an_opening(backend: Backend, way: str) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, min_connections=1)
    waiter = spawn_waiting(WAYS[way], pool)
    pool.close()
    assert ends_soon(waiter)
    assert isinstance(waiter.value, PoolClosedError)


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("wait_ready")])
def test_closing_the_pool_ends_a_wait_for_a_release(backend: Backend, way: str) -> None:
    pool = Pool(backend.connect, max_connections=1)
    pool.acquire()
    waiter = spawn_waiting(WAYS[way], pool)
    pool.close(timeout=0)
    assert ends_soon(waiter)
    assert isinstance(waiter.value, PoolClosedError)


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("wait_ready")])
def test_closing_the_pool_ends_a_wait_until_ready_even_if_nothing_is_open_or_opening(
    backend: Backend, way: str
) -> None:
    backend.failures.extend(OSError("down") for _ in range(100))
    pool = Pool(backend.connect, min_connections=1)
    waiter = spawn_waiting(WAYS[way], pool)
    # It has failed, and waits before it tries again.
    eventually(lambda: pool.stats().open_errors and numbers(pool) == (0, 0, 0, 0))
    pool.close()
    try:
        assert ends_soon(waiter)
        assert isinstance(waiter.value, PoolClosedError)
    finally:
        waiter.kill()


def test_closing_the_pool_ends_a_wait_for_a_check(backend: Backend) -> None:
    pool = Pool(backend.connect_checked, max_connections=1)
    pool.release(pool.acquire())
    backend.checks.clear()
    waiter = spawn_waiting(WAYS["acquire"], pool)
    pool.close(timeout=0)
    try:
        assert ends_soon(waiter)
        assert isinstance(waiter.value, PoolClosedError)
    finally:
        waiter.kill()
    assert not backend.open


def test_closing_the_pool_ends_the_wait_of_a_caller_that_looks_for_dead_holders(backend: Backend) -> None:
    class Dawdling(PoolEvents):
        def leaked(self, pool: Pool[Any], connection: Any) -> None:
            looked.set()
            closed.wait()

    looked, closed = Event(), Event()
    pool = Pool(backend.connect, max_connections=1, reap_expired_connections=False, events=Dawdling())
    gevent.spawn(pool.acquire).join()
    waiter = spawn_waiting(WAYS["acquire without a limit"], pool)
    try:
        assert looked.is_set()
        pool.close(timeout=0)
        closed.set()
        assert ends_soon(waiter)
        assert isinstance(waiter.value, PoolClosedError)
    finally:
        waiter.kill()


# In the event loop's own greenlet


def in_the_loop(act: Callable[[], object]) -> Any:
    """Return what a call in a callback of the event loop returns, or the error that it raises."""
    outcomes: list[Any] = []
    gevent.get_hub().loop.run_callback(lambda: outcomes.append(outcome(act)))
    eventually(lambda: outcomes)
    return outcomes[0]


def test_an_idle_connection_can_be_acquired_in_the_event_loop(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    connection = pool.acquire()
    pool.release(connection)
    assert in_the_loop(pool.acquire) is connection
    assert in_the_loop(lambda: pool.release(connection)) is None
    assert in_the_loop(lambda: pool.connection().__enter__()) is connection
    assert isinstance(in_the_loop(lambda: pool.acquire(timeout=0)), PoolExhaustedError)


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("wait_ready")])
def test_a_call_in_the_event_loop_that_would_wait_for_an_opening_raises(backend: Backend, way: str) -> None:
    pool = Pool(backend.connect, max_connections=1)
    assert isinstance(in_the_loop(lambda: WAYS[way](pool)), PoolError)
    settle()
    assert numbers(pool)[0::3] == (0, 0), "nothing is in use, and no caller waits"
    assert pool.acquire(timeout=PATIENCE).is_open


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("wait_ready")])
def test_a_call_in_the_event_loop_that_would_wait_for_a_release_raises(backend: Backend, way: str) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    assert isinstance(in_the_loop(lambda: WAYS[way](pool)), PoolError)
    assert numbers(pool) == (1, 0, 0, 0)
    pool.release(held)
    assert pool.acquire(timeout=0) is held


def test_a_check_that_may_block_does_not_block_the_event_loop(backend: Backend) -> None:
    pool = Pool(backend.connect_checked, max_connections=1)
    pool.release(pool.acquire())
    backend.checks.clear()
    answer = in_the_loop(pool.acquire)
    assert isinstance(answer, ScriptedConnection | PoolError)
    if isinstance(answer, ScriptedConnection):
        pool.release(answer)
    backend.checks.set()
    pool.release(pool.acquire(timeout=PATIENCE))
    assert numbers(pool) == (0, 1, 0, 0)


def test_waiting_for_a_ready_pool_works_in_the_event_loop(backend: Backend) -> None:
    pool = Pool(backend.connect, min_connections=1)
    pool.wait_ready(PATIENCE)
    assert in_the_loop(pool.wait_ready) is None


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("wait_ready")])
def test_waiting_for_a_pool_that_is_not_ready_fails_at_once_in_the_event_loop(backend: Backend, way: str) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, min_connections=1)
    assert isinstance(in_the_loop(lambda: WAYS[way](pool)), PoolError)
    backend.opens.set()
    pool.wait_ready(PATIENCE)


KEEPING_IN_ORDER: dict[str, Callable[[Pool[Any], Any], object]] = {
    "drop": lambda pool, connection: pool.drop(connection),
    "drop_expired": lambda pool, connection: pool.drop_expired(),
    "drain": lambda pool, connection: pool.drain(),
    "resize": lambda pool, connection: pool.resize(1),
}


@pytest.mark.parametrize("method", KEEPING_IN_ORDER)
def test_closing_in_the_event_loop_does_not_wait(backend: Backend, method: str) -> None:
    pool = Pool(backend.connect, max_connections=2)
    connections = [pool.acquire(), pool.acquire()]
    for connection in connections:
        pool.release(connection)
    connections[0].says_expired = True
    backend.closes.clear()
    assert in_the_loop(lambda: KEEPING_IN_ORDER[method](pool, connections[0])) is None
    assert pool.size == (0 if method == "drain" else 1)
    backend.closes.set()
    eventually(lambda: not connections[0].is_open)


def close_in_the_loop(pool: Pool[Any], timeout: float) -> Any:
    """Close a pool, and say what closing and an acquire right afterwards have raised, if they have."""
    return in_the_loop(lambda: (outcome(pool.close, timeout), outcome(pool.acquire)))


def test_a_pool_closed_in_the_event_loop_closes_idle_and_returned_connections(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=2)
    held, idle = pool.acquire(), pool.acquire()
    pool.release(idle)
    closed, acquired = close_in_the_loop(pool, PATIENCE)
    assert closed is None
    assert isinstance(acquired, PoolClosedError)
    eventually(lambda: not idle.is_open)
    assert held.is_open
    pool.release(held)
    eventually(lambda: not held.is_open)
    assert numbers(pool) == (0, 0, 0, 0)
    pool.close()


def test_a_pool_closed_in_the_event_loop_closes_connections_in_use_after_its_timeout(backend: Backend) -> None:
    pool = Pool(backend.connect)
    held = pool.acquire()
    closed, _ = close_in_the_loop(pool, 0.01)
    assert closed is None
    eventually(lambda: not held.is_open)
    assert numbers(pool) == (0, 0, 0, 0)


@pytest.mark.parametrize("timeout", [0, PATIENCE])
def test_a_pool_closed_in_the_event_loop_refuses_its_waiters(backend: Backend, timeout: float) -> None:
    pool = Pool(backend.connect, max_connections=2)
    pool.release(pool.acquire())
    pool.acquire()
    backend.opens.clear()
    waiters = [spawn_waiting(pool.acquire) for _ in range(2)]
    closed, _ = close_in_the_loop(pool, timeout)
    assert closed is None
    for waiter in waiters:
        assert ends_soon(waiter)
        assert isinstance(waiter.value, PoolClosedError)
    pool.close(timeout=0)
    assert not backend.open


def test_a_with_statement_around_a_pool_may_end_in_the_event_loop(backend: Backend) -> None:
    pool = Pool(backend.connect)
    idle = pool.acquire()
    pool.release(idle)

    def use() -> None:
        with pool:
            pass

    assert in_the_loop(use) is None
    eventually(lambda: not idle.is_open)


def test_a_pool_without_connections_can_be_closed_in_the_event_loop(backend: Backend) -> None:
    used, unused = Pool(backend.connect), Pool(backend.connect)
    used.discard(used.acquire())
    eventually(lambda: not backend.open)
    settle()
    for pool in used, unused:
        closed, acquired = close_in_the_loop(pool, PATIENCE)
        assert closed is None
        assert isinstance(acquired, PoolClosedError)


SCRIPT = """
import os, signal
import gevent
from gsocketpool import Pool
from tests.support.connections import outcome
from tests.support.scripted import Plain, eventually, settle

made = []

class Polite(Plain):
    def __init__(self):
        made.append(self)

    def close(self):
        gevent.sleep(0.001)
        super().close()

pool = Pool(Polite, max_connections=2)
held = [pool.acquire(), pool.acquire()]
waiter = gevent.spawn(outcome, pool.acquire)
settle()

def stop(number, frame):
    is_in_the_loop = gevent.getcurrent() is gevent.get_hub()
    error = outcome(pool.close, 0.01)
    print(is_in_the_loop, type(error).__name__, flush=True)
    if error is not None:
        os._exit(1)

signal.signal(signal.SIGTERM, stop)

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)

gevent.get_hub().loop.run_callback(terminate)
waiter.join(2)
print(type(waiter.value).__name__)
with gevent.Timeout(2):
    eventually(lambda: not any(connection.is_open for connection in made))
print(pool.size)
"""


@pytest.mark.parametrize("beginning", ["", "from gevent import monkey; monkey.patch_all()"], ids=["plain", "patched"])
def test_an_ordinary_signal_handler_can_close_a_pool(beginning: str) -> None:
    run = run_python(beginning + "\n" + SCRIPT, options=["-W", "error"])
    assert (run.stdout.splitlines(), run.stderr) == (["True NoneType", "PoolClosedError", "0"], "")
