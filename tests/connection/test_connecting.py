"""Connecting over TCP: addresses, time, interruptions, options of the socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.socket
import pytest

from gsocketpool import TcpConnection, TlsConnection
from tests.support.connections import check_echo, exchange, spawn_opening, spawn_waiting
from tests.support.connections import no_hanging as no_hanging
from tests.support.scripted import PATIENCE
from tests.support.servers import (
    Server,
    client_context,
    echo,
    hanging_address,
    open_sockets,
    refusing_address,
    server_context,
    silent_listener,
)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int], delay: float = 0) -> None:
    """Have every name resolve to `addresses`, in this order, after a while."""

    def getaddrinfo(host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        gevent.sleep(delay)
        return [
            (socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM, 0, "", address)
            for address in addresses
        ]

    monkeypatch.setattr(gevent.socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("localhost", "127.0.0.1")])
def test_a_connection_connects_to_a_name_or_an_address_of_either_family(host: str, address: str) -> None:
    with Server(echo, host=address) as server:
        connection = TcpConnection(host, server.port)
        assert not connection.is_connected()
        connection.open()
        assert connection.is_connected()
        check_echo(connection)
        connection.close()
        assert not connection.is_connected()


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


def test_an_address_of_a_family_that_the_system_lacks_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize(
    ("resolving", "timeout"), [pytest.param(0, 1.0, id="at once"), pytest.param(0.8, 1.5, id="after slow resolving")]
)
def test_an_address_that_hangs_leaves_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch, resolving: float, timeout: float
) -> None:
    before = open_sockets()
    with hanging_address() as hanging, Server(echo) as server:
        resolve_to(monkeypatch, hanging, server.address, delay=resolving)
        connection = TcpConnection("backend.test", server.port, timeout=timeout)
        connection.open()
        check_echo(connection)
        connection.close()
    assert open_sockets() <= before


def test_the_last_error_is_raised_when_no_address_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_sockets()
    with hanging_address() as first, refusing_address() as last:
        resolve_to(monkeypatch, first, last)
        connection = TcpConnection("backend.test", 1, timeout=1.0)
        with pytest.raises(ConnectionRefusedError):
            connection.open()
        assert not connection.is_connected()
    assert open_sockets() <= before


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_refused_connection_raises_connection_refused_error(timeout: float | None) -> None:
    before = open_sockets()
    with refusing_address() as (host, port):
        connection = TcpConnection(host, port, timeout=timeout)
        with pytest.raises(ConnectionRefusedError):
            connection.open()
        assert not connection.is_connected()
    assert open_sockets() <= before


def test_a_name_that_does_not_resolve_raises_the_error_of_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*arguments: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(gevent.socket, "getaddrinfo", getaddrinfo)
    connection = TcpConnection("backend.test", 1)
    with pytest.raises(socket.gaierror):
        connection.open()
    assert not connection.is_connected()


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


def test_the_handshake_may_take_all_of_the_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
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
@pytest.mark.parametrize(
    ("factory", "stalling"),
    [
        pytest.param(TcpConnection, hanging_address, id="connecting"),
        pytest.param(TlsConnection, silent_listener, id="handshake"),
    ],
)
def test_an_interruption_of_connecting_leaves_no_socket(
    factory: Callable[..., TcpConnection], stalling: Any, error: BaseException
) -> None:
    before = open_sockets()
    with stalling() as (host, port):
        connection = factory(host, port, timeout=PATIENCE)
        greenlet = spawn_opening(connection)
        greenlet.kill(error)
        assert (greenlet.exception or greenlet.value) is error
        assert not connection.is_connected()
    assert open_sockets() <= before


@pytest.mark.parametrize("timeout", [None, 0])
def test_a_connection_without_a_timeout_waits_without_a_limit(timeout: float | None) -> None:
    with exchange(timeout=timeout) as (connection, peer):
        assert connection.socket.gettimeout() is None
        reader = spawn_waiting(connection.recv)
        peer.sendall(b"at last")
        assert reader.get(timeout=PATIENCE) == b"at last"


@pytest.mark.parametrize("kind", ["tcp", "tls"])
@pytest.mark.parametrize("timeout", [None, 5])
def test_a_connection_sets_nodelay_and_keepalive(kind: str, timeout: float | None) -> None:
    with exchange(kind, timeout=timeout) as (connection, _):
        assert connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_an_error_of_connecting_names_the_address() -> None:
    with refusing_address() as (host, port), pytest.raises(ConnectionRefusedError) as caught:
        TcpConnection(host, port).open()
    assert f"{host}:{port}" in str(caught.value)
