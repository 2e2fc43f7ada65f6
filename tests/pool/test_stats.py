"""Statistics are a frozen snapshot, and the repr is one informative line."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from gsocketpool import Pool, PoolExhaustedError, PoolStats
from tests.support.scripted import PATIENCE, Backend, Clock, spawn_acquire


def test_statistics_are_a_frozen_snapshot(backend: Backend) -> None:
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


def test_statistics_can_be_dumped_as_json(backend: Backend) -> None:
    pool = Pool(backend.connect, name="cache")
    pool.discard(pool.acquire())
    numbers = json.loads(json.dumps(pool.stats().as_dict()))
    assert numbers["name"] == "cache"
    assert numbers["discarded"] == {"explicit": 1}
    assert set(numbers) == {field.name for field in dataclasses.fields(PoolStats)}


def test_statistics_count_acquires_opens_and_endings(backend: Backend, clock: Clock) -> None:
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


def test_open_time_includes_failed_openings(backend: Backend, clock: Clock) -> None:
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
