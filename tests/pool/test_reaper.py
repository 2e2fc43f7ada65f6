"""A sweep takes linear time, deals with each connection whatever the others do, and closes those that have died."""

from __future__ import annotations

import linecache
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gevent
import pytest

from gsocketpool import Connection, Pool, TcpConnection, TlsConnection
from tests.support.connections import no_hanging as no_hanging
from tests.support.internals import sweep
from tests.support.scripted import PATIENCE, Backend, Clock, Foreign, Plain, ScriptedConnection, eventually, numbers
from tests.support.servers import Server, client_context, server_context


@contextmanager
def ending(pool: Pool[Any]) -> Iterator[Pool[Any]]:
    """Close `pool` at the end, even if the test fails: no sweep of it runs during another test."""
    try:
        yield pool
    finally:
        pool.close(timeout=0)


class Asked(ScriptedConnection):
    """Counts how often it is asked whether it is expired: once in every sweep, as long as it is idle."""

    asked = 0

    def is_expired(self) -> bool:
        self.asked += 1
        return self.says_expired


def make_asked(backend: Backend) -> Asked:
    connection = Asked(backend, {})
    backend.connections.append(connection)
    return connection


# What a sweep costs


@pytest.fixture
def lines_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows whenever source lines of this file are read: formatting a stack of it reads them."""
    reads: list[str] = []
    getlines = linecache.getlines

    def note(filename: str, *rest: Any, **more: Any) -> list[str]:
        if filename == __file__:
            reads.append(filename)
        return getlines(filename, *rest, **more)

    monkeypatch.setattr(linecache, "getlines", note)
    return reads


def test_a_sweep_formats_only_the_stack_of_a_leak(
    backend: Backend, clock: Clock, caplog: pytest.LogCaptureFixture, lines_read: list[str]
) -> None:
    with ending(clock.pool(partial(make_asked, backend), reap_interval=0.01, leak_threshold=30)) as pool:
        leak = pool.acquire()
        clock.advance(31)
        eventually(lambda: caplog.records)
        if not lines_read:
            pytest.fail("a report of a leak reads no source, so this test can't tell what a sweep formats")
        lines_read.clear()
        idle, *others = [pool.acquire() for _ in range(4)]
        pool.release(idle)
        idle.asked = 0
        eventually(lambda: idle.asked >= 3)
        assert leak.is_open
        assert all(connection.is_open for connection in others)
        assert lines_read == []


class Expiring(Plain):
    says_expired = False

    def is_expired(self) -> bool:
        return self.says_expired


def seconds_to_drop(pool: Pool[Any], connections: list[Expiring]) -> float:
    """The processor time that it takes to drop `connections`, which are idle."""
    for connection in connections:
        connection.says_expired = True
    began = time.thread_time()
    pool.drop_expired()
    seconds = time.thread_time() - began
    assert not any(connection.is_open for connection in connections)
    return seconds


def test_the_cost_of_drop_expired_does_not_depend_on_which_connections_have_expired() -> None:
    pool = Pool(Expiring, max_connections=20_000, max_opening=None, reap_expired_connections=False)
    idle = [pool.acquire() for _ in range(20_000)]
    for connection in idle:
        pool.release(connection)
    longest_idle: list[float] = []
    last_used: list[float] = []
    for _ in range(2):
        longest_idle.append(seconds_to_drop(pool, idle[:1000]))
        last_used.append(seconds_to_drop(pool, idle[-1000:]))
        idle = idle[1000:-1000]
    assert numbers(pool) == (0, len(idle), 0, 0)
    assert min(last_used) < 4 * min(longest_idle)


# One bad connection among others


class RaisingAttributes(Foreign):
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} can't be looked up")


class RaisingTimeout(Foreign):
    def is_expired(self) -> bool:
        raise gevent.Timeout(1)


def pool_with_a_bad_one(backend: Backend, bad: Any, **settings: Any) -> tuple[Pool[Any], Any, Any]:
    """A pool with three idle connections: one that counts the sweeps, then the bad one, then one that is expired."""
    made = iter([make_asked(backend), bad, make_asked(backend)])
    pool: Pool[Any] = Pool(lambda: next(made), max_connections=3, **settings)
    counting, _, expired = connections = [pool.acquire() for _ in range(3)]
    expired.says_expired = True
    for connection in connections:
        pool.release(connection)
    return pool, counting, expired


@pytest.mark.parametrize("kind", [RaisingAttributes, RaisingTimeout])
def test_one_bad_connection_does_not_stop_the_sweep_of_the_others(backend: Backend, kind: type[Foreign]) -> None:
    pool, counting, expired = pool_with_a_bad_one(backend, kind(), reap_interval=0.01)
    with ending(pool):
        eventually(lambda: not expired.is_open or counting.asked >= 10)
        assert not expired.is_open
        assert counting.is_open


def test_one_bad_connection_does_not_stop_drop_expired_for_the_others(backend: Backend) -> None:
    bad = RaisingAttributes()
    pool, counting, expired = pool_with_a_bad_one(backend, bad, reap_expired_connections=False)
    with ending(pool):
        pool.drop_expired()
        assert not expired.is_open
        assert counting.is_open


# What dies while it is idle


class Pinging(TcpConnection):
    """Counts the round trips by which it would answer whether it is usable."""

    pings = 0

    def is_usable(self) -> bool:
        self.pings += 1
        return super().is_usable()


class Wrapping(Connection):
    """A client that has a socket, and knows nothing of its end."""

    def __init__(self, host: str, port: int) -> None:
        self.client = TcpConnection(host, port)

    def open(self) -> None:
        self.client.open()

    def close(self) -> None:
        self.client.close()

    def get(self) -> Any:
        return self.client.get()

    def is_connected(self) -> bool:
        return self.client.is_connected()


class Questions:
    """A factory of connections to a server, which counts how often sweeps ask them whether they are expired."""

    def __init__(self, kind: Any, server: Server) -> None:
        self.asked = 0
        self._kind = kind
        self._options: dict[str, Any] = {"host": server.host, "port": server.port}
        if kind is TlsConnection:
            self._options |= {"ssl_context": client_context(), "server_hostname": "localhost"}

    def __call__(self) -> Any:
        questions = self

        class Counting(self._kind):  # type: ignore[misc, name-defined]
            def is_expired(self) -> bool:
                questions.asked += 1
                return False

        return Counting(**self._options)

    def until(self, condition: Callable[[], bool], asked: int) -> None:
        """Wait until `condition` is true, or has had the time of so many questions to become true."""
        eventually(lambda: condition() or self.asked >= asked)


def server_for(kind: Any) -> Server:
    return Server(tls=server_context("localhost") if kind is TlsConnection else None)


KINDS = [TcpConnection, TlsConnection, Wrapping]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_closes_dead_connections_and_counts_them_no_more(kind: Any) -> None:
    with server_for(kind) as server:
        questions = Questions(kind, server)
        with ending(Pool(questions, reap_interval=0.01)) as pool:
            dying = pool.acquire()
            peer = server.next_peer()
            living = pool.acquire()
            pool.release(dying)
            pool.release(living)
            peer.close()
            questions.until(lambda: pool.stats().idle == 1, asked=40)
            assert numbers(pool) == (0, 1, 0, 0)
            eventually(lambda: dying.get().fileno() == -1)
            assert pool.acquire() is living


def test_a_sweep_does_not_peek_at_a_class_with_a_check_of_its_own() -> None:
    """To such a class, being readable may mean nothing."""
    with Server() as server:
        questions = Questions(Pinging, server)
        with ending(Pool(questions, reap_interval=0.01)) as pool:
            dying = pool.acquire()
            peer = server.next_peer()
            pool.release(dying)
            peer.close()
            assert pool.stats().can_peek is False
            sweep(pool)
            assert pool.stats().idle == 1
            assert pool.acquire() is not dying


def test_a_dead_connection_is_replaced_to_keep_min_connections() -> None:
    with Server() as server:
        questions = Questions(TcpConnection, server)
        with ending(Pool(questions, min_connections=3, reap_interval=0.01)) as pool:
            pool.wait_ready(timeout=PATIENCE)
            for _ in range(3):
                server.next_peer().close()
            questions.until(lambda: server.accepted == 6, asked=60)
            assert server.accepted == 6
            eventually(lambda: numbers(pool) == (0, 3, 0, 0))
            assert pool.stats().opened == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_keeps_live_connections_and_makes_no_round_trip(kind: Any) -> None:
    with server_for(kind) as server:
        questions = Questions(kind, server)
        with ending(Pool(questions, reap_interval=0.01)) as pool:
            connection = pool.acquire()
            pool.release(connection)
            questions.until(lambda: False, asked=4)
            assert numbers(pool) == (0, 1, 0, 0)
            assert getattr(connection, "pings", 0) == 0
            assert pool.acquire() is connection


# What the connections say themselves


def test_acquire_and_release_do_not_call_is_expired(backend: Backend) -> None:
    pool = Pool(backend.connect)
    connection = pool.acquire()
    connection.says_expired = True
    pool.release(connection)
    assert pool.acquire() is connection
    pool.release(connection)
    pool.drop_expired()
    assert not connection.is_open
    assert pool.stats().retired == {"expired": 1}


def test_the_sweep_interval_is_the_shortest_limit(backend: Backend) -> None:
    def interval(**settings: Any) -> float:
        return Pool(backend.connect, **settings).settings.sweep_interval

    assert interval() == 180
    assert interval(reap_interval=10, idle_timeout=60) == 10
    assert interval(idle_timeout=60) == 60
    assert interval(idle_timeout=60, max_lifetime=50, leak_threshold=40) == 40


def test_drop_expired_keeps_a_connection_acquired_while_is_expired_switches(backend: Backend) -> None:
    class Slow(ScriptedConnection):
        def is_expired(self) -> bool:
            gevent.sleep(0)
            return True

    pool = Pool(lambda: backend.add(Slow(backend, {})))
    first, second = pool.acquire(), pool.acquire()
    pool.release(first)
    pool.release(second)
    dropping = gevent.spawn(pool.drop_expired)
    gevent.sleep(0)
    taken = [pool.acquire(), pool.acquire()]
    dropping.get(timeout=PATIENCE)
    assert all(connection.is_open for connection in taken)
    assert numbers(pool) == (2, 0, 0, 0)
