"""Connections that are in use for too long are reported with the place that acquired them."""

from __future__ import annotations

import logging
import math
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import Pool
from tests.support.internals import sweep
from tests.support.scripted import PATIENCE, Backend, Clock, eventually, numbers, settle


def leaky_view(pool: Pool[Any]) -> Any:
    return pool.acquire()


def test_a_connection_in_use_for_too_long_is_reported_once_with_its_place(
    backend: Backend, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    pool = clock.pool(backend.connect, leak_threshold=30, reap_interval=0.002, name="cache")
    with caplog.at_level(logging.WARNING, "gsocketpool"):
        connection = leaky_view(pool)
        clock.advance(30)
        gevent.sleep(0.01)
        assert not caplog.records
        clock.advance(1)
        eventually(lambda: caplog.records)
        gevent.sleep(0.01)
        (record,) = caplog.records
    message = record.getMessage()
    assert "<connection 0> of pool 'cache' has been in use for 31.0 s, longer than leak_threshold (30 s)" in message
    assert "in leaky_view\n    return pool.acquire()" in message
    assert "gsocketpool/pool.py" not in message
    assert connection.is_open, "it is reported, not taken away"
    pool.release(connection)
    caplog.clear()
    again = leaky_view(pool)
    assert again is connection
    clock.advance(31)
    eventually(lambda: caplog.records)
    pool.close(timeout=0)


def test_a_connection_that_is_still_being_checked_is_not_reported(
    backend: Backend, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    pool = clock.pool(backend.connect_checked, leak_threshold=30)
    pool.release(pool.acquire(timeout=math.inf))
    backend.checks.clear()

    def use() -> None:
        with pool.connection(timeout=math.inf):
            over.wait()

    over = Event()
    user = gevent.spawn(use)
    settle()
    clock.advance(31)
    sweep(pool)
    assert not caplog.records
    backend.checks.set()
    settle()
    sweep(pool)
    assert "has been in use for 31.0 s" in caplog.text
    assert "in use\n    with pool.connection" in caplog.text
    over.set()
    user.get(timeout=PATIENCE)


def test_the_connection_of_a_dead_greenlet_is_taken_back(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(backend.connect, max_connections=1, reap_interval=0.002, name="cache", leak_threshold=60)
    gevent.spawn(leaky_view, pool).join()
    assert numbers(pool) == (1, 0, 0, 0)
    other = pool.acquire(timeout=PATIENCE)
    assert other.number == 1
    settle()
    assert not backend.connections[0].is_open
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "pool 'cache' took <connection 0> back: its greenlet has ended without releasing it" in record.getMessage()
    assert "in leaky_view" in record.getMessage()
    assert pool.stats().discarded == {"holder_dead": 1}
    pool.close(timeout=0)


def test_a_pool_without_a_threshold_records_no_places(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(backend.connect, max_connections=1, reap_interval=0.002)
    gevent.spawn(leaky_view, pool).join()
    eventually(lambda: caplog.records)
    assert "at a place that was not recorded: set leak_threshold" in caplog.text
    pool.close(timeout=0)


class OddGlobals(dict[str, Any]):
    def get(self, *_: Any) -> Any:
        raise LookupError


@pytest.mark.unmeasured
@pytest.mark.parametrize(
    "variables",
    [{"__name__": 5}, {"__name__": ["x"]}, {}, OddGlobals(__name__="x")],
    ids=["int", "list", "none", "odd"],
)
def test_a_leak_in_code_with_odd_globals_is_reported_with_its_place(
    backend: Backend, clock: Clock, caplog: pytest.LogCaptureFixture, variables: dict[str, Any]
) -> None:
    pool = clock.pool(backend.connect, max_connections=1, leak_threshold=30, reap_interval=0.002)
    variables["pool"] = pool
    exec(compile("connection = pool.acquire()", "odd.txt", "exec"), variables)
    assert numbers(pool) == (1, 0, 0, 0)
    clock.advance(31)
    eventually(lambda: caplog.records)
    assert 'File "odd.txt", line 1' in caplog.text
    pool.release(variables["connection"])
    pool.close()
