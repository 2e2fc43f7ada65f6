"""The pool takes a connection back from a dead holder before a caller waits for it, and keeps no holder alive."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import Pool
from tests.support.connections import no_hanging as no_hanging
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


def acquire_and_die(pool: Pool[Any]) -> None:
    gevent.spawn(pool.acquire).join()


def test_a_caller_at_the_limit_gets_the_place_of_a_dead_holder(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(backend.connect, max_connections=1, reap_expired_connections=False, name="cache")
    acquire_and_die(pool)
    caller = spawn_acquire(pool)
    served = caller.value
    caller.kill()
    assert served is not None
    assert [connection.is_open for connection in backend.connections] == [False, True]
    assert numbers(pool) == (1, 0, 0, 0)
    (record,) = caplog.records
    assert "'cache'" in record.getMessage()


def test_each_dead_holder_makes_room_for_one_caller(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=3, reap_expired_connections=False)
    living = pool.acquire()
    for _ in range(2):
        acquire_and_die(pool)
    callers = [spawn_acquire(pool) for _ in range(3)]
    served = [caller.value is not None for caller in callers]
    gevent.killall(callers)
    assert served == [True, True, False]
    assert living.is_open


def test_a_holder_that_dies_after_one_search_is_found_by_the_next(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, max_connections=1, reap_expired_connections=False)
    holder = gevent.spawn(lambda: pool.acquire() and gevent.sleep(PATIENCE))
    settle()
    first = spawn_acquire(pool)
    assert not first.ready()
    first.kill()
    holder.kill()
    clock.advance(0.06)
    second = spawn_acquire(pool)
    served = second.value
    second.kill()
    assert served is not None


def test_a_holder_that_dies_right_after_a_search_is_found_a_moment_later(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, max_connections=1, reap_expired_connections=False)
    held = pool.acquire()
    # This one has the pool look for dead holders, and then is one itself.
    first = spawn_acquire(pool)
    pool.release(held)
    first.join()
    second = spawn_acquire(pool)
    second.join(timeout=PATIENCE)
    served = second.value
    second.kill()
    assert served is not None
    assert pool.stats().discarded == {"holder_dead": 1}


def test_a_caller_looks_for_dead_holders_even_while_openings_hang(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=2, reap_expired_connections=False)
    acquire_and_die(pool)
    backend.opens.clear()
    callers = [spawn_acquire(pool)]
    assert numbers(pool) == (1, 0, 1, 1)
    callers.append(spawn_acquire(pool))
    found = numbers(pool)
    gevent.killall(callers)
    assert found == (0, 0, 2, 2)


class Watched(gevent.Greenlet):  # type: ignore[misc]
    """A greenlet that counts how often it is asked whether it is dead."""

    questions = 0

    @property
    def dead(self) -> bool:
        self.questions += 1
        return bool(super().dead)


def test_callers_that_arrive_together_look_for_dead_holders_once(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, max_connections=2, reap_expired_connections=False)
    holders = [Watched(lambda: pool.acquire() and gevent.sleep(PATIENCE)) for _ in range(2)]
    for holder in holders:
        holder.start()
    settle()
    for holder in holders:
        holder.questions = 0
    callers = [spawn_acquire(pool) for _ in range(20)]
    asked = [holder.questions for holder in holders]
    gevent.killall([*callers, *holders])
    assert max(asked) <= 1


class Large:
    pass


def test_a_pool_does_not_keep_the_locals_of_a_dead_holder_alive(backend: Backend) -> None:
    references: list[weakref.ref[Large]] = []

    def work(acquires: bool) -> None:
        large = Large()
        references.append(weakref.ref(large))
        if acquires:
            pool.acquire()
        gevent.sleep(PATIENCE)

    pool = Pool(backend.connect, max_connections=1, reap_expired_connections=False)
    for acquires in (False, True):
        worker = gevent.spawn(work, acquires)
        settle()
        worker.kill()
        del worker
    settle()
    gc.collect()
    if references[0]() is not None:
        pytest.fail("something else keeps alive what a killed greenlet had")
    assert numbers(pool) == (1, 0, 0, 0)
    assert references[1]() is None


class Counting(ScriptedConnection):
    sweeps = 0

    def is_expired(self) -> bool:
        self.sweeps += 1
        return False


def test_a_transferred_lease_outlives_the_greenlet_that_acquired_it(backend: Backend, clock: Clock) -> None:
    def connect() -> Counting:
        connection = Counting(backend, {})
        backend.connections.append(connection)
        return connection

    def go_on(lease: Any) -> None:
        lease.transfer()
        over.wait()
        lease.release()

    def begin() -> None:
        lease = acquire_lease(timeout=PATIENCE)
        leases.append(lease)
        workers.append(gevent.spawn(go_on, lease))
        gevent.sleep(0)

    over = Event()
    leases: list[Any] = []
    workers: list[gevent.Greenlet] = []
    pool: Any = clock.pool(connect, max_connections=2, reap_interval=0.01)
    try:
        acquire_lease = pool.lease
        idle, other = pool.acquire(), pool.acquire()
        pool.release(other)
        gevent.spawn(begin).get()
        pool.release(idle)
        idle.sweeps = 0
        # Neither sweeps nor a caller at the limit take it for a dead holder's.
        eventually(lambda: idle.sweeps >= 3)
        assert pool.acquire() is idle
        clock.advance(0.06)
        caller = spawn_acquire(pool)
        assert not caller.ready()
        assert leases[0].is_active
        assert leases[0].connection is other
        assert other.is_open
        over.set()
        assert caller.get(timeout=PATIENCE) is other
        gevent.joinall(workers, raise_error=True)
    finally:
        pool.close(timeout=0)


def test_a_lease_that_was_transferred_does_not_outlive_its_new_holder(backend: Backend) -> None:
    pool: Any = Pool(backend.connect, max_connections=1, reap_expired_connections=False)
    lease = pool.lease(timeout=PATIENCE)
    gevent.spawn(lease.transfer).join()
    caller = spawn_acquire(pool)
    served = caller.value
    caller.kill()
    assert served is not None
    assert not lease.is_active
