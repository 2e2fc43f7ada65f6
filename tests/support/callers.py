"""Callers in greenlets of their own, and exceptions to throw at them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest

from gsocketpool import Pool, PoolExhaustedError
from tests.support.scripted import (
    PATIENCE,
    Backend,
    eventually,
    numbers,
    settle,
)


class InterruptionError(Exception):
    """An ordinary exception, thrown from outside."""


THROWN = [gevent.GreenletExit(), gevent.Timeout(1), InterruptionError(), KeyError("x")]


def throw(greenlet: gevent.Greenlet, error: BaseException) -> None:
    greenlet.kill(error, block=False)


def check_whole(pool: Pool[Any], backend: Backend | None = None) -> None:
    """Check that the pool has its whole capacity, and knows every connection of `backend` that is open."""
    eventually(lambda: pool.stats().opening == 0)
    settle()
    assert pool.stats().waiting == 0
    if backend is not None:
        assert len(backend.open) == pool.size
    limit, held = pool.stats().max_connections, pool.stats().in_use
    taken = [pool.acquire(timeout=PATIENCE) for _ in range(limit - held)]
    assert len({id(connection) for connection in taken}) == len(taken)
    assert all(connection.is_open for connection in taken)
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    for connection in taken:
        pool.release(connection)
    settle()
    assert numbers(pool) == (held, limit - held, 0, 0)


class Caller:
    """A greenlet that acquires, keeps what it gets, and tells how that ended."""

    def __init__(self, pool: Pool[Any], act: Callable[[Pool[Any]], object] | None = None) -> None:
        self.pool = pool
        self.ended_by: BaseException | None = None
        self.result: Any = None
        self.greenlet = gevent.spawn(self._run, act or (lambda pool: pool.acquire(timeout=PATIENCE)))
        settle()

    def _run(self, act: Callable[[Pool[Any]], object]) -> None:
        try:
            self.result = act(self.pool)
        except BaseException as error:
            self.ended_by = error

    def throw(self, error: BaseException) -> None:
        throw(self.greenlet, error)


def ended_by(function: Callable[..., object], *arguments: Any, **options: Any) -> object:
    """Return what a call returns, or what it raises, a kill included."""
    try:
        return function(*arguments, **options)
    except BaseException as error:
        return error


#: Every method of a pool, as a call with the pool and a connection that is in use.
METHODS: dict[str, Callable[[Pool[Any], Any], object]] = {
    "acquire": lambda pool, held: pool.acquire(),
    "acquire at once": lambda pool, held: pool.acquire(timeout=0),
    "acquire and retry": lambda pool, held: pool.acquire(retry=1),
    "connection": lambda pool, held: pool.connection().__enter__(),
    "lease": lambda pool, held: pool.lease(),
    "release": lambda pool, held: pool.release(held),
    "discard": lambda pool, held: pool.discard(held),
    "detach": lambda pool, held: pool.detach(held),
    "drop": lambda pool, held: pool.drop(held),
    "drop_expired": lambda pool, held: pool.drop_expired(),
    "drain": lambda pool, held: pool.drain(),
    "resize": lambda pool, held: pool.resize(1),
    "wait_ready": lambda pool, held: pool.wait_ready(),
    "fill": lambda pool, held: pool.fill(2),
    "ping": lambda pool, held: pool.ping(),
    "close": lambda pool, held: pool.close(),
    "with": lambda pool, held: pool.__enter__().__exit__(None, None, None),
}


def is_closed(pool: Pool[Any]) -> bool:
    return repr(pool).endswith(", closed>")


@pytest.fixture(params=[gevent.GreenletExit, lambda: gevent.Timeout(1)], ids=["kill", "timeout"])
def thrown(request: pytest.FixtureRequest) -> BaseException:
    return request.param()  # type: ignore[no-any-return]
