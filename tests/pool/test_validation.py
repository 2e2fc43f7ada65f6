"""A connection is checked before it is handed out, and the next user never reads an earlier reply."""

from __future__ import annotations

from typing import Any

import gevent
import gevent.socket
import pytest

from gsocketpool import Connection, Pool
from tests.support.line_server import LineServer, line_pool
from tests.support.line_server import server as server
from tests.support.scripted import Backend, ScriptedConnection, eventually, numbers, settle


def test_an_idle_connection_that_is_closed_is_not_handed_out(backend: Backend) -> None:
    pool = Pool(backend.connect)
    connections = [pool.acquire() for _ in range(3)]
    for connection in connections:
        pool.release(connection)
    for connection in connections[1:]:
        connection.is_open = False
    assert pool.acquire() is connections[0], "the next one is tried"
    assert pool.acquire().number == 3, "then a fresh one"
    assert pool.stats().discarded == {"unusable": 2}


def test_steps_set_on_an_instance_are_called(backend: Backend) -> None:
    class Wrapper(Connection):
        def __init__(self) -> None:
            self.inner = Inner(backend, {})
            backend.add(self.inner)
            self.is_usable, self.is_reusable = self.inner.is_usable, self.inner.is_reusable  # type: ignore[method-assign]

        def open(self) -> None:
            self.inner.open()

        def close(self) -> None:
            self.inner.close()

        def is_connected(self) -> bool:
            return True

    class Inner(ScriptedConnection):
        def is_connected(self) -> bool:
            return self.is_open and bool(self.backend.answer)

    pool = Pool(Wrapper)
    first = pool.acquire()
    pool.release(first)
    backend.answer = False
    second = pool.acquire()
    assert second is not first


@pytest.mark.parametrize("step", ["get", "is_reusable", "is_usable"])
def test_inspecting_a_class_runs_none_of_its_properties(backend: Backend, step: str) -> None:
    """It is found out what a class defines, and nothing of the class is run for that."""

    def look(self: object) -> object:
        raise LookupError("not to be looked at")

    kind: Any = type("Shy", (ScriptedConnection,), {step: property(look)})
    pool = Pool(lambda: backend.add(kind(backend, {})))
    connection = pool.acquire()
    if step != "is_reusable":
        pool.release(connection)
    assert numbers(pool)[:2] == ((1, 0) if step == "is_reusable" else (0, 1))


def test_a_connection_that_was_never_used_is_checked_like_any_other(backend: Backend) -> None:
    pool = Pool(backend.connect, initial_connections=3)
    for connection in backend.connections:
        connection.is_open = False
    assert pool.acquire().number == 3


@pytest.mark.parametrize("answer", [False, OSError("no pong"), None, 0])
def test_a_connection_that_fails_the_check_of_its_class_is_not_handed_out(backend: Backend, answer: Any) -> None:
    pool = Pool(backend.connect_checked)
    first = pool.acquire()
    pool.release(first)
    assert pool.acquire() is first
    pool.release(first)
    backend.answer = answer
    assert pool.acquire().number == 1, "a fresh one is not asked"
    assert not first.is_open


def test_no_request_fails_after_a_restart_of_the_backend(server: LineServer) -> None:
    with line_pool(server) as pool:
        connections = [pool.acquire() for _ in range(8)]
        for connection in connections:
            assert connection.exchange(b"before") == b"before"
            pool.release(connection)
        server.restart()
        eventually(lambda: not any(connection.is_usable() for connection in connections))

        def request(number: int) -> None:
            with pool.connection() as connection:
                assert connection.exchange(b"%d" % number) == b"%d" % number

        gevent.joinall([gevent.spawn(request, number) for number in range(20)], raise_error=True)
        assert pool.stats().discarded == {"unusable": 8}


def test_the_next_user_never_reads_a_reply_that_is_not_its_own(server: LineServer) -> None:
    with line_pool(server) as pool:
        with pool.connection() as first:
            assert first.exchange(b"twice") == b"twice"
        with pool.connection() as second:
            assert second.exchange(b"mine") == b"mine"
        assert second is not first


def test_a_connection_with_unread_bytes_is_not_reused(server: LineServer) -> None:
    with line_pool(server) as pool:
        with pool.connection() as first:
            first.send(b"a long line\n")
            assert first.recv_exactly(6) == b"a long"
        with pool.connection() as second:
            assert second.exchange(b"mine") == b"mine"
        assert second is not first


def test_a_connection_is_not_reused_after_a_timeout_caught_in_its_block(server: LineServer) -> None:
    with line_pool(server) as pool:
        with pool.connection() as first:
            # For connecting it has all the time that it takes, also on a busy machine.
            first.socket.settimeout(0.01)
            with pytest.raises(TimeoutError):
                first.recv()
            first.send(b"late\n")
        with pool.connection() as second:
            assert second.exchange(b"mine") == b"mine"
        assert second is not first


def test_checking_a_socket_does_not_switch(server: LineServer) -> None:
    with line_pool(server) as pool:
        with pool.connection() as connection:
            connection.exchange(b"x")
        settle()
        ran: list[bool] = []
        gevent.spawn(ran.append, True)
        pool.release(pool.acquire(timeout=0))
        assert not ran


def test_the_socket_of_a_0_1_6_class_is_peeked_at(server: LineServer) -> None:
    class Old(Connection):
        def __init__(self, port: int) -> None:
            self._port = port
            self._sock: Any = None

        def open(self) -> None:
            self._sock = gevent.socket.create_connection(("127.0.0.1", self._port))

        def close(self) -> None:
            self._sock.close()
            self._sock = None

        def get(self) -> Any:
            return self._sock

        def is_connected(self) -> bool:
            return self._sock is not None

    with Pool(Old, {"port": server.port}) as pool:
        with pool.connection() as first:
            first.get().sendall(b"x\n")
            assert first.get().recv(10) == b"x\n"
        server.restart()
        eventually(lambda: not first.is_usable())
        with pool.connection() as second:
            second.get().sendall(b"y\n")
            assert second.get().recv(10) == b"y\n"
        assert second is not first
