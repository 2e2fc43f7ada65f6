"""``FlakyServer`` misbehaves on command."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest

from gsocketpool import (
    ConnectionClosedError,
    InvalidArgumentError,
    StreamConnection,
    TcpConnection,
    TlsConnection,
    UnixConnection,
)
from gsocketpool.testing import FAULTS, FlakyServer, exchange_line
from tests.support.connections import no_hanging as no_hanging
from tests.support.connections import outcome, spawn_waiting, without_switching
from tests.support.connections import reset as reset_peer
from tests.support.internals import fork
from tests.support.processes import in_child
from tests.support.scripted import PATIENCE, settle
from tests.support.servers import Server, client_context, open_sockets, server_context

KINDS = ["tcp", "unix", "tls"]


@contextlib.contextmanager
def serving(kind: str, directory: Path, **options: Any) -> Iterator[tuple[FlakyServer, StreamConnection]]:
    """A server, and a connection to it that is still to be opened."""
    connection: StreamConnection
    if kind == "unix":
        options["path"] = directory / "socket"
    if kind == "tls":
        options["tls"] = server_context("localhost")
    with FlakyServer(**options) as server:
        if kind == "unix":
            connection = UnixConnection(server.address, timeout=PATIENCE)
        elif kind == "tls":
            security: Any = {"ssl_context": client_context(), "server_hostname": "localhost"}
            connection = TlsConnection(server.host, server.port, timeout=PATIENCE, **security)
        else:
            connection = TcpConnection(server.host, server.port, timeout=PATIENCE)
        try:
            yield server, connection
        finally:
            connection.close()


@pytest.fixture
def client(flaky_server: FlakyServer) -> Iterator[TcpConnection]:
    """An open connection to the server."""
    connection = TcpConnection(flaky_server.host, flaky_server.port, timeout=PATIENCE)
    connection.open()
    yield connection
    connection.close()


# Serving


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_echoes_every_request_and_records_it(kind: str, tmp_path: Path) -> None:
    with serving(kind, tmp_path) as (server, connection):
        connection.open()
        connection.send(b"one\ntw")
        assert connection.recv_until(b"\n") == b"one\n"
        connection.send(b"o\n")
        assert connection.recv_until(b"\n") == b"two\n"
        (served,) = server.connections
        assert served.requests == [b"one\n", b"two\n"]
        assert served.received == b"one\ntwo\n"
        assert served.is_open
        assert served.number == 0
        assert server.open_connections == [served]


def test_a_server_answers_with_its_answer_function() -> None:
    def answer(request: bytes) -> bytes | None:
        return None if request == b"quiet;" else request.upper()

    with FlakyServer(answer, delimiter=b";") as server:
        connection = TcpConnection(server.host, server.port, timeout=PATIENCE)
        connection.open()
        connection.send(b"quiet;loud;")
        assert connection.recv_until(b";") == b"LOUD;"
        connection.close()


@pytest.mark.parametrize("error", [LookupError("what"), FileNotFoundError("what"), gevent.Timeout(1, "what")])
def test_an_error_of_the_answer_function_is_raised_at_the_end(error: BaseException) -> None:
    def answer(request: bytes) -> bytes:
        raise error

    def ask() -> None:
        with FlakyServer(answer) as server:
            connection = TcpConnection(server.host, server.port, timeout=PATIENCE)
            connection.open()
            with pytest.raises(ConnectionClosedError):
                exchange_line(connection, b"what")
            assert [served.end for served in server.connections] == ["by the server"]

    with pytest.raises(type(error), match="what"):
        ask()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_records_the_process_of_each_connection(kind: str, tmp_path: Path) -> None:
    with serving(kind, tmp_path) as (server, connection):
        connection.open()
        exchange_line(connection, b"hello")

        program = (
            "import socket, sys; other = socket.socket(int(sys.argv[1]));"
            " other.connect(eval(sys.argv[2])); sys.stdin.read()"
        )
        family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
        with subprocess.Popen(
            [sys.executable, "-c", program, str(int(family)), repr(server.address)], stdin=subprocess.PIPE
        ) as other:
            server.wait_until(lambda: len(server.connections) == 2)
            assert [served.pid for served in server.connections] == [os.getpid(), other.pid]


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_records_how_each_connection_ended(kind: str, tmp_path: Path) -> None:
    with serving(kind, tmp_path) as (server, connection):
        connection.open()
        exchange_line(connection, b"first")
        connection.close()
        server.wait_until(lambda: not server.open_connections)

        connection.open()
        exchange_line(connection, b"second")
        server.close_connections()

        connection.close()
        connection.open()
        exchange_line(connection, b"third")
        if kind == "tls":
            connection.socket.unwrap = None
            super(TlsConnection, connection).close()
        elif kind == "tcp":
            reset_peer(connection.socket)
        server.wait_until(lambda: kind == "unix" or not server.open_connections)
        ends = [served.end for served in server.connections]
        assert ends == ["closed", "by the server", {"tcp": "reset", "tls": "cut off", "unix": None}[kind]]


def test_an_error_in_what_answers_is_noted_on_the_error_that_leaves_the_block() -> None:
    def answer(request: bytes) -> bytes:
        raise FileNotFoundError("no such fixture")

    def ask() -> None:
        with FlakyServer(answer) as server:
            connection = TcpConnection(server.host, server.port, timeout=PATIENCE)
            connection.open()
            exchange_line(connection, b"what")

    with pytest.raises(ConnectionClosedError) as caught:
        ask()
    assert "no such fixture" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_server_upstream_that_cannot_be_reached_is_noted_on_the_error_that_leaves_the_block(
    kind: str, tmp_path: Path, assert_no_leaks: None
) -> None:
    upstream: Any = str(tmp_path / "nothing") if kind == "unix" else ("127.0.0.1", 1)

    def ask() -> None:
        with FlakyServer(upstream=upstream) as server, contextlib.closing(connection_to(server)) as connection:
            try:
                exchange_line(connection, b"hello")
            finally:
                assert [served.end for served in server.connections] == ["by the server"]

    with pytest.raises((ConnectionError, ConnectionClosedError)) as caught:
        ask()
    assert f"could not connect to the server upstream, {upstream!r}" in "".join(caught.value.__notes__)


def test_a_server_upstream_that_cannot_be_reached_is_no_error_to_a_client_that_copes() -> None:
    with (
        FlakyServer(upstream=("127.0.0.1", 1)) as server,
        contextlib.closing(connection_to(server)) as connection,
        pytest.raises((ConnectionError, ConnectionClosedError)),
    ):
        exchange_line(connection, b"hello")


def connection_to(server: FlakyServer) -> TcpConnection:
    """Return an open connection."""
    connection = TcpConnection(server.host, server.port, timeout=PATIENCE)
    connection.open()
    return connection


def test_a_server_passes_everything_on_to_its_upstream() -> None:
    def shout(peer: Any) -> None:
        while data := peer.recv(100):
            peer.sendall(data.upper())

    with Server(shout) as upstream, FlakyServer(upstream=(upstream.host, upstream.port)) as server:
        connection = TcpConnection(server.host, server.port, timeout=PATIENCE)
        connection.open()
        connection.send(b"pass it on")
        assert connection.recv_exactly(10) == b"PASS IT ON"
        server.fail("twice", times=1)
        connection.send(b"again")
        assert connection.recv_exactly(10) == b"AGAINAGAIN"
        (served,) = server.connections
        assert served.received == b"pass it onagain"
        assert not served.is_asking
        upstream.stop()
        with pytest.raises(ConnectionClosedError):
            connection.recv_exactly(1)
        assert served.end == "by the server"
        connection.close()


# Misbehaving: what clients make of it is in test_server_faults.py


def test_refuse_leaves_open_connections_alone(flaky_server: FlakyServer, client: TcpConnection) -> None:
    flaky_server.fail("refuse")
    with pytest.raises(ConnectionRefusedError):
        TcpConnection(flaky_server.host, flaky_server.port).open()
    assert exchange_line(client, b"still here") == b"still here"


def test_a_fault_ends_after_the_given_number_of_times(flaky_server: FlakyServer, client: TcpConnection) -> None:
    flaky_server.fail("twice", times=2)
    client.send(b"1\n2\n3\n")
    assert client.recv_exactly(10) == b"1\n1\n2\n2\n3\n"


def test_a_fault_may_be_limited_to_some_answers(flaky_server: FlakyServer, client: TcpConnection) -> None:
    flaky_server.fail("silent", only=lambda answer: answer.startswith(b"secret"))
    client.send(b"secret one\nopen\n")
    assert client.recv_until(b"\n") == b"open\n"


def test_a_new_fault_replaces_the_previous_one(flaky_server: FlakyServer, client: TcpConnection) -> None:
    flaky_server.fail("refuse")
    flaky_server.fail("twice")
    client.send(b"a\n")
    assert client.recv_exactly(4) == b"a\na\n"
    another = TcpConnection(flaky_server.host, flaky_server.port)
    another.open()
    another.close()


def test_clients_connected_before_a_fault_are_served(flaky_server: FlakyServer) -> None:
    connection = TcpConnection(flaky_server.host, flaky_server.port, timeout=PATIENCE)
    connection.open()
    # The server has had no time to accept it yet.
    flaky_server.fail("refuse")
    assert exchange_line(connection, b"just in time") == b"just in time"
    connection.close()


def test_clients_that_connect_while_a_fault_begins_are_served_or_refused(tmp_path: Path) -> None:
    with serving("unix", tmp_path) as (server, connection):
        # The server waits for a client to accept, and so is waited for when it stops: that is when this one connects.
        settle()
        opener = gevent.spawn(outcome, connection.open)
        server.fail("refuse")
        error = opener.get(timeout=PATIENCE)
        assert isinstance(error, ConnectionRefusedError) or exchange_line(connection, b"in time") == b"in time"


def test_late_answers_are_sent_when_the_server_is_healed(flaky_server: FlakyServer, client: TcpConnection) -> None:
    flaky_server.fail("late", times=1)
    client.send(b"late\n")
    reader = spawn_waiting(client.recv_until, b"\n")
    flaky_server.wait_until(lambda: flaky_server.connections and flaky_server.connections[0].is_asking)
    flaky_server.heal()
    assert reader.get() == b"late\n"


def test_late_answers_are_sent_after_their_delay(flaky_server: FlakyServer, client: TcpConnection) -> None:
    flaky_server.fail("late", delay=0.02)
    assert exchange_line(client, b"late") == b"late"


def test_a_server_notices_the_end_of_a_connection_to_which_it_owes_an_answer(
    flaky_server: FlakyServer, client: TcpConnection
) -> None:
    flaky_server.fail("late")
    client.send(b"late\n")
    flaky_server.wait_until(lambda: flaky_server.connections and flaky_server.connections[0].is_asking)
    client.close()
    flaky_server.wait_until(lambda: not flaky_server.open_connections)
    assert flaky_server.connections[0].end == "closed"


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    """A block in which this process can open no file."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_accepts_again_once_there_are_free_descriptors(flaky_server: FlakyServer) -> None:
    ours = gevent.socket.socket()
    ours.settimeout(PATIENCE)
    with ours:
        with no_free_descriptor():
            ours.connect(flaky_server.address)
            # The server tries in vain to accept.
            gevent.sleep(0.05)
            assert flaky_server.connections == []
        ours.sendall(b"hello\n")
        assert ours.recv(100) == b"hello\n"


def test_stops_listening_although_it_can_accept_no_more_clients(flaky_server: FlakyServer) -> None:
    ours = gevent.socket.socket()
    with ours:
        with no_free_descriptor():
            ours.connect(flaky_server.address)
            flaky_server.fail("refuse")
        with pytest.raises(ConnectionRefusedError):
            gevent.socket.create_connection(flaky_server.address)


def test_serves_and_forks_in_a_process_with_many_open_files(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 4096), limits[1]))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with FlakyServer() as server:
            server.fail("refuse")
        number, ends = fork()
        if number == 0:
            ends.send(b"x")
            os._exit(0)
        ends.wait_for(1, PATIENCE)
        assert ends.received == b"x"
        ends.close()
        os.waitpid(number, 0)
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_close_idle_closes_only_idle_connections(flaky_server: FlakyServer, client: TcpConnection) -> None:
    asking = TcpConnection(flaky_server.host, flaky_server.port, timeout=PATIENCE)
    asking.open()
    flaky_server.fail("late")
    asking.send(b"wait for it\n")
    flaky_server.wait_until(lambda: len(flaky_server.connections) == 2 and flaky_server.connections[1].is_asking)
    flaky_server.close_idle()
    assert client.recv() == b""
    flaky_server.heal()
    assert asking.recv_until(b"\n") == b"wait for it\n"
    asking.close()


def test_close_connections_closes_a_connection_before_its_handshake(tmp_path: Path) -> None:
    with serving("tls", tmp_path) as (server, _):
        client = TcpConnection(server.host, server.port, timeout=PATIENCE)
        client.open()
        server.wait_until(lambda: server.connections)
        settle()
        server.close_connections()
        assert client.recv() == b""


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_close_connections_takes_effect_at_once(kind: str, reset: bool, tmp_path: Path) -> None:
    with serving(kind, tmp_path) as (server, connection):
        connection.open()
        exchange_line(connection, b"hello")
        assert connection.is_usable()

        def close() -> bool:
            server.close_connections(reset=reset)
            return connection.is_usable()

        assert not without_switching(close)


@pytest.mark.parametrize("kind", KINDS)
def test_restart_keeps_the_address(kind: str, tmp_path: Path) -> None:
    with serving(kind, tmp_path) as (server, connection):
        connection.open()
        exchange_line(connection, b"before")
        address = server.address
        server.restart()
        assert server.address == address
        assert connection.recv() == b""
        connection.close()
        connection.open()
        assert exchange_line(connection, b"after") == b"after"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_heal_ends_every_fault(fault: str, kind: str, tmp_path: Path) -> None:
    with serving(kind, tmp_path) as (server, connection):
        server.fail(fault)
        attempt = gevent.spawn(outcome, connection.open)
        attempt.join(timeout=0.05)
        server.heal()
        attempt.join()
        connection.close()
        connection.open()
        assert exchange_line(connection, b"well again") == b"well again"


def test_a_server_leaves_no_socket_file_behind(tmp_path: Path, assert_no_leaks: None) -> None:
    for kind in KINDS:
        for fault in FAULTS:
            with serving(kind, tmp_path) as (server, connection):
                connection.open()
                server.fail(fault)
                connection.send(b"hello\n")
                gevent.sleep(0)
        assert not (tmp_path / "socket").exists()


def test_a_server_does_not_serve_in_a_forked_child(flaky_server: FlakyServer, client: TcpConnection) -> None:
    def child() -> bool:
        before = open_sockets()
        # What the copied greenlets would do, they do now.
        for _ in range(10):
            gevent.sleep(0.001)
        # The child closes the server's sockets with its own, and both look the same from outside.
        return open_sockets() <= before and not flaky_server._own_sockets()

    assert in_child(child)
    assert exchange_line(client, b"parent") == b"parent"


# What can't be used


def test_using_a_server_outside_its_block_raises() -> None:
    server = FlakyServer()
    steps: list[Callable[[], object]] = [lambda: server.address, lambda: server.port, server.heal, server.restart]
    for _ in range(2):
        for step in [*steps, lambda: server.fail("half")]:
            with pytest.raises(RuntimeError, match="within its `with` block"):
                step()
        with server:
            server.fail("half")


def test_a_server_does_not_replace_a_file_that_is_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"), FlakyServer(path=path):
        pass
    assert path.read_text() == "precious"


def test_an_answer_of_the_wrong_type_raises_at_the_end() -> None:
    def ask() -> None:
        with FlakyServer(lambda request: "text") as server:  # type: ignore[arg-type, return-value]
            connection = TcpConnection(server.host, server.port, timeout=PATIENCE)
            connection.open()
            with pytest.raises(ConnectionClosedError):
                exchange_line(connection, b"hello")

    with pytest.raises(TypeError, match="must return bytes or None, not str"):
        ask()


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("answer", {"answer": b"no function"}),
        ("answer", {"answer": bytes, "upstream": ("127.0.0.1", 1)}),
        ("delimiter", {"delimiter": b""}),
        ("delimiter", {"delimiter": "\n"}),
        ("upstream", {"upstream": 6379}),
        ("path", {"path": 5}),
    ],
)
def test_a_bad_argument_is_refused_with_its_name(argument: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        FlakyServer(**options)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("fault", {"fault": "explode"}),
        ("times", {"fault": "refuse", "times": 1}),
        ("only", {"fault": "hang", "only": bool}),
        ("times", {"fault": "half", "times": 0}),
        ("delay", {"fault": "half", "delay": 1}),
        ("delay", {"fault": "late", "delay": -1}),
    ],
)
def test_a_bad_command_is_refused_and_changes_nothing(
    flaky_server: FlakyServer, client: TcpConnection, argument: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        flaky_server.fail(**arguments)
    assert caught.value.argument == argument
    assert exchange_line(client, b"well") == b"well"


def test_wait_until_fails_with_an_error_that_shows_the_requests(
    flaky_server: FlakyServer, client: TcpConnection
) -> None:
    exchange_line(client, b"a clue")
    with pytest.raises(AssertionError, match="a clue"):
        flaky_server.wait_until(lambda: False, timeout=0.01)
