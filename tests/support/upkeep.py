"""What the tests of resets and those of pings share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from gsocketpool import Pool
from tests.support.scripted import (
    Client,
    ScriptedConnector,
    eventually,
)


class BoomError(BaseException):
    """One that no "except Exception" catches."""


def discarded(pool: Pool[Client]) -> dict[str, int]:
    return dict(pool.stats().discarded)


def check_whole(pool: Pool[Client], connector: ScriptedConnector) -> None:
    """Check that the capacity is whole, and that what was discarded is closed."""
    connector.acts.clear()
    taken = [pool.acquire() for _ in range(pool.stats().max_connections)]
    assert len(set(map(id, taken))) == len(taken)
    assert all(client.is_open and not client.is_begun for client in taken)
    eventually(lambda: len(connector.open) == len(taken))
    for client in taken:
        pool.release(client)


def errors() -> list[Any]:
    kinds: list[Callable[[], BaseException]] = [
        lambda: ValueError("boom"),
        lambda: gevent.Timeout(1),
        gevent.GreenletExit,
        BoomError,
    ]
    return [pytest.param(kind, id=type(kind()).__name__) for kind in kinds]


def swallow(client: Client) -> None:
    """Take the pool's limit for an error of the reset's own."""
    with contextlib.suppress(BaseException):
        gevent.sleep(100)
    client.is_begun = False
