"""A program that kills every greenlet it can find leaves no connection open, whatever its class is."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import Pool
from tests.connections import no_hanging as no_hanging
from tests.scripted import settle
from tests.switches import greenlets_there_are


class Foreign:
    """A connection of a class that has nothing to do with ours: the pool can't close it but by its ``close()``."""

    def __init__(self) -> None:
        self.is_open = False
        self.may_close = Event()
        #: The greenlets that have begun to close it.
        self.closers: list[Any] = []

    def open(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.closers.append(gevent.getcurrent())
        self.may_close.wait()
        self.is_open = False

    def is_connected(self) -> bool:
        return self.is_open


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="a foreign connection whose closing was killed stays open"
)
def test_a_foreign_connection_is_closed_though_the_greenlet_that_closes_it_is_killed() -> None:
    pool = Pool(Foreign, max_connections=1, reap_expired_connections=False)
    connection = pool.acquire()
    discarding = gevent.spawn(pool.discard, connection)
    settle()
    (closer,) = connection.closers
    closer.kill(block=False)
    connection.may_close.set()
    settle()
    assert discarding.ready()
    assert not connection.is_open
    assert len(connection.closers) == 2
    assert pool.size == 0


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="a foreign connection whose closing was killed stays open"
)
def test_a_foreign_connection_is_closed_though_that_greenlet_is_killed_before_it_has_begun() -> None:
    pool = Pool(Foreign, max_connections=1, reap_expired_connections=False)
    connection = pool.acquire()
    connection.may_close.set()
    others = greenlets_there_are()
    loop = gevent.get_hub().loop
    loop.run_callback(pool.discard, connection)
    loop.run_callback(lambda: [each.kill(block=False) for each in greenlets_there_are() if each not in others])
    settle()
    assert not connection.is_open
    assert len(connection.closers) == 1
    assert pool.size == 0
