"""What TLS adds: certificates, names, contexts, the goodbye."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import gevent
import gevent.ssl
import pytest
from gevent.event import Event

from gsocketpool import InvalidArgumentError, Lease, Pool, TlsConnection
from gsocketpool.connectors import Connector
from gsocketpool.testing import FlakyServer, exchange_line
from tests.support.connections import check_echo, exchange, outcome, serving, wait_readable
from tests.support.connections import no_hanging as no_hanging
from tests.support.scripted import PATIENCE
from tests.support.servers import Server, authority, authority_pem, client_context, echo, open_sockets, server_context


def test_a_certificate_of_an_unknown_authority_is_refused_by_default() -> None:
    before = open_sockets()
    with Server(echo, tls=server_context("localhost")) as server:
        connection = TlsConnection("localhost", server.port)
        with pytest.raises(ssl.SSLCertVerificationError):
            connection.open()
        assert not connection.is_connected()
        assert connection.socket.fileno() == -1
    assert open_sockets() <= before


@pytest.mark.parametrize("server_hostname", [None, "another.test"])
def test_a_certificate_for_another_name_is_refused(server_hostname: str | None) -> None:
    before = open_sockets()
    names = ["other.test"] if server_hostname is None else ["localhost"]
    with Server(echo, tls=server_context(*names)) as server:
        connection = TlsConnection(
            "localhost", server.port, ssl_context=client_context(), server_hostname=server_hostname
        )
        with pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname"):
            connection.open()
        assert not connection.is_connected()
        assert connection.socket.fileno() == -1
    assert open_sockets() <= before


@pytest.mark.parametrize("kind", [ssl.SSLContext, gevent.ssl.SSLContext])
@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_context_may_come_from_the_standard_library_or_from_gevent(
    kind: type[ssl.SSLContext], timeout: float | None
) -> None:
    context = client_context(kind)
    assert type(context) is kind
    with serving("tls", echo, ssl_context=context, timeout=timeout) as (connection, _):
        connection.open()
        check_echo(connection)
        check_echo(connection, b"\n".join(b"%d" % number for number in range(200_000)))


def test_a_context_that_verifies_nothing_is_respected() -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with serving("tls", echo, ssl_context=context, server_hostname="any.test") as (connection, _):
        connection.open()
        check_echo(connection)


@pytest.mark.parametrize(
    ("host", "server_hostname", "expected"),
    [
        ("localhost", None, "localhost"),
        ("localhost", "backend.test", "backend.test"),
        ("127.0.0.1", "backend.test", "backend.test"),
    ],
)
def test_a_connection_asks_the_server_for_its_host_or_for_server_hostname(
    host: str, server_hostname: str | None, expected: str
) -> None:
    asked: list[str | None] = []
    context = server_context(expected)
    context.sni_callback = lambda secured, name, context: asked.append(name)
    with Server(echo, tls=context) as server:
        connection = TlsConnection(
            host, server.port, ssl_context=client_context(), server_hostname=server_hostname, timeout=PATIENCE
        )
        connection.open()
        check_echo(connection)
        connection.close()
    assert asked == [expected]


def test_a_certificate_for_an_address_is_accepted_if_the_address_is_the_host() -> None:
    with Server(echo, tls=server_context("127.0.0.1")) as server:
        connection = TlsConnection("127.0.0.1", server.port, ssl_context=client_context())
        connection.open()
        check_echo(connection)
        connection.close()


@pytest.mark.parametrize("name", [".test", "", "a\0b", "a" * 64 + ".test", 5])
def test_a_name_that_can_not_be_sent_to_a_server_is_refused(name: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^server_hostname must be a name or None"):
        TlsConnection("localhost", 1, server_hostname=name)
    with pytest.raises(InvalidArgumentError, match=r"^host must be a name or an address"):
        TlsConnection(name, 1)


def test_a_client_certificate_of_the_context_is_sent() -> None:
    seen: list[Any] = []

    def look(peer: Any) -> None:
        seen.append(peer.getpeercert())
        echo(peer)

    context = server_context("localhost")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority_pem())
    mine = client_context()
    authority().issue_cert("client.test").configure_cert(mine)
    with Server(look, tls=context) as server:
        connection = TlsConnection("localhost", server.port, ssl_context=mine)
        connection.open()
        check_echo(connection)
        connection.close()
    assert seen[0]["subjectAltName"] == (("DNS", "client.test"),)


@pytest.mark.parametrize("says_goodbye", [True, False])
def test_recv_finds_the_end_of_the_stream_with_or_without_a_goodbye(says_goodbye: bool) -> None:
    with exchange("tls") as (connection, peer):
        peer.sendall(b"bye")
        if says_goodbye:
            gevent.spawn(outcome, peer.unwrap)
        else:
            peer.close()
        assert connection.recv_exactly(3) == b"bye"
        assert connection.recv() == b""
        assert not connection.is_connected()


def test_a_peer_that_reads_slowly_does_not_extend_the_timeout_of_send() -> None:
    def read_slowly(peer: Any) -> None:
        # For some ten seconds.
        while peer.recv(16_384):
            gevent.sleep(0.003)

    with exchange("tls", timeout=1.0) as (connection, peer):
        reader = gevent.spawn(read_slowly, peer)
        with pytest.raises(TimeoutError, match=r"sending to .* took longer than 1\.0 s"):
            connection.send(bytes(60_000_000))
        reader.kill()
        assert not connection.is_reusable(None)


def test_close_sends_a_goodbye_and_loses_no_sent_bytes() -> None:
    """Not even while session tickets are unread, upon which a plain close would reset the connection."""
    with exchange("tls") as (connection, peer):
        peer.suppress_ragged_eofs = False
        wait_readable(connection)
        connection.send(b"the last words")
        connection.close()
        assert peer.recv(100) == b"the last words"
        assert peer.recv(100) == b"", "an end without goodbye would be an SSLEOFError"


# Python with OpenSSL 3.0 leaves no error behind, so these tests can fail only with later versions.


@contextmanager
def waiting_beside(connect: Callable[[FlakyServer], Any]) -> Iterator[Any]:
    """Yield what `connect` returns for a server, which has reset its connections since.

    Meanwhile a connection to another server waits for its reply, which must come.
    """
    with (
        FlakyServer(tls=server_context("localhost")) as healthy,
        FlakyServer(tls=server_context("localhost")) as resetting,
        closing(connection_to(healthy)) as connection,
    ):
        connection.open()
        # The first replies bring session tickets. Reading those would hide the error left behind.
        for _ in range(3):
            assert exchange_line(connection, b"a message") == b"a message"
        connected = connect(resetting)
        resetting.close_connections(reset=True)
        healthy.fail("late")
        connection.send(b"a message\n")
        yield connected
        healthy.heal()
        assert connection.recv_until(b"\n") == b"a message\n"


def connection_to(server: FlakyServer) -> TlsConnection:
    certificates = {"ssl_context": client_context(), "server_hostname": "localhost"}
    return TlsConnection(server.host, server.port, timeout=PATIENCE, **certificates)


def opened(server: FlakyServer) -> TlsConnection:
    connection = connection_to(server)
    connection.open()
    assert exchange_line(connection, b"a message") == b"a message"
    return connection


@pytest.mark.parametrize("last_use", ["close", "send"])
def test_a_connection_that_the_server_has_reset_harms_no_other(last_use: str) -> None:
    with waiting_beside(opened) as reset:
        wait_readable(reset)
        # The first send may still succeed.
        for _ in range(2):
            with suppress(OSError):
                reset.close() if last_use == "close" else reset.send(b"a message")
        reset.close()


class TlsClients(Connector[Any]):
    """The clients are bare TLS sockets."""

    def __init__(self, server: FlakyServer, may_close: Event) -> None:
        self.server = server
        self.may_close = may_close

    def connect(self) -> Any:
        return opened(self.server).socket

    def is_settled(self, connection: Any) -> bool:
        return True

    def peek_target(self, connection: Any) -> Any:
        return connection

    def close(self, connection: Any) -> None:
        self.may_close.wait(PATIENCE)
        with suppress(OSError):
            for _ in range(2):
                connection.sendall(b"quit\n")
        connection.close()


@pytest.mark.parametrize("last_use", ["close", "block"])
def test_a_client_that_the_server_has_reset_harms_no_other(last_use: str) -> None:
    pools: list[Pool[Any]] = []
    may_close = Event()

    def leased(server: FlakyServer) -> Lease[Any]:
        pools.append(Pool(TlsClients(server, may_close), max_connections=1))
        return pools[0].lease()

    with waiting_beside(leased) as lease:
        if last_use == "close":
            may_close.set()
            lease.release()
            pools[0].drain()
        else:
            with suppress(OSError), lease as client:
                while True:
                    client.sendall(b"a message\n")
                    gevent.sleep(0)
            gevent.sleep(0)
    may_close.set()
    pools[0].close()
