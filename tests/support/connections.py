"""Connections over real sockets, and helpers to watch what they do."""

from __future__ import annotations

import signal
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest

from gsocketpool import Connection, StreamConnection, TcpConnection, TlsConnection, UnixConnection
from tests.support.scripted import PATIENCE, eventually, settle
from tests.support.servers import Server, client_context, server_context

#: What :func:`serving` knows.
KINDS = ["tcp", "tls", "unix"]


@pytest.fixture(autouse=True)
def no_hanging(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that hangs, in its greenlet alone or with the whole process.

    Each module that imports this has it for all of its tests.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise AssertionError("the whole process was blocked")

    # A torture takes long, and longer beside others.
    patience = (20 if request.node.get_closest_marker("torture") else 2) * PATIENCE
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, patience + PATIENCE)
    try:
        with gevent.Timeout(patience, AssertionError("it hangs")):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def serving(
    kind: str, handler: Callable[[Any], object] | None = None, **options: Any
) -> Iterator[tuple[StreamConnection, Server]]:
    """A connection that is still to be opened, and the server it is for."""
    with tempfile.TemporaryDirectory() as directory:
        connection: StreamConnection
        if kind == "unix":
            server = Server(handler, path=f"{directory}/socket")
            connection = UnixConnection(server.address, **options)
        elif kind == "tls":
            server = Server(handler, tls=server_context("localhost"))
            usual: dict[str, Any] = {"ssl_context": client_context(), "server_hostname": "localhost"}
            connection = TlsConnection(server.host, server.port, **{**usual, **options})
        else:
            server = Server(handler)
            connection = TcpConnection(server.host, server.port, **options)
        with server:
            try:
                yield connection, server
            finally:
                connection.close()


@contextmanager
def exchange(kind: str = "tcp", **options: Any) -> Iterator[tuple[Any, Any]]:
    """An open connection and the socket at its other end."""
    with serving(kind, **options) as (connection, server):
        connection.open()
        yield connection, server.next_peer()


def check_echo(connection: StreamConnection, message: bytes = b"is a server there?") -> None:
    connection.send(message)
    assert connection.recv_exactly(len(message)) == message


def outcome(function: Callable[..., object], *arguments: Any, **options: Any) -> object:
    """Return what a call returns, or the error that it raises: for a greenlet, which had better not die of it."""
    try:
        return function(*arguments, **options)
    except (Exception, gevent.Timeout) as error:
        return error


def spawn_waiting(function: Callable[..., object], *arguments: Any) -> gevent.Greenlet:
    """A greenlet that has run until it waits for something."""
    greenlet = gevent.spawn(outcome, function, *arguments)
    settle()
    assert not greenlet.ready()
    return greenlet


def spawn_opening(connection: TcpConnection) -> gevent.Greenlet:
    """A greenlet that has run until it waits for a connection, or a handshake, that does not come about."""
    opener = gevent.spawn(outcome, connection.open)
    kind = gevent.ssl.SSLSocket if isinstance(connection, TlsConnection) else gevent.socket.socket
    eventually(lambda: isinstance(connection.socket, kind))
    assert not opener.ready()
    return opener


def wait_readable(connection: Any) -> None:
    """Wait until the kernel has something for the connection."""
    gevent.socket.wait_read(connection.get().fileno(), timeout=PATIENCE)


def reset(peer: Any) -> None:
    """Close a socket in a way that its other end sees as "connection reset"."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def without_switching(function: Callable[[], Any]) -> Any:
    """Return what a call returns. No other greenlet may run meanwhile."""
    ran: list[bool] = []
    bystander = gevent.spawn(ran.append, True)
    result = function()
    assert ran == []
    bystander.join()
    assert ran == [True]
    return result


class Classic(Connection):
    """A connection as it was written for gsocketpool 0.1.6. Without something to get, it has no get()."""

    def __init__(self, raw: Any = None) -> None:
        self.raw = raw
        self.connected = True

    def open(self) -> None:
        self.connected = True

    def close(self) -> None:
        self.connected = False

    def get(self) -> Any:
        return super().get() if self.raw is None else self.raw

    def is_connected(self) -> bool:
        return self.connected
