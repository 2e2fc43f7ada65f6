"""A torture makes everything go wrong, at random moments, and finds what is broken."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import gevent
import gevent.socket
import pytest

from gsocketpool import (
    Connection,
    ConnectionNotFoundError,
    InvalidArgumentError,
    Pool,
    StreamConnection,
    TcpConnection,
    TlsConnection,
    UnixConnection,
)
from gsocketpool.connectors import Connector
from gsocketpool.testing import FlakyServer, TortureError, exchange_line, torture
from tests.support.internals import TORTURE_HANG, TORTURE_ROUND
from tests.support.scripted import Client, ScriptedConnector
from tests.support.servers import client_context, server_context

KINDS = ["tcp", "unix", "tls"]


class Echo(Connection):
    """Switches in every step, and is at a loss after an exchange that was not completed."""

    def __init__(self) -> None:
        self.is_open = False
        self.unread: list[bytes] = []

    def open(self) -> None:
        gevent.sleep(0)
        self.is_open = True
        gevent.sleep(0)

    def close(self) -> None:
        gevent.sleep(0)
        self.is_open = False

    def is_connected(self) -> bool:
        return self.is_open

    def is_usable(self) -> bool:
        gevent.sleep(0)
        return self.is_open

    def abort(self) -> None:
        self.is_open = False

    def echo(self, message: bytes) -> bytes:
        with self.exchange():
            self._require_open()
            self.unread.append(message)
            gevent.sleep(0)
            self._require_open()
            return self.unread.pop(0)

    def _require_open(self) -> None:
        if not self.is_open:
            raise ConnectionError("it is closed")


def torture_echo(limit: int, kills: int) -> None:
    rounds = 2 * kills + 1000
    with Pool(Echo, max_connections=limit, max_opening=None, reap_interval=3600) as pool:
        report = torture(pool, seed=limit, rounds=rounds, exchange=Echo.echo, greenlets=2 * limit + 28, forks=3)
    assert report.rounds == rounds
    assert report.thrown >= kills
    assert report.exchanges > rounds / 5
    assert report.forks >= min(3, rounds // 1000)


@pytest.mark.parametrize(("limit", "kills"), [(1, 400), (8, 800), (64, 800)])
def test_two_thousand_kills_lose_and_mix_up_nothing(limit: int, kills: int) -> None:
    torture_echo(limit, kills)


@pytest.mark.torture
@pytest.mark.parametrize("limit", [1, 8, 64])
def test_a_million_kills_lose_and_mix_up_nothing(limit: int) -> None:
    torture_echo(limit, kills=333_334)


@contextmanager
def serving(kind: str) -> Iterator[tuple[FlakyServer, Callable[[], StreamConnection]]]:
    """A server, and what makes connections to it."""
    with tempfile.TemporaryDirectory() as directory:
        tls = server_context("localhost") if kind == "tls" else None
        with FlakyServer(path=f"{directory}/socket" if kind == "unix" else None, tls=tls) as server:

            def connect() -> StreamConnection:
                if kind == "unix":
                    return UnixConnection(server.address, timeout=0.3)
                if kind == "tls":
                    security = {"ssl_context": context, "server_hostname": "localhost"}
                    return TlsConnection(server.host, server.port, timeout=0.3, **security)
                return TcpConnection(server.host, server.port, timeout=0.3)

            context = client_context()
            yield server, connect


def torture_sockets(kind: str, limit: int, rounds: int, seed: int) -> None:
    with serving(kind) as (server, connect):
        report = torture(connect, seed=seed, rounds=rounds, server=server, max_connections=limit)
        assert report.exchanges > rounds / 30
        # On a busy machine, a fault that greenlets must meet takes long.
        assert report.faults.total() > rounds // 5000
        # Whatever the pool has opened it has closed: nothing is left to the end of the process.
        server.wait_until(lambda: not server.open_connections)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("tcp", 1),
        ("unix", 4),
        ("tls", 4),
        *(
            pytest.param(kind, limit, marks=pytest.mark.torture)
            for kind, limit in [("tcp", 4), ("unix", 1), ("tls", 1)]
        ),
    ],
)
def test_real_connections_survive_a_torture(kind: str, limit: int) -> None:
    torture_sockets(kind, limit, rounds=300, seed=limit)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limit", [1, 4, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_real_connections_survive_a_long_torture(kind: str, limit: int, seed: int) -> None:
    torture_sockets(kind, limit, rounds=5_000, seed=seed)


def test_a_torture_with_the_same_seed_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without this, the time that things take decides, too.
    monkeypatch.setattr(TORTURE_ROUND, 0.1)

    def decided(seed: int) -> Any:
        report = torture(Echo, seed=seed, rounds=200, exchange=Echo.echo, greenlets=1, forks=0)
        return str(report)

    assert decided(1) == decided(1) != decided(2)


def test_a_torture_without_a_seed_chooses_a_new_one_each_time() -> None:
    first, second = (torture(Echo, rounds=1, exchange=Echo.echo, forks=0).seed for _ in range(2))
    assert first != second


@pytest.mark.parametrize("name", ["seed", "rounds", "greenlets", "forks", "max_connections"])
def test_a_bad_argument_is_refused_with_its_name(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        torture(Echo, exchange=Echo.echo, **{name: -1})
    assert caught.value.argument == name


# Connectors


class Echoing(ScriptedConnector):
    """Its clients send back what they were sent last, and switch in every step."""

    def connect(self) -> Client:
        gevent.sleep(0)
        client = super().connect()
        client.unread = []  # type: ignore[attr-defined]
        return client

    def is_reusable(self, connection: Any, error: BaseException | None) -> bool:
        return error is None and connection.is_open and not connection.unread

    def complete(self, connection: Client) -> None:
        gevent.sleep(0)
        connection.is_begun = connection.number % 3 == 0
        gevent.sleep(0)

    def reset(self, connection: Client) -> None:
        gevent.sleep(0)
        connection.is_begun = False
        gevent.sleep(0)

    def cancel(self, connection: Client) -> None:
        gevent.sleep(0)

    def close(self, connection: Client) -> None:
        gevent.sleep(0)
        connection.is_open = False

    def abort(self, connection: Client) -> None:
        connection.is_open = False


def echo(client: Any, message: bytes) -> bytes:
    assert not client.is_begun or client.unread == []
    client.begin()
    if not client.is_open:
        raise ConnectionError("it is closed")
    client.unread.append(message)
    gevent.sleep(0)
    if not client.is_open:
        raise ConnectionError("it is closed")
    reply: bytes = client.unread.pop(0)
    return reply


@pytest.mark.parametrize("rounds", [500, pytest.param(10_000, marks=pytest.mark.torture)])
@pytest.mark.parametrize(("limit", "reset"), [(1, "unsettled"), (8, "unsettled"), (1, "always"), (8, "always")])
def test_a_connector_survives_a_torture(limit: int, reset: str, rounds: int) -> None:
    connector = Echoing()
    with Pool(connector, max_connections=limit, max_opening=None, reap_interval=3600, reset=reset) as pool:
        report = torture(pool, seed=limit, rounds=rounds, exchange=echo, greenlets=2 * limit + 28, forks=1)
    assert report.exchanges > rounds / 5
    assert report.thrown > rounds * 2 / 5
    assert report.forks == 1
    assert not connector.open


def test_a_torture_makes_a_pool_of_a_connector() -> None:
    report = torture(Echoing(), seed=1, rounds=500, exchange=echo, forks=1)
    assert report.exchanges


class LineClient:
    """A client with a socket, which begins a transaction with each line that it exchanges."""

    def __init__(self, host: str, port: int) -> None:
        self.sock = gevent.socket.create_connection((host, port), timeout=0.1)
        self.is_exchanging = self.is_begun = False

    def fileno(self) -> int:
        descriptor: int = self.sock.fileno()
        return descriptor

    def close(self) -> None:
        self.sock.close()

    def ask(self, message: bytes) -> bytes:
        assert not self.is_exchanging
        self.is_exchanging = self.is_begun = True
        self.sock.sendall(message + b"\n")
        reply = b""
        while b"\n" not in reply:
            data = self.sock.recv(4096)
            if not data:
                raise ConnectionError("closed by the server")
            reply += data
        reply, _, more = reply.partition(b"\n")
        # More than was asked for is of no exchange.
        self.is_exchanging = bool(more)
        return reply

    def end(self, how: bytes) -> None:
        reply = self.ask(how)
        if reply != how or self.is_exchanging:
            raise ConnectionError(f"{how!r} was answered {reply!r}")
        self.is_begun = False


class LineConnector(Connector[LineClient]):
    """Leaves to the pool what has a default."""

    def __init__(self, server: FlakyServer) -> None:
        self.server = server

    def connect(self) -> LineClient:
        return LineClient(self.server.host, self.server.port)

    def is_settled(self, connection: LineClient) -> bool:
        return not connection.is_begun

    def is_reusable(self, connection: LineClient, error: BaseException | None) -> bool:
        return not connection.is_exchanging and connection.fileno() >= 0

    def complete(self, connection: LineClient) -> None:
        if connection.is_begun and not connection.is_exchanging:
            connection.end(b"commit")

    def reset(self, connection: LineClient) -> None:
        connection.end(b"rollback")

    def cancel(self, connection: LineClient) -> None:
        gevent.sleep(0.001)


@pytest.mark.parametrize(
    ("limit", "rounds"), [(4, 200), *(pytest.param(limit, 600, marks=pytest.mark.torture) for limit in (1, 4))]
)
def test_a_client_with_a_socket_survives_a_torture(limit: int, rounds: int) -> None:
    with FlakyServer() as server:
        report = torture(
            LineConnector(server),
            seed=limit,
            rounds=rounds,
            exchange=lambda client, message: client.ask(message),
            server=server,
            max_connections=limit,
        )
        assert report.exchanges > rounds / 10
        # On a busy machine, a fault that greenlets must meet takes long, and a fork waits for its end.
        assert report.faults.total() > rounds // 1000
        assert report.forks
        server.wait_until(lambda: not server.open_connections)


# What is broken is found


def failures(pool: Any, **arguments: Any) -> str:
    with pytest.raises(TortureError) as caught:
        torture(pool, seed=1, **{"rounds": 300, "exchange": Echo.echo, "forks": 0, **arguments})
    assert "seed=1" in str(caught.value)
    assert caught.value.report.rounds
    return "\n".join(caught.value.failures)


def test_a_reply_that_reaches_the_wrong_caller_is_found() -> None:
    class Careless(Echo):
        def is_reusable(self, error: BaseException | None) -> bool:
            return True

    assert "wrong caller" in failures(Careless, rounds=3000)


def test_an_exception_that_is_swallowed_is_found() -> None:
    def exchange(connection: Echo, message: bytes) -> bytes:
        for _ in range(10):
            with suppress(BaseException):
                gevent.sleep(0)
        return message

    assert "was thrown, and" in failures(Echo, exchange=exchange)


def test_lost_capacity_is_found() -> None:
    class Forgetful(Pool[Echo]):
        def release(self, connection: Echo) -> None:
            pass

    pool = Forgetful(Echo, max_connections=2, acquire_timeout=0.01)
    assert "connections were lost" in failures(pool)
    pool.close(timeout=0)


# This pool and the next are broken inside, on purpose.
def test_a_connection_above_the_limit_is_found() -> None:
    class Generous(Pool[Echo]):
        def acquire(self, *arguments: Any, **keywords: Any) -> Echo:
            if not self._state.idle:
                limit, self._state.max_connections = self._state.max_connections, 100
                opener = self._lifecycle.start_opening(more=100)
                self._state.max_connections = limit
                if opener is not None:
                    opener.join()
            return super().acquire(*arguments, **keywords)

    pool = Generous(Echo, max_connections=2)
    assert "more than 2 connections" in failures(pool)
    pool.close(timeout=0)


def test_a_connection_used_by_two_greenlets_is_found() -> None:
    class Sharing(Pool[Echo]):
        def acquire(self, *arguments: Any, **keywords: Any) -> Echo:
            in_use = self._state.entries_in_use()
            return in_use[0].connection if in_use else super().acquire(*arguments, **keywords)

        def release(self, connection: Echo) -> None:
            with suppress(ConnectionNotFoundError):
                super().release(connection)

        discard = release

    pool = Sharing(Echo, max_connections=2)
    assert "is used by" in failures(pool)
    pool.close(timeout=0)


def test_a_socket_left_open_is_found(flaky_server: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Any] = []

    class Hoarding(TcpConnection):
        def close(self) -> None:
            left.append(self._sock)
            self._connected = False

    monkeypatch.setattr(TORTURE_HANG, 1.0)
    try:
        connect = partial(Hoarding, flaky_server.host, flaky_server.port)
        assert "a socket is still open" in failures(connect, server=flaky_server, exchange=exchange_line)
    finally:
        for sock in left:
            sock.close()


def test_a_connection_that_two_processes_write_to_is_found(flaky_server: FlakyServer) -> None:
    def exchange(connection: TcpConnection, message: bytes) -> bytes:
        # What a child would write, if it had the connection.
        exchange_line(connection, b"torture-1-by-another-process")
        return exchange_line(connection, message)

    connect = partial(TcpConnection, flaky_server.host, flaky_server.port, timeout=0.3)
    assert "2 processes used" in failures(connect, server=flaky_server, exchange=exchange)


def test_a_reply_to_its_parent_that_a_child_reads_is_found() -> None:
    class Sticky(Echo):
        def abort(self) -> None:
            pass

    assert "read a reply meant for its parent" in failures(Sticky, forks=100, rounds=3000)


def test_a_pool_that_does_not_work_in_a_child_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Homesick(Echo):
        def open(self) -> None:
            if os.getpid() != parent:
                raise OSError("far from home")
            super().open()

    parent = os.getpid()
    monkeypatch.setattr(TORTURE_HANG, 2.0)
    found = failures(Homesick, forks=1)
    assert "in a forked process: only " in found
    assert "far from home" in found


def test_a_mistake_in_the_test_is_raised_unchanged(flaky_server: FlakyServer) -> None:
    refused = partial(TcpConnection, flaky_server.host, 1)
    with pytest.raises(ConnectionRefusedError):
        torture(refused, server=flaky_server)
    with pytest.raises(AttributeError, match="no attribute 'send'"):
        torture(Echo)
    with pytest.raises(InvalidArgumentError, match="exchange must be"):
        torture(Echo, exchange=lambda connection, message: message + b"!")


def test_an_error_of_the_server_is_found() -> None:
    def answer(request: bytes) -> Any:
        asked.append(request)
        return request if len(asked) < 10 else "text"

    asked: list[bytes] = []

    def run() -> str:
        with FlakyServer(answer) as server:
            connect = partial(TcpConnection, server.host, server.port, timeout=0.3)
            return failures(connect, server=server, exchange=exchange_line)

    with pytest.raises(TypeError, match="answer\\(\\) must return bytes or None, not str"):
        assert "the server has failed: TypeError" in run()


def test_a_torture_leaves_nothing_running(assert_no_leaks: None) -> None:
    class Careless(Echo):
        def is_reusable(self, error: BaseException | None) -> bool:
            return True

    pool = Pool(Careless)
    assert failures(pool, rounds=3000)
    pool.close(timeout=0)
    pool = Pool(Echo)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
        torture(pool, exchange=Echo.echo, rounds=10**9, forks=0)
    pool.close(timeout=0)


def test_a_greenlet_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def exchange(connection: Echo, message: bytes) -> bytes:
        while not is_over and message != b"torture":
            with suppress(BaseException):
                gevent.sleep(0.01)
        return connection.echo(message)

    is_over: list[bool] = []
    monkeypatch.setattr(TORTURE_HANG, 0.5)
    pool = Pool(Echo)
    try:
        assert "has hung" in failures(pool, exchange=exchange, greenlets=1)
    finally:
        is_over.append(True)
        pool.close(timeout=0)
