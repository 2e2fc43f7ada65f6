"""Connections over real sockets: connecting, sending, receiving, checking, forking."""

from __future__ import annotations

import array
import errno
import json
import logging
import os
import pathlib
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gsocketpool import (
    Connection,
    ConnectionClosedError,
    InvalidArgumentError,
    LimitExceededError,
    PoolError,
    StreamConnection,
    TcpConnection,
    TlsConnection,
    UnixConnection,
)
from tests.scripted import PATIENCE, eventually, settle
from tests.servers import (
    Server,
    authority,
    authority_pem,
    client_context,
    echo,
    hanging_address,
    identity,
    open_sockets,
    refusing_address,
    server_context,
)

KINDS = ["tcp", "tls", "unix"]

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has it")


@pytest.fixture(autouse=True)
def no_hanging() -> Iterator[None]:
    """Fails a test that hangs, be it that its greenlet waits for ever or that it blocks the whole process."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise AssertionError("the whole process was blocked")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 3 * PATIENCE)
    try:
        with gevent.Timeout(2 * PATIENCE, AssertionError("it hangs")):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def serving(
    kind: str, handler: Callable[[Any], object] | None = None, **options: Any
) -> Iterator[tuple[StreamConnection, Server]]:
    """A connection that is still to be opened, and the server it is for."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket"
        server = {
            "tcp": partial(Server, handler),
            "tls": partial(Server, handler, tls=server_context("localhost")),
            "unix": partial(Server, handler, path=path),
        }[kind]()
        connection: StreamConnection
        if kind == "unix":
            connection = UnixConnection(path, **options)
        elif kind == "tls":
            connection = TlsConnection(
                server.host,
                server.port,
                **{"ssl_context": client_context(), "server_hostname": "localhost", **options},
            )
        else:
            connection = TcpConnection(server.host, server.port, **options)
        with server:
            try:
                yield connection, server
            finally:
                connection.close()


@contextmanager
def exchange(kind: str = "tcp", **options: Any) -> Iterator[tuple[Any, Any]]:
    """An open connection and the socket at its other end."""
    with serving(kind, **options) as (connection, server):
        connection.open()
        yield connection, server.next_peer()


@contextmanager
def impatient(kind: str, timeout: float) -> Iterator[Any]:
    """An open connection that has little time for anything, with nobody at its other end."""
    with serving(kind, timeout=timeout) as (connection, _):
        while not connection.is_connected():
            # On a busy machine the time may be too little to connect.
            with suppress(TimeoutError):
                connection.open()
        yield connection


def check_echo(connection: StreamConnection, message: bytes = b"is anybody there?") -> None:
    connection.send(message)
    assert connection.recv_exactly(len(message)) == message


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int], delay: float = 0) -> None:
    """Has every name resolve to `addresses`, in this order, after a while."""

    def getaddrinfo(host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        gevent.sleep(delay)
        return [
            (socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM, 0, "", address)
            for address in addresses
        ]

    monkeypatch.setattr(gevent.socket, "getaddrinfo", getaddrinfo)


def outcome(function: Callable[..., object], *arguments: Any) -> object:
    """What a call returns, or the error that it raises: for a greenlet, which had better not die of it."""
    try:
        return function(*arguments)
    except (Exception, gevent.Timeout) as error:
        return error


def spawn_waiting(function: Callable[..., object], *arguments: Any) -> gevent.Greenlet:
    """A greenlet that has run until it waits for something."""
    greenlet = gevent.spawn(outcome, function, *arguments)
    settle()
    assert not greenlet.ready()
    return greenlet


def spawn_opening(connection: TcpConnection) -> gevent.Greenlet:
    """A greenlet that has run until it waits for a connection, or a handshake, that does not come about."""
    opener = gevent.spawn(outcome, connection.open)
    kind = gevent.ssl.SSLSocket if isinstance(connection, TlsConnection) else gevent.socket.socket
    eventually(lambda: isinstance(connection.socket, kind))
    assert not opener.ready()
    return opener


def wait_readable(connection: Any) -> None:
    """Waits until the kernel has something for the connection."""
    gevent.socket.wait_read(connection.get().fileno(), timeout=PATIENCE)


def reset(peer: Any) -> None:
    """Closes a socket in a way that its other end sees as "connection reset"."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def without_switching(function: Callable[[], Any]) -> Any:
    """What a call returns that no other greenlet may run during."""
    ran: list[bool] = []
    bystander = gevent.spawn(ran.append, True)
    result = function()
    assert ran == []
    bystander.join()
    assert ran == [True]
    return result


# Connecting


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connects_to_an_address_of_either_family(host: str) -> None:
    with Server(echo, host=host) as server:
        connection = TcpConnection(host, server.port)
        assert not connection.is_connected()
        connection.open()
        assert connection.is_connected()
        check_echo(connection)
        connection.close()
        assert not connection.is_connected()


def test_connects_to_a_name() -> None:
    with Server(echo) as server:
        connection = TcpConnection("localhost", server.port)
        connection.open()
        check_echo(connection)
        connection.close()


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_every_address_of_a_name_is_tried_until_one_accepts(
    monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    before = open_sockets()
    with refusing_address() as first, refusing_address("::1") as second, Server(echo) as server:
        resolve_to(monkeypatch, first, second, server.address)
        connection = TcpConnection("backend.test", server.port, timeout=timeout)
        connection.open()
        check_echo(connection)
        connection.close()
    assert open_sockets() <= before


def test_addresses_are_tried_in_the_order_of_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(echo) as first, Server(echo, host="::1") as second:
        resolve_to(monkeypatch, second.address, first.address)
        connection = TcpConnection("backend.test", first.port)
        connection.open()
        check_echo(connection)
        connection.close()
        assert (first.accepted, second.accepted) == (0, 1)


def test_an_address_of_a_family_that_the_system_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(echo) as server:
        addresses = [
            (12345, socket.SOCK_STREAM, 0, "", ("nowhere", 1)),
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", server.address),
        ]
        monkeypatch.setattr(gevent.socket, "getaddrinfo", lambda *arguments: addresses)
        connection = TcpConnection("backend.test", server.port)
        connection.open()
        check_echo(connection)
        connection.close()


def test_an_address_that_hangs_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_sockets()
    with hanging_address() as hanging, Server(echo) as server:
        resolve_to(monkeypatch, hanging, server.address)
        connection = TcpConnection("backend.test", server.port, timeout=1.0)
        connection.open()
        check_echo(connection)
        connection.close()
    assert open_sockets() <= before


def test_an_address_that_hangs_leaves_time_for_the_next_after_slow_resolving(monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging_address() as hanging, Server(echo) as server:
        resolve_to(monkeypatch, hanging, server.address, delay=0.8)
        connection = TcpConnection("backend.test", server.port, timeout=1.5)
        connection.open()
        check_echo(connection)
        connection.close()


def test_the_last_error_is_raised_when_no_address_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_sockets()
    with hanging_address() as first, refusing_address() as last:
        resolve_to(monkeypatch, first, last)
        connection = TcpConnection("backend.test", 1, timeout=1.0)
        with pytest.raises(ConnectionRefusedError):
            connection.open()
        assert not connection.is_connected()
    assert open_sockets() <= before


def test_a_refused_connection_is_a_connection_refused_error() -> None:
    before = open_sockets()
    with refusing_address() as (host, port):
        for connection in TcpConnection(host, port), TcpConnection(host, port, timeout=PATIENCE):
            with pytest.raises(ConnectionRefusedError):
                connection.open()
            assert not connection.is_connected()
    assert open_sockets() <= before


def test_a_name_that_does_not_resolve_is_the_resolvers_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*arguments: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(gevent.socket, "getaddrinfo", getaddrinfo)
    connection = TcpConnection("backend.test", 1)
    with pytest.raises(socket.gaierror):
        connection.open()
    assert not connection.is_connected()


@contextmanager
def silent_listener() -> Iterator[tuple[str, int]]:
    """An address that accepts connections, and then does nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()


@contextmanager
def dripping_server() -> Iterator[tuple[str, int]]:
    """The address of a server that goes on and on sending something, but never completes a handshake."""

    def drip(peer: Any) -> None:
        peer.sendall(b"\x16\x03\x03\x40\x00")
        while True:
            peer.sendall(b"\x02")
            gevent.sleep(0.002)

    with Server(drip) as server:
        yield server.host, server.port


@pytest.mark.parametrize(
    ("factory", "stalling"),
    [
        pytest.param(TcpConnection, hanging_address, id="connecting"),
        pytest.param(TlsConnection, silent_listener, id="handshake"),
        pytest.param(TlsConnection, dripping_server, id="handshake that goes on"),
    ],
)
def test_the_timeout_bounds_connecting_as_a_whole(factory: Callable[..., TcpConnection], stalling: Any) -> None:
    before = open_sockets()
    with stalling() as (host, port):
        connection = factory(host, port, timeout=0.1)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.open()
        assert time.monotonic() - began < PATIENCE
        assert not connection.is_connected()
        assert not connection.is_usable()
        # On a busy machine the time may be over before there is a socket at all.
        assert connection.socket is None or connection.socket.fileno() == -1
    assert open_sockets() <= before


def test_the_timeout_bounds_resolving_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_sockets()
    resolve_to(monkeypatch, delay=3600)
    connection = TcpConnection("backend.test", 1, timeout=0.05)
    with pytest.raises(TimeoutError, match=r"backend\.test:1"):
        connection.open()
    assert not connection.is_connected()
    assert open_sockets() <= before


def test_the_timeout_bounds_connecting_to_many_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_sockets()
    with hanging_address() as hanging:
        resolve_to(monkeypatch, *[hanging] * 10)
        connection = TcpConnection("backend.test", 1, timeout=0.1)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.open()
        assert time.monotonic() - began < PATIENCE
    assert open_sockets() <= before


def test_the_handshake_has_all_of_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def hesitate(peer: Any) -> None:
        gevent.sleep(0.02)
        with server_context("localhost").wrap_socket(peer, server_side=True) as secured:
            echo(secured)

    with Server(hesitate) as server:
        # So many addresses that the share of the first, which accepts, is much less than the handshake takes.
        resolve_to(monkeypatch, *[server.address] * 5000)
        connection = TlsConnection("localhost", server.port, timeout=PATIENCE, ssl_context=client_context())
        connection.open()
        check_echo(connection)
        connection.close()


@pytest.mark.parametrize("error", [gevent.GreenletExit(), gevent.Timeout(None), KeyError("thrown from outside")])
def test_an_interruption_of_connecting_leaves_no_socket(error: BaseException) -> None:
    before = open_sockets()
    for factory, stalling in (TcpConnection, hanging_address), (TlsConnection, silent_listener):
        with stalling() as (host, port):
            connection = factory(host, port, timeout=PATIENCE)
            greenlet = spawn_opening(connection)
            greenlet.kill(error)
            assert (greenlet.exception or greenlet.value) is error
            assert not connection.is_connected()
        assert open_sockets() <= before


@pytest.mark.parametrize("timeout", [None, 0])
def test_no_timeout_is_no_limit(timeout: float | None) -> None:
    with exchange(timeout=timeout) as (connection, peer):
        assert connection.socket.gettimeout() is None
        reader = spawn_waiting(connection.recv)
        peer.sendall(b"at last")
        assert reader.get(timeout=PATIENCE) == b"at last"


@pytest.mark.parametrize("kind", ["tcp", "tls"])
@pytest.mark.parametrize("timeout", [None, 5])
def test_nodelay_and_keepalive_are_on(kind: str, timeout: float | None) -> None:
    with exchange(kind, timeout=timeout) as (connection, _):
        assert connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.parametrize("kind", KINDS)
def test_opening_an_open_connection_is_an_error_that_does_no_harm(kind: str) -> None:
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


def test_a_connection_can_be_opened_after_it_could_not() -> None:
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


def test_nothing_of_the_old_stream_is_left_when_a_connection_is_opened_again() -> None:
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


def test_repr_tells_where_to_and_whether_open() -> None:
    with serving("tcp") as (connection, server):
        assert repr(connection) == f"<TcpConnection to 127.0.0.1:{server.port}, closed>"
        connection.open()
        assert repr(connection) == f"<TcpConnection to 127.0.0.1:{server.port}, open>"
    assert repr(TcpConnection("::1", 80)) == "<TcpConnection to [::1]:80, closed>"
    assert repr(TlsConnection("a.test", 443)) == "<TlsConnection to a.test:443, closed>"
    assert repr(UnixConnection(pathlib.Path("/a/b"))) == "<UnixConnection to /a/b, closed>"
    assert repr(UnixConnection("\0a")) == "<UnixConnection to @a, closed>"


# TLS


def test_an_unknown_authority_is_refused_by_default() -> None:
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
def test_a_context_may_be_of_the_standard_library_or_of_gevent(
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
def test_the_server_is_asked_for_the_host_or_the_name_given_instead(
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


def test_an_address_is_verified_where_it_is_the_host() -> None:
    with Server(echo, tls=server_context("127.0.0.1")) as server:
        connection = TlsConnection("127.0.0.1", server.port, ssl_context=client_context())
        connection.open()
        check_echo(connection)
        connection.close()


@pytest.mark.parametrize("name", [".test", "", "a\0b", "a" * 64 + ".test", 5])
def test_a_name_that_no_server_can_be_asked_for_is_refused(name: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="^server_hostname must be a name or None"):
        TlsConnection("localhost", 1, server_hostname=name)
    with pytest.raises(InvalidArgumentError, match="^host must be a name or an address"):
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


def test_the_end_of_a_tls_stream_is_found_with_and_without_goodbye() -> None:
    for say_goodbye in True, False:
        with exchange("tls") as (connection, peer):
            peer.sendall(b"bye")
            if say_goodbye:
                gevent.spawn(outcome, peer.unwrap)
            else:
                peer.close()
            assert connection.recv_exactly(3) == b"bye"
            assert connection.recv() == b""
            assert not connection.is_connected()


SCRIPT = """
import ssl, sys
import gevent, gevent.event, gevent.monkey
from gsocketpool import TcpConnection, TlsConnection
from tests.servers import Server, authority_pem, echo, server_context

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
def test_it_works_and_blocks_nobody_however_python_is_patched(beginning: str, expected: str) -> None:
    root = pathlib.Path(__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", beginning + "\n" + SCRIPT],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert run.stderr == ""
    assert run.stdout.strip() == expected
    assert run.returncode == 0


# Unix sockets


def test_connects_to_a_path(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "socket"
    with Server(echo, path=str(path)):
        for form in path, str(path):
            connection = UnixConnection(form, timeout=PATIENCE)
            connection.open()
            check_echo(connection)
            connection.close()


@on_linux
def test_connects_to_a_name_in_the_abstract_namespace() -> None:
    path = f"\0gsocketpool test {os.getpid()} {time.monotonic_ns()}"
    with Server(echo, path=path):
        connection = UnixConnection(path)
        connection.open()
        check_echo(connection)
        connection.close()


def test_a_missing_path_is_a_file_not_found_error(tmp_path: pathlib.Path) -> None:
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


class PathOfBytes:
    def __fspath__(self) -> bytes:
        return b"/a"


@pytest.mark.parametrize("path", [b"/a", PathOfBytes()])
def test_a_path_of_bytes_is_refused(path: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        UnixConnection(path)
    assert caught.value.argument == "path"


# Sending


@pytest.mark.parametrize("kind", KINDS)
def test_send_sends_all_to_a_slow_reader(kind: str) -> None:
    message = array.array("I", range(1_000_000)).tobytes()
    with exchange(kind) as (connection, peer):
        sender = spawn_waiting(connection.send, message)
        received = bytearray()
        while len(received) < len(message):
            received += peer.recv(40_000)
            gevent.sleep(0)
        assert sender.get(timeout=PATIENCE) is None
        assert received == message
        assert connection.is_reusable(None)


@pytest.mark.parametrize("kind", KINDS)
def test_send_raises_when_the_reader_is_too_slow(kind: str) -> None:
    with impatient(kind, 0.05) as connection:
        with pytest.raises(TimeoutError):
            connection.send(bytes(20_000_000))
        assert not connection.is_reusable(None)


def test_send_raises_when_the_reader_goes_away() -> None:
    with exchange() as (connection, peer):
        sender = spawn_waiting(connection.send, bytes(20_000_000))
        reset(peer)
        assert isinstance(sender.get(timeout=PATIENCE), ConnectionResetError | BrokenPipeError)
        assert not connection.is_reusable(None)


def test_an_interruption_of_sending_leaves_doubt() -> None:
    with exchange() as (connection, _):
        sender = spawn_waiting(connection.send, bytes(20_000_000))
        sender.kill()
        assert connection.is_connected()
        assert not connection.is_reusable(None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "data",
    [
        b"bytes",
        b"",
        bytearray(b"a bytearray"),
        memoryview(b"a memoryview"),
        memoryview(b"a part of it")[2:6],
        memoryview(array.array("I", [1, 2, 3])),
    ],
)
def test_send_takes_every_kind_of_bytes(kind: str, data: Any) -> None:
    with exchange(kind) as (connection, peer):
        connection.send(data)
        connection.close()
        received = b""
        while part := peer.recv(100):
            received += part
        assert received == bytes(data)


@pytest.mark.parametrize("data", ["str", None, 5, [1, 2], array.array("B", b"array")])
def test_send_takes_nothing_but_bytes(data: Any) -> None:
    with exchange() as (connection, peer):
        with pytest.raises(TypeError, match=f"bytes, not {type(data).__name__}"):
            connection.send(data)
        assert connection.is_reusable(None)
        connection.send(b"nothing came before this")
        assert peer.recv(100) == b"nothing came before this"


# Receiving


@pytest.mark.parametrize("kind", KINDS)
def test_recv_returns_what_has_come(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        peer.sendall(b"hello")
        assert connection.recv() == b"hello"
        peer.sendall(b"x" * 1025)
        received = b""
        while len(received) < 1025:
            part = connection.recv()
            assert 1 <= len(part) <= 1024
            received += part


@pytest.mark.parametrize("kind", KINDS)
def test_recv_returns_no_more_than_asked_for(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        peer.sendall(b"abcdef")
        assert connection.recv(1) == b"a"
        assert connection.recv(2) == b"bc"
        assert connection.recv(size=100) == b"def"


@pytest.mark.parametrize("kind", KINDS)
def test_recv_returns_nothing_at_the_end_and_marks_the_connection_closed(kind: str) -> None:
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


def test_a_reset_is_a_connection_reset_error() -> None:
    with exchange() as (connection, peer):
        reset(peer)
        with pytest.raises(ConnectionResetError):
            connection.recv()
        assert not connection.is_reusable(None)


def test_recv_exactly_puts_pieces_together() -> None:
    with exchange() as (connection, peer):
        reader = spawn_waiting(connection.recv_exactly, 8)
        for piece in b"ab", b"c", b"defg":
            peer.sendall(piece)
            settle()
        assert not reader.ready()
        peer.sendall(b"hijk")
        assert reader.get(timeout=PATIENCE) == b"abcdefgh"
        assert connection.recv_exactly(3) == b"ijk"


def test_recv_exactly_of_a_large_message() -> None:
    message = array.array("I", range(500_000)).tobytes()
    with exchange() as (connection, peer):
        sender = gevent.spawn(peer.sendall, message)
        assert connection.recv_exactly(len(message)) == message
        sender.get()


def test_recv_exactly_of_nothing_waits_for_nothing() -> None:
    with exchange() as (connection, _):
        assert without_switching(partial(connection.recv_exactly, 0)) == b""
        assert connection.is_reusable(None)


@pytest.mark.parametrize("already", [0, 3, 5])
def test_recv_exactly_raises_when_the_stream_ends_before(already: int) -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"line\nhello"[: 5 + already])
        peer.close()
        assert connection.recv_until(b"\n") == b"line\n"
        with pytest.raises(ConnectionClosedError, match="ended") as caught:
            connection.recv_exactly(6)
        assert caught.value.partial == b"hello"[:already]
        assert isinstance(caught.value, ConnectionError)
        assert not connection.is_connected()


def test_recv_until_finds_a_delimiter_that_comes_in_pieces() -> None:
    with exchange() as (connection, peer):
        reader = spawn_waiting(connection.recv_until, b"<end>")
        for piece in b"<en<e", b"n", b"d":
            peer.sendall(piece)
            settle()
            assert not reader.ready()
        peer.sendall(b">next")
        assert reader.get(timeout=PATIENCE) == b"<en<end>"
        assert connection.recv_exactly(4) == b"next"


def test_recv_until_returns_one_message_of_several_at_a_time() -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"a\r\n\r\nbc\r\nd\n")
        assert connection.recv_until(b"\r\n") == b"a\r\n"
        assert connection.recv_until(b"\r\n") == b"\r\n"
        assert connection.recv_until(b"\r\n") == b"bc\r\n"
        assert connection.recv_until(b"\n") == b"d\n"
        assert connection.is_reusable(None)


def test_what_recv_until_left_is_for_any_kind_of_reading() -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"a\nbcdefghij\nkl")
        assert connection.recv_until(b"\n") == b"a\n"
        assert connection.recv(2) == b"bc"
        assert connection.recv_exactly(3) == b"def"
        assert connection.recv_until(b"\n") == b"ghij\n"
        assert connection.recv() == b"kl"
        peer.sendall(b"mn")
        assert connection.recv_exactly(2) == b"mn"


def test_recv_until_of_a_large_message() -> None:
    message = b"x" * 60_000 + b"\n"
    with exchange() as (connection, peer):
        sender = gevent.spawn(peer.sendall, 3 * message)
        for _ in range(3):
            assert connection.recv_until(b"\n") == message
        sender.get()


def test_recv_until_raises_when_there_is_no_delimiter_within_the_limit() -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"abcdefgh\n")
        with pytest.raises(LimitExceededError) as caught:
            connection.recv_until(b"\n", limit=8)
        assert caught.value.limit == 8
        assert isinstance(caught.value, PoolError)
        assert connection.is_connected()
        assert not connection.is_reusable(None)
        # Nothing is lost to who goes on all the same.
        assert connection.recv_until(b"\n", limit=9) == b"abcdefgh\n"


def test_recv_until_does_not_wait_for_more_than_the_limit() -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"abcdefgh")
        with pytest.raises(LimitExceededError):
            connection.recv_until(b"\n", limit=8)
        assert connection.recv_exactly(8) == b"abcdefgh"
        peer.sendall(b"1234567\n")
        assert connection.recv_until(b"\n", limit=8) == b"1234567\n"


def test_the_limit_is_there_without_being_asked_for() -> None:
    with exchange() as (connection, peer):
        sender = gevent.spawn(outcome, peer.sendall, b"x" * 65536 + b"\n")
        with pytest.raises(LimitExceededError):
            connection.recv_until(b"\n")
        sender.join()


@pytest.mark.parametrize(("stream", "partial"), [(b"", b""), (b"ab\r", b"ab\r")])
def test_recv_until_raises_when_the_stream_ends_before(stream: bytes, partial: bytes) -> None:
    for before in b"", b"line\r\n":
        with exchange() as (connection, peer):
            peer.sendall(before + stream)
            peer.close()
            if before:
                assert connection.recv_until(b"\r\n") == before
            with pytest.raises(ConnectionClosedError, match="ended") as caught:
                connection.recv_until(b"\r\n")
            assert caught.value.partial == partial
            assert not connection.is_connected()
            # What was in the error does not come a second time.
            with pytest.raises(ConnectionClosedError):
                connection.recv()


def send_in_pieces(pieces: list[bytes], peer: Any) -> None:
    for piece in pieces:
        peer.sendall(piece)
        # Until the reader has taken it and waits for more.
        gevent.idle()


@settings(deadline=None, max_examples=80, database=None)
@given(
    pieces=st.lists(st.text("ab\r\n", min_size=1, max_size=9).map(str.encode), max_size=9),
    calls=st.lists(
        st.one_of(
            st.tuples(st.just("recv"), st.integers(1, 12)),
            st.tuples(st.just("recv_exactly"), st.integers(0, 20)),
            st.tuples(st.just("recv_until"), st.sampled_from([b"\n", b"\r\n", b"ab", b"aab"]), st.integers(3, 20)),
        ),
        max_size=12,
    ),
)
@example(pieces=[b"a\nb"], calls=[("recv_until", b"\n", 9), ("recv_until", b"\n", 9), ("recv", 9)])
@example(pieces=[b"a\r", b"\nb\r\n"], calls=[("recv_until", b"\r\n", 9), ("recv_exactly", 1), ("recv", 9)])
def test_any_stream_in_any_pieces_read_in_any_way_is_the_same_stream(
    pieces: list[bytes], calls: list[tuple[Any, ...]]
) -> None:
    stream = b"".join(pieces)
    with serving("tcp", partial(send_in_pieces, pieces), timeout=PATIENCE) as (connection, _):
        connection.open()
        left, has_ended = stream, False
        for name, *arguments in [*calls, *[("recv", 5)] * (len(stream) + 2)]:
            expected: bytes | None = None
            if name == "recv_exactly" and len(left) >= arguments[0]:
                expected = left[: arguments[0]]
            elif name == "recv_until":
                delimiter, limit = arguments
                found = left.find(delimiter, 0, limit)
                if found >= 0:
                    expected = left[: found + len(delimiter)]
                elif len(left) >= limit:
                    with pytest.raises(LimitExceededError):
                        connection.recv_until(delimiter, limit)
                    continue
            elif name == "recv" and not has_ended:
                expected = connection.recv(*arguments)
                assert left.startswith(expected)
                assert len(expected) <= arguments[0]
                has_ended = not expected
                assert has_ended is not bool(left)
                left = left[len(expected) :]
                continue
            if expected is not None:
                assert getattr(connection, name)(*arguments) == expected
                left = left[len(expected) :]
                continue
            with pytest.raises(ConnectionClosedError) as caught:
                getattr(connection, name)(*arguments)
            assert caught.value.partial == left
            left, has_ended = b"", True
        assert not connection.is_connected()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "arguments"), [("recv", ()), ("recv_exactly", (5,)), ("recv_until", (b"\n",)), ("send", (b"x",))]
)
def test_a_connection_that_is_not_open_cannot_be_used(kind: str, name: str, arguments: tuple[Any, ...]) -> None:
    with serving(kind) as (connection, _):
        with pytest.raises(ConnectionClosedError, match="not open"):
            getattr(connection, name)(*arguments)
        connection.open()
        connection.close()
        with pytest.raises(ConnectionClosedError, match="not open") as caught:
            getattr(connection, name)(*arguments)
        assert caught.value.partial == b""


@pytest.mark.parametrize(("name", "arguments"), [("recv", ()), ("recv_exactly", (3,)), ("recv_until", (b"c",))])
def test_closing_throws_away_what_was_left_unread(name: str, arguments: tuple[Any, ...]) -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"\nabc")
        wait_readable(connection)
        assert connection.recv_until(b"\n") == b"\n"
        connection.close()
        with pytest.raises(ConnectionClosedError):
            getattr(connection, name)(*arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "arguments"), [("recv", ()), ("recv_exactly", (5,)), ("recv_until", (b"\n",))])
def test_receiving_raises_when_nothing_comes_in_time(kind: str, name: str, arguments: tuple[Any, ...]) -> None:
    with impatient(kind, 0.05) as connection:
        with pytest.raises(TimeoutError):
            getattr(connection, name)(*arguments)
        assert connection.is_connected()
        assert not connection.is_reusable(None)


def test_an_interruption_of_receiving_leaves_doubt() -> None:
    with exchange() as (connection, _):
        with gevent.Timeout(0.005, False):
            connection.recv()
        assert connection.is_connected()
        assert not connection.is_reusable(None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "arguments"), [("recv", ()), ("recv_exactly", (5,)), ("recv_until", (b"\n",))])
def test_a_blocked_reader_gets_an_error_when_the_connection_is_closed(
    kind: str, name: str, arguments: tuple[Any, ...]
) -> None:
    with exchange(kind) as (connection, peer):
        reader = spawn_waiting(getattr(connection, name), *arguments)
        connection.close()
        assert isinstance(reader.get(timeout=PATIENCE), OSError)
        assert peer.recv(1) == b""


def test_a_blocked_sender_gets_an_error_when_the_connection_is_closed() -> None:
    with exchange() as (connection, _):
        sender = spawn_waiting(connection.send, bytes(20_000_000))
        connection.close()
        assert isinstance(sender.get(timeout=PATIENCE), OSError)


# Arguments


@pytest.mark.parametrize(
    ("argument", "make", "values"),
    [
        ("host", lambda value: TcpConnection(value, 1), ["", None, 5, b"localhost"]),
        ("port", lambda value: TcpConnection("a.test", value), [0, -1, 65536, "80", None, 1.5, True]),
        ("lifetime", lambda value: TcpConnection("a.test", 1, value), [-1, "1", float("nan"), True]),
        ("timeout", lambda value: TcpConnection("a.test", 1, timeout=value), [-1, "1", float("nan"), float("inf")]),
        ("ssl_context", lambda value: TlsConnection("a.test", 1, ssl_context=value), [object(), True, "default"]),
        ("server_hostname", lambda value: TlsConnection("a.test", 1, server_hostname=value), [5, b"a.test"]),
        ("host", lambda value: TlsConnection(value, 1, server_hostname="a.test"), ["", None]),
        ("path", lambda value: UnixConnection(value), ["", None, 5]),
        ("timeout", lambda value: UnixConnection("/a", timeout=value), [-1, "1"]),
        ("size", lambda value: StreamConnection().recv(value), [0, -1, "1", None, 1.0, True]),
        ("size", lambda value: StreamConnection().recv_exactly(value), [-1, "1", None, 1.0, True]),
        ("delimiter", lambda value: StreamConnection().recv_until(value), [b"", "\n", None, 10]),
        ("limit", lambda value: StreamConnection().recv_until(b"\r\n", value), [0, 1, -1, "9", None]),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(argument: str, make: Callable[[Any], object], values: Any) -> None:
    for value in values:
        with pytest.raises(InvalidArgumentError) as caught:
            make(value)
        assert caught.value.argument == argument
        assert argument in str(caught.value)
        assert repr(value) in str(caught.value)
        assert isinstance(caught.value, ValueError)


def test_arguments_have_the_order_they_always_had() -> None:
    with Server(echo) as server:
        connection = TcpConnection(server.host, server.port, 0.001, 4.5)
        connection.open()
        assert connection.socket.gettimeout() == 4.5
        eventually(connection.is_expired)
        connection.close()
    with Server(echo, tls=server_context("backend.test")) as server:
        connection = TlsConnection(server.host, server.port, 0.001, 4.5, client_context(), "backend.test")
        connection.open()
        assert connection.socket.gettimeout() == 4.5
        eventually(connection.is_expired)
        connection.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_raw_socket_is_there_under_both_names(kind: str) -> None:
    with serving(kind) as (connection, server):
        assert connection.socket is None
        assert connection.get() is None
        connection.open()
        assert connection.socket is connection.get()
        assert isinstance(connection.socket, gevent.socket.socket)
        connection.socket.sendall(b"by hand")
        assert server.next_peer().recv(100) == b"by hand"


def test_a_connection_expires_when_its_lifetime_is_over() -> None:
    with serving("tcp", lifetime=0.001) as (connection, _):
        gevent.sleep(0.003)
        assert not connection.is_expired()
        connection.open()
        eventually(connection.is_expired)
        # It is for the pool to decide what follows from that.
        assert connection.is_connected()
        assert connection.is_reusable(None)


@pytest.mark.parametrize("options", [{}, {"lifetime": None}, {"lifetime": 3600.5}])
def test_a_connection_does_not_expire_within_its_lifetime(options: dict[str, Any]) -> None:
    with exchange(**options) as (connection, _):
        gevent.sleep(0.003)
        assert not connection.is_expired()


# Whether it is still good


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
def test_a_connection_with_bytes_that_nobody_asked_for_is_not_usable(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        peer.sendall(b"too late")
        eventually(lambda: not connection.is_usable())


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_of_whose_message_a_part_was_read_is_not_usable(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        peer.sendall(b"hello")
        assert connection.recv(1) == b"h"
        assert not connection.is_usable()


@pytest.mark.parametrize("kind", KINDS)
def test_asking_whether_a_connection_is_usable_lets_nobody_else_run(kind: str) -> None:
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


def test_a_message_behind_session_tickets_does_make_a_connection_unusable() -> None:
    with exchange("tls") as (connection, peer):
        peer.sendall(b"x")
        eventually(lambda: not connection.is_usable())


def test_a_message_after_session_tickets_were_seen_does_make_a_connection_unusable() -> None:
    with exchange("tls") as (connection, peer):
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


def test_a_connection_with_bytes_left_unread_is_not_reusable() -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"one\ntwo\n")
        assert connection.recv_until(b"\n") == b"one\n"
        assert not connection.is_reusable(None)
        assert connection.recv_until(b"\n") == b"two\n"
        assert connection.is_reusable(None)


# Forking


def in_child(function: Callable[[], Any]) -> Any:
    """What `function` returns, as JSON knows it, in a forked child."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # From Python 3.12 on there is a warning because the resolver has threads. The child doesn't use them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(PATIENCE))
            try:
                answer = {"returned": function()}
            except BaseException:
                answer = {"raised": traceback.format_exc()}
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert "raised" not in answer, answer["raised"]
    return answer["returned"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_child_lets_go_of_the_connection_and_the_parent_does_not_notice(kind: str) -> None:
    with exchange(kind, timeout=PATIENCE) as (connection, peer):
        # In the middle of an exchange.
        connection.send(b"ping")
        raw = identity(connection.socket.fileno())

        def look() -> list[bool]:
            had_it = raw in open_sockets()
            connection.after_fork()
            return [had_it, raw in open_sockets(), connection.is_usable()]

        assert in_child(look) == [True, False, False]
        assert peer.recv(100) == b"ping"
        peer.sendall(b"pong")
        assert connection.recv_exactly(4) == b"pong"
        check_that_both_ways_are_open(connection, peer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_child_lets_go_of_a_connection_that_a_greenlet_waits_for(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        reader = spawn_waiting(connection.recv_until, b"\n")
        raw = identity(connection.socket.fileno())

        def look() -> list[bool]:
            ran: list[bool] = []
            gevent.spawn(ran.append, True)
            connection.after_fork()
            return [*ran, raw in open_sockets()]

        assert in_child(look) == [False]
        peer.sendall(b"for the parent\n")
        assert reader.get(timeout=PATIENCE) == b"for the parent\n"
        check_that_both_ways_are_open(connection, peer)


@pytest.mark.parametrize(("factory", "stalling"), [(TcpConnection, hanging_address), (TlsConnection, silent_listener)])
def test_a_forked_child_lets_go_of_a_connection_that_is_being_opened(
    factory: Callable[..., TcpConnection], stalling: Any
) -> None:
    with stalling() as (host, port):
        connection = factory(host, port)
        opener = spawn_opening(connection)
        raw = identity(connection.socket.fileno())

        def look() -> bool:
            connection.after_fork()
            return raw in open_sockets()

        assert in_child(look) is False
        assert raw in open_sockets()
        opener.kill()
    assert raw not in open_sockets()


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_child_may_let_go_of_a_connection_that_is_not_open(kind: str) -> None:
    with serving(kind) as (connection, _):
        assert in_child(connection.after_fork) is None
        connection.open()
        connection.close()
        assert in_child(connection.after_fork) is None


def test_a_forked_child_can_make_a_connection_of_its_own_of_it() -> None:
    with serving("tcp", echo) as (connection, server):
        connection.open()
        eventually(lambda: server.accepted == 1)

        def reconnect() -> bool:
            gevent.reinit()
            connection.after_fork()
            connection.reconnect()
            connection.send(b"from the child")
            return connection.is_connected()

        assert in_child(reconnect) is True
        eventually(lambda: server.accepted == 2)
        check_echo(connection)


def check_that_both_ways_are_open(connection: Any, peer: Any) -> None:
    assert connection.is_usable()
    connection.send(b"to")
    assert peer.recv(100) == b"to"
    peer.sendall(b"and fro")
    assert connection.recv_exactly(7) == b"and fro"
    assert connection.is_reusable(None)


# The base class


class Nameless(Connection):
    pass


@pytest.mark.parametrize("step", ["open", "close", "get", "is_connected"])
def test_a_step_that_a_class_lacks_is_named(step: str) -> None:
    with pytest.raises(NotImplementedError, match=rf"Nameless has no {step}\(\)"):
        getattr(Nameless(), step)()


class Classic(Connection):
    """A connection as it was written for gsocketpool 0.1.6. Without something to get, it has no get()."""

    def __init__(self, raw: Any = None) -> None:
        self.raw = raw
        self.connected = True

    def open(self) -> None:
        self.connected = True

    def close(self) -> None:
        self.connected = False

    def get(self) -> Any:
        return super().get() if self.raw is None else self.raw

    def is_connected(self) -> bool:
        return self.connected


@pytest.mark.parametrize("raw", [None, object(), "a client object", 7])
def test_a_class_without_a_socket_is_usable_when_it_is_connected(raw: Any) -> None:
    connection = Classic(raw)
    assert connection.is_usable()
    connection.after_fork()
    connection.close()
    assert not connection.is_usable()


@pytest.mark.parametrize("make_pair", [socket.socketpair, gevent.socket.socketpair])
def test_a_class_with_a_socket_is_usable_while_that_is_silent(make_pair: Any) -> None:
    raw, peer = make_pair()
    with raw, peer:
        connection = Classic(raw)
        assert without_switching(connection.is_usable)
        peer.sendall(b"x")
        assert not without_switching(connection.is_usable)
        assert raw.recv(10) == b"x"
        assert connection.is_usable()
        connection.close()
        assert not connection.is_usable()
        connection.open()
        peer.close()
        assert not connection.is_usable()
        raw.close()
        assert not connection.is_usable()


@pytest.mark.parametrize("make_pair", [socket.socketpair, gevent.socket.socketpair])
def test_a_class_with_a_socket_lets_go_of_it_after_a_fork(make_pair: Any) -> None:
    raw, peer = make_pair()
    with raw, peer:
        connection = Classic(raw)
        own = identity(raw.fileno())

        def look() -> bool:
            connection.after_fork()
            return own in open_sockets()

        assert in_child(look) is False
        assert connection.is_usable()
        raw.sendall(b"x")
        assert peer.recv(10) == b"x"


def test_by_default_a_connected_object_is_reusable_unless_there_was_an_error() -> None:
    connection = Classic()
    assert connection.is_reusable(None) is True
    assert not connection.is_reusable(ValueError())
    assert not connection.is_reusable(gevent.Timeout(None))
    connection.close()
    assert not connection.is_reusable(None)


def test_by_default_nothing_expires() -> None:
    assert Classic().is_expired() is False


def test_reconnect_of_the_base_class_closes_and_opens(caplog: pytest.LogCaptureFixture) -> None:
    steps: list[str] = []

    class Counting(Classic):
        def open(self) -> None:
            steps.append("open")
            super().open()

        def close(self) -> None:
            steps.append("close")
            super().close()

    connection = Counting()
    connection.reconnect()
    connection.connected = False
    connection.reconnect()
    assert steps == ["close", "open", "open"]
    assert not caplog.records
