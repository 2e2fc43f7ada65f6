"""A flaky server in front of a server at a Unix socket, and a timeout of the test in its wait."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest

from gsocketpool import TcpConnection
from gsocketpool.testing import FlakyServer
from tests.support.connections import check_echo
from tests.support.servers import Server, echo


def test_an_upstream_may_listen_at_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with Server(echo, path=path), FlakyServer(upstream=path) as server:
        connection = TcpConnection(server.host, server.port, timeout=10)
        connection.open()
        check_echo(connection)
        connection.close()


def test_a_timeout_of_the_test_interrupts_wait_until(flaky_server: FlakyServer) -> None:
    with gevent.Timeout(0.01) as limit, pytest.raises(gevent.Timeout) as caught:
        flaky_server.wait_until(lambda: False)
    assert caught.value is limit
