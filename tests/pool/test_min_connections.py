"""A pool opens ``initial_connections`` when it is made, and keeps ``min_connections`` open, whatever is killed."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.hub import Hub

from gsocketpool import InvalidArgumentError, Pool, PoolClosedError, PoolNotReadyError
from tests.support.internals import openers_of, pause_filling
from tests.support.logs import LockedHandler
from tests.support.logs import handler as handler
from tests.support.scripted import PATIENCE, Backend, eventually, numbers, settle
from tests.support.switches import greenlets_there_are

#: Seconds within which a pool tries again after its first failures, and many times that.
SOON = 1.5


def fail_to_fill_and_kill_every_greenlet(backend: Backend) -> Pool[Any]:
    """A pool that has failed to open what it is to keep open, and that lost all its greenlets before it tried again."""
    others = greenlets_there_are()
    backend.failures.extend(OSError("down") for _ in range(100))
    pool = Pool(backend.connect, min_connections=1, reap_interval=0.01)
    eventually(lambda: pool.stats().open_errors and numbers(pool) == (0, 0, 0, 0))
    gevent.killall(list(greenlets_there_are() - others))
    backend.failures.clear()
    return pool


def test_wait_ready_resumes_filling_after_every_greenlet_was_killed(backend: Backend) -> None:
    pool = fail_to_fill_and_kill_every_greenlet(backend)
    try:
        pool.wait_ready(timeout=SOON)
        assert numbers(pool) == (0, 1, 0, 0)
    finally:
        pool.close()


def test_a_pool_resumes_filling_in_the_background_after_every_greenlet_was_killed(backend: Backend) -> None:
    pool = fail_to_fill_and_kill_every_greenlet(backend)
    # The reaper was killed, too; to use the pool starts another one.
    pool.drop_expired()
    try:
        with gevent.Timeout(SOON, AssertionError("nothing was opened")):
            eventually(lambda: numbers(pool) == (0, 1, 0, 0))
    finally:
        pool.close()


def test_an_opener_that_is_killed_before_it_starts_is_logged_though_a_handler_is_busy(
    backend: Backend, handler: LockedHandler
) -> None:
    with handler.lock:
        pool = Pool(backend.connect, min_connections=1)
        for opener in openers_of(pool):
            opener.kill(block=False)
        settle()
        assert handler.messages == []
    eventually(lambda: handler.messages)
    assert "the greenlet that was opening a connection" in handler.messages[0]
    pool.wait_ready(timeout=SOON)
    pool.close()


def test_fill_opens_connections_up_to_the_given_number(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=3)
    with pool.connection():
        pool.fill(3)
        assert numbers(pool) == (1, 2, 0, 0)
        pool.fill(2)
        assert numbers(pool) == (1, 2, 0, 0)
    assert pool.stats().opened == 3
    pool.close()
    with pytest.raises(PoolClosedError):
        pool.fill(1)


def test_fill_raises_the_error_of_an_opening(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=3)
    backend.failures.append(ConnectionRefusedError("down"))
    with pytest.raises(ConnectionRefusedError, match="down"):
        pool.fill(2)
    pool.fill(2)
    assert numbers(pool) == (0, 2, 0, 0)
    pool.close()


def test_fill_opens_connections_in_the_background_if_called_in_the_event_loop(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=3)
    gevent.get_hub().loop.run_callback(pool.fill, 3)
    eventually(lambda: numbers(pool) == (0, 3, 0, 0))
    pool.close()


def test_fill_refuses_more_than_max_connections(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=3)
    with pytest.raises(InvalidArgumentError, match=r"connections must be at most max_connections \(3\), not 4"):
        pool.fill(4)
    pool.close()


def test_fill_replaces_an_opener_that_was_killed_before_it_began(
    backend: Backend,
) -> None:
    others = greenlets_there_are()
    pool = Pool(backend.connect, min_connections=1, max_opening=1)
    gevent.killall(list(greenlets_there_are() - others), block=False)
    with gevent.Timeout(PATIENCE):
        pool.fill(1)
    assert numbers(pool) == (0, 1, 0, 0)
    pool.close()


def test_fill_stops_at_a_limit_that_was_lowered_meanwhile(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=3)
    backend.opens.clear()
    filling = gevent.spawn(pool.fill, 3)
    settle()
    pool.resize(2)
    backend.opens.set()
    filling.get(timeout=PATIENCE)
    assert numbers(pool) == (0, 2, 0, 0)
    pool.close()


def fill_in_the_loop(pool: Pool[Any]) -> None:
    gevent.get_hub().loop.run_callback(pool.fill, 1)
    gevent.sleep(0)


def test_a_failure_to_fill_a_pool_in_the_background_is_logged(
    backend: Backend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Any] = []
    monkeypatch.setattr(Hub, "print_exception", lambda *error: errors.append(error))
    backend.failures.append(ConnectionRefusedError("down"))
    pool = Pool(backend.connect, name="cache")
    fill_in_the_loop(pool)
    eventually(lambda: caplog.records)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("gsocketpool", "WARNING")
    assert record.getMessage() == "pool 'cache' could not open 1 connections"
    assert "ConnectionRefusedError: down" in caplog.text
    assert not errors
    pool.close()


def test_a_pool_closed_during_a_fill_in_the_background_logs_nothing(
    backend: Backend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Any] = []
    monkeypatch.setattr(Hub, "print_exception", lambda *error: errors.append(error))
    backend.opens.clear()
    pool = Pool(backend.connect)
    fill_in_the_loop(pool)
    settle()
    pool.close()
    settle()
    assert not errors
    assert caplog.records == []


def test_initial_connections_are_open_when_the_pool_is_made(backend: Backend) -> None:
    pool = Pool(backend.connect, initial_connections=3)
    assert numbers(pool) == (0, 3, 0, 0)
    assert len(backend.open) == 3
    assert pool.stats().opened == 3


def test_initial_connections_and_min_connections_share_the_limit(backend: Backend) -> None:
    pool = Pool(backend.connect, initial_connections=5, min_connections=5, max_connections=5)
    settle()
    assert backend.most_open == 5
    assert pool.stats().opened == 5


def test_a_failed_initial_connection_raises_and_leaves_no_other_open(backend: Backend) -> None:
    backend.failures.append(OSError("down"))
    opened_before = backend.connect
    made: list[Any] = []

    def factory() -> Any:
        made.append(opened_before())
        if len(made) == 3:
            raise OSError("the third")
        return made[-1]

    with pytest.raises(OSError, match="down"):
        Pool(factory, initial_connections=2)
    made.clear()
    with pytest.raises(OSError, match="the third"):
        Pool(factory, initial_connections=3)
    assert not backend.open


def test_min_connections_are_kept_open(backend: Backend) -> None:
    pool = Pool(backend.connect, min_connections=3, max_connections=4)
    assert len(backend.connections) == 0, "in the background"
    pool.wait_ready(timeout=PATIENCE)
    assert numbers(pool) == (0, 3, 0, 0)
    connections = [pool.acquire() for _ in range(3)]
    assert pool.size == 3, "those in use count"
    pool.discard(connections[0])
    settle()
    assert numbers(pool) == (2, 1, 0, 0)
    pool.drain()
    pool.wait_ready(timeout=PATIENCE)
    eventually(lambda: len(backend.open) == 3)


def test_wait_ready_returns_once_min_connections_are_open(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, min_connections=2, name="cache")
    with pytest.raises(PoolNotReadyError) as caught:
        pool.wait_ready(timeout=0.005)
    assert (caught.value.connections, caught.value.min_connections) == (0, 2)
    waiting = [gevent.spawn(pool.wait_ready) for _ in range(2)]
    settle()
    backend.opens.set()
    gevent.joinall(waiting, timeout=PATIENCE, raise_error=True)
    pool.wait_ready(timeout=0)
    Pool(backend.connect).wait_ready(timeout=0)


def test_wait_ready_raises_once_the_pool_is_closed(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, min_connections=1)
    waiting = gevent.spawn(pool.wait_ready)
    settle()
    pool.close()
    with pytest.raises(PoolClosedError):
        waiting.get(timeout=PATIENCE)


def test_filling_resumes_when_the_backend_is_back(backend: Backend) -> None:
    backend.failures.extend(OSError(f"down {number}") for number in range(3))
    pool = Pool(backend.connect, min_connections=1)
    with pytest.raises(PoolNotReadyError, match="the last attempt to open one failed with OSError: down 0") as caught:
        pool.wait_ready(timeout=0.02)
    assert caught.value.last_open_error == "OSError: down 0"
    assert len(backend.connections) == 1, "not again and again without a pause"
    pool.wait_ready(timeout=PATIENCE)
    assert pool.stats().open_errors == 3
    assert len(backend.connections) == 4


def test_a_caller_does_not_wait_while_filling_is_paused(backend: Backend) -> None:
    backend.failures.append(OSError("down"))
    pool = Pool(backend.connect, min_connections=1)
    settle()
    pause_filling(pool, 1000.0)
    assert pool.acquire(timeout=PATIENCE).number == 1
