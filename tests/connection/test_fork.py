"""A forked child lets go of its parent's connections, and the parent notices nothing."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import gevent
import gevent.socket
import pytest

from gsocketpool import TcpConnection, TlsConnection
from tests.support.connections import KINDS, Classic, exchange, serving, spawn_opening, spawn_waiting
from tests.support.connections import no_hanging as no_hanging
from tests.support.internals import identity
from tests.support.line_server import Line, LineServer
from tests.support.line_server import server as server
from tests.support.processes import in_child
from tests.support.scripted import PATIENCE
from tests.support.servers import hanging_address, open_sockets, silent_listener


def check_that_both_ways_are_open(connection: Any, peer: Any) -> None:
    assert connection.is_usable()
    connection.send(b"to")
    assert peer.recv(100) == b"to"
    peer.sendall(b"and fro")
    assert connection.recv_exactly(7) == b"and fro"
    assert connection.is_reusable(None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_child_aborts_a_connection_and_the_parent_notices_nothing(kind: str) -> None:
    with exchange(kind, timeout=PATIENCE) as (connection, peer):
        # In the middle of an exchange.
        connection.send(b"ping")
        raw = identity(connection.socket.fileno())

        def look() -> list[bool]:
            had_it = raw in open_sockets()
            connection.abort()
            return [had_it, raw in open_sockets(), connection.is_usable()]

        assert in_child(look) == [True, False, False]
        assert peer.recv(100) == b"ping"
        peer.sendall(b"pong")
        assert connection.recv_exactly(4) == b"pong"
        check_that_both_ways_are_open(connection, peer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_child_can_abort_a_connection_that_a_greenlet_waits_for(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        reader = spawn_waiting(connection.recv_until, b"\n")
        raw = identity(connection.socket.fileno())

        def look() -> list[bool]:
            ran: list[bool] = []
            gevent.spawn(ran.append, True)
            connection.abort()
            return [*ran, raw in open_sockets()]

        assert in_child(look) == [False]
        peer.sendall(b"for the parent\n")
        assert reader.get(timeout=PATIENCE) == b"for the parent\n"
        check_that_both_ways_are_open(connection, peer)


@pytest.mark.parametrize(
    ("factory", "stalling"),
    [
        pytest.param(TcpConnection, hanging_address, id="connecting"),
        pytest.param(TlsConnection, silent_listener, id="handshake"),
    ],
)
def test_a_forked_child_can_abort_a_connection_that_is_being_opened(
    factory: Callable[..., TcpConnection], stalling: Any
) -> None:
    with stalling() as (host, port):
        connection = factory(host, port)
        opener = spawn_opening(connection)
        raw = identity(connection.socket.fileno())

        def look() -> bool:
            connection.abort()
            return raw in open_sockets()

        assert in_child(look) is False
        assert raw in open_sockets()
        opener.kill()
    assert raw not in open_sockets()


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_child_can_abort_a_connection_that_is_not_open(kind: str) -> None:
    with serving(kind) as (connection, _):
        assert in_child(connection.abort) is None
        connection.open()
        connection.close()
        assert in_child(connection.abort) is None


def test_a_forked_child_can_reconnect_a_connection_of_its_parent(server: LineServer) -> None:
    connection = Line("127.0.0.1", server.port)
    connection.open()
    assert connection.exchange(b"hello") == b"hello"

    def reconnect() -> str:
        gevent.reinit()
        connection.abort()
        connection.reconnect()
        return connection.exchange(b"from the child").decode()

    assert in_child(reconnect) == "from the child"
    assert len(server.clients) == 2
    assert connection.exchange(b"hello again") == b"hello again"
    connection.close()


@pytest.mark.parametrize("make_pair", [socket.socketpair, gevent.socket.socketpair])
def test_a_forked_child_can_abort_an_object_with_a_socket(make_pair: Any) -> None:
    raw, peer = make_pair()
    with raw, peer:
        connection = Classic(raw)
        own = identity(raw.fileno())

        def look() -> bool:
            connection.abort()
            return own in open_sockets()

        assert in_child(look) is False
        assert connection.is_usable()
        raw.sendall(b"x")
        assert peer.recv(10) == b"x"
