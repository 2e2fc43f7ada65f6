"""What a pool calls of a connector, or of a connection's class, and what it does with the answers."""

from __future__ import annotations

import gc
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import Mock

import gevent
import gevent.socket
import pytest
from gevent.hub import Hub

from gsocketpool import Connection, InvalidArgumentError, Pool, TcpConnection
from gsocketpool.connectors import Connector
from tests.support.connections import Classic, serving, wait_readable
from tests.support.connections import no_hanging as no_hanging
from tests.support.internals import CANCEL_TIMEOUT, CLOSER_GRACE, closers_of, sweep
from tests.support.scripted import (
    Backend,
    Client,
    Clock,
    Foreign,
    Plain,
    ScriptedConnection,
    ScriptedConnector,
    Untold,
    eventually,
    numbers,
    raising,
    settle,
)
from tests.support.servers import Server, echo


class BoomError(BaseException):
    """One that no "except Exception" catches."""


def errors() -> list[Any]:
    kinds: list[Callable[[], BaseException]] = [lambda: ValueError("boom"), lambda: gevent.Timeout(1), BoomError]
    return [pytest.param(kind, id=type(kind()).__name__) for kind in kinds]


# The six lines


class SocketConnector(Connector[gevent.socket.socket]):
    """A client library that is no more than a socket."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> gevent.socket.socket:
        return gevent.socket.create_connection(("127.0.0.1", self.port))

    def is_settled(self, connection: gevent.socket.socket) -> bool:
        return True


def test_a_connector_needs_only_two_steps() -> None:
    with Server(echo) as server, Pool(SocketConnector(server.port)) as pool:
        with pool.connection() as client:
            assert type(client) is gevent.socket.socket
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
        with pool.connection() as again:
            assert again is client
        assert pool.stats().can_peek is True
        pool.ping()
        with suppress(LookupError), pool.connection():
            raise LookupError
        eventually(lambda: client.fileno() == -1)
        assert pool.stats().discarded == {"error": 1}


def test_a_connection_that_died_while_idle_is_not_handed_out() -> None:
    with Server() as server, Pool(SocketConnector(server.port)) as pool:
        dying = pool.acquire()
        pool.release(dying)
        server.next_peer().close()
        gevent.socket.wait_read(dying.fileno())
        with pool.connection() as client:
            assert client is not dying
        assert pool.stats().discarded == {"unusable": 1}


def test_a_connection_that_died_while_idle_is_closed_by_a_sweep() -> None:
    with Server() as server, Pool(SocketConnector(server.port), reap_interval=0.01) as pool:
        dying = pool.acquire()
        pool.release(dying)
        server.next_peer().close()
        eventually(lambda: dying.fileno() == -1)
        assert pool.stats().idle == 0


@pytest.mark.parametrize("step", ["connect", "is_settled"])
def test_a_connector_without_a_required_step_is_refused_at_once(step: str) -> None:
    steps = {one: lambda *_: True for one in ("connect", "is_settled") if one != step}
    with pytest.raises(TypeError, match=step):
        type("Unfinished", (Connector,), steps)()


# Bad input


def test_a_connector_class_instead_of_an_instance_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="factory must be an instance of a connector, not its class"):
        Pool(ScriptedConnector)


@pytest.mark.parametrize("options", [{}, {"host": "x"}, dict])
def test_options_for_a_connector_are_refused(options: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="options must be left out for a connector, which has its own"):
        Pool(ScriptedConnector(), options)


def test_a_connector_whose_connect_returns_none_is_refused() -> None:
    class Nothing(ScriptedConnector):
        def connect(self) -> Any:
            return None

    pool = Pool(Nothing())
    with pytest.raises(InvalidArgumentError, match="a connector whose connect\\(\\) returns an open client, not None"):
        pool.acquire()
    assert numbers(pool) == (0, 0, 0, 0)


@pytest.mark.parametrize("given", ["", "Always", None, True, 1, ["always"]])
def test_a_bad_reset_is_refused(given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="reset must be 'unsettled' or 'always' or 'never'"):
        Pool(Plain, reset=given)


@pytest.mark.parametrize("given", [0, -1, None, "1", True, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["reset_timeout", "ping_timeout"])
def test_a_bad_timeout_of_a_step_is_refused(name: str, given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{name} must be a number of seconds above 0"):
        Pool(Plain, **{name: given})


def test_a_pool_is_named_after_its_connector() -> None:
    assert Pool(ScriptedConnector()).name == "ScriptedConnector"


# connect()


@pytest.mark.parametrize("kind", errors()[:1])
def test_an_error_of_connect_reaches_the_caller(kind: Callable[[], BaseException]) -> None:
    error = kind()
    pool = Pool(ScriptedConnector(connect=raising(error)))
    with pytest.raises(type(error)) as caught:
        pool.acquire()
    assert caught.value is error
    assert numbers(pool) == (0, 0, 0, 0)


def test_connect_is_bounded_by_open_timeout() -> None:
    pool = Pool(ScriptedConnector(connect=lambda client: gevent.sleep(100)), open_timeout=0.01)
    with pytest.raises(TimeoutError, match="open_timeout"):
        pool.acquire()
    assert numbers(pool) == (0, 0, 0, 0)


# complete()


def use(pool: Pool[Client], *, begin: bool = True) -> Client:
    with pool.connection() as client:
        if begin:
            client.begin()
    return client


def test_a_block_that_ends_well_is_completed_before_it_is_left() -> None:
    connector = ScriptedConnector()
    pool = Pool(connector)
    client = use(pool)
    assert connector.steps == ["complete"]
    assert numbers(pool) == (0, 1, 0, 0)
    assert not client.is_begun


def test_a_block_left_by_an_error_is_not_completed() -> None:
    connector = ScriptedConnector()
    pool = Pool(connector)
    with pytest.raises(LookupError), pool.connection():
        raise LookupError
    eventually(lambda: not connector.open)
    assert "complete" not in connector.steps


def test_a_connection_that_was_given_back_in_its_block_is_not_completed() -> None:
    connector = ScriptedConnector()
    pool = Pool(connector)
    with pool.connection() as client:
        pool.release(client)
    with pool.connection() as client:
        pool.discard(client)
    with pool.connection() as client:
        pool.detach(client)
    assert "complete" not in connector.steps


@pytest.mark.parametrize("in_context", [False, True])
@pytest.mark.parametrize("kind", errors())
def test_an_error_of_complete_leaves_the_block_and_discards_the_connection(
    kind: Callable[[], BaseException], in_context: bool
) -> None:
    error = kind()
    connector = ScriptedConnector(complete=raising(error))
    pool = Pool(connector, max_connections=1, context=suppress if in_context else None)
    with pytest.raises(type(error)) as caught:
        use(pool)
    assert caught.value is error
    assert pool.stats().discarded == {"error": 1}
    eventually(lambda: not connector.open)
    connector.acts.clear()
    use(pool)


def test_a_context_can_not_hide_an_error_of_complete_or_ping() -> None:
    connector = ScriptedConnector(complete=raising(ValueError("boom")), ping=raising(ValueError("boom")))
    pool = Pool(connector, context=lambda: suppress(ValueError))
    with pytest.raises(Exception, match=r"has suppressed the error that complete\(\) raised"):
        use(pool)
    connector.acts.pop("complete")
    with pytest.raises(Exception, match=r"has suppressed the error that ping\(\) raised"):
        pool.ping()
    eventually(lambda: not connector.open)
    assert numbers(pool) == (0, 0, 0, 0)


def test_a_waiter_waits_until_the_connection_has_been_completed() -> None:
    done = gevent.event.Event()
    connector = ScriptedConnector(complete=lambda client: done.wait())
    pool = Pool(connector, max_connections=1)
    first, second = gevent.spawn(use, pool, begin=False), gevent.spawn(use, pool, begin=False)
    settle()
    assert numbers(pool) == (1, 0, 0, 1)
    done.set()
    gevent.joinall([first, second], raise_error=True)
    assert first.value is second.value


def test_closing_a_pool_closes_a_connection_that_is_being_completed() -> None:
    started, done = gevent.event.Event(), gevent.event.Event()

    def complete(client: Client) -> None:
        started.set()
        done.wait()

    connector = ScriptedConnector(complete=complete)
    pool = Pool(connector)
    using = gevent.spawn(use, pool)
    started.wait()
    pool.close(timeout=0)
    assert not connector.open
    done.set()
    using.get()
    assert connector.steps == ["complete", "cancel", "close"]


# is_reusable() and is_settled()


@pytest.mark.parametrize("answer", [False, None, 0])
def test_a_connection_that_is_not_reusable_is_closed(answer: Any) -> None:
    connector = ScriptedConnector(is_reusable=lambda client: answer)
    pool = Pool(connector)
    use(pool)
    eventually(lambda: not connector.open)
    assert pool.stats().discarded == {"not_reusable": 1}
    assert "reset" not in connector.steps


def test_a_connection_that_is_reusable_after_an_error_is_kept() -> None:
    connector = ScriptedConnector(is_reusable=lambda client: True)
    pool = Pool(connector)
    with suppress(LookupError), pool.connection():
        raise LookupError
    assert numbers(pool) == (0, 1, 0, 0)


@pytest.mark.parametrize("step", ["is_reusable", "is_settled"])
@pytest.mark.parametrize("kind", errors())
@pytest.mark.parametrize("untold", [False, True])
def test_a_connection_whose_check_fails_at_the_end_of_its_block_is_closed(
    kind: Callable[[], BaseException], step: str, untold: bool
) -> None:
    error = kind()
    answer = (lambda client: Untold(error)) if untold else raising(error)
    connector = ScriptedConnector(**{step: answer})
    pool = Pool(connector, max_connections=1)
    with suppress(type(error)):
        use(pool)
    eventually(lambda: not connector.open)
    assert numbers(pool) == (0, 0, 0, 0)
    assert pool.stats().resetting == 0
    connector.acts.clear()
    use(pool)


@pytest.mark.parametrize("kind", errors())
def test_a_released_connection_whose_is_settled_fails_is_closed(kind: Callable[[], BaseException]) -> None:
    error = kind()
    connector = ScriptedConnector(is_settled=raising(error))
    pool = Pool(connector, max_connections=1)
    client = pool.acquire()
    with suppress(type(error)):
        pool.release(client)
    eventually(lambda: not connector.open)
    assert numbers(pool) == (0, 0, 0, 0)


class Unmendable(Connector[Client]):
    """Can't reset anything."""

    def __init__(self) -> None:
        self.clients: list[Client] = []

    def connect(self) -> Client:
        self.clients.append(Client(len(self.clients)))
        return self.clients[-1]

    def is_settled(self, connection: Client) -> bool:
        return not connection.is_begun

    def close(self, connection: Client) -> None:
        connection.is_open = False


@pytest.mark.parametrize("reset", ["unsettled", "always"])
def test_an_unsettled_connection_that_can_not_be_reset_is_discarded(reset: str) -> None:
    pool = Pool(Unmendable(), reset=reset)
    settled = use(pool, begin=False)
    assert numbers(pool) == (0, 1, 0, 0)
    assert use(pool) is settled
    assert numbers(pool) == (0, 0, 0, 0)
    eventually(lambda: not settled.is_open)
    assert pool.stats().discarded == {"not_reusable": 1}
    assert not pool.stats().resetting


def test_a_missing_reset_is_named_in_the_error() -> None:
    with pytest.raises(NotImplementedError, match="Unmendable has no reset"):
        Unmendable().reset_session(Client(0))


# peek_target()


@contextmanager
def a_pair() -> Iterator[tuple[Any, Any]]:
    one, other = gevent.socket.socketpair()
    with one, other:
        yield one, other


@pytest.mark.parametrize("kind", ["socket", "descriptor", "neither"])
def test_a_pool_peeks_at_an_idle_connection_through_its_peek_target(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gsocketpool")
    with a_pair() as (sock, peer):
        targets = {"socket": sock, "descriptor": sock.fileno(), "neither": None}
        connector = ScriptedConnector(peek_target=lambda client: targets[kind])
        pool = Pool(connector, max_connections=2)
        assert pool.stats().can_peek is None
        for _ in range(2):
            pool.acquire()
        for client in connector.clients:
            pool.release(client)
        said = [record for record in caplog.records if "no socket to peek at" in record.getMessage()]
        assert [record.levelno for record in said] == [logging.DEBUG] * (kind == "neither")
        assert pool.stats().can_peek is (kind != "neither")
        assert pool.stats().as_dict()["can_peek"] is (kind != "neither")
        peer.sendall(b"?")
        gevent.socket.wait_read(sock.fileno())
        assert (pool.acquire() in connector.clients[:2]) is True
        is_kept = numbers(pool) == (1, 1, 0, 0)
        assert is_kept is (kind == "neither")


@pytest.mark.parametrize("kind", errors()[:1])
def test_a_connection_whose_peek_target_raises_is_not_handed_out(kind: Callable[[], BaseException]) -> None:
    connector = ScriptedConnector()
    pool = Pool(connector)
    first = use(pool, begin=False)
    connector.acts["peek_target"] = lambda client: raising(kind())(client) if client is first else None
    assert use(pool, begin=False) is not first
    assert pool.stats().discarded == {"unusable": 1}


def test_the_default_peek_target_is_the_socket_or_the_descriptor_of_the_client() -> None:
    class Own(Client):
        def fileno(self) -> int:
            return 7

    two_steps = SocketConnector(0)
    steps: Any = two_steps
    assert steps.peek_target(Own(0)) == 7
    assert steps.peek_target(Client(0)) is None
    assert steps.peek_target(Mock(fileno=7)) is None
    with a_pair() as (sock, _):
        assert steps.peek_target(sock) is sock, "TLS could not be looked through otherwise"


def test_a_pool_does_not_take_the_session_tickets_of_a_tls_client_for_a_message() -> None:
    """A server sends session tickets when it likes, and they are no message."""
    with serving("tls") as (connection, server):
        connection.open()
        sock = connection.get()

        class Whole(SocketConnector):
            def connect(self) -> gevent.socket.socket:
                return sock

        pool = Pool(Whole(0))
        assert pool.acquire() is sock
        # The tickets are there.
        wait_readable(connection)
        pool.release(sock)
        assert pool.acquire() is sock
        assert pool.stats().can_peek
        pool.release(sock)
        server.next_peer().sendall(b"!")
        wait_readable(connection)
        sweep(pool)
        assert pool.stats().idle == 0


# The same of a connection's own class


class Wrapping(Classic):
    """What its get() returns is given to it."""


def test_a_pool_peeks_at_a_descriptor_that_get_returns() -> None:
    with a_pair() as (sock, peer):
        raws = [sock.fileno(), None]
        pool: Pool[Any] = Pool(lambda: Wrapping(raws.pop(0)))
        first = pool.acquire()
        assert pool.stats().can_peek is True
        pool.release(first)
        peer.close()
        gevent.socket.wait_read(sock.fileno())
        assert pool.acquire() is not first
        assert pool.stats().discarded == {"unusable": 1}


@pytest.mark.parametrize("raw", [True, "7", 7.0, object()])
def test_a_peek_target_that_is_no_socket_or_descriptor_is_ignored(raw: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "gsocketpool")
    pool: Pool[Any] = Pool(lambda: Wrapping(raw))
    for connection in [pool.acquire(), pool.acquire()]:
        pool.release(connection)
    assert pool.stats().can_peek is False
    assert caplog.text.count("no socket to peek at") == 1
    assert numbers(pool) == (0, 2, 0, 0)


class Transaction(ScriptedConnection):
    """Has all the steps, and notes which are taken."""

    is_begun = False

    def __init__(self, backend: Backend, options: dict[str, Any]) -> None:
        super().__init__(backend, options)
        self.steps: list[str] = []

    def begin(self) -> None:
        self.is_begun = True

    def is_settled(self) -> bool:
        return not self.is_begun

    def reset(self) -> None:
        self.steps.append("reset")
        self.is_begun = False

    def reset_session(self) -> None:
        self.steps.append("reset_session")

    def complete(self) -> None:
        self.steps.append("complete")
        self.is_begun = False

    def ping(self) -> None:
        self.steps.append("ping")


def made_by(backend: Backend, kind: type[ScriptedConnection]) -> Callable[[], Any]:
    return lambda: backend.add(kind(backend, {}))


def test_a_class_with_is_settled_is_completed_and_reset(backend: Backend) -> None:
    pool: Pool[Any] = Pool(made_by(backend, Transaction), reset="always")
    with pool.connection() as connection:
        connection.begin()
    eventually(lambda: pool.stats().idle)
    assert connection.steps == ["complete", "reset_session"]
    lease = pool.lease()
    connection.begin()
    assert not lease.is_settled
    lease.release(warn=False)
    eventually(lambda: pool.stats().idle)
    assert connection.steps == ["complete", "reset_session", "reset", "reset_session"]
    pool.ping()
    assert "ping" in connection.steps


class Unrelated(Transaction):
    """Its steps are its own: it can't tell whether it is settled."""

    is_settled = Connection.is_settled


@pytest.mark.parametrize("reset", ["unsettled", "always", "never"])
def test_a_class_without_is_settled_is_neither_completed_nor_reset(backend: Backend, reset: str) -> None:
    pool: Pool[Any] = Pool(made_by(backend, Unrelated), reset=reset)
    with pool.connection() as connection:
        connection.begin()
    pool.release(pool.acquire())
    assert numbers(pool) == (0, 1, 0, 0)
    assert connection.steps == []
    assert pool.lease().is_settled


class Odd(Foreign):
    """As written for gsocketpool 0.1.6, with methods that mean something else."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name in STEPS:
            self.asked.append(name)
        raise AttributeError(name)


STEPS = ("is_settled", "complete", "reset", "reset_session", "ping", "cancel", "abort", "peek_target", "is_reusable")


@pytest.mark.parametrize("reset", ["unsettled", "always"])
def test_a_pool_calls_no_new_steps_of_a_foreign_class(reset: str) -> None:
    with Pool(Odd, reset=reset) as pool:
        with pool.connection() as connection:
            pass
        pool.ping()
        lease = pool.lease()
        assert lease.is_settled
        lease.release()
        with suppress(LookupError), pool.connection():
            raise LookupError
    assert connection.asked == []
    assert pool.stats().discarded == {"error": 1}


@pytest.mark.parametrize("reset", ["unsettled", "always"])
@pytest.mark.parametrize("spec", [None, Connection, Transaction])
def test_a_pool_calls_no_new_steps_of_a_mock(spec: Any, reset: str) -> None:
    connection = Mock(spec=spec)
    with Pool(lambda: connection, reset=reset) as pool:
        with pool.connection() as acquired:
            assert acquired is connection
        pool.ping()
        pool.release(pool.acquire())
        assert numbers(pool) == (0, 1, 0, 0)
    called = {call[0] for call in connection.method_calls}
    assert called <= {"open", "close", "is_connected", "is_expired"}


# close(), abort() and cancel()


@pytest.mark.parametrize("kind", errors())
def test_a_close_that_fails_is_followed_by_an_abort(
    kind: Callable[[], BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is no Exception is told by gevent.
    monkeypatch.setattr(Hub, "print_exception", lambda *arguments: None)
    error = kind()
    connector = ScriptedConnector(close=raising(error))
    pool = Pool(connector)
    pool.discard(pool.acquire())
    eventually(lambda: not connector.open and not pool.stats().closing)
    assert connector.steps[:3] == ["cancel", "close", "abort"]


@pytest.mark.parametrize("kind", errors())
def test_a_close_ends_even_if_its_abort_raises(kind: Callable[[], BaseException]) -> None:
    connector = ScriptedConnector(close=raising(ValueError("boom")), abort=raising(kind()))
    pool = Pool(connector)
    clients = [pool.acquire(), pool.acquire()]
    for client in clients:
        pool.discard(client)
    eventually(lambda: connector.steps.count("abort") == 2 and not pool.stats().closing)


def test_abort_replaces_the_file_behind_the_descriptor() -> None:
    """Whatever the client's object closes later is no descriptor of another object."""
    one, other = socket.socketpair()
    with one, other:
        steps: Any = SocketConnector(0)
        number = one.fileno()
        steps.abort(one)
        assert one.fileno() == number
        assert os.fstat(number).st_rdev == os.stat(os.devnull).st_rdev
        assert not os.get_inheritable(number)
        assert other.recv(1) == b"", "it was closed"
        targets: list[Any] = [None, -1, "7", 7.0]
        connector = ScriptedConnector(peek_target=lambda client: targets.pop())
        while targets:
            Connector.abort(connector, Client(0))


def test_a_close_that_hangs_is_followed_by_an_abort() -> None:
    connector = ScriptedConnector(close=lambda client: gevent.sleep(100))
    pool = Pool(connector, close_timeout=0.01)
    pool.discard(pool.acquire())
    eventually(lambda: not connector.open)
    assert connector.steps == ["cancel", "close", "abort"]


def leave_by_an_error(pool: Pool[Client], connector: ScriptedConnector) -> None:
    with suppress(LookupError), pool.connection():
        raise LookupError


def come_back_in_mid_exchange(pool: Pool[Client], connector: ScriptedConnector) -> None:
    connector.acts["is_reusable"] = lambda client: False
    use(pool, begin=False)


def be_killed(pool: Pool[Client], connector: ScriptedConnector) -> None:
    def hold() -> None:
        with pool.connection():
            gevent.sleep(100)

    holder = gevent.spawn(hold)
    settle()
    holder.kill()


def die_with_one(pool: Pool[Client], connector: ScriptedConnector) -> None:
    gevent.spawn(pool.acquire).join()
    gc.collect()
    sweep(pool)


def discard_one(pool: Pool[Client], connector: ScriptedConnector) -> None:
    pool.discard(pool.acquire())


def reset_too_late(pool: Pool[Client], connector: ScriptedConnector) -> None:
    connector.acts["reset"] = lambda client: gevent.sleep(100)
    client = pool.acquire()
    client.begin()
    pool.lease()
    pool.release(client)


def close_under_the_user(pool: Pool[Client], connector: ScriptedConnector) -> None:
    pool.acquire()
    pool.close(timeout=0)


@pytest.mark.parametrize(
    "act",
    [
        leave_by_an_error,
        come_back_in_mid_exchange,
        be_killed,
        die_with_one,
        discard_one,
        reset_too_late,
        close_under_the_user,
    ],
)
def test_a_connection_that_may_be_in_an_exchange_is_cancelled(
    act: Callable[[Pool[Client], ScriptedConnector], None],
) -> None:
    connector = ScriptedConnector()
    pool = Pool(connector, reset_timeout=0.01)
    act(pool, connector)
    eventually(lambda: "close" in connector.steps)
    assert connector.steps[connector.steps.index("close") - 1] == "cancel"


def end_its_life(pool: Pool[Client], clock: Clock) -> None:
    with pool.connection():
        clock.advance(100)


def be_idle(pool: Pool[Client], clock: Clock) -> None:
    use(pool, begin=False)
    clock.advance(100)
    sweep(pool)


def drain_one_in_use(pool: Pool[Client], clock: Clock) -> None:
    with pool.connection():
        pool.drain()


def close_and_come_back(pool: Pool[Client], clock: Clock) -> None:
    with pool.connection():
        closing = gevent.spawn(pool.close)
        settle()
    closing.get()


def close_idle(pool: Pool[Client], clock: Clock) -> None:
    use(pool, begin=False)
    pool.close()


def drop_idle(pool: Pool[Client], clock: Clock) -> None:
    pool.drop(use(pool, begin=False))


def discard_idle(pool: Pool[Client], clock: Clock) -> None:
    pool.discard(use(pool, begin=False))


def turn_unusable(pool: Pool[Client], clock: Clock) -> None:
    first = use(pool, begin=False)
    connector: Any = pool._factory
    connector.acts["peek_target"] = lambda client: -1 if client is first else None
    use(pool, begin=False)


@pytest.mark.parametrize(
    "act",
    [
        end_its_life,
        be_idle,
        drain_one_in_use,
        close_and_come_back,
        close_idle,
        drop_idle,
        discard_idle,
        turn_unusable,
    ],
)
def test_a_connection_outside_of_an_exchange_is_not_cancelled(
    clock: Clock, act: Callable[[Pool[Client], Clock], None]
) -> None:
    connector = ScriptedConnector()
    pool: Pool[Client] = clock.pool(connector, max_lifetime=50)
    use(pool, begin=False)
    act(pool, clock)
    eventually(lambda: "close" in connector.steps)
    assert "cancel" not in connector.steps


def test_a_caller_does_not_wait_for_a_cancel_which_counts_as_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CANCEL_TIMEOUT, 1000.0)
    done = gevent.event.Event()
    connector = ScriptedConnector(cancel=lambda client: done.wait())
    pool = Pool(connector, max_connections=1)
    pool.discard(pool.acquire())
    settle()
    assert pool.stats().closing == 1
    assert pool.size == 0
    assert pool.acquire() is connector.clients[1], "it does not count"
    assert connector.steps == ["cancel"]
    done.set()
    eventually(lambda: connector.steps == ["cancel", "close"])
    assert pool.stats().closing == 0


def test_a_cancel_has_a_time_limit_of_its_own_and_is_followed_by_a_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CANCEL_TIMEOUT, 0.01)
    connector = ScriptedConnector(cancel=lambda client: gevent.sleep(100))
    pool = Pool(connector)
    pool.discard(pool.acquire())
    eventually(lambda: not connector.open)
    assert connector.steps == ["cancel", "close"]


def test_closing_a_pool_waits_for_a_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the time to close is: cancelling has a time of its own."""
    monkeypatch.setattr(CLOSER_GRACE, 0.01)
    connector = ScriptedConnector(cancel=lambda client: gevent.sleep(0.05))
    pool = Pool(connector, close_timeout=0.01)
    pool.acquire()
    pool.close(timeout=0)
    assert connector.steps == ["cancel", "close"]
    assert not connector.open
    assert pool.stats().closing == 0


@pytest.mark.parametrize("kind", errors())
def test_a_cancel_that_raises_is_followed_by_a_close(kind: Callable[[], BaseException]) -> None:
    connector = ScriptedConnector(cancel=raising(kind()))
    pool = Pool(connector)
    pool.discard(pool.acquire())
    eventually(lambda: not connector.open)
    assert connector.steps == ["cancel", "close"]


def test_a_cancel_that_is_killed_is_followed_by_a_close() -> None:
    connector = ScriptedConnector(cancel=lambda client: gevent.sleep(100))
    pool = Pool(connector)
    pool.discard(pool.acquire())
    eventually(lambda: connector.steps == ["cancel"])
    (closer,) = closers_of(pool)
    closer.kill()
    eventually(lambda: not connector.open)
    assert connector.steps == ["cancel", "close"]


# ping()


def test_a_ping_of_a_pool_calls_ping_and_complete() -> None:
    connector = ScriptedConnector()
    pool = Pool(connector)
    pool.ping()
    assert connector.steps == ["ping", "complete"]
    assert numbers(pool) == (0, 1, 0, 0)


@pytest.mark.parametrize("kind", errors())
def test_an_error_of_ping_reaches_the_caller(kind: Callable[[], BaseException]) -> None:
    error = kind()
    connector = ScriptedConnector(ping=raising(error))
    pool = Pool(connector)
    with pytest.raises(type(error)) as caught:
        pool.ping()
    assert caught.value is error
    eventually(lambda: not connector.open)


def test_a_ping_is_bounded_by_ping_timeout() -> None:
    connector = ScriptedConnector(ping=lambda client: gevent.sleep(100))
    pool = Pool(connector, ping_timeout=0.01)
    with pytest.raises(TimeoutError, match=r"did not answer a ping within 0\.01 s"):
        pool.ping()
    eventually(lambda: not connector.open)


def test_a_ping_that_handles_timeouts_of_its_socket_has_the_same_limit() -> None:
    class Patient(TcpConnection):
        def ping(self) -> None:
            while True:
                try:
                    self.recv()
                except TimeoutError:
                    continue

    with (
        Server() as server,
        Pool(Patient, {"host": server.host, "port": server.port}, ping_timeout=0.01, name="patient") as pool,
        pytest.raises(TimeoutError) as caught,
    ):
        pool.ping()
    assert str(caught.value) == "pool 'patient': the backend did not answer a ping within 0.01 s"
    assert pool.stats().discarded == {"error": 1}


def test_a_timeout_of_the_caller_goes_through_its_ping() -> None:
    connector = ScriptedConnector(ping=lambda client: gevent.sleep(100))
    pool = Pool(connector, ping_timeout=100)
    with gevent.Timeout(0.01) as limit, pytest.raises(gevent.Timeout) as caught:
        pool.ping()
    assert caught.value is limit


def test_a_ping_of_a_class_without_a_ping_acquires_a_connection() -> None:
    with Server() as server, Pool(TcpConnection, {"host": server.host, "port": server.port}) as pool:
        pool.ping()
        assert numbers(pool) == (0, 1, 0, 0)
