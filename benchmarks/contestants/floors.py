"""Minimal pools: no records, no checks, no timeouts, no error handling."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from gevent.hub import Waiter, get_hub
from gevent.lock import BoundedSemaphore
from gevent.queue import LifoQueue

from benchmarks.contestants.base import OpenPool


def _connect(count: int, kind: type[Any], options: dict[str, Any]) -> list[Any]:
    connections = [kind(**options) for _ in range(count)]
    for connection in connections:
        connection.open()
    return connections


def _close(connections: list[Any]) -> None:
    for connection in connections:
        connection.close()


def _block(acquire: Callable[[], Any], release: Callable[[Any], object]) -> Callable[[], AbstractContextManager[Any]]:
    """Return the obvious context manager."""

    @contextmanager
    def block() -> Iterator[Any]:
        connection = acquire()
        try:
            yield connection
        finally:
            release(connection)

    return block


def open_queue(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    """Return a pool made of gevent's compiled queue. A new caller may overtake waiters."""
    queue: Any = LifoQueue(size)
    connections = _connect(size, kind, options)
    for connection in connections:
        queue.put(connection)
    return OpenPool(queue.get, queue.put, partial(_close, connections))


def open_semaphore(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    """Return a pool made of gevent's compiled semaphore and a deque. It does not order waiters."""
    connections = _connect(size, kind, options)
    free = deque(connections)
    places = BoundedSemaphore(size)

    def acquire() -> Any:
        places.acquire()
        return free.pop()

    def release(connection: Any) -> None:
        free.append(connection)
        places.release()

    return OpenPool(acquire, release, partial(_close, connections), _block(acquire, release))


def open_hand_over(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    """Return a pool that serves waiters in order, and does nothing else."""
    connections = _connect(size, kind, options)
    free = deque(connections)
    waiters: deque[Waiter] = deque()
    hub = get_hub()

    def acquire() -> Any:
        if free:
            return free.pop()
        waiter = Waiter(hub)
        waiters.append(waiter)
        return waiter.get()

    def release(connection: Any) -> None:
        if waiters:
            hub.loop.run_callback(waiters.popleft().switch, connection)
        else:
            free.append(connection)

    return OpenPool(acquire, release, partial(_close, connections), _block(acquire, release))


def open_dedicated(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    """Return one connection for each greenlet. No greenlet waits for another."""
    connections = _connect(size, kind, options)
    free = list(connections)
    return OpenPool(free.pop, free.append, partial(_close, connections))
