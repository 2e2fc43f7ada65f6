"""A program that kills every greenlet it can find leaves no connection open, whatever its class is."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress
from typing import Any

import gevent
from gevent.event import Event

from gsocketpool import Pool
from tests.support.connections import no_hanging as no_hanging
from tests.support.scripted import PATIENCE, settle
from tests.support.switches import greenlets_there_are


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


def test_a_foreign_connection_is_closed_though_the_greenlet_that_closes_it_is_killed() -> None:
    pool = Pool(Foreign, max_connections=1, reap_expired_connections=False)
    connection = pool.acquire()
    pool.discard(connection)
    settle()
    (closer,) = connection.closers
    closer.kill(block=False)
    connection.may_close.set()
    settle()
    assert not connection.is_open
    assert len(connection.closers) == 2
    assert pool.size == 0


def test_a_foreign_connection_is_closed_though_that_greenlet_is_killed_before_it_has_begun() -> None:
    pool = Pool(Foreign, max_connections=1, reap_expired_connections=False)
    connection = pool.acquire()
    connection.may_close.set()
    others = greenlets_there_are()
    killed: list[Any] = []

    def kill_closers() -> None:
        killed.extend(each for each in greenlets_there_are() if each not in others)
        gevent.killall(killed, block=False)

    pool.discard(connection)
    # The event loop makes the greenlet first, does this, and then lets the greenlet begin.
    gevent.get_hub().loop.run_callback(kill_closers)
    settle()
    assert len(killed) == 1
    assert not connection.is_open
    assert len(connection.closers) == 1
    assert pool.size == 0


def test_closing_a_pool_lasts_until_a_connection_is_closed_whose_greenlet_was_killed() -> None:
    pool = Pool(Foreign, max_connections=1, reap_expired_connections=False)
    connection = pool.acquire()
    pool.release(connection)
    closing = gevent.spawn(pool.close)
    settle()
    connection.closers[0].kill(block=False)
    settle()
    assert len(connection.closers) == 2
    assert not closing.ready()
    connection.may_close.set()
    closing.get(timeout=PATIENCE)
    assert not connection.is_open
    assert pool.stats().closing == 0


class Stubborn(Foreign):
    """A connection whose ``close()`` goes on when its time is over, and ends only when its greenlet is killed."""

    def close(self) -> None:
        self.closers.append(gevent.getcurrent())
        while not self.may_close.is_set():
            with suppress(gevent.Timeout):
                self.may_close.wait()


def test_a_closed_pool_forgets_a_connection_that_would_not_close_after_its_greenlet_was_killed() -> None:
    pool = Pool(Stubborn, max_connections=1, reap_expired_connections=False, close_timeout=0.01)
    connection = pool.acquire()
    pool.discard(connection)
    settle()
    connection.closers[0].kill(block=False)
    settle()
    assert len(connection.closers) == 2
    pool.close(timeout=0)
    settle()
    assert pool.stats().closing == 0
    reference = weakref.ref(connection)
    del connection
    gc.collect()
    assert reference() is None
