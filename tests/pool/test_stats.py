"""What can be seen: statistics, the repr, leaks."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import Pool, PoolExhaustedError, PoolStats
from tests.support.scripted import PATIENCE, Backend, Clock, eventually, numbers, settle, spawn_acquire


def test_stats_are_a_frozen_snapshot(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=7, name="cache")
    pool.acquire()
    stats = pool.stats()
    assert isinstance(stats, PoolStats)
    assert (stats.name, stats.max_connections, stats.in_use) == ("cache", 7, 1)
    pool.acquire()
    assert stats.in_use == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.in_use = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        stats.retired["x"] = 1  # type: ignore[index]


def test_stats_become_json(backend: Backend) -> None:
    pool = Pool(backend.connect, name="cache")
    pool.discard(pool.acquire())
    numbers = json.loads(json.dumps(pool.stats().as_dict()))
    assert numbers["name"] == "cache"
    assert numbers["discarded"] == {"explicit": 1}
    assert set(numbers) == {field.name for field in dataclasses.fields(PoolStats)}


def test_what_is_counted(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, max_connections=1, max_waiting=1)
    held = pool.acquire()  # After waiting for it to be opened.
    clock.advance(2)
    waiter = spawn_acquire(pool)
    with pytest.raises(PoolExhaustedError):
        pool.acquire()  # Refused.
    clock.advance(3)
    pool.release(held)
    assert waiter.get(timeout=PATIENCE) is held
    clock.advance(4)
    pool.release(held)
    assert pool.acquire() is held  # At once.
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)  # Out of time.
    clock.advance(1)
    pool.discard(held)
    backend.failures.append(OSError("no"))
    with pytest.raises(OSError, match="no"):
        pool.acquire()
    pool.release(pool.acquire())
    pool.drain()

    stats = pool.stats()
    assert stats.acquired_at_once == 1
    assert stats.acquired_after_wait == 3
    assert stats.timed_out == 1
    assert stats.refused == 1
    assert stats.opened == 2
    assert stats.open_errors == 1
    assert stats.discarded == {"explicit": 1}
    assert stats.retired == {"drain": 1}
    assert stats.wait_time == 3
    assert stats.use_time == 2 + 3 + 4 + 1
    assert stats.open_time == 0


def test_every_connection_that_was_opened_is_accounted_for(backend: Backend) -> None:
    pool = Pool(backend.connect)
    pool.detach(pool.acquire())
    pool.discard(pool.acquire())
    connection = pool.acquire()
    pool.release(connection)
    pool.drop(connection)
    pool.acquire()
    stats = pool.stats()
    ended = stats.detached + sum(stats.discarded.values()) + sum(stats.retired.values())
    assert (stats.detached, ended) == (1, 3)
    assert stats.opened == stats.idle + stats.in_use + ended


def test_the_time_that_opening_takes(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect)
    backend.opens.clear()
    for failure in (None, OSError("no")):
        caller = spawn_acquire(pool)
        clock.advance(5)
        if failure:
            backend.failures.append(failure)
        backend.opens.set()
        caller.join()
        backend.opens.clear()
    assert pool.stats().open_time == 10
    assert pool.stats().wait_time == 10


def test_the_repr_is_one_informative_line(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=2, name="cache")
    assert repr(pool) == "<Pool 'cache': 0 in use, 0 idle, 0 opening, at most 2; 0 waiting>"
    held = pool.acquire()
    pool.release(pool.acquire())
    assert repr(pool) == "<Pool 'cache': 1 in use, 1 idle, 0 opening, at most 2; 0 waiting>"
    pool.acquire()
    waiter = spawn_acquire(pool)
    assert repr(pool) == "<Pool 'cache': 2 in use, 0 idle, 0 opening, at most 2; 1 waiting>"
    pool.release(held)
    waiter.join()
    pool.close(timeout=0)
    assert repr(pool) == "<Pool 'cache': 0 in use, 0 idle, 0 opening, at most 2; 0 waiting, closed>"


def test_a_pool_is_named_after_its_factory(backend: Backend) -> None:
    class Rpc:
        def __call__(self) -> Any: ...

    assert Pool(backend.connect).name == "connect"
    assert Pool(Rpc()).name == "Rpc"
    assert Pool(backend.connect, name="x").name == "x"


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


def test_what_is_still_being_checked_is_not_reported(
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
    pool._reaper.sweep(pool)
    assert not caplog.records
    backend.checks.set()
    settle()
    pool._reaper.sweep(pool)
    assert "has been in use for 31.0 s" in caplog.text
    assert "in use\n    with pool.connection" in caplog.text
    over.set()
    user.get(timeout=PATIENCE)


def test_what_a_dead_greenlet_held_is_taken_back(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
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


def test_without_a_threshold_no_place_is_recorded(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(backend.connect, max_connections=1, reap_interval=0.002)
    gevent.spawn(leaky_view, pool).join()
    eventually(lambda: caplog.records)
    assert "at a place that was not recorded: set leak_threshold" in caplog.text
    pool.close(timeout=0)


def test_sweeps_come_as_often_as_the_tightest_limit_needs(backend: Backend) -> None:
    def interval(**settings: Any) -> float:
        return Pool(backend.connect, **settings)._settings.sweep_interval

    assert interval() == 180
    assert interval(reap_interval=10, idle_timeout=60) == 10
    assert interval(idle_timeout=60) == 60
    assert interval(idle_timeout=60, max_lifetime=50, leak_threshold=40) == 40


class OddGlobals(dict[str, Any]):
    def get(self, *_: Any) -> Any:
        raise LookupError


@pytest.mark.parametrize(
    "variables",
    [{"__name__": 5}, {"__name__": ["x"]}, {}, OddGlobals(__name__="x")],
    ids=["int", "list", "none", "odd"],
)
def test_code_whose_globals_are_odd_is_a_place_as_any_other(
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
