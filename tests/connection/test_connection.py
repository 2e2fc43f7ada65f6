"""What every connection has: the base class, arguments, the raw socket, a lifetime, a repr."""

from __future__ import annotations

import pathlib
import socket
from collections.abc import Callable
from typing import Any

import gevent
import gevent.socket
import pytest

from gsocketpool import Connection, InvalidArgumentError, StreamConnection, TcpConnection, TlsConnection, UnixConnection
from tests.support.connections import KINDS, Classic, exchange, serving, without_switching
from tests.support.connections import no_hanging as no_hanging
from tests.support.scripted import eventually
from tests.support.servers import Server, client_context, echo, server_context

# The base class


class Nameless(Connection):
    pass


@pytest.mark.parametrize("step", ["open", "close", "get", "is_connected"])
def test_calling_a_missing_step_raises_an_error_that_names_it(step: str) -> None:
    with pytest.raises(NotImplementedError, match=rf"Nameless has no {step}\(\)"):
        getattr(Nameless(), step)()


@pytest.mark.parametrize("raw", [None, object(), "a client object", 7.0])
def test_a_class_without_a_socket_is_usable_when_it_is_connected(raw: Any) -> None:
    connection = Classic(raw)
    assert connection.is_usable()
    connection.abort()
    connection.close()
    assert not connection.is_usable()


@pytest.mark.parametrize("make_pair", [socket.socketpair, gevent.socket.socketpair])
def test_a_class_with_a_socket_is_usable_while_its_socket_is_silent(make_pair: Any) -> None:
    raw, peer = make_pair()
    with raw, peer:
        connection = Classic(raw)
        assert without_switching(connection.is_usable)
        peer.sendall(b"x")
        assert not without_switching(connection.is_usable)
        assert raw.recv(10) == b"x"
        assert connection.is_usable()
        connection.close()
        assert not connection.is_usable()
        connection.open()
        peer.close()
        assert not connection.is_usable()
        raw.close()
        assert not connection.is_usable()


def test_a_connected_object_is_reusable_by_default_unless_there_was_an_error() -> None:
    connection = Classic()
    assert connection.is_reusable(None) is True
    assert not connection.is_reusable(ValueError())
    assert not connection.is_reusable(gevent.Timeout(None))
    connection.close()
    assert not connection.is_reusable(None)


def test_a_connection_does_not_expire_by_default() -> None:
    assert Classic().is_expired() is False


def test_reconnect_of_the_base_class_closes_and_opens(caplog: pytest.LogCaptureFixture) -> None:
    steps: list[str] = []

    class Counting(Classic):
        def open(self) -> None:
            steps.append("open")
            super().open()

        def close(self) -> None:
            steps.append("close")
            super().close()

    connection = Counting()
    connection.reconnect()
    connection.connected = False
    connection.reconnect()
    assert steps == ["close", "open", "open"]
    assert not caplog.records


# Arguments


@pytest.mark.parametrize(
    ("argument", "make", "values"),
    [
        ("host", lambda value: TcpConnection(value, 1), ["", None, 5, b"localhost"]),
        ("port", lambda value: TcpConnection("a.test", value), [0, -1, 65536, "80", None, 1.5, True]),
        ("lifetime", lambda value: TcpConnection("a.test", 1, value), [-1, "1", float("nan"), True]),
        ("timeout", lambda value: TcpConnection("a.test", 1, timeout=value), [-1, "1", float("nan"), float("inf")]),
        ("ssl_context", lambda value: TlsConnection("a.test", 1, ssl_context=value), [object(), True, "default"]),
        ("server_hostname", lambda value: TlsConnection("a.test", 1, server_hostname=value), [5, b"a.test"]),
        ("host", lambda value: TlsConnection(value, 1, server_hostname="a.test"), ["", None]),
        ("path", lambda value: UnixConnection(value), ["", None, 5]),
        ("timeout", lambda value: UnixConnection("/a", timeout=value), [-1, "1"]),
        ("size", lambda value: StreamConnection().recv(value), [0, -1, "1", None, 1.0, True]),
        ("size", lambda value: StreamConnection().recv_exactly(value), [-1, "1", None, 1.0, True]),
        ("delimiter", lambda value: StreamConnection().recv_until(value), [b"", "\n", None, 10]),
        ("limit", lambda value: StreamConnection().recv_until(b"\r\n", value), [0, 1, -1, "9", None]),
    ],
)
def test_a_bad_argument_is_refused_with_its_name(argument: str, make: Callable[[Any], object], values: Any) -> None:
    for value in values:
        with pytest.raises(InvalidArgumentError) as caught:
            make(value)
        assert caught.value.argument == argument
        assert argument in str(caught.value)
        assert repr(value) in str(caught.value)
        assert isinstance(caught.value, ValueError)


def test_arguments_keep_their_order() -> None:
    with Server(echo) as server:
        connection = TcpConnection(server.host, server.port, 0.001, 4.5)
        connection.open()
        assert connection.socket.gettimeout() == 4.5
        eventually(connection.is_expired)
        connection.close()
    with Server(echo, tls=server_context("backend.test")) as server:
        connection = TlsConnection(server.host, server.port, 0.001, 4.5, client_context(), "backend.test")
        connection.open()
        assert connection.socket.gettimeout() == 4.5
        eventually(connection.is_expired)
        connection.close()


# Connections with a socket


def test_the_repr_shows_the_address_and_whether_the_connection_is_open() -> None:
    with serving("tcp") as (connection, server):
        assert repr(connection) == f"<TcpConnection to 127.0.0.1:{server.port}, closed>"
        connection.open()
        assert repr(connection) == f"<TcpConnection to 127.0.0.1:{server.port}, open>"
    assert repr(TcpConnection("::1", 80)) == "<TcpConnection to [::1]:80, closed>"
    assert repr(TlsConnection("a.test", 443)) == "<TlsConnection to a.test:443, closed>"
    assert repr(UnixConnection(pathlib.Path("/a/b"))) == "<UnixConnection to /a/b, closed>"
    assert repr(UnixConnection("\0a")) == "<UnixConnection to @a, closed>"


@pytest.mark.parametrize("kind", KINDS)
def test_the_raw_socket_is_available_as_socket_and_by_get(kind: str) -> None:
    with serving(kind) as (connection, server):
        assert connection.socket is None
        assert connection.get() is None
        connection.open()
        assert connection.socket is connection.get()
        assert isinstance(connection.socket, gevent.socket.socket)
        connection.socket.sendall(b"explicit")
        assert server.next_peer().recv(100) == b"explicit"


def test_a_connection_expires_when_its_lifetime_is_over() -> None:
    with serving("tcp", lifetime=0.001) as (connection, _):
        gevent.sleep(0.003)
        assert not connection.is_expired()
        connection.open()
        eventually(connection.is_expired)
        # It is for the pool to decide what follows from that.
        assert connection.is_connected()
        assert connection.is_reusable(None)


@pytest.mark.parametrize("options", [{}, {"lifetime": None}, {"lifetime": 3600.5}])
def test_a_connection_does_not_expire_within_its_lifetime(options: dict[str, Any]) -> None:
    with exchange(**options) as (connection, _):
        gevent.sleep(0.003)
        assert not connection.is_expired()
