"""An error says where the connection goes and, if time ran out, after how long."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent.socket
import pytest

from gsocketpool import ConnectionClosedError, TcpConnection, UnixConnection
from tests.support.connections import KINDS, outcome, reset, serving, spawn_waiting, wait_readable
from tests.support.connections import no_hanging as no_hanging
from tests.support.scripted import PATIENCE
from tests.support.servers import Server, refusing_address

#: Every way of receiving, and what it is content with.
RECEIVING: list[tuple[str, tuple[Any, ...]]] = [("recv", ()), ("recv_exactly", (3,)), ("recv_until", (b"c",))]


def place(server: Server) -> str:
    """A server's address as a person writes it."""
    return f"{server.host}:{server.port}" if server.port else server.address


@contextmanager
def impatient(kind: str) -> Iterator[tuple[Any, str]]:
    """An open connection that has little time for anything, and where it goes. Nothing comes from there."""
    with serving(kind, timeout=0.05) as (connection, server):
        while not connection.is_connected():
            # On a busy machine the time may be too little to connect.
            with suppress(TimeoutError):
                connection.open()
        yield connection, place(server)


# Time that ran out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "arguments"), RECEIVING)
def test_the_error_of_receiving_too_late_names_the_address_and_the_timeout(
    kind: str, name: str, arguments: tuple[Any, ...]
) -> None:
    with impatient(kind) as (connection, where):
        error = outcome(getattr(connection, name), *arguments)
        assert type(error) is TimeoutError
        assert where in str(error)
        assert "0.05" in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_sending_too_late_names_the_address_and_the_timeout(kind: str) -> None:
    with impatient(kind) as (connection, where):
        error = outcome(connection.send, bytes(20_000_000))
        assert type(error) is TimeoutError
        assert where in str(error)
        assert "0.05" in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_timeout_that_the_caller_set_on_the_socket_is_named(kind: str) -> None:
    with serving(kind) as (connection, server):
        connection.open()
        connection.socket.settimeout(0.05)
        error = outcome(connection.recv)
        assert type(error) is TimeoutError
        assert str(error).endswith(f"{place(server)} took longer than 0.05 s")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", ["recv", "send"])
def test_a_timeout_thrown_by_the_caller_keeps_its_text(kind: str, step: str) -> None:
    thrown = TimeoutError("the report took too long")
    with serving(kind, timeout=PATIENCE) as (connection, server):
        connection.open()
        arguments = (bytes(20_000_000),) if step == "send" else ()
        waiting = spawn_waiting(getattr(connection, step), *arguments)
        waiting.kill(thrown)
        assert waiting.value is thrown
        assert str(thrown) == "the report took too long"
        assert place(server) in "".join(thrown.__notes__)


# Errors of the operating system


def check_unchanged(error: Any, kind: type[OSError], number: int, message: str) -> None:
    """Apart from its text, an error is what the operating system makes it."""
    assert type(error) is kind
    assert error.errno == number
    assert error.strerror == message
    assert error.args == (number, message)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_the_error_of_a_refused_connection_names_the_address(host: str, shown: str) -> None:
    with refusing_address(host) as (_, port):
        error = outcome(TcpConnection(host, port).open)
    check_unchanged(error, ConnectionRefusedError, errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    assert f"{shown}:{port}" in str(error)


def test_the_error_of_a_missing_path_names_the_path() -> None:
    error = outcome(UnixConnection("/nonexistent/backend").open)
    check_unchanged(error, FileNotFoundError, errno.ENOENT, os.strerror(errno.ENOENT))
    assert "/nonexistent/backend" in str(error)


def test_the_error_of_a_name_that_does_not_resolve_names_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*arguments: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(gevent.socket, "getaddrinfo", getaddrinfo)
    error = outcome(TcpConnection("backend.test", 7).open)
    check_unchanged(error, socket.gaierror, socket.EAI_NONAME, "Name or service not known")
    assert "backend.test:7" in str(error)


@pytest.mark.parametrize(("name", "arguments"), RECEIVING)
def test_the_error_of_a_reset_while_receiving_names_the_address(name: str, arguments: tuple[Any, ...]) -> None:
    with serving("tcp") as (connection, server):
        connection.open()
        reset(server.next_peer())
        wait_readable(connection)
        error = outcome(getattr(connection, name), *arguments)
        check_unchanged(error, ConnectionResetError, errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        assert place(server) in str(error)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_error_of_a_reset_while_sending_names_the_address(kind: str) -> None:
    with serving(kind) as (connection, server):
        connection.open()
        sender = spawn_waiting(connection.send, bytes(20_000_000))
        reset(server.next_peer())
        error = sender.get(timeout=PATIENCE)
        assert type(error) in (ConnectionResetError, BrokenPipeError)
        check_unchanged(error, type(error), error.errno, os.strerror(error.errno))
        assert place(server) in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_a_reader_whose_connection_is_closed_names_the_address(kind: str) -> None:
    with serving(kind) as (connection, server):
        connection.open()
        reader = spawn_waiting(connection.recv)
        connection.close()
        error = reader.get(timeout=PATIENCE)
        assert isinstance(error, OSError)
        assert place(server) in str(error)


# Errors of ours


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_opening_an_open_connection_names_the_address(kind: str) -> None:
    with serving(kind) as (connection, server):
        connection.open()
        error = outcome(connection.open)
        assert isinstance(error, OSError)
        assert error.errno == errno.EISCONN
        assert place(server) in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_using_a_closed_connection_names_the_address(kind: str) -> None:
    with serving(kind) as (connection, server):
        for error in (outcome(connection.recv), outcome(connection.send, b"hello")):
            assert isinstance(error, ConnectionClosedError)
            assert place(server) in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_a_stream_that_ends_early_names_the_address(kind: str) -> None:
    with serving(kind) as (connection, server):
        connection.open()
        server.next_peer().close()
        error = outcome(connection.recv_exactly, 3)
        assert isinstance(error, ConnectionClosedError)
        assert place(server) in str(error)
