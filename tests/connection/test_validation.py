"""``is_usable()`` and ``is_reusable()`` tell whether a stream is still good."""

from __future__ import annotations

import socket
from copy import copy

import gevent
import pytest

from gsocketpool import ConnectionClosedError, Pool
from tests.support.connections import KINDS, check_echo, exchange, reset, serving, wait_readable, without_switching
from tests.support.connections import no_hanging as no_hanging
from tests.support.scripted import PATIENCE, eventually
from tests.support.servers import echo


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_open_connection_is_usable(kind: str) -> None:
    with serving(kind, echo) as (connection, _):
        assert not connection.is_usable()
        connection.open()
        assert connection.is_usable()
        check_echo(connection)
        assert connection.is_usable()
        check_echo(connection)
        connection.close()
        assert not connection.is_usable()


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_that_is_closed_while_it_is_idle_is_not_handed_out(kind: str) -> None:
    with serving(kind, echo) as (model, _), Pool(lambda: copy(model), max_connections=1) as pool:
        with pool.connection() as first:
            check_echo(first)
        first.close()
        with pool.connection() as second:
            assert second is not first
            check_echo(second)


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_that_the_peer_has_closed_is_not_usable(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        peer.close()
        eventually(lambda: not connection.is_usable())
        assert connection.is_connected()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_connection_that_the_peer_has_closed_for_writing_is_not_usable(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        peer.shutdown(socket.SHUT_WR)
        wait_readable(connection)
        assert not connection.is_usable()


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_a_connection_that_was_reset_is_not_usable(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        reset(peer)
        eventually(lambda: not connection.is_usable())


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_with_unread_bytes_is_not_usable(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        peer.sendall(b"too late")
        eventually(lambda: not connection.is_usable())


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_with_a_message_half_read_is_not_usable(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        peer.sendall(b"hello")
        assert connection.recv(1) == b"h"
        assert not connection.is_usable()


@pytest.mark.parametrize("kind", KINDS)
def test_is_usable_does_not_switch(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        if kind == "tls":
            # There are session tickets to be read.
            wait_readable(connection)
        assert without_switching(connection.is_usable)
        assert without_switching(connection.is_usable)
        peer.sendall(b"x")
        eventually(lambda: not without_switching(connection.is_usable))


def test_session_tickets_do_not_make_a_connection_unusable() -> None:
    with exchange("tls", timeout=PATIENCE) as (connection, peer):
        assert connection.socket.version() == "TLSv1.3"
        # Session tickets have come, for nothing else was sent.
        wait_readable(connection)
        assert connection.is_usable()
        assert connection.is_usable()
        connection.send(b"hello")
        assert peer.recv(100) == b"hello"
        peer.sendall(b"goodbye")
        assert connection.recv_exactly(7) == b"goodbye"
        assert connection.is_usable()


@pytest.mark.parametrize("were_seen", [False, True])
def test_a_message_behind_session_tickets_makes_a_connection_unusable(were_seen: bool) -> None:
    with exchange("tls") as (connection, peer):
        if were_seen:
            wait_readable(connection)
            assert connection.is_usable()
        peer.sendall(b"x")
        eventually(lambda: not connection.is_usable())


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_is_reusable_when_it_is_open_and_nothing_went_wrong(kind: str) -> None:
    with serving(kind, echo) as (connection, _):
        assert not connection.is_reusable(None)
        connection.open()
        assert connection.is_reusable(None) is True
        check_echo(connection)
        assert connection.is_reusable(None) is True
        assert not connection.is_reusable(ValueError())
        assert not connection.is_reusable(gevent.GreenletExit())
        connection.close()
        assert not connection.is_reusable(None)


def test_a_connection_with_unread_bytes_is_not_reusable() -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"one\ntwo\n")
        assert connection.recv_until(b"\n") == b"one\n"
        assert not connection.is_reusable(None)
        assert connection.recv_until(b"\n") == b"two\n"
        assert connection.is_reusable(None)


@pytest.mark.parametrize("kind", KINDS)
def test_recv_returns_no_bytes_at_the_end_of_the_stream_and_closes_the_connection(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        peer.sendall(b"the end")
        peer.close()
        assert connection.recv_exactly(7) == b"the end"
        assert connection.is_connected()
        assert connection.recv() == b""
        assert not connection.is_connected()
        assert not connection.is_usable()
        assert not connection.is_reusable(None)
        assert connection.get().fileno() == -1
        with pytest.raises(ConnectionClosedError):
            connection.recv()
