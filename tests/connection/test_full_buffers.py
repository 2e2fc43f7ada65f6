"""A message for which the socket has no room."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent
import pytest

from gsocketpool import TcpConnection, TlsConnection
from tests.support.servers import Server, client_context, server_context

MUCH = bytes(1 << 24)


def read_nothing(sock: Any) -> None:
    gevent.sleep(60)


@contextmanager
def full(connection: TcpConnection) -> Iterator[TcpConnection]:
    """Fill what the socket takes without waiting."""
    connection.open()
    with suppress(BlockingIOError):
        while True:
            connection.socket._sock.send(MUCH, socket.MSG_DONTWAIT)
    yield connection
    connection.close()


def test_send_waits_for_room_no_longer_than_its_timeout() -> None:
    with (
        Server(read_nothing) as server,
        full(TcpConnection("127.0.0.1", server.port, timeout=0.05)) as connection,
        pytest.raises(TimeoutError, match="sending to"),
    ):
        connection.send(b"x")


def test_send_continues_once_the_socket_has_room() -> None:
    received = bytearray()

    def read_late(sock: Any) -> None:
        gevent.sleep(0.01)
        while data := sock.recv(1 << 20):
            received.extend(data)

    with Server(read_late) as server, full(TcpConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.send(b"the end")
        with gevent.Timeout(10):
            while not received.endswith(b"the end"):
                gevent.sleep(0.001)


def test_a_timeout_of_the_caller_interrupts_send_over_tls() -> None:
    with Server(read_nothing, tls=server_context("localhost")) as server:
        connection = TlsConnection("localhost", server.port, ssl_context=client_context(), timeout=60)
        connection.open()
        with gevent.Timeout(0.05) as limit, pytest.raises(gevent.Timeout) as caught:
            connection.send(MUCH)
        assert caught.value is limit
        connection.abort()
