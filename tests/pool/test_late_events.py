"""Openings, closes and timeouts that end after the pool was collected or closed."""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import Pool, PoolClosedError, PoolEvents
from gsocketpool._lifecycle import FIRST_PAUSE
from tests.support.scripted import Backend, Plain, end_event_loop, eventually, numbers, settle


def test_a_collected_pool_opens_no_more_connections() -> None:
    attempts = []

    class Failing(Plain):
        def open(self) -> None:
            attempts.append(self)
            raise OSError

    pool = Pool(Failing, min_connections=1)
    # It has tried once, and is to try again after a pause.
    eventually(lambda: attempts)
    del pool
    gc.collect()
    attempts.clear()
    gevent.sleep(2 * FIRST_PAUSE)
    assert attempts == []


def test_a_timeout_raised_in_opened_does_not_fail_the_opening(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(PoolEvents):
        def opened(self, pool: Any, connection: Any) -> None:
            raise gevent.Timeout(1)

    pool = Pool(backend.connect, events=Slow())
    connection = pool.acquire()
    settle()
    assert numbers(pool) == (1, 0, 0, 0)
    assert "failed" in caplog.text
    pool.release(connection)
    pool.close()


class Factory:
    """Takes its time, and does not heed a kill."""

    def __init__(self) -> None:
        self.goes_on = Event()
        self.made: list[Plain] = []

    def __call__(self) -> Plain:
        while not self.goes_on.is_set():
            with contextlib.suppress(gevent.GreenletExit, gevent.Timeout):
                self.goes_on.wait()
        self.made.append(Plain())
        return self.made[-1]


def acquire_in_vain(pool: Pool[Any]) -> None:
    with pytest.raises(PoolClosedError):
        pool.acquire()


def test_a_connection_made_after_its_pool_was_closed_is_not_left_open() -> None:
    factory = Factory()
    pool = Pool(factory, close_timeout=0.01)
    caller = gevent.spawn(acquire_in_vain, pool)
    eventually(lambda: numbers(pool)[2])
    pool.close(timeout=0)
    caller.get()
    factory.goes_on.set()
    settle()
    assert not any(connection.is_open for connection in factory.made), "it has come too late"


def test_a_connection_still_being_made_when_its_thread_ends_is_not_kept() -> None:
    seen = []

    def use() -> None:
        pool = Pool(Factory(), max_connections=2)
        gevent.spawn(pool.acquire)
        eventually(lambda: numbers(pool)[2])
        seen.append(pool)
        end_event_loop()

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert numbers(seen[0])[:2] == (0, 0)


def test_only_a_connection_that_does_not_close_in_time_is_aborted() -> None:
    goes_on = Event()
    aborted = []

    class Slow(Plain):
        def close(self) -> None:
            if self is not made[0]:
                gevent.sleep(0.001)
                self.is_open = False
                return
            while not goes_on.is_set():
                with contextlib.suppress(gevent.GreenletExit, gevent.Timeout):
                    goes_on.wait()

        def abort(self) -> None:
            aborted.append(self)

    pool = Pool(Slow, close_timeout=0.01)
    made = [pool.acquire(), pool.acquire()]
    for connection in made:
        pool.release(connection)
    pool.close()
    assert aborted == [made[0]]
    assert not made[1].is_open
    goes_on.set()
    settle()


def test_a_subclass_may_make_a_connection_in_a_greenlet_of_its_own(backend: Backend) -> None:
    class Elsewhere(Pool[Any]):
        def _create_connection(self) -> Any:
            return gevent.spawn(super()._create_connection).get()

    pool = Elsewhere(backend.connect)
    with pool.connection() as connection:
        assert connection.is_open
    assert numbers(pool) == (0, 1, 0, 0)
    pool.close()
