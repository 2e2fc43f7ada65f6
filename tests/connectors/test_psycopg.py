"""The connector for psycopg, step by step, on a real PostgreSQL server."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import Any
from unittest import mock
from uuid import uuid4

import gevent
import gevent.event
import gevent.socket
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from gsocketpool import InvalidArgumentError, Pool
from gsocketpool.connectors.psycopg import PsycopgConnector
from tests.support.connectors import check_refused, error_without, is_imported_by_the_pool
from tests.support.documents import ROOT, blocks, joined
from tests.support.internals import is_readable
from tests.support.scripted import PATIENCE, eventually
from tests.support.servers import open_sockets, silent_listener

patched = pytest.mark.patched

#: Longer than any test takes: what waits for it must be cut short.
FOR_EVER = 600


class AppError(Exception):
    """An application's error."""


@contextmanager
def connected(conninfo: str, **options: Any) -> Iterator[tuple[PsycopgConnector, Any]]:
    connector = PsycopgConnector(conninfo, **options)
    with closing(connector.connect()) as connection:
        yield connector, connection


@contextmanager
def observer(conninfo: str) -> Iterator[Any]:
    """Another session, in which each statement is a transaction of its own."""
    with closing(psycopg.connect(conninfo, autocommit=True)) as connection:
        yield connection


@contextmanager
def table(conninfo: str) -> Iterator[str]:
    name = f"t{uuid4().hex}"
    with observer(conninfo) as other:
        other.execute(f"CREATE TABLE {name} (value int)")
        yield name
        other.execute(f"DROP TABLE {name}")


def values(conninfo: str, table: str) -> list[Any]:
    with observer(conninfo) as other:
        return [value for (value,) in other.execute(f"SELECT * FROM {table}")]


def status(connection: Any) -> TransactionStatus:
    return TransactionStatus(connection.pgconn.transaction_status)


def is_running(conninfo: str, pid: int) -> bool:
    """Return whether a session executes something."""
    with observer(conninfo) as other:
        row = other.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
        return row is not None and row[0] == "active"


def interrupt(act: Callable[[], object]) -> None:
    """Let a Timeout fall into the middle of what would wait for ever."""
    with pytest.raises(gevent.Timeout) as raised, gevent.Timeout(0.1) as timeout:
        act()
    assert raised.value is timeout


# A transaction and its end


@patched
def test_a_new_connection_is_settled_and_reusable(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        assert isinstance(connection, psycopg.Connection)
        assert connector.is_settled(connection)
        assert connector.is_reusable(connection, None)
        connector.complete(connection)
        assert connector.is_settled(connection)


@patched
@pytest.mark.parametrize("autocommit", [False, True])
def test_complete_commits(conninfo: str, autocommit: bool) -> None:
    with table(conninfo) as name, connected(conninfo, autocommit=autocommit) as (connector, connection):
        connection.execute(f"INSERT INTO {name} VALUES (1)")
        assert connector.is_settled(connection) is autocommit
        connector.complete(connection)
        assert connector.is_settled(connection)
        assert connector.is_reusable(connection, None)
        assert values(conninfo, name) == [1]


@patched
def test_reset_rolls_back(conninfo: str) -> None:
    with table(conninfo) as name, connected(conninfo) as (connector, connection):
        connection.execute(f"INSERT INTO {name} VALUES (1)")
        assert not connector.is_settled(connection)
        connector.reset(connection)
        assert connector.is_settled(connection)
        assert values(conninfo, name) == []


@patched
def test_complete_rolls_back_a_transaction_with_a_failed_statement(conninfo: str) -> None:
    with table(conninfo) as name, connected(conninfo) as (connector, connection):
        connection.execute(f"INSERT INTO {name} VALUES (1)")
        with pytest.raises(psycopg.errors.UndefinedColumn) as raised:
            connection.execute("SELECT nothing")
        assert status(connection) == TransactionStatus.INERROR
        assert not connector.is_settled(connection)
        assert connector.is_reusable(connection, raised.value)
        connector.complete(connection)
        assert connector.is_settled(connection)
        assert values(conninfo, name) == []


@patched
def test_complete_raises_an_error_of_commit(conninfo: str) -> None:
    with table(conninfo) as name, connected(conninfo) as (connector, connection):
        connection.execute(f"ALTER TABLE {name} ADD UNIQUE (value) DEFERRABLE INITIALLY DEFERRED")
        connection.execute(f"INSERT INTO {name} VALUES (1), (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            connector.complete(connection)


@patched
@pytest.mark.parametrize("autocommit", [False, True])
def test_a_ping_leaves_nothing_open(conninfo: str, autocommit: bool) -> None:
    with connected(conninfo, autocommit=autocommit) as (connector, connection):
        connector.ping(connection)
        assert connector.is_settled(connection)
        assert connection.autocommit is autocommit


@patched
def test_a_ping_fails_after_the_server_has_ended_the_session(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        terminate(conninfo, connection)
        with pytest.raises(psycopg.OperationalError):
            connector.ping(connection)


@patched
def test_complete_ignores_a_connection_that_the_block_has_closed(conninfo: str) -> None:
    connector = PsycopgConnector(conninfo)
    connection = connector.connect()
    connection.execute("SELECT 1")
    connection.close()
    connector.complete(connection)


@patched
@pytest.mark.parametrize("autocommit", [False, True])
def test_complete_raises_for_a_lost_connection_unless_in_autocommit_mode(conninfo: str, autocommit: bool) -> None:
    """A COMMIT that is lost must not pass in silence."""
    connector = PsycopgConnector(conninfo, autocommit=autocommit)
    connection = connector.connect()
    connection.execute("SELECT 1")
    with suppress(psycopg.OperationalError):
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert connection.broken
    with nullcontext() if autocommit else pytest.raises(psycopg.OperationalError):
        connector.complete(connection)


@patched
def test_complete_ignores_a_caught_timeout_in_autocommit_mode(conninfo: str) -> None:
    with connected(conninfo, autocommit=True) as (connector, connection):
        interrupt(lambda: sleeping(connection))
        connector.complete(connection)
        assert not connector.is_reusable(connection, None)
        connector.cancel(connection)


@patched
def test_complete_raises_instead_of_waiting_for_a_generator_that_the_block_has_left(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        rows = connection.cursor().stream("SELECT generate_series(1, 10000)")
        next(rows)
        with gevent.Timeout(PATIENCE), pytest.raises(psycopg.OperationalError, match="nothing is committed"):
            connector.complete(connection)
        assert not connector.is_reusable(connection, None)
        rows.close()


@patched
@pytest.mark.parametrize(
    ("autocommit", "end"), [(False, "timeout"), (True, "timeout"), (True, "stream"), (True, "lost")]
)
def test_complete_raises_if_the_block_has_lost_its_transaction(conninfo: str, autocommit: bool, end: str) -> None:
    with table(conninfo) as name, connected(conninfo, autocommit=autocommit) as (connector, connection):
        if autocommit:
            connection.execute("BEGIN")
        connection.execute(f"INSERT INTO {name} VALUES (1)")
        if end == "timeout":
            interrupt(lambda: sleeping(connection))
        elif end == "stream":
            rows = connection.cursor().stream("SELECT generate_series(1, 10000)")
            next(rows)
            interrupt(lambda: sleeping(connection))
        else:
            terminate(conninfo, connection)
            for _ in range(2):
                with pytest.raises(psycopg.OperationalError):
                    connection.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            connector.complete(connection)
        connector.cancel(connection)
        connector.close(connection)
        assert values(conninfo, name) == []


@patched
def test_complete_passes_over_a_transaction_that_has_ended_before_a_timeout_in_autocommit_mode(conninfo: str) -> None:
    with table(conninfo) as name, connected(conninfo, autocommit=True) as (connector, connection):
        connection.execute("BEGIN")
        connection.execute(f"INSERT INTO {name} VALUES (1)")
        connection.execute("COMMIT")
        interrupt(lambda: sleeping(connection))
        connector.complete(connection)
        connector.cancel(connection)
        assert values(conninfo, name) == [1]


@patched
def test_complete_passes_over_a_timeout_that_has_left_transaction_in_autocommit_mode(conninfo: str) -> None:
    with connected(conninfo, autocommit=True) as (connector, connection):

        def act() -> None:
            with connection.transaction():
                connection.execute("SELECT 1")
                sleeping(connection)

        interrupt(act)
        connector.complete(connection)
        connector.cancel(connection)


# What is given back in the middle of an exchange


def sleeping(connection: Any) -> None:
    connection.execute(f"SELECT pg_sleep({FOR_EVER})")


def copying_out(connection: Any) -> None:
    with connection.cursor().copy(f"COPY (SELECT pg_sleep({FOR_EVER})) TO STDOUT") as copy:
        copy.read()


def fetching_by_a_server_side_cursor(connection: Any) -> None:
    with connection.cursor("named") as cursor:
        cursor.execute(f"SELECT pg_sleep({FOR_EVER})")
        cursor.fetchone()


def waiting_for_a_lock(connection: Any) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(1)")


@patched
@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("act", ["sleeping", "copying_out", "fetching_by_a_server_side_cursor", "waiting_for_a_lock"])
def test_a_connection_is_not_reusable_after_a_timeout_during_an_exchange(
    conninfo: str, act: str, autocommit: bool
) -> None:
    with observer(conninfo) as other, connected(conninfo, autocommit=autocommit) as (connector, connection):
        other.execute("SELECT pg_advisory_lock(1)")
        if act == "fetching_by_a_server_side_cursor" and autocommit:
            connection.execute("BEGIN")
        interrupt(lambda: globals()[act](connection))
        assert not connector.is_reusable(connection, None)
        assert not connector.is_reusable(connection, gevent.Timeout(1))
        assert not connector.is_settled(connection)
        assert is_running(conninfo, connection.info.backend_pid)
        connector.cancel(connection)
        eventually(lambda: not is_running(conninfo, connection.info.backend_pid))


@patched
def test_a_connection_is_not_reusable_after_a_kill_during_an_exchange(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        greenlet = gevent.spawn(sleeping, connection)
        eventually(lambda: is_running(conninfo, connection.info.backend_pid))
        greenlet.kill()
        assert not connector.is_reusable(connection, None)


@patched
def test_a_connection_is_not_reusable_after_a_timeout_in_a_pipeline(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):

        def act() -> None:
            # Where psycopg leaves the pipeline it waits for the reply, so that a second exception is needed.
            with gevent.Timeout(0.2, AppError()), connection.pipeline():
                sleeping(connection)

        # psycopg may put an error of its own in the place of either.
        with pytest.raises((AppError, psycopg.OperationalError)), gevent.Timeout(0.1):
            act()
        assert not connector.is_reusable(connection, None)
        connector.cancel(connection)


@patched
@pytest.mark.parametrize("autocommit", [False, True])
def test_a_connection_in_pipeline_mode_is_not_reusable(conninfo: str, autocommit: bool) -> None:
    with connected(conninfo, autocommit=autocommit) as (connector, connection), connection.pipeline() as pipeline:
        assert not connector.is_reusable(connection, None)
        connection.execute("SELECT 1")
        pipeline.sync()
        assert not connector.is_reusable(connection, None)


@patched
def test_a_connection_is_reusable_after_a_pipeline(conninfo: str) -> None:
    with connected(conninfo, autocommit=True) as (connector, connection):
        with connection.pipeline():
            cursor = connection.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
        assert connector.is_reusable(connection, None)
        assert connector.is_settled(connection)


@patched
def test_a_connection_is_reusable_after_an_interrupted_copy_that_psycopg_has_ended(conninfo: str) -> None:
    with table(conninfo) as name, connected(conninfo) as (connector, connection):

        def act() -> None:
            with connection.cursor().copy(f"COPY {name} FROM STDIN") as copy:
                copy.write_row([1])
                gevent.sleep(FOR_EVER)

        interrupt(act)
        assert connector.is_reusable(connection, gevent.Timeout(1))
        assert not connector.is_settled(connection)
        connector.reset(connection)
        assert connector.is_settled(connection)
        assert connection.execute(f"SELECT * FROM {name}").fetchall() == []


@patched
def test_a_connection_with_an_unfinished_copy_is_not_reusable(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        with connection.cursor().copy("COPY (SELECT generate_series(1, 1000)) TO STDOUT") as copy:
            copy.read()
            assert not connector.is_reusable(connection, None)
        # psycopg does not read the rest by itself.
        assert not connector.is_reusable(connection, None)


@patched
def test_a_connection_is_reusable_after_its_copy_was_read(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        with connection.cursor().copy("COPY (SELECT generate_series(1, 1000)) TO STDOUT") as copy:
            while copy.read():
                pass
        assert connector.is_reusable(connection, None)


@patched
def test_a_connection_is_reusable_after_an_interrupted_stream_that_psycopg_has_cancelled(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        interrupt(lambda: next(connection.cursor().stream(f"SELECT pg_sleep({FOR_EVER})")))
        assert not is_running(conninfo, connection.info.backend_pid)
        assert connector.is_reusable(connection, gevent.Timeout(1))
        connector.reset(connection)
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


@patched
def test_a_connection_with_an_unfinished_stream_is_not_reusable(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        stream = connection.cursor().stream("SELECT generate_series(1, 1000)")
        next(stream)
        assert not connector.is_reusable(connection, None)
        stream.close()
        assert connector.is_reusable(connection, None)


@patched
def test_a_connection_with_an_open_generator_of_notifications_is_not_reusable(conninfo: str) -> None:
    with connected(conninfo, autocommit=True) as (connector, connection):
        connection.execute("LISTEN channel")
        with observer(conninfo) as other:
            other.execute("NOTIFY channel")
        notifies = connection.notifies()
        next(notifies)
        assert status(connection) == TransactionStatus.IDLE
        # It would wait for the generator for ever.
        connector.complete(connection)
        assert not connector.is_reusable(connection, None)
        notifies.close()
        assert connector.is_reusable(connection, None)


@patched
def test_a_connection_inside_a_transaction_block_is_not_reusable(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        with connection.transaction():
            assert not connector.is_reusable(connection, None)
        assert connector.is_reusable(connection, None)


@patched
def test_a_connection_with_an_unfinished_two_phase_transaction_is_not_reusable(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        connection.tpc_begin("a transaction")
        assert not connector.is_reusable(connection, None)
        connection.tpc_rollback()
        assert connector.is_reusable(connection, None)


@patched
@pytest.mark.parametrize("error", ["an application's", "a timeout", "a query's"])
def test_a_connection_is_reusable_after_an_error_between_exchanges(conninfo: str, error: str) -> None:
    with connected(conninfo) as (connector, connection):
        connection.execute("SELECT 1")
        left = {"an application's": AppError(), "a timeout": gevent.Timeout(1), "a query's": psycopg.DataError()}[error]
        assert connector.is_reusable(connection, left)
        connector.reset(connection)
        assert connector.is_settled(connection)


# Connections that are lost


def terminate(conninfo: str, connection: Any) -> None:
    """Have the server end a session, and wait until its goodbye has come."""
    with observer(conninfo) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
    eventually(lambda: is_readable(connection.fileno()))


@patched
def test_the_descriptor_of_an_idle_connection_becomes_readable_when_its_session_ends(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        target = connector.peek_target(connection)
        assert target == connection.fileno()
        assert not is_readable(target)
        terminate(conninfo, connection)
        assert is_readable(target)


@patched
def test_a_connection_that_the_server_has_ended_is_not_reusable(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        terminate(conninfo, connection)
        with pytest.raises(psycopg.OperationalError) as raised:
            connection.execute("SELECT 1")
        assert not connector.is_reusable(connection, raised.value)
        assert connector.peek_target(connection) == -1


@patched
def test_a_connection_that_the_caller_has_closed_is_not_reusable(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        connection.close()
        assert not connector.is_reusable(connection, None)
        assert connector.peek_target(connection) == -1
        # Nothing of this does any harm.
        connector.cancel(connection)
        connector.abort(connection)
        connector.close(connection)


@patched
def test_close_ends_the_session(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection), observer(conninfo) as other:
        pid = connection.info.backend_pid
        connector.close(connection)
        query = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        eventually(lambda: other.execute(query, [pid]).fetchone() == (0,))


@patched
@pytest.mark.parametrize("listens", [False, True])
def test_abort_sends_nothing_to_the_server(conninfo: str, listens: bool) -> None:
    """As in a forked child: the parent's session goes on."""
    with connected(conninfo, listens=listens) as (connector, connection):
        held = os.dup(connection.fileno())
        descriptor = connection.fileno()
        connector.abort(connection)
        assert os.readlink(f"/proc/self/fd/{descriptor}") == os.devnull
        connection.close()
        # The socket is still that of a session that waits for a query.
        with closing(socket.socket(fileno=held)) as parents:
            parents.settimeout(PATIENCE)
            parents.sendall(b"Q\0\0\0\x0dSELECT 7\0")
            assert parents.recv(1000).startswith(b"T")


# Cancelling


@patched
def test_cancel_does_nothing_if_no_query_runs(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        connection.execute("SELECT 1")
        connector.cancel(connection)
        assert connection.execute("SELECT 2").fetchone() == (2,)


@patched
def test_cancel_tries_again_if_the_server_had_not_begun_the_query(conninfo: str) -> None:
    """A cancellation that comes before its query is passed over."""
    with connected(conninfo) as (connector, connection):
        # Begins the transaction, which would be another exchange.
        connection.execute("SELECT 1")
        interrupt(lambda: sleeping(connection))
        cancel, calls = psycopg.Connection.cancel_safe, 0

        def come_too_early_once(self: Any, **arguments: Any) -> None:
            nonlocal calls
            calls += 1
            if calls > 1:
                cancel(self, **arguments)

        with mock.patch.object(psycopg.Connection, "cancel_safe", come_too_early_once):
            connector.cancel(connection)
        assert calls >= 2, calls
        assert connection.pgconn.transaction_status == TransactionStatus.INERROR


@patched
def test_cancel_pauses_between_two_requests_though_rows_go_on_coming(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        connection.execute("SELECT 1")
        cancel, calls = psycopg.Connection.cancel_safe, 0

        def count(self: Any, **arguments: Any) -> None:
            nonlocal calls
            calls += 1
            cancel(self, **arguments)

        interrupt(lambda: connection.execute("SELECT repeat('x', 10000) FROM generate_series(1, 100000)"))
        with mock.patch.object(psycopg.Connection, "cancel_safe", count):
            connector.cancel(connection)
        # Without a pause, they are far more in the same time.
        assert calls <= 20


@patched
def test_cancel_gives_up_in_time_and_lets_other_greenlets_run() -> None:
    """A server that opens a session and never ends a query, nor answers a cancellation."""
    with (
        mute_server() as port,
        connected(f"host=127.0.0.1 port={port} sslmode=disable gssencmode=disable") as (
            connector,
            connection,
        ),
    ):
        interrupt(lambda: sleeping(connection))
        ticks = gevent.spawn(lambda: [gevent.sleep(0.01) for _ in range(5)])
        began = time.monotonic()
        with pytest.raises(psycopg.Error), mock.patch("gsocketpool.connectors.psycopg.CANCEL_TIMEOUT", 0.2):
            connector.cancel(connection)
        assert time.monotonic() - began < PATIENCE / 2
        assert ticks.ready()


@contextmanager
def mute_server() -> Iterator[int]:
    """The port of what lets clients log in, and says nothing more."""

    def serve(peer: Any, address: object) -> None:
        head = peer.recv(1000)
        if head[4:8] == b"\x00\x03\x00\x00":
            peer.sendall(b"R\0\0\0\x08\0\0\0\0" + b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x01" + b"Z\0\0\0\x05I")
        while peer.recv(1000):
            pass
        gevent.sleep(FOR_EVER)

    with closing(gevent.socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def accept() -> None:
            while True:
                gevent.spawn(serve, *listener.accept())

        accepting = gevent.spawn(accept)
        yield listener.getsockname()[1]
        accepting.kill()


# What outlives a transaction


def leave_a_setting(connection: Any) -> None:
    connection.execute("SET search_path = nowhere")


def leave_a_role(connection: Any) -> None:
    connection.execute("SET ROLE pg_monitor")


def leave_an_advisory_lock(connection: Any) -> None:
    connection.execute("SELECT pg_advisory_lock(2)")


def leave_a_temporary_table(connection: Any) -> None:
    connection.execute("CREATE TEMPORARY TABLE left_over ()")


def leave_a_channel(connection: Any) -> None:
    connection.execute("LISTEN channel")


def leave_a_cursor(connection: Any) -> None:
    connection.execute("DECLARE left_over CURSOR WITH HOLD FOR SELECT 1")


def leave_a_statement(connection: Any) -> None:
    connection.execute("PREPARE left_over AS SELECT 1")


def leave_a_sequence(connection: Any) -> None:
    connection.execute("CREATE SEQUENCE IF NOT EXISTS counting")
    connection.execute("SELECT nextval('counting')")


def left_over(connection: Any) -> object:
    """All that a session may have, that is not as it was in the beginning."""
    queries = [
        "SELECT current_setting('search_path'), current_user, current_setting('role')",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
        "SELECT count(*) FROM pg_listening_channels()",
        "SELECT count(*) FROM pg_cursors WHERE name = 'left_over'",
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'left_over'",
    ]
    found = [connection.execute(query, prepare=False).fetchone() for query in queries]
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        connection.execute("SELECT lastval()")
    connection.rollback()
    return found


@patched
@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize(
    "leave",
    [
        *("leave_a_setting", "leave_a_role", "leave_an_advisory_lock", "leave_a_temporary_table", "leave_a_channel"),
        *("leave_a_cursor", "leave_a_statement", "leave_a_sequence"),
    ],
)
def test_reset_session_removes_what_a_caller_has_left_in_the_session(
    conninfo: str, leave: str, autocommit: bool
) -> None:
    with connected(conninfo, autocommit=autocommit) as (connector, connection):
        fresh = left_over(connection)
        globals()[leave](connection)
        connector.complete(connection)
        assert connector.is_settled(connection)
        connector.reset_session(connection)
        assert connector.is_settled(connection)
        assert connection.autocommit is autocommit
        assert left_over(connection) == fresh


@patched
def test_reset_session_ends_a_transaction_too(conninfo: str) -> None:
    with table(conninfo) as name, connected(conninfo) as (connector, connection):
        connection.execute("SET search_path = nowhere")
        connection.execute(f"INSERT INTO public.{name} VALUES (1)")
        connector.reset_session(connection)
        assert connector.is_settled(connection)
        assert values(conninfo, name) == []


@patched
@pytest.mark.parametrize("autocommit", [False, True])
def test_prepared_statements_of_psycopg_survive_many_resets(conninfo: str, autocommit: bool) -> None:
    with connected(conninfo, autocommit=autocommit, prepare_threshold=1) as (connector, connection):
        for number in range(10):
            assert connection.execute("SELECT %s::int", [number]).fetchone() == (number,)
            connector.complete(connection)
            connector.reset_session(connection)
        statements = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT $1%'"
        assert connection.execute(statements, prepare=False).fetchone() == (1,)


@patched
@pytest.mark.parametrize("autocommit", [False, True])
def test_prepared_statements_of_psycopg_are_not_used_for_another_temporary_table(
    conninfo: str, autocommit: bool
) -> None:
    with connected(conninfo, autocommit=autocommit, prepare_threshold=0) as (connector, connection):
        for kind, expected in [("int", 1), ("text", "1"), ("int", 1), ("text", "1")]:
            connection.execute(f"CREATE TEMPORARY TABLE left_over AS SELECT '1'::{kind} AS value")
            for _ in range(3):
                assert connection.execute("SELECT value FROM left_over").fetchone() == (expected,)
            connector.complete(connection)
            connector.reset_session(connection)


@patched
def test_reset_session_keeps_the_options_of_the_connection(conninfo: str) -> None:
    with connected(conninfo, options="-c search_path=mine") as (connector, connection):
        connection.execute("SET search_path = other")
        connection.commit()
        connector.reset_session(connection)
        assert connection.execute("SHOW search_path").fetchone() == ("mine",)


@patched
def test_reset_session_forgets_notifications_for_the_last_caller(conninfo: str) -> None:
    with connected(conninfo, autocommit=True) as (connector, connection):
        connection.execute("LISTEN channel")
        connection.execute("NOTIFY channel, 'for the last caller'")
        connector.reset_session(connection)
        connection.execute("LISTEN channel")
        with observer(conninfo) as other:
            other.execute("NOTIFY channel, 'for this one'")
        assert next(connection.notifies()).payload == "for this one"


@patched
def test_a_connection_that_is_closed_while_idle_is_not_handed_out(conninfo: str) -> None:
    with Pool(PsycopgConnector(conninfo)) as pool:
        with pool.connection() as kept:
            pass
        kept.close()
        with pool.connection() as connection:
            assert connection is not kept
            assert connection.execute("SELECT 1").fetchone() == (1,)


@patched
def test_a_connection_that_listens_keeps_its_channels_and_is_not_peeked_at(conninfo: str) -> None:
    with connected(conninfo, autocommit=True, listens=True) as (connector, connection):
        connection.execute("LISTEN channel")
        connector.reset_session(connection)
        with observer(conninfo) as other:
            other.execute("NOTIFY channel, 'news'")
        eventually(lambda: is_readable(connection.fileno()))
        assert connector.peek_target(connection) is None
        assert connector.is_reusable(connection, None)
        assert connector.is_settled(connection)
        assert next(connection.notifies()).payload == "news"


@patched
def test_a_reset_of_a_connection_that_listens_keeps_its_notifications(conninfo: str) -> None:
    with connected(conninfo, autocommit=True, listens=True) as (connector, connection):
        connection.execute("LISTEN channel")
        with observer(conninfo) as other:
            other.execute("NOTIFY channel, 'news'")
        eventually(lambda: is_readable(connection.fileno()))
        connection.pgconn.consume_input()
        connection.prepare_threshold = 7
        assert not connector.is_settled(connection)
        connector.reset(connection)
        assert connector.is_settled(connection)
        assert connection.pgconn.notifies().extra == b"news"


@patched
def test_reset_session_raises_the_error_with_which_the_server_has_ended_the_session(conninfo: str) -> None:
    with connected(conninfo) as (connector, connection):
        terminate(conninfo, connection)
        with pytest.raises(psycopg.errors.AdminShutdown):
            connector.reset_session(connection)
        assert not connector.is_reusable(connection, None)


# What is set on the client


def ignore(message: object) -> None:
    pass


SET_ON_CLIENT: dict[str, Callable[[Any], object]] = {
    "autocommit": lambda connection: setattr(connection, "autocommit", True),
    "isolation_level": lambda connection: setattr(connection, "isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
    "read_only": lambda connection: setattr(connection, "read_only", True),
    "deferrable": lambda connection: setattr(connection, "deferrable", True),
    "row_factory": lambda connection: setattr(connection, "row_factory", dict_row),
    "cursor_factory": lambda connection: setattr(connection, "cursor_factory", psycopg.ClientCursor),
    "prepare_threshold": lambda connection: setattr(connection, "prepare_threshold", None),
    "prepared_max": lambda connection: setattr(connection, "prepared_max", 7),
    "notice handler": lambda connection: connection.add_notice_handler(ignore),
    "notify handler": lambda connection: connection.add_notify_handler(ignore),
}


def seen_on(connection: Any) -> list[object]:
    names = [name for name in SET_ON_CLIENT if "handler" not in name]
    handlers = [list(connection._notice_handlers), list(connection._notify_handlers)]
    return [*(getattr(connection, name) for name in names), *handlers]


@patched
@pytest.mark.parametrize("reset", ["reset", "reset_session"])
@pytest.mark.parametrize("what", list(SET_ON_CLIENT))
def test_reset_restores_settings_that_a_caller_changed_on_the_client(conninfo: str, what: str, reset: str) -> None:
    with connected(conninfo) as (connector, connection):
        before = seen_on(connection)
        assert connector.is_settled(connection)
        SET_ON_CLIENT[what](connection)
        assert seen_on(connection) != before
        assert not connector.is_settled(connection)
        connection.execute("SELECT 1")
        getattr(connector, reset)(connection)
        assert seen_on(connection) == before
        assert connector.is_settled(connection)


@patched
def test_reset_keeps_settings_given_to_the_connector(conninfo: str) -> None:
    def configure(connection: Any) -> None:
        connection.read_only = True
        connection.add_notice_handler(ignore)
        connection.execute("SET search_path = mine")

    with connected(conninfo, row_factory=dict_row, configure=configure) as (connector, connection):
        assert connector.is_settled(connection)
        connection.remove_notice_handler(ignore)
        assert not connector.is_settled(connection)
        connection.read_only = False
        connection.row_factory = psycopg.rows.tuple_row
        connector.reset(connection)
        assert connection.read_only is True
        assert connection.execute("SHOW search_path").fetchone() == {"search_path": "mine"}
        assert connection._notice_handlers == [ignore]


@patched
def test_a_connection_whose_configure_raises_is_closed(conninfo: str) -> None:
    seen = []

    def configure(connection: Any) -> None:
        seen.append(connection)
        raise AppError

    with pytest.raises(AppError):
        PsycopgConnector(conninfo, configure=configure).connect()
    assert seen[0].closed


# Connecting


@patched
def test_connect_calls_callables_each_time(conninfo: str) -> None:
    names = iter(["first", "second"])
    connector = PsycopgConnector(lambda: conninfo, application_name=lambda: next(names), autocommit=lambda: True)
    for name in ("first", "second"):
        with closing(connector.connect()) as connection:
            assert connection.autocommit is True
            assert connection.info.get_parameters()["application_name"] == name


@patched
def test_connect_passes_factories_on_without_calling_them(conninfo: str) -> None:
    with connected(conninfo, row_factory=dict_row, cursor_factory=psycopg.ClientCursor) as (_, connection):
        assert connection.execute("SELECT 1 AS one").fetchone() == {"one": 1}
        assert isinstance(connection.cursor(), psycopg.ClientCursor)


@patched
def test_connect_raises_an_error_of_a_callable(conninfo: str) -> None:
    def read_password() -> str:
        raise AppError

    with pytest.raises(AppError):
        PsycopgConnector(conninfo, password=read_password).connect()


@patched
def test_an_interrupted_connect_leaves_no_socket() -> None:
    with silent_listener() as (host, port):
        connector = PsycopgConnector(host=host, port=port)
        before = open_sockets()
        interrupt(connector.connect)
        assert open_sockets() == before


@patched
def test_a_failed_connect_raises_the_error_of_psycopg() -> None:
    with pytest.raises(psycopg.OperationalError):
        PsycopgConnector(host="/nowhere").connect()


# A pool of a URL


@patched
def test_a_pool_of_a_url_calls_its_options_at_each_connect_and_keeps_its_connections(conninfo: str) -> None:
    names = iter(["first", "second"])
    where = conninfo_to_dict(conninfo)
    with Pool.from_url("postgresql:///", lambda: {**where, "application_name": next(names)}) as pool:
        for name in ("first", "second"):
            for _ in range(3):
                with pool.connection() as connection:
                    connection.execute("SELECT 1")
                    connection.row_factory = dict_row
                assert connection.info.get_parameters()["application_name"] == name
                eventually(lambda: pool.stats().idle == 1)
            pool.drain()
        assert pool.stats().opened == 2
        assert pool.name == "PsycopgConnector"


# The guide


@patched
def test_the_examples_of_the_guide_run(conninfo: str) -> None:
    source = joined(blocks(ROOT / "docs" / "clients" / "psycopg.rst")).replace("postgresql://localhost/app", conninfo)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(source, "psycopg.rst", "exec"), names)
    assert values(conninfo, "visits") == ["/", "/about", "/"]
    for name in ("pool", "quick", "clean"):
        names[name].close()
    with observer(conninfo) as other:
        other.execute("DROP TABLE visits")


# Bad input, and secrets

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("conninfo", {"conninfo": f"host {SECRET}"}),
        ("conninfo", {"conninfo": f"postgresql://me:{SECRET}@[somewhere"}),
        ("conninfo", {"conninfo": f"password={SECRET}".encode()}),
        ("conninfo", {"conninfo": {"password": SECRET}}),
        ("pasword", {"pasword": SECRET}),
        ("pasword", {"pasword": lambda: SECRET}),
        ("password", {"password": SECRET.encode()}),
        ("password", {"password": [SECRET]}),
        ("autocommit", {"autocommit": "yes"}),
        ("autocommit", {"autocommit": None}),
        ("prepare_threshold", {"prepare_threshold": -1}),
        ("row_factory", {"row_factory": "dict_row"}),
        ("cursor_factory", {"cursor_factory": "ClientCursor"}),
        ("listens", {"listens": 1}),
        ("configure", {"configure": "SET search_path = mine"}),
    ],
)
def test_a_bad_argument_is_refused_with_its_name_and_without_its_secret(
    argument: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        PsycopgConnector(**arguments)
    check_refused(raised.value, argument, SECRET)


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("conninfo", {"conninfo": lambda: f"host {SECRET}"}),
        ("conninfo", {"conninfo": lambda: None}),
        ("password", {"password": lambda: SECRET.encode()}),
        ("autocommit", {"autocommit": lambda: "yes"}),
    ],
)
def test_a_bad_value_from_a_callable_is_refused_when_it_is_called(argument: str, arguments: dict[str, Any]) -> None:
    connector = PsycopgConnector(**arguments)
    with pytest.raises(InvalidArgumentError) as raised:
        connector.connect()
    check_refused(raised.value, argument, SECRET)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({}, "PsycopgConnector()"),
        (
            {"conninfo": f"postgresql://me:{SECRET}@db.example:5433/app?sslpassword={SECRET}"},
            "PsycopgConnector(host=db.example port=5433 user=me dbname=app)",
        ),
        ({"conninfo": f"host=db password={SECRET}", "dbname": "app"}, "PsycopgConnector(host=db dbname=app)"),
        ({"host": "db", "password": SECRET, "options": f"-c my.key={SECRET}"}, "PsycopgConnector(host=db)"),
        ({"conninfo": lambda: SECRET, "host": lambda: SECRET, "port": 5433}, "PsycopgConnector(port=5433)"),
        ({"conninfo": "host=db", "host": None}, "PsycopgConnector(host=db)"),
        ({"dbname": f"postgresql://me:{SECRET}@db/app"}, "PsycopgConnector(dbname=***)"),
        ({"conninfo": "postgresql://one,two/app"}, "PsycopgConnector(host=one,two port=, dbname=app)"),
        (
            {"conninfo": "postgresql:///app?user=me@work&host=/run"},
            "PsycopgConnector(host=/run user=me@work dbname=app)",
        ),
        (
            {"conninfo": "postgresql://[::1]:5433/app?user=me@work"},
            "PsycopgConnector(host=::1 port=5433 user=me@work dbname=app)",
        ),
        (
            {"conninfo": "postgresql://db:5433/app?user=me%40work"},
            "PsycopgConnector(host=db port=5433 user=me@work dbname=app)",
        ),
    ],
)
def test_the_repr_shows_the_server_and_no_secret(arguments: dict[str, Any], shown: str) -> None:
    assert repr(PsycopgConnector(**arguments)) == shown


def test_importing_the_connector_without_psycopg_says_what_to_install() -> None:
    said = error_without("psycopg", "gsocketpool.connectors.psycopg")
    assert said.endswith("PsycopgConnector needs psycopg: pip install 'gsocketpool[psycopg]'")


def test_the_pool_does_not_import_psycopg() -> None:
    assert not is_imported_by_the_pool("psycopg")
