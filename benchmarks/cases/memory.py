"""How much memory a pool uses for an idle connection, and for a waiting greenlet."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import gevent
from gevent.hub import Waiter

from benchmarks.cases.base import Case, Figure, Figures, Table
from benchmarks.connections import Nothing
from benchmarks.contestants import ALL, FLOORS, OURS, RIVALS

CONNECTIONS, WAITERS = 2000, 1000


def measure(name: str, effort: float, arguments: Mapping[str, Any]) -> Figures:
    # Let the pool make now what it makes only once.
    _idle(name, 1)
    tracemalloc.start()
    try:
        return {"idle": (_idle(name, CONNECTIONS) - _alone(CONNECTIONS)) / CONNECTIONS, "waiter": _waiter(name)}
    finally:
        tracemalloc.stop()


def _grown(make: Callable[[], object]) -> int:
    """Return by how many bytes the memory in use grows with the object that `make` returns."""
    # The event loop frees earlier greenlets in its next turns.
    gevent.sleep(0.01)
    gc.collect()
    gevent.sleep(0.01)
    before, _ = tracemalloc.get_traced_memory()
    made = make()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    del made
    return after - before


def _alone(count: int) -> int:
    """Return the memory of the connections without a pool."""

    def make() -> list[Nothing]:
        connections = [Nothing() for _ in range(count)]
        for connection in connections:
            connection.open()
        return connections

    return _grown(make)


def _idle(name: str, count: int) -> int:
    """Return the memory of the connections with their pool."""
    pools = []

    def make() -> None:
        pool = ALL[name].open_pool(count, Nothing)
        pools.append(pool)
        held = [pool.acquire() for _ in range(count)]
        while held:
            pool.release(held.pop(0))

    size = _grown(make)
    pools[0].close()
    return size


def _waiter(name: str) -> float | str:
    """Return the memory of a greenlet in a pool's queue, less that of one that waits for a switch."""
    pool = ALL[name].open_pool(1, Nothing)
    held = pool.acquire()
    is_refused = False

    def wait_for_pool() -> None:
        nonlocal is_refused
        try:
            pool.release(pool.acquire())
        except Exception:
            is_refused = True

    try:
        opened = Nothing.opened
        waiting = _crowd(wait_for_pool)
        if is_refused:
            return "refused"
        if Nothing.opened > opened:
            return "no limit"
        return (waiting - _crowd(lambda: Waiter().get())) / WAITERS
    finally:
        pool.release(held)
        pool.close()


def _crowd(wait: Callable[[], object]) -> int:
    greenlets: list[Any] = []

    def make() -> None:
        greenlets.extend(gevent.spawn(wait) for _ in range(WAITERS))
        gevent.sleep(0)

    size = _grown(make)
    gevent.killall(greenlets)
    return size


CASE = Case(
    name="memory",
    method="Measured by Python's tracemalloc. The memory of the connection itself, and of the waiting greenlet, is"
    " subtracted.",
    tables=[
        Table(
            "Memory",
            [Figure("idle", "an idle connection", "bytes"), Figure("waiter", "a waiting greenlet", "bytes")],
        )
    ],
    contestants=[each.name for each in [OURS, *RIVALS, *FLOORS]],
    measure=measure,
)
