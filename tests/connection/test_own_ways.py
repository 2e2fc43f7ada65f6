"""Subclasses that replace the socket, and URLs with a driver."""

from __future__ import annotations

import os
import socket
import weakref
from typing import Any

import gevent
import gevent.socket
import pytest

from gsocketpool import Connection, Pool, TcpConnection, TlsConnection
from gsocketpool.url import InvalidURLError
from tests.support.connections import check_echo, spawn_waiting, wait_readable
from tests.support.scripted import PATIENCE
from tests.support.servers import Server, client_context, echo, server_context


class Reconnecting(TcpConnection):
    """Connects another socket behind the back of its base class."""

    def swap(self) -> None:
        first, self._sock = self._sock, None
        self._connect()
        first.close()


def test_a_subclass_may_replace_its_socket() -> None:
    with Server(echo) as server:
        connection = Reconnecting("127.0.0.1", server.port, timeout=10)
        connection.open()
        connection.swap()
        assert connection.is_usable()
        check_echo(connection)
        connection.send(b"something to read")
        wait_readable(connection)
        assert not connection.is_usable()
        connection.close()


def test_a_pool_looks_at_the_socket_in_place_of_the_first() -> None:
    with Server(echo) as server, Pool(Reconnecting, {"host": "127.0.0.1", "port": server.port}) as pool:
        with pool.connection() as first:
            first.swap()
        with pool.connection() as again:
            assert again is first
            check_echo(first)
        first.send(b"something to read")
        wait_readable(first)
        with pool.connection() as other:
            assert other is not first
        other.socket.close()
        with pool.connection() as third:
            assert third is not other
        assert pool.stats().discarded == {"unusable": 2}


class Forgetful(TcpConnection):
    """Connects another socket, and leaves the first one to the garbage collector."""

    def swap(self) -> weakref.ref[Any]:
        first = weakref.ref(self.socket._sock)
        self._connect()
        return first


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("step", ["is_usable", "close", "abort"])
def test_a_replaced_socket_is_not_kept(step: str) -> None:
    with Server(echo) as server:
        connection = Forgetful("127.0.0.1", server.port)
        connection.open()
        first = connection.swap()
        getattr(connection, step)()
        assert first() is None
        connection.close()


class Wrapper:
    """Around a socket, and not a gevent socket itself."""

    def __init__(self, sock: Any) -> None:
        self.inner = sock

    def __getattr__(self, name: str) -> Any:
        if name == "_sock":
            raise AttributeError(name)
        return getattr(self.inner, name)


class Wrapping(TcpConnection):
    def _connect(self) -> None:
        super()._connect()
        self._sock = Wrapper(self._sock)

    def is_usable(self) -> bool:
        return self.is_connected()


def test_a_subclass_may_wrap_its_socket() -> None:
    with Server(echo) as server, Pool(Wrapping, {"host": "127.0.0.1", "port": server.port}) as pool:
        with pool.connection() as first:
            check_echo(first)
        with pool.connection() as second:
            assert second is first
            check_echo(second)


class WithHealth(Connection):
    """Mixed into a stream: it is connected only while it is healthy."""

    is_healthy = True

    def is_connected(self) -> bool:
        return self.is_healthy and super().is_connected()


#: A class that overrides more than is_connected(), each by the same answer.
OVERRIDES: dict[str, Any] = {
    "none": {},
    "is_usable": {"is_usable": lambda self: TcpConnection.is_usable(self)},
    "is_reusable": {"is_reusable": lambda self, error: TcpConnection.is_reusable(self, error)},
}


@pytest.mark.parametrize("others", OVERRIDES)
@pytest.mark.parametrize("kind", [TcpConnection, TlsConnection])
@pytest.mark.parametrize("when", ["in use", "idle"])
def test_a_stream_that_says_it_is_not_connected_is_not_handed_out_again(
    kind: type[TcpConnection], when: str, others: str
) -> None:
    own: Any = type("Own", (WithHealth, kind), OVERRIDES[others])
    is_tls = kind is TlsConnection
    options = {"ssl_context": client_context(), "server_hostname": "localhost"} if is_tls else {}
    with (
        Server(echo, tls=server_context("localhost") if is_tls else None) as server,
        Pool(own, {"host": server.host, "port": server.port, **options}) as pool,
    ):
        with pool.connection() as first:
            check_echo(first)
        with pool.connection() as second:
            assert second is first
            first.is_healthy = when == "idle"
        first.is_healthy = False
        assert not first.is_usable()
        assert not first.is_reusable(None)
        with pool.connection() as third:
            assert third is not first
            check_echo(third)
        assert pool.stats().discarded == {"unusable" if when == "idle" else "not_reusable": 1}


@pytest.mark.parametrize("scheme", ["tcp", "tls", "unix"])
def test_a_url_of_a_plain_socket_with_a_driver_is_refused(scheme: str) -> None:
    with pytest.raises(InvalidURLError, match=f"has no choice of drivers: write {scheme}://"):
        Pool.from_url(f"{scheme}+fast://localhost:1")


def test_abort_closes_a_descriptor_that_get_returns() -> None:
    ours, theirs = socket.socketpair()

    class ByDescriptor(Connection):
        def get(self) -> int:
            return ours.fileno()

    with ours, theirs:
        ByDescriptor().abort()
        assert theirs.recv(1) == b"", "no other process has it open"
        # The number stays taken, so that a second close hits nothing else.
        assert os.readlink(f"/proc/self/fd/{ours.fileno()}") == os.devnull


def test_abort_wakes_a_greenlet_that_reads_from_a_file_of_the_socket() -> None:
    class Filed(Connection):
        def __init__(self, port: int) -> None:
            self.sock = gevent.socket.create_connection(("127.0.0.1", port))
            self.file = self.sock.makefile("rb")

        def get(self) -> Any:
            return self.sock

    with Server(echo) as server:
        connection = Filed(server.port)
        reader = spawn_waiting(connection.file.readline)
        # Let the event loop poll the descriptor.
        gevent.sleep(0.01)
        connection.abort()
        assert isinstance(reader.get(timeout=PATIENCE), OSError)
