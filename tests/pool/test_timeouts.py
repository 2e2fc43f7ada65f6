"""``timeout`` bounds the whole of an acquire: waiting, checking and opening together."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

import gevent
import pytest

from gsocketpool import InvalidArgumentError, Pool, PoolExhaustedError
from tests.support.internals import has_timer, waiters_of
from tests.support.processes import run_python
from tests.support.scripted import PATIENCE, Backend, numbers, settle, spawn_acquire


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


def test_waiters_share_a_timer_and_each_is_woken_in_time(backend: Backend) -> None:
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
    # An armed timer would keep the event loop alive, though no caller waits for it.
    gevent.sleep(0.001)
    pool.release(held)
    gevent.joinall(waiting, timeout=PATIENCE)
    assert ended[3:] == [math.inf]
    assert not has_timer(waiters_of(pool))


def test_no_timer_is_left_for_waiters_without_a_limit(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    waiting = [spawn_acquire(pool, timeout=timeout) for timeout in (math.inf, 0.001)]
    waiting[1].join(PATIENCE)
    assert not has_timer(waiters_of(pool))
    pool.release(held)
    assert waiting[0].get(timeout=PATIENCE) is held


def test_no_timer_is_left_after_a_wait_that_was_interrupted(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1, reap_expired_connections=False)
    pool.acquire()
    waiting = [spawn_acquire(pool, timeout=PATIENCE) for _ in range(2)]
    waiting[0].kill()
    assert has_timer(waiters_of(pool))
    waiting[1].kill()
    assert not has_timer(waiters_of(pool))


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.torture)])
def test_many_callers_time_out_at_different_times(backend: Backend, count: int) -> None:
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


def test_an_acquire_without_a_timeout_uses_acquire_timeout(backend: Backend) -> None:
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
    assert Pool(backend.connect).settings.acquire_timeout == 5.0


@pytest.mark.parametrize("settings", [{"acquire_timeout": None}, {"acquire_timeout": 0.001}])
def test_a_caller_may_wait_without_a_limit(backend: Backend, settings: dict[str, Any]) -> None:
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


def test_an_acquire_with_a_timeout_of_0_skips_a_check_that_may_block(backend: Backend) -> None:
    pool = Pool(backend.connect_checked)
    pool.release(pool.acquire())
    backend.checks.clear()
    connection = pool.acquire(timeout=0)
    pool.release(connection)
    connection.is_open = False
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)


def test_retry_and_timeout_can_not_be_given_together(backend: Backend) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout must be left out where retry is given, not 3"):
        Pool(backend.connect).acquire(retry=1, timeout=3)


@pytest.mark.parametrize("timeout", [-1, math.nan, "1", True, [1]])
def test_a_bad_timeout_is_refused(backend: Backend, timeout: Any) -> None:
    pool = Pool(backend.connect)
    with pytest.raises(InvalidArgumentError, match="timeout must be a number of seconds of at least 0"):
        pool.acquire(timeout=timeout)
    assert pool.size == 0


# Long timeouts


WAITS = """
import logging
import sys
import warnings

import gevent
from gevent.server import StreamServer

from gsocketpool import Connection, Pool, TcpConnection

# What fails in the background, a sweep for one, must not pass unseen.
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
seconds = eval(sys.argv[1])
names = ("acquire_timeout", "open_timeout", "close_timeout", "reap_interval", "max_lifetime", "idle_timeout")
times = dict.fromkeys((*names, "leak_threshold"), seconds)


class Checked(Connection):
    "Its check may wait, and so has a limit of its own."

    is_open = False

    def open(self):
        self.is_open = True

    def close(self):
        self.is_open = False

    def is_connected(self):
        return self.is_open

    def is_usable(self):
        gevent.sleep(0)
        return self.is_open


def use(pool):
    held = pool.acquire()
    waiting = [gevent.spawn(pool.acquire, **how) for how in ({}, {"timeout": seconds}, {"retry": sys.maxsize})]
    gevent.sleep(0.01)
    assert pool.stats().waiting == 3, pool
    pool.release(held)
    for waiter in waiting:
        pool.release(waiter.get(timeout=5))
    pool.release(pool.acquire())
    pool.wait_ready(timeout=seconds)
    pool.drain()
    pool.close(timeout=seconds)
    assert pool.stats().opened == 1, pool.stats()


use(Pool(Checked, max_connections=1, **times))
server = StreamServer(("127.0.0.1", 0), lambda sock, address: sock.sendall(sock.recv(100)))
server.start()
options = {"host": "127.0.0.1", "port": server.server_port, "timeout": seconds, "lifetime": seconds}
use(Pool(TcpConnection, options, max_connections=1, **times))
connection = TcpConnection(**options)
connection.open()
connection.send(b"hello")
assert connection.recv_exactly(5) == b"hello"
connection.close()
"""


@pytest.mark.parametrize("loop", ["libev-cext", "libuv"])
@pytest.mark.parametrize("seconds", ["sys.maxsize", "1e300", "sys.float_info.max"])
def test_a_caller_may_wait_for_any_number_of_seconds(loop: str, seconds: str) -> None:
    done = run_python(WAITS, seconds, patience=3 * PATIENCE, GEVENT_LOOP=loop)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
