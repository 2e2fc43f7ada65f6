"""Opening and closing a connection more than once."""

from __future__ import annotations

import errno
import logging
import socket

import pytest

from gsocketpool import LimitExceededError
from tests.support.connections import KINDS, check_echo, serving, spawn_waiting, wait_readable
from tests.support.connections import no_hanging as no_hanging
from tests.support.scripted import PATIENCE
from tests.support.servers import echo


@pytest.mark.parametrize("kind", KINDS)
def test_opening_an_open_connection_raises_and_does_no_harm(kind: str) -> None:
    with serving(kind, echo) as (connection, server):
        connection.open()
        with pytest.raises(OSError, match="open already") as caught:
            connection.open()
        assert caught.value.errno == errno.EISCONN
        check_echo(connection)
        assert server.accepted == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_connection_can_be_opened_again(kind: str) -> None:
    with serving(kind, echo) as (connection, server):
        for count in 1, 2, 3:
            connection.open()
            check_echo(connection)
            assert server.accepted == count
            connection.close()
            connection.close()


def test_a_connection_can_be_opened_after_a_failed_attempt() -> None:
    with serving("tcp") as (connection, server):
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            connection.open()
        with socket.create_server(server.address) as listener:
            connection.open()
            connection.send(b"hello")
            peer, _ = listener.accept()
            with peer:
                assert peer.recv(100) == b"hello"


def test_a_reopened_connection_keeps_nothing_of_the_old_stream() -> None:
    with serving("tcp", timeout=PATIENCE) as (connection, server):
        connection.open()
        server.next_peer().sendall(b"first\nold")
        assert connection.recv_until(b"\n") == b"first\n"
        with pytest.raises(LimitExceededError):
            connection.recv_until(b"\n", limit=2)
        assert not connection.is_reusable(None)
        connection.close()
        connection.open()
        assert connection.is_reusable(None)
        server.next_peer().sendall(b"new\n")
        assert connection.recv_until(b"\n") == b"new\n"


def test_a_reader_of_the_old_stream_leaves_nothing_in_the_new_one() -> None:
    with serving("tcp") as (connection, server):
        connection.open()
        server.next_peer().sendall(b"old")
        wait_readable(connection)
        reader = spawn_waiting(connection.recv_until, b"\n")
        # It has taken "old" from the socket, and waits for more. Closing wakes it while the new stream is opened.
        connection.reconnect()
        assert isinstance(reader.get(timeout=PATIENCE), OSError)
        server.next_peer().sendall(b"new\n")
        assert connection.recv_until(b"\n") == b"new\n"
        assert connection.is_reusable(None)


@pytest.mark.parametrize("kind", KINDS)
def test_reconnect_replaces_an_open_connection(kind: str) -> None:
    with serving(kind) as (connection, server):
        connection.open()
        first = server.next_peer()
        connection.reconnect()
        assert first.recv(1) == b""
        connection.send(b"hello")
        assert server.next_peer().recv(100) == b"hello"


def test_reconnect_opens_a_closed_connection() -> None:
    with serving("tcp", echo) as (connection, _):
        connection.reconnect()
        check_echo(connection)


def test_reconnect_logs_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    with serving("tcp", echo) as (connection, server):
        connection.open()
        server.stop()
        with caplog.at_level(logging.ERROR, "gsocketpool"):
            connection.reconnect()
        assert not connection.is_connected()
    assert [record.name for record in caplog.records] == ["gsocketpool"]
    assert "could not reconnect" in caplog.text
    assert "ConnectionRefusedError" in caplog.text
