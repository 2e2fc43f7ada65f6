"""Connecting to Unix sockets."""

from __future__ import annotations

import os
import pathlib
import socket
import sys
import tempfile
import time
from typing import Any

import gevent
import pytest

from gsocketpool import InvalidArgumentError, UnixConnection
from gsocketpool.testing import FlakyServer
from tests.support.connections import check_echo
from tests.support.connections import no_hanging as no_hanging
from tests.support.scripted import PATIENCE
from tests.support.servers import Server, echo, open_sockets


def test_a_connection_connects_to_a_path(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "socket"
    with Server(echo, path=str(path)):
        for form in path, str(path):
            connection = UnixConnection(form, timeout=PATIENCE)
            connection.open()
            check_echo(connection)
            connection.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has it")
def test_a_connection_connects_to_a_name_in_the_abstract_namespace() -> None:
    path = f"\0gsocketpool test {os.getpid()} {time.monotonic_ns()}"
    with Server(echo, path=path):
        connection = UnixConnection(path)
        connection.open()
        check_echo(connection)
        connection.close()


def test_a_missing_path_raises_file_not_found_error(tmp_path: pathlib.Path) -> None:
    before = open_sockets()
    connection = UnixConnection(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        connection.open()
    assert not connection.is_connected()
    assert open_sockets() <= before


def test_the_timeout_bounds_connecting_to_a_path() -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path = f"{directory}/socket"
        listener.bind(path)
        listener.listen(0)
        # One fills the backlog.
        first = UnixConnection(path)
        first.open()
        before = open_sockets()
        second = UnixConnection(path, timeout=0.05)
        with pytest.raises(TimeoutError):
            second.open()
        assert not second.is_connected()
        assert open_sockets() <= before
        first.close()


def test_waiting_for_a_server_that_does_not_accept_uses_little_processor_time(tmp_path: pathlib.Path) -> None:
    with FlakyServer(path=tmp_path / "socket") as server:
        server.fail("hang")
        connection = UnixConnection(server.address, timeout=0.5)
        before = time.process_time()
        with pytest.raises(TimeoutError):
            connection.open()
        assert time.process_time() - before < 0.25


def test_a_connection_opens_as_soon_as_the_server_accepts(tmp_path: pathlib.Path) -> None:
    with FlakyServer(path=tmp_path / "socket") as server:
        server.fail("hang")
        connection = UnixConnection(server.address, timeout=PATIENCE)
        opener = gevent.spawn(connection.open)
        opener.join(timeout=0.05)
        assert not opener.ready()
        server.heal()
        opener.get()
        check_echo(connection, b"at last\n")
        connection.close()


class PathOfBytes:
    def __fspath__(self) -> bytes:
        return b"/a"


@pytest.mark.parametrize("path", [b"/a", PathOfBytes()])
def test_a_path_of_bytes_is_refused(path: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        UnixConnection(path)
    assert caught.value.argument == "path"
