"""What callers get when the server misbehaves: all that docs/_faults.inc says."""

from __future__ import annotations

import errno
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import gevent
import gevent.ssl
import pytest

from gsocketpool import (
    ConnectionClosedError,
    Pool,
    PoolExhaustedError,
    StreamConnection,
    TcpConnection,
    TlsConnection,
    UnixConnection,
)
from gsocketpool.testing import FAULTS, FlakyServer, ServedConnection, exchange_line
from tests.support.connections import KINDS, outcome, spawn_waiting
from tests.support.connections import no_hanging as no_hanging
from tests.support.scripted import PATIENCE, eventually, numbers
from tests.support.servers import client_context, server_context

#: A timeout that is to run out. Everything else has PATIENCE, and what takes longer than SOON has waited for that.
SHORT, SOON = 0.05, PATIENCE / 2

#: What ends connections.
ENDINGS: dict[str, Callable[[FlakyServer], None]] = {
    "restart": FlakyServer.restart,
    "restart, reset": lambda server: server.restart(reset=True),
    "close_connections": FlakyServer.close_connections,
    "close_connections, reset": lambda server: server.close_connections(reset=True),
    "close_idle": FlakyServer.close_idle,
}
EVENTS = [*FAULTS, *ENDINGS]

#: Older versions of Python take the reset of a TLS connection for its end: gh-115627 of theirs.
RESET = {
    "tcp": (ConnectionResetError,),
    "tls": (ConnectionResetError, ConnectionClosedError),
    # A Unix domain socket knows no reset, unless something was left unread.
    "unix": (ConnectionClosedError,),
}


class Site:
    """A server, and a pool of connections to it."""

    def __init__(self, kind: str, server: FlakyServer, timeout: float | None, **settings: Any) -> None:
        self.kind = kind
        self.server = server
        #: That of connections made from now on.
        self.timeout = timeout
        self.pool: Pool[StreamConnection] = Pool(self._make, **settings)
        self._security = {"ssl_context": client_context(), "server_hostname": "localhost"} if kind == "tls" else {}
        #: The connections that the pool has made.
        self.made: list[StreamConnection] = []
        # No two requests are the same, and so no two replies.
        self._numbers = itertools.count()

    def _make(self) -> StreamConnection:
        if self.kind == "unix":
            self.made.append(UnixConnection(self.server.address, timeout=self.timeout))
        else:
            kind: Any = TlsConnection if self.kind == "tls" else TcpConnection
            self.made.append(kind(self.server.host, self.server.port, timeout=self.timeout, **self._security))
        return self.made[-1]

    def message(self, prefix: bytes = b"message") -> bytes:
        return b"%s %d" % (prefix, next(self._numbers))

    def ask(self) -> bool:
        """An exchange. Whether the reply was the right one."""
        message = self.message()
        with self.pool.connection() as connection:
            return exchange_line(connection, message) == message

    @contextmanager
    def connection(self, timeout: float | None = PATIENCE) -> Iterator[StreamConnection]:
        """A block with a connection that has this timeout, however long it took to open it."""
        before, self.timeout = self.timeout, timeout
        with ExitStack() as stack:
            while True:
                with suppress(TimeoutError):
                    connection = stack.enter_context(self.pool.connection())
                    break
            self.timeout = before
            assert connection.socket.gettimeout() == timeout
            yield connection

    def leave_idle(self, count: int = 1) -> list[StreamConnection]:
        with ExitStack() as stack:
            connections = [stack.enter_context(self.connection()) for _ in range(count)]
            for connection in connections:
                exchange_line(connection, b"now the server has accepted it")
        assert numbers(self.pool) == (0, count, 0, 0)
        return connections

    def send(self, connection: StreamConnection, message: bytes) -> ServedConnection:
        """Send a request, and wait until the server has read it."""
        connection.send(message + b"\n")
        asking: list[ServedConnection] = []

        def is_read() -> bool:
            asking[:] = [each for each in self.server.connections if message + b"\n" in each.requests]
            return bool(asking)

        self.server.wait_until(is_read)
        return asking[0]

    def happen(self, event: str, only: Callable[[bytes], bool] | None = None) -> None:
        if event in FAULTS:
            self.server.fail(event, only=None if event in ("refuse", "hang") else only)
        else:
            ENDINGS[event](self.server)

    def assert_works(self) -> None:
        """The pool works, at once and as a whole: all its connections at the same time, and no more than those."""
        limit = self.pool.stats().max_connections
        self.timeout = PATIENCE
        began = time.monotonic()
        with ExitStack() as stack:
            connections = [stack.enter_context(self.pool.connection()) for _ in range(limit)]
            with pytest.raises(PoolExhaustedError):
                self.pool.acquire(timeout=0)
            messages = [self.message() for _ in connections]
            for connection, message in zip(connections, messages, strict=True):
                # Some are from before.
                connection.socket.settimeout(PATIENCE)
                connection.send(message + b"\n")
            for connection, message in zip(connections, messages, strict=True):
                assert connection.recv_until(b"\n") == message + b"\n"
        assert time.monotonic() - began < SOON
        assert numbers(self.pool) == (0, limit, 0, 0)
        self.server.wait_until(lambda: len(self.server.open_connections) == limit)


@contextmanager
def site(kind: str, *, timeout: float | None = PATIENCE, limit: int = 3, **settings: Any) -> Iterator[Site]:
    """Nothing runs out of time there, but for what a test sets."""
    patient: dict[str, Any] = {"acquire_timeout": PATIENCE, "open_timeout": PATIENCE}
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket" if kind == "unix" else None
        with FlakyServer(path=path, tls=server_context("localhost") if kind == "tls" else None) as server:
            made = Site(kind, server, timeout, max_connections=limit, **{**patient, **settings})
            try:
                yield made
            finally:
                made.pool.close(timeout=0)
            server.wait_until(lambda: not server.open_connections)


def is_the_victims(answer: bytes) -> bool:
    return answer.startswith(b"victim")


def soon(function: Callable[[], object]) -> Any:
    """Return what a call that does not take long returns, or the error that it raises."""
    began = time.monotonic()
    result = outcome(function)
    assert time.monotonic() - began < SOON
    return result


def acquiring_hangs(fault: str, kind: str) -> bool:
    return fault == "hang" or (fault == "silent" and kind == "tls")


# Met by an acquire


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_an_acquire_from_an_empty_pool_has_the_documented_outcome(fault: str, kind: str) -> None:
    with site(kind) as here:
        if acquiring_hangs(fault, kind):
            here.timeout = SHORT
        here.server.fail(fault)
        got = soon(here.pool.acquire)
        if fault == "refuse":
            assert type(got) is ConnectionRefusedError
        elif acquiring_hangs(fault, kind):
            assert type(got) is TimeoutError
            assert f"took longer than {SHORT} s" in str(got)
            assert "connecting to" in str(got)
        else:
            assert isinstance(got, StreamConnection)
            here.pool.release(got)
        assert here.pool.stats().open_errors == isinstance(got, OSError)
        assert here.pool.size == isinstance(got, StreamConnection)
        here.server.heal()
        here.assert_works()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_an_acquire_of_an_idle_connection_does_not_notice_a_fault(fault: str, kind: str) -> None:
    with site(kind) as here:
        (idle,) = here.leave_idle()
        here.server.fail(fault)
        assert here.pool.acquire() is idle
        here.pool.release(idle)
        here.server.heal()
        here.assert_works()
        assert not here.pool.stats().discarded


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("event", ENDINGS)
def test_an_acquire_after_idle_connections_have_ended_gets_a_new_one(event: str, kind: str) -> None:
    with site(kind) as here:
        here.leave_idle(3)
        here.happen(event)
        assert soon(here.ask) is True
        assert here.pool.stats().discarded == {"unusable": 3}
        assert here.pool.stats().open_errors == 0
        here.assert_works()


def test_an_acquire_without_a_server_at_its_unix_socket_raises_file_not_found() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket"
        with Pool(UnixConnection, {"path": path, "timeout": PATIENCE}, acquire_timeout=PATIENCE) as pool:
            assert type(soon(pool.acquire)) is FileNotFoundError
            with FlakyServer(path=path), pool.connection() as connection:
                assert exchange_line(connection, b"there") == b"there"


@pytest.mark.parametrize("max_opening", [1, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_every_caller_gets_connection_refused_at_once(kind: str, max_opening: int) -> None:
    with site(kind, max_opening=max_opening) as here:
        here.server.fail("refuse")
        callers = [gevent.spawn(outcome, here.pool.acquire) for _ in range(7)]
        began = time.monotonic()
        assert [type(caller.get(timeout=SOON)) for caller in callers] == [ConnectionRefusedError] * 7
        assert time.monotonic() - began < SOON
        here.server.heal()
        here.assert_works()


@pytest.mark.parametrize("kind", KINDS)
def test_waiters_get_connection_refused_at_once_when_the_server_goes_down(kind: str) -> None:
    def exchange() -> None:
        with here.connection() as connection:
            callers.extend(spawn_waiting(here.pool.acquire) for _ in range(3))
            here.server.fail("refuse")
            here.server.close_connections()
            connection.recv_exactly(1)

    callers: list[gevent.Greenlet] = []
    with site(kind, limit=1) as here:
        assert type(soon(exchange)) is ConnectionClosedError
        assert [type(caller.get(timeout=SOON)) for caller in callers] == [ConnectionRefusedError] * 3
        here.server.heal()
        here.assert_works()


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_waiters_are_served_in_order_after_a_restart_of_the_server(kind: str, is_reset: bool) -> None:
    def wait(number: int) -> None:
        assert here.ask()
        served.append(number)

    def exchange() -> None:
        with here.connection() as connection:
            callers.extend(spawn_waiting(wait, number) for number in range(3))
            here.server.fail("late")
            here.send(connection, b"lost")
            here.server.restart(reset=is_reset)
            connection.recv_exactly(1)

    callers: list[gevent.Greenlet] = []
    served: list[int] = []
    with site(kind, limit=1) as here:
        assert isinstance(soon(exchange), OSError)
        assert [caller.get(timeout=SOON) for caller in callers] == [None] * 3
        assert served == [0, 1, 2]
        assert here.pool.stats().opened == 2
        here.assert_works()


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_that_has_ended_is_not_handed_over_to_a_waiter(kind: str, is_reset: bool) -> None:
    with site(kind, limit=1) as here:
        with here.connection() as connection:
            exchange_line(connection, b"all that was wanted")
            caller = spawn_waiting(here.ask)
            here.server.restart(reset=is_reset)
        assert caller.get(timeout=SOON) is True
        assert here.pool.stats().discarded == {"unusable": 1}
        here.assert_works()


@pytest.mark.parametrize("before", ["nothing", "a failure", "a failure, and a success"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_opening_that_outlasts_its_caller_is_not_wasted(kind: str, before: str) -> None:
    with site(kind, limit=1) as here:
        if "failure" in before:
            here.server.fail("refuse")
            assert isinstance(outcome(here.pool.acquire), ConnectionRefusedError)
        if "success" in before:
            here.server.heal()
            here.pool.discard(here.pool.acquire())
        # A server that is silent is quicker than one that hangs when it is over: no caller has to try again.
        here.server.fail("silent" if kind == "tls" else "hang")
        error = soon(lambda: here.pool.acquire(timeout=SHORT))
        assert type(error) is PoolExhaustedError
        assert error.opening == 1
        assert f"within {SHORT} s" in str(error)
        assert "1 opening" in str(error)
        if before == "a failure":
            assert str(error.last_open_error).startswith(
                f"ConnectionRefusedError: [Errno {errno.ECONNREFUSED}] Connection refused"
            )
            assert f"the last attempt to open one failed with {error.last_open_error}" in str(error)
        else:
            assert error.last_open_error is None
            assert "failed" not in str(error)
        opened = here.pool.stats().opened
        here.server.heal()
        eventually(lambda: numbers(here.pool) == (0, 1, 0, 0))
        here.assert_works()
        assert here.pool.stats().opened == opened + 1


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_opening_that_outlasts_its_caller_serves_the_next_caller(kind: str) -> None:
    with site(kind, limit=1) as here:
        here.server.fail("hang")
        first = spawn_waiting(lambda: here.pool.acquire(timeout=SHORT))
        second = spawn_waiting(here.ask)
        assert type(first.get(timeout=SOON)) is PoolExhaustedError
        assert not second.ready()
        here.server.heal()
        assert second.get(timeout=PATIENCE) is True
        assert here.pool.stats().opened == 1
        here.assert_works()


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize(("fault", "kind"), [*(("hang", kind) for kind in KINDS), ("silent", "tls")])
def test_open_timeout_bounds_an_opening(fault: str, kind: str, timeout: float | None) -> None:
    with site(kind, timeout=timeout, open_timeout=SHORT) as here:
        here.server.fail(fault)
        error = soon(here.pool.acquire)
        assert type(error) is TimeoutError
        assert str(error) == f"opening a connection took longer than open_timeout ({SHORT} s)"
        assert here.pool.size == 0
        here.server.heal()
        here.leave_idle(3)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_acquire_timeout_bounds_an_acquire_without_any_other_timeout(kind: str) -> None:
    with site(kind, timeout=None, open_timeout=None, acquire_timeout=SHORT, limit=2) as here:
        here.server.fail("hang")
        callers = [gevent.spawn(outcome, here.pool.acquire) for _ in range(4)]
        assert [type(caller.get(timeout=SOON)) for caller in callers] == [PoolExhaustedError] * 4
        # The openings go on, and take their places until they end.
        assert numbers(here.pool) == (0, 0, 2, 0)
        here.server.heal()
        eventually(lambda: numbers(here.pool) == (0, 2, 0, 0))
        here.assert_works()


@pytest.mark.parametrize(("fault", "kind"), [("hang", "tcp"), ("hang", "unix"), ("silent", "tls")])
def test_a_restart_during_an_opening_fails_the_caller_only_in_a_handshake(fault: str, kind: str) -> None:
    with site(kind) as here:
        here.server.fail(fault)
        caller = spawn_waiting(here.ask)
        eventually(lambda: here.made and here.made[0].socket)
        here.server.wait_until(lambda: fault == "hang" or here.server.open_connections)
        here.server.restart()
        got = caller.get(timeout=PATIENCE)
        if fault == "silent":
            # It was in its handshake. The latter is what older versions of Python make of the former.
            assert type(got) in (ConnectionResetError, gevent.ssl.SSLEOFError)
        else:
            assert got is True
        here.assert_works()


# Met by an exchange under way


def expected_in_exchange(event: str, kind: str) -> tuple[type[BaseException], ...]:
    """The errors of which an exchange under way gets one; none if it gets its reply."""
    if event in ("silent", "late", "half"):
        return (TimeoutError,)
    if event == "reset" or event.endswith(", reset"):
        return RESET[kind]
    if event in ("close", "restart", "close_connections"):
        return (ConnectionClosedError,)
    return ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("event", EVENTS)
def test_a_fault_during_an_exchange_raises_the_documented_error(event: str, kind: str) -> None:
    expected = expected_in_exchange(event, kind)

    def exchange() -> bytes:
        with here.connection(SHORT if TimeoutError in expected else PATIENCE) as connection:
            waiters.append(spawn_waiting(here.ask))
            here.happen(event if event in FAULTS else "late", only=is_the_victims)
            here.send(connection, message)
            if event in ENDINGS:
                here.happen(event)
            if event == "close_idle":
                here.server.heal()
            return connection.recv_until(b"\n")

    waiters: list[gevent.Greenlet] = []
    with site(kind, limit=2) as here, ExitStack() as stack:
        bystander = stack.enter_context(here.connection())
        exchange_line(bystander, b"now the server has accepted it")
        message = here.message(b"victim")
        got = soon(exchange)
        if expected:
            assert type(got) in expected
        else:
            assert got == message + b"\n"
        # Others notice nothing, unless their connections have ended, too: who is in the middle of a use ...
        if event in FAULTS:
            assert exchange_line(bystander, b"mine") == b"mine"
        else:
            assert not bystander.is_usable()
        # ... and a caller that waits for the place of that connection.
        here.server.heal()
        assert waiters[0].get(timeout=PATIENCE) is True
        if event == "twice":
            assert here.pool.stats().discarded == {"not_reusable": 1}
        else:
            assert here.pool.stats().discarded == ({"error": 1} if expected else {})
        stack.close()
        here.assert_works()


@pytest.mark.parametrize(
    ("kind", "is_reset", "expected"),
    [
        ("tcp", False, (ConnectionClosedError,)),
        ("tcp", True, (ConnectionResetError,)),
        ("tls", False, (ConnectionClosedError,)),
        ("tls", True, (ConnectionResetError, gevent.ssl.SSLEOFError)),
        ("unix", False, (BrokenPipeError,)),
        ("unix", True, (BrokenPipeError,)),
    ],
)
def test_a_request_on_a_connection_that_ended_after_its_acquire_raises_the_documented_error(
    kind: str, is_reset: bool, expected: tuple[type[BaseException], ...]
) -> None:
    def exchange() -> bytes:
        with here.pool.connection() as connection:
            here.server.close_connections(reset=is_reset)
            return exchange_line(connection, b"too late")

    with site(kind) as here:
        here.leave_idle()
        assert type(soon(exchange)) in expected
        here.assert_works()


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_a_stream_that_ends_has_the_partial_answer(kind: str) -> None:
    with site(kind) as here, here.connection() as connection:
        here.server.fail("half")
        here.send(connection, b"0123456")
        here.server.close_connections()
        with pytest.raises(ConnectionClosedError) as caught:
            connection.recv_until(b"\n")
        assert caught.value.partial == b"0123"


@pytest.mark.parametrize("kind", KINDS)
def test_a_gevent_timeout_ends_an_exchange_without_a_timeout_of_its_own(kind: str) -> None:
    def exchange() -> None:
        with here.connection(None) as connection, gevent.Timeout(SHORT):
            here.server.fail("silent")
            exchange_line(connection, b"is anybody there")

    with site(kind, limit=1) as here:
        assert type(soon(exchange)) is gevent.Timeout
        here.server.heal()
        here.assert_works()
        assert here.pool.stats().discarded == {"error": 1}


# Whose reply it is


def ran_out_of_time(connection: StreamConnection) -> None:
    connection.recv_until(b"\n")


def did_not_mind(connection: StreamConnection) -> None:
    with pytest.raises(TimeoutError):
        connection.recv_until(b"\n")


def had_a_timeout_of_gevents(connection: StreamConnection) -> None:
    connection.socket.settimeout(None)
    with gevent.Timeout(SHORT):
        connection.recv_until(b"\n")


def was_killed(connection: StreamConnection) -> None:
    connection.socket.settimeout(None)
    gevent.getcurrent().kill(block=False)
    connection.recv_until(b"\n")


@pytest.mark.parametrize("how", [ran_out_of_time, did_not_mind, had_a_timeout_of_gevents, was_killed])
@pytest.mark.parametrize("fault", ["late", "half"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_of_a_reply_reaches_no_other_caller(
    kind: str, fault: str, how: Callable[[StreamConnection], None]
) -> None:
    def exchange() -> None:
        with here.connection(SHORT) as connection:
            here.server.fail(fault, only=is_the_victims)
            here.send(connection, b"victim")
            callers.extend(spawn_waiting(here.ask) for _ in range(2))
            how(connection)

    callers: list[gevent.Greenlet] = []
    with site(kind, limit=1) as here:
        victim = gevent.spawn(outcome, exchange)
        victim.get(timeout=SOON)
        # What is late comes now, when the next one may be in the middle of an exchange.
        here.server.heal()
        assert [caller.get(timeout=SOON) for caller in callers] == [True, True]
        assert here.pool.stats().discarded == {"not_reusable" if how is did_not_mind else "error": 1}
        here.assert_works()


@pytest.mark.parametrize("has_waiter", [False, True])
@pytest.mark.parametrize("reads_on", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_reply_reaches_no_other_caller(kind: str, reads_on: bool, has_waiter: bool) -> None:
    def exchange() -> bytes:
        with here.connection() as connection:
            if has_waiter:
                callers.append(spawn_waiting(here.ask))
            here.server.fail("twice", times=1)
            connection.send(b"victim\n")
            # The latter leaves it where it is, the former takes it along.
            return connection.recv_until(b"\n") if reads_on else connection.recv_exactly(7)

    callers: list[gevent.Greenlet] = []
    with site(kind, limit=1) as here:
        assert soon(exchange) == b"victim\n"
        assert [caller.get(timeout=SOON) for caller in callers] == [True] * has_waiter
        here.assert_works()
        assert here.pool.stats().discarded == {"not_reusable" if reads_on else "unusable": 1}
