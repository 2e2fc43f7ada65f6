"""``drain()`` retires every connection that is open by then."""

from __future__ import annotations

from gsocketpool import Pool
from tests.support.scripted import PATIENCE, Backend, settle, spawn_acquire


def test_drain_retires_idle_connections_at_once_and_others_on_their_return(backend: Backend) -> None:
    pool = Pool(backend.connect)
    idle, held = pool.acquire(), pool.acquire()
    pool.release(idle)
    pool.drain()
    assert not idle.is_open
    assert held.is_open
    fresh = pool.acquire()
    pool.release(held)
    assert pool.stats().retired == {"drain": 2}
    settle()
    assert not held.is_open
    pool.release(fresh)
    assert pool.acquire() is fresh, "those opened afterwards are not concerned"


def test_a_connection_drained_during_its_check_is_not_handed_out(backend: Backend) -> None:
    pool = Pool(backend.connect_checked)
    pool.release(pool.acquire())
    backend.checks.clear()
    caller = spawn_acquire(pool)
    pool.drain()
    backend.checks.set()
    assert caller.get(timeout=PATIENCE).number == 1
    assert pool.stats().retired == {"drain": 1}


def test_a_connection_drained_during_its_opening_is_not_kept(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect)
    caller = spawn_acquire(pool)
    pool.drain()
    backend.opens.set()
    settle()
    assert caller.get(timeout=PATIENCE).number == 1
    assert not backend.connections[0].is_open
