"""Connections work in a Python that gevent has patched, and in one that it has not."""

from __future__ import annotations

import pytest

from tests.support.connections import no_hanging as no_hanging
from tests.support.processes import run_python

SCRIPT = """
import ssl, sys
import gevent, gevent.event, gevent.monkey
from gsocketpool import TcpConnection, TlsConnection
from tests.support.servers import Server, authority_pem, echo, server_context

gate = gevent.event.Event()

def answer_later(peer):
    data = peer.recv(100)
    gate.wait()
    peer.sendall(data)

for context in None, server_context("localhost"):
    gate.clear()
    with Server(answer_later, tls=context) as server:
        if context is None:
            connection = TcpConnection("localhost", server.port)
        else:
            mine = ssl.create_default_context(cadata=authority_pem())
            connection = TlsConnection("localhost", server.port, ssl_context=mine)
        connection.open()
        connection.send(b"hello")
        bystander = gevent.spawn(gate.set)
        assert connection.recv_exactly(5) == b"hello"
        connection.close()

print(gevent.monkey.is_module_patched("socket"), type(mine).__module__)
"""


@pytest.mark.parametrize(
    ("beginning", "expected"),
    [
        pytest.param("", "False ssl", id="unpatched"),
        pytest.param("from gevent import monkey; monkey.patch_all()", "True gevent.ssl", id="patched"),
        pytest.param(
            "import gsocketpool; from gevent import monkey; monkey.patch_all()",
            "True gevent.ssl",
            id="patched after the import",
        ),
    ],
)
def test_a_connection_blocks_no_greenlet_whether_python_is_patched_or_not(beginning: str, expected: str) -> None:
    run = run_python(beginning + "\n" + SCRIPT, options=["-W", "error"])
    assert run.stderr == ""
    assert run.stdout.strip() == expected
    assert run.returncode == 0
