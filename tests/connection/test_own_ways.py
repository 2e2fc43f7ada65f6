"""Subclasses and URLs that go ways of their own."""

from __future__ import annotations

import os
import socket

import pytest

from gsocketpool import Connection, Pool, TcpConnection
from gsocketpool.url import InvalidURLError
from tests.support.connections import check_echo, wait_readable
from tests.support.servers import Server, echo


class Reconnecting(TcpConnection):
    """Connects another socket behind the back of its base class."""

    def swap(self) -> None:
        first, self._sock = self._sock, None
        self._connect()
        first.close()


def test_a_subclass_may_connect_another_socket() -> None:
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


@pytest.mark.parametrize("scheme", ["tcp", "tls", "unix"])
def test_a_plain_socket_has_no_choice_of_drivers(scheme: str) -> None:
    with pytest.raises(InvalidURLError, match=f"has no choice of drivers: write {scheme}://"):
        Pool.from_url(f"{scheme}+fast://localhost:1")


def test_a_class_may_have_a_descriptor_in_place_of_a_socket() -> None:
    ours, theirs = socket.socketpair()

    class ByDescriptor(Connection):
        def get(self) -> int:
            return ours.fileno()

    with ours, theirs:
        ByDescriptor().abort()
        assert theirs.recv(1) == b"", "no other process has it open"
        # The number stays taken, so that a second close hits nothing else.
        assert os.readlink(f"/proc/self/fd/{ours.fileno()}") == os.devnull
