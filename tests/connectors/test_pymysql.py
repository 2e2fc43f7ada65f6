"""The connector for PyMySQL, on a real MariaDB server."""

from __future__ import annotations

import gc
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import gevent
import gevent.socket
import gevent.ssl
import pymysql
import pytest
from pymysql.cursors import DictCursor, SSCursor

from gsocketpool import InvalidArgumentError, Pool
from gsocketpool.connectors.pymysql import PyMySQLConnector
from tests.support.connections import no_hanging as no_hanging
from tests.support.connections import outcome
from tests.support.connectors import check_refused, connected, error_without
from tests.support.databases import KeptMariaDB
from tests.support.documents import ROOT, blocks, joined
from tests.support.internals import is_silent
from tests.support.scripted import PATIENCE, eventually
from tests.support.servers import Server, hanging_address, open_sockets, refusing_address, silent_listener

#: Longer than any test takes, for the row is locked. A SLEEP, unlike this, notices in the end that its client has gone.
FOR_EVER = "SELECT value FROM app.locked FOR UPDATE"


class AppError(Exception):
    """An application's error."""


def refusing_whole_numbers() -> dict[Any, Any]:
    """Converters of which that for whole numbers raises an error."""

    def refuse(value: object) -> None:
        raise AppError

    return {**pymysql.converters.conversions, pymysql.constants.FIELD_TYPE.LONGLONG: refuse}


@pytest.fixture(autouse=True)
def cooperative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have PyMySQL wait as it does where gevent has patched Python."""

    def default_context(**options: Any) -> ssl.SSLContext:
        context: ssl.SSLContext = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return context

    patched = {"SSLContext": gevent.ssl.SSLContext, "create_default_context": default_context}
    monkeypatch.setattr(pymysql.connections, "socket", gevent.socket)
    monkeypatch.setattr(pymysql.connections, "ssl", SimpleNamespace(**{**vars(ssl), **patched}))


@pytest.fixture
def arguments(mariadb: KeptMariaDB) -> dict[str, Any]:
    # An earlier test may have killed it.
    mariadb.wait()
    return {"unix_socket": str(mariadb.path), "user": "root", "database": "app", "ssl_disabled": True}


@pytest.fixture
def connector(arguments: dict[str, Any]) -> PyMySQLConnector:
    return PyMySQLConnector(**arguments)


@pytest.fixture
def connection(connector: PyMySQLConnector) -> Iterator[Any]:
    with connected(connector) as connection:
        yield connection


@pytest.fixture
def other(arguments: dict[str, Any]) -> Iterator[Any]:
    """Another session, in which each statement is a transaction of its own; a third one keeps a row locked."""
    with closing(pymysql.connect(**arguments)) as third, closing(pymysql.connect(**arguments)) as connection:
        run(third, FOR_EVER)
        connection.autocommit(True)
        yield connection


@pytest.fixture
def table(other: Any) -> Iterator[str]:
    name = f"t{uuid4().hex}"
    run(other, f"CREATE TABLE {name} (value int PRIMARY KEY) ENGINE=InnoDB")
    yield name
    run(other, f"DROP TABLE {name}")


def run(connection: Any, statement: str) -> Any:
    with connection.cursor(pymysql.cursors.Cursor) as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def values(other: Any, table: str) -> list[int]:
    return [value for (value,) in run(other, f"SELECT value FROM {table} ORDER BY value")]


def sessions(other: Any) -> set[int]:
    """The sessions of the server, but for the one that asks."""
    return {number for (number,) in run(other, "SELECT ID FROM information_schema.PROCESSLIST")} - {other.thread_id()}


def is_running(other: Any, connection: Any) -> bool:
    """Return whether a session executes something."""
    query = f"SELECT COMMAND FROM information_schema.PROCESSLIST WHERE ID = {connection.thread_id()}"
    return run(other, query) == (("Query",),)


def is_there(other: Any, connection: Any) -> bool:
    return connection.thread_id() in sessions(other)


def interrupt(act: Callable[[], object], seconds: float = 0.05) -> None:
    """Let a Timeout fall into the middle of what would wait for ever."""
    with pytest.raises(gevent.Timeout) as raised, gevent.Timeout(seconds) as timeout:
        act()
    assert raised.value is timeout


# A transaction and its end


def test_a_new_connection_is_settled_and_reusable(connector: PyMySQLConnector, connection: Any) -> None:
    assert isinstance(connection, pymysql.connections.Connection)
    assert connector.is_settled(connection)
    assert connector.is_reusable(connection, None)
    connector.complete(connection)
    connector.ping(connection)
    assert connector.is_settled(connection)


@pytest.mark.parametrize("autocommit", [False, True])
def test_complete_commits(arguments: dict[str, Any], table: str, other: Any, autocommit: bool) -> None:
    connector = PyMySQLConnector(**arguments, autocommit=autocommit)
    with connected(connector) as connection:
        run(connection, f"INSERT INTO {table} VALUES (1)")
        assert connector.is_settled(connection) is autocommit
        connector.complete(connection)
        assert connector.is_settled(connection)
        assert values(other, table) == [1]


def test_reset_rolls_back(connector: PyMySQLConnector, connection: Any, table: str, other: Any) -> None:
    run(connection, f"INSERT INTO {table} VALUES (1)")
    connector.reset(connection)
    assert connector.is_settled(connection)
    assert values(other, table) == []


@pytest.mark.parametrize("end", ["complete", "reset"])
def test_complete_and_reset_end_a_transaction_that_only_reads(
    connector: PyMySQLConnector, connection: Any, table: str, other: Any, end: str
) -> None:
    run(other, f"INSERT INTO {table} VALUES (1)")
    run(connection, f"SELECT * FROM {table} FOR UPDATE")
    assert not connector.is_settled(connection)
    getattr(connector, end)(connection)
    assert connector.is_settled(connection)
    # Neither is the row locked, nor is the view of the data the old one.
    run(other, f"DELETE FROM {table}")
    assert run(connection, f"SELECT * FROM {table}") == ()
    connection.rollback()


def test_a_query_in_autocommit_mode_leaves_the_connection_settled(arguments: dict[str, Any]) -> None:
    connector = PyMySQLConnector(**arguments, autocommit=True)
    with connected(connector) as connection:
        run(connection, "SELECT 1")
        assert connector.is_settled(connection)
        run(connection, "BEGIN")
        run(connection, "SELECT 1")
        assert not connector.is_settled(connection)
        connector.reset(connection)
        assert connector.is_settled(connection)


def test_a_connection_is_unsettled_after_an_error_that_may_leave_a_transaction_open(
    arguments: dict[str, Any], table: str, other: Any
) -> None:
    procedure = f"p{table}"
    run(
        other,
        f"CREATE PROCEDURE {procedure}() BEGIN"
        f" START TRANSACTION; INSERT INTO {table} VALUES (1); SIGNAL SQLSTATE '45000'; END",
    )
    connector = PyMySQLConnector(**arguments, autocommit=True)
    with connected(connector) as connection:
        with pytest.raises(pymysql.err.OperationalError):
            run(connection, f"CALL {procedure}()")
        # Rows don't tell either.
        run(connection, "SELECT 1")
        assert connector.is_reusable(connection, None)
        assert not connector.is_settled(connection)
        connector.reset(connection)
        assert connector.is_settled(connection)
        connection.commit()
        assert values(other, table) == []
    run(other, f"DROP PROCEDURE {procedure}")


def test_complete_commits_the_other_statements_after_one_has_failed(
    connector: PyMySQLConnector, connection: Any, table: str, other: Any
) -> None:
    run(connection, f"INSERT INTO {table} VALUES (1)")
    with pytest.raises(pymysql.err.IntegrityError) as raised:
        run(connection, f"INSERT INTO {table} VALUES (1)")
    assert connector.is_reusable(connection, raised.value)
    connector.complete(connection)
    assert connector.is_settled(connection)
    assert values(other, table) == [1]


@pytest.mark.parametrize("error", [None, AppError(), gevent.Timeout(1), pymysql.err.DataError()])
def test_a_connection_is_reusable_after_an_error_between_exchanges(
    connector: PyMySQLConnector, connection: Any, error: BaseException | None
) -> None:
    run(connection, "SELECT 1")
    assert connector.is_reusable(connection, error)


def test_reset_restores_settings_that_a_caller_changed_on_the_client(
    connector: PyMySQLConnector, connection: Any
) -> None:
    settings = connection.settings()
    connection.cursorclass = DictCursor
    connection.autocommit(True)
    connection.set_character_set("latin1")
    assert not connector.is_settled(connection)
    connector.reset(connection)
    assert connector.is_settled(connection)
    assert connection.settings() == settings
    assert run(connection, "SELECT @@autocommit, @@character_set_client, @@character_set_results") == (
        (0, "utf8mb4", "utf8mb4"),
    )


# What is given back in the middle of an exchange


def sleeping(connection: Any) -> None:
    run(connection, FOR_EVER)


def streaming(connection: Any) -> None:
    with connection.cursor(SSCursor) as cursor:
        cursor.execute(f"SELECT seq FROM seq_1_to_5000 UNION ALL ({FOR_EVER})")
        for _ in cursor:
            pass


def calling_what_has_another_result(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"BEGIN NOT ATOMIC SELECT 1; {FOR_EVER}; END")
        cursor.nextset()


ACTS = [sleeping, streaming, calling_what_has_another_result]


@pytest.mark.parametrize("act", ACTS)
def test_a_connection_whose_exchange_is_cut_short_is_not_reusable_and_can_be_cancelled(
    connector: PyMySQLConnector, connection: Any, other: Any, act: Callable[[Any], None]
) -> None:
    interrupt(lambda: act(connection))
    assert not connector.is_reusable(connection, None)
    assert not connector.is_reusable(connection, gevent.Timeout(1))
    assert not connector.is_settled(connection)
    # A close alone ends nothing.
    connector.close(connection)
    assert is_running(other, connection)
    connector.cancel(connection)
    eventually(lambda: not is_there(other, connection))


@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "tls"])
def test_a_greenlet_that_waits_for_a_reply_hears_that_its_connection_was_closed(
    arguments: dict[str, Any], other: Any, is_secure: bool
) -> None:
    if is_secure:
        del arguments["ssl_disabled"]
        context = arguments["ssl"] = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    connector = PyMySQLConnector(**arguments)
    with connected(connector) as connection:
        greenlet = gevent.spawn(outcome, sleeping, connection)
        eventually(lambda: is_running(other, connection))
        connector.close(connection)
        ended_by = greenlet.get(timeout=PATIENCE)
        assert isinstance(ended_by, pymysql.err.OperationalError), ended_by
        assert connector.peek_target(connection) == -1
        run(other, f"KILL {connection.thread_id()}")


def test_a_query_goes_on_after_a_close_until_it_is_cancelled(
    connector: PyMySQLConnector, connection: Any, other: Any
) -> None:
    greenlet = gevent.spawn(outcome, sleeping, connection)
    eventually(lambda: is_running(other, connection))
    connection.close()
    greenlet.join()
    assert is_running(other, connection)
    connector.cancel(connection)
    eventually(lambda: not is_there(other, connection))


def test_a_cursor_reads_nothing_more_once_its_connection_was_given_back(arguments: dict[str, Any], other: Any) -> None:
    connector = PyMySQLConnector(**arguments, autocommit=True)
    with connected(connector) as connection:
        cursor = connection.cursor(SSCursor)
        cursor.execute(f"SELECT seq FROM seq_1_to_5000 UNION ALL ({FOR_EVER})")
        assert cursor.fetchone() == (1,)
        assert not connector.is_reusable(connection, None)
        with gevent.Timeout(PATIENCE):
            with pytest.raises(pymysql.err.OperationalError, match="given back"):
                cursor.fetchone()
            cursor.close()
            del cursor
            gc.collect()
        connector.cancel(connection)
        eventually(lambda: not is_there(other, connection))


#: What fails before anything is sent.
UNSENT: list[Callable[[Any], object]] = [
    lambda connection: run(connection, "SELECT '\ud800'"),
    lambda connection: connection.set_character_set("no such one"),
]


@pytest.mark.parametrize("act", UNSENT)
def test_an_error_before_anything_is_sent_costs_neither_the_connection_nor_its_transaction(
    connector: PyMySQLConnector, connection: Any, other: Any, table: str, act: Callable[[Any], object]
) -> None:
    run(connection, f"INSERT INTO {table} VALUES (1)")
    assert isinstance(outcome(act, connection), UnicodeEncodeError | LookupError | AttributeError)
    run(connection, f"INSERT INTO {table} VALUES (2)")
    connector.complete(connection)
    assert connector.is_reusable(connection, None)
    assert values(other, table) == [1, 2]


def test_an_error_in_a_result_that_was_left_unread_costs_the_connection(arguments: dict[str, Any]) -> None:
    connector = PyMySQLConnector(**arguments, conv=refusing_whole_numbers())
    with connected(connector) as connection:
        cursor = connection.cursor()
        cursor.execute("BEGIN NOT ATOMIC SELECT 'a'; SELECT seq FROM seq_1_to_10; END")
        with pytest.raises(AppError):
            connection.query("SELECT 'b'")
        assert not connector.is_reusable(connection, None)


def fetch_all(cursor: Any) -> int:
    return len(list(cursor))


@pytest.mark.parametrize("step", ["close", "is_reusable"])
def test_a_greenlet_that_reads_rows_hears_that_its_connection_was_closed_or_given_back(
    arguments: dict[str, Any], other: Any, step: str
) -> None:
    connector = PyMySQLConnector(**arguments, autocommit=True)
    with connected(connector) as connection:
        cursor = connection.cursor(SSCursor)
        cursor.execute(f"SELECT seq FROM seq_1_to_5000 UNION ALL ({FOR_EVER})")
        reader = gevent.spawn(outcome, fetch_all, cursor)
        eventually(lambda: (cursor.rownumber or 0) > 100)
        if step == "is_reusable":
            assert not connector.is_reusable(connection, None)
            assert not connector.is_reusable(connection, None), "the answer stays the same"
        connector.close(connection)
        assert isinstance(reader.get(timeout=PATIENCE), pymysql.err.OperationalError)
        connector.cancel(connection)
        eventually(lambda: not is_there(other, connection))


def test_a_connection_that_two_greenlets_have_used_at_once_is_not_reusable(
    connector: PyMySQLConnector, connection: Any, other: Any
) -> None:
    first = gevent.spawn(outcome, sleeping, connection)
    eventually(lambda: is_running(other, connection))
    second = outcome(run, connection, "SELECT 2")
    assert isinstance(second, Exception)
    assert not connector.is_reusable(connection, None)
    connector.close(connection)
    assert isinstance(first.get(timeout=PATIENCE), pymysql.err.OperationalError)
    assert not connector.is_reusable(connection, None)
    connector.cancel(connection)
    eventually(lambda: not is_there(other, connection))


def test_a_connection_whose_write_is_cut_short_is_not_reusable_and_can_be_cancelled(
    connector: PyMySQLConnector, other: Any, mariadb: KeptMariaDB
) -> None:
    with connected(connector) as connection:
        with mariadb.stopped():
            interrupt(lambda: run(connection, f"SELECT '{'x' * 8_000_000}'"))
        assert not connector.is_reusable(connection, None)
        connector.cancel(connection)
        eventually(lambda: not is_there(other, connection))


def test_a_connection_is_not_reusable_after_read_timeout_and_can_be_cancelled(
    arguments: dict[str, Any], other: Any
) -> None:
    connector = PyMySQLConnector(**arguments, read_timeout=0.1)
    with connected(connector) as connection:
        with pytest.raises(pymysql.err.OperationalError):
            sleeping(connection)
        assert not connector.is_reusable(connection, None)
        assert is_running(other, connection)
        connector.cancel(connection)
        eventually(lambda: not is_there(other, connection))


def test_a_connection_is_not_reusable_after_rows_that_could_not_be_converted(arguments: dict[str, Any]) -> None:
    connector = PyMySQLConnector(**arguments, conv=refusing_whole_numbers())
    with connected(connector) as connection:
        with pytest.raises(AppError):
            run(connection, "SELECT seq FROM seq_1_to_10")
        assert not connector.is_reusable(connection, None)


def test_a_connection_with_unread_rows_or_results_is_not_reusable(connector: PyMySQLConnector, other: Any) -> None:
    for statement, kind in (
        ("SELECT * FROM seq_1_to_1000000", SSCursor),
        ("BEGIN NOT ATOMIC SELECT 1; SELECT 2; END", pymysql.cursors.Cursor),
    ):
        with connected(connector) as connection:
            cursor = connection.cursor(kind)
            cursor.execute(statement)
            assert cursor.fetchone() == (1,)
            assert not connector.is_reusable(connection, None)
            connector.cancel(connection)
            eventually(lambda connection=connection: not is_there(other, connection))
        # What is left of it reads nothing, and raises nothing.
        cursor.close()
    with connected(connector) as connection:
        cursor = connection.cursor(SSCursor)
        cursor.execute("SELECT * FROM seq_1_to_3")
        assert len(cursor.fetchall()) == 3
        assert connector.is_reusable(connection, None)


def test_a_connection_is_not_reusable_while_another_greenlet_waits_for_a_reply(
    connector: PyMySQLConnector, connection: Any, other: Any
) -> None:
    greenlet = gevent.spawn(outcome, sleeping, connection)
    eventually(lambda: is_running(other, connection))
    assert not connector.is_reusable(connection, None)
    connector.cancel(connection)
    eventually(lambda: not is_there(other, connection))
    assert isinstance(greenlet.get(), pymysql.err.OperationalError)


@pytest.mark.parametrize("written", [0, 1])
def test_complete_raises_if_the_block_has_caught_a_timeout_that_lost_its_writes(
    connector: PyMySQLConnector, connection: Any, table: str, other: Any, written: int
) -> None:
    for value in range(written):
        run(connection, f"INSERT INTO {table} VALUES ({value})")
    interrupt(lambda: sleeping(connection))
    with pytest.raises(pymysql.err.OperationalError, match="nothing is committed"):
        connector.complete(connection)
    connector.cancel(connection)
    assert values(other, table) == []


def test_complete_ignores_a_caught_timeout_in_autocommit_mode(arguments: dict[str, Any], other: Any) -> None:
    connector = PyMySQLConnector(**arguments, autocommit=True)
    for statement in ("SELECT 1", "BEGIN"):
        with connected(connector) as connection:
            run(connection, statement)
            interrupt(lambda connection=connection: sleeping(connection))
            end = outcome(connector.complete, connection)
            assert isinstance(end, pymysql.err.OperationalError) is (statement == "BEGIN")
            connector.cancel(connection)


def test_complete_does_not_read_unread_rows_in_autocommit_mode(arguments: dict[str, Any], other: Any) -> None:
    connector = PyMySQLConnector(**arguments, autocommit=True)
    with connected(connector) as connection:
        cursor = connection.cursor(SSCursor)
        cursor.execute(f"SELECT seq FROM seq_1_to_5000 UNION ALL ({FOR_EVER})")
        assert cursor.fetchone() == (1,)
        connector.complete(connection)
        assert not connector.is_reusable(connection, None)
        connector.cancel(connection)
        eventually(lambda: not is_there(other, connection))


def test_complete_ignores_a_connection_that_the_block_has_committed_and_closed(
    connector: PyMySQLConnector, table: str, other: Any
) -> None:
    with connected(connector) as connection:
        run(connection, f"INSERT INTO {table} VALUES (1)")
        connection.commit()
        connection.close()
        connector.complete(connection)
        assert not connector.is_reusable(connection, None)
    assert values(other, table) == [1]


def test_cancel_does_nothing_if_no_query_runs(connector: PyMySQLConnector, connection: Any, other: Any) -> None:
    run(connection, "SELECT 1")
    connector.cancel(connection)
    assert connector.is_reusable(connection, None)
    run(connection, "SELECT 1")


def test_cancel_leaves_the_session_of_another_client_alone(
    arguments: dict[str, Any], mariadb: KeptMariaDB, other: Any
) -> None:
    """Behind the same address there may be another server, where another client has a session of the same number."""
    connector = PyMySQLConnector(**{**arguments, "unix_socket": None}, host="127.0.0.1", port=mariadb.port)
    with connected(connector) as connection:
        interrupt(lambda: sleeping(connection))
        # What the connector remembers a session's own connection by.
        right = connection._local_port
        connection._local_port += 1
        connector.cancel(connection)
        assert is_running(other, connection)
        connection._local_port = right
        connector.cancel(connection)
        eventually(lambda: not is_there(other, connection))


# Connections that are lost


@pytest.fixture
def pool(connector: PyMySQLConnector) -> Iterator[Pool[Any]]:
    with Pool(connector, max_connections=2) as pool:
        yield pool


def two_idle(pool: Pool[Any]) -> list[Any]:
    with pool.connection() as one, pool.connection() as two:
        return [one, two]


def test_a_connection_that_died_while_idle_is_not_handed_out(pool: Pool[Any], other: Any) -> None:
    for one in two_idle(pool):
        run(other, f"KILL {one.thread_id()}")
        eventually(lambda one=one: not is_silent(one._sock))
    for one in two_idle(pool):
        assert run(one, "SELECT 1") == ((1,),)
    assert pool.stats().discarded == {"unusable": 2}


def test_a_connection_that_dies_in_use_is_discarded(pool: Pool[Any], other: Any) -> None:
    def use() -> None:
        with pool.connection() as killed:
            run(other, f"KILL {killed.thread_id()}")
            run(killed, "SELECT 1")

    with pytest.raises(pymysql.err.OperationalError):
        use()
    eventually(lambda: pool.size == 0)
    with pool.connection() as another:
        assert run(another, "SELECT 1") == ((1,),)


def test_a_ping_fails_after_the_server_has_ended_the_session(
    connector: PyMySQLConnector, connection: Any, other: Any
) -> None:
    run(other, f"KILL {connection.thread_id()}")
    with pytest.raises(pymysql.err.OperationalError):
        connector.ping(connection)
    assert connector.peek_target(connection) == -1
    connector.abort(connection)
    connector.cancel(connection)


def test_abort_leaves_the_session_to_the_parent_process(
    connector: PyMySQLConnector, connection: Any, other: Any
) -> None:
    cursor = connection.cursor(SSCursor)
    cursor.execute("SELECT * FROM seq_1_to_1000000")
    with closing(gevent.socket.socket(fileno=os.dup(connection._sock.fileno()))) as parents:
        connector.abort(connection)
        del cursor
        gc.collect()
        connector.close(connection)
        assert is_there(other, connection)
        assert parents.recv(1)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_leaves_the_sessions_of_its_parent_alone(pool: Pool[Any], other: Any) -> None:
    before = {one.thread_id() for one in two_idle(pool)}
    with pool.connection() as used, closing(used.cursor(SSCursor)) as cursor:
        cursor.execute("SELECT * FROM seq_1_to_1000")
        child = os.fork()
        if not child:
            status = 1
            try:
                with gevent.Timeout(PATIENCE), pool.connection() as own:
                    mine = run(own, "SELECT CONNECTION_ID()")[0][0]
                    status = int(mine in before)
                del used, cursor
                gc.collect()
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert len(cursor.fetchall()) == 1000
    assert {run(one, "SELECT CONNECTION_ID()")[0][0] for one in two_idle(pool)} == before


# In a pool


def test_a_block_commits_while_an_error_or_a_release_rolls_back(
    connector: PyMySQLConnector, table: str, other: Any
) -> None:
    with Pool(connector, max_connections=1) as pool:
        with pool.connection() as first:
            run(first, f"INSERT INTO {table} VALUES (1)")
        with suppress(AppError), pool.connection() as second:
            run(second, f"INSERT INTO {table} VALUES (2)")
            raise AppError
        third = pool.acquire()
        run(third, f"INSERT INTO {table} VALUES (3)")
        pool.release(third)
        with pool.connection() as again:
            assert again is first is second is third
            assert values(again, table) == [1]
    assert values(other, table) == [1]


def test_a_ping_commits_nothing_that_a_failed_block_has_left_in_a_pool_without_resets(
    arguments: dict[str, Any], table: str, other: Any
) -> None:
    pinged = []

    class Connector(PyMySQLConnector):
        def ping(self, connection: Any) -> None:
            super().ping(connection)
            pinged.append(connection)

    with Pool(Connector(**arguments), max_connections=1, reset="never", keepalive_interval=0.01) as pool:
        with suppress(AppError), pool.connection() as connection:
            run(connection, f"INSERT INTO {table} VALUES (1)")
            raise AppError
        eventually(lambda: len(pinged) > 1)
        assert values(other, table) == []
        with pool.connection() as connection:
            assert connection is pinged[0]
            connection.rollback()


@pytest.mark.parametrize("act", [sleeping, streaming])
def test_the_next_user_gets_another_connection_after_a_timeout_caught_in_a_block(
    arguments: dict[str, Any], other: Any, act: Callable[[Any], None]
) -> None:
    with Pool(PyMySQLConnector(**arguments, autocommit=True), max_connections=1) as pool:
        with pool.connection() as first:
            interrupt(lambda: act(first))
        with pool.connection() as second:
            assert second is not first
            assert run(second, "SELECT 'mine'") == (("mine",),)
        eventually(lambda: not is_there(other, first))


def test_a_kill_in_the_middle_of_a_query_ends_it_on_the_server(pool: Pool[Any], other: Any) -> None:
    used = []

    def use() -> None:
        with pool.connection() as connection:
            used.append(connection)
            sleeping(connection)

    greenlet = gevent.spawn(use)
    eventually(lambda: used and is_running(other, used[0]))
    greenlet.kill()
    eventually(lambda: not is_there(other, used[0]))
    assert pool.size == 0


# Session state

LEAVE = [
    "SET @mine = 1, wait_timeout = 77, sql_mode = '', autocommit = 1",
    "SET NAMES latin1",
    "SET ROLE NONE",
    "CREATE TEMPORARY TABLE app.mine (value int)",
    "SELECT GET_LOCK('mine', 0)",
    "PREPARE mine FROM 'SELECT 1'",
    "USE mysql",
    "LOCK TABLES app.{table} WRITE",
]


def test_reset_session_restores_the_state_of_a_new_session(arguments: dict[str, Any], table: str, other: Any) -> None:
    options = {**arguments, "init_command": "SET @greeting = 'hello'", "sql_mode": "ANSI", "collation": "utf8mb4_bin"}
    with Pool(PyMySQLConnector(**options), max_connections=1, reset="always") as pool:
        with pool.connection() as first:
            query = (
                "SELECT @mine, @greeting, @@wait_timeout, @@sql_mode, @@autocommit, @@character_set_client,"
                " @@character_set_results, @@collation_connection, DATABASE(), IS_FREE_LOCK('mine')"
            )
            before = run(first, query)
            first.set_character_set("latin1")
            for statement in LEAVE:
                run(first, statement.format(table=table))
        with pool.connection() as second:
            assert second is first
            assert run(second, query) == before
            assert before[0][1] == "hello"
            for statement in ("SELECT * FROM app.mine", "EXECUTE mine"):
                with pytest.raises(pymysql.err.MySQLError):
                    run(second, statement)
        run(other, f"INSERT INTO {table} VALUES (1)")


def test_a_reset_restores_autocommit_after_an_init_command_that_sets_it(arguments: dict[str, Any]) -> None:
    connector = PyMySQLConnector(**arguments, init_command="SET autocommit = 1")
    with connected(connector) as connection:
        assert not connection.get_autocommit()
        connector.reset_session(connection)
        assert not connection.get_autocommit()
        assert run(connection, "SELECT @@autocommit") == ((0,),)


@pytest.mark.parametrize(
    ("options", "commands"),
    [
        ({}, ["", "SET NAMES utf8mb4, autocommit = 0", "app"]),
        ({"autocommit": True}, ["", "SET NAMES utf8mb4", "app"]),
        (
            {"collation": "utf8mb4_bin", "sql_mode": "ANSI"},
            ["", "SET NAMES utf8mb4 COLLATE utf8mb4_bin, autocommit = 0, sql_mode = 'ANSI'", "app"],
        ),
        ({"init_command": "DO 1"}, ["", "SET NAMES utf8mb4, autocommit = 0", "app", "DO 1"]),
    ],
)
def test_reset_session_takes_few_round_trips(
    arguments: dict[str, Any], options: dict[str, Any], commands: list[str]
) -> None:
    connector = PyMySQLConnector(**arguments, **options)
    with connected(connector) as connection:
        sent: list[str] = []
        execute = connection._execute_command

        def note(command: int, sql: Any) -> None:
            sent.append(sql if isinstance(sql, str) else sql.decode())
            execute(command, sql)

        connection._execute_command = note
        connector.reset_session(connection)
        assert sent == commands
        assert connector.is_settled(connection)


def test_reset_session_raises_if_a_selected_database_can_not_be_left(arguments: dict[str, Any]) -> None:
    connector = PyMySQLConnector(**{**arguments, "database": None})
    with connected(connector) as connection:
        connector.reset_session(connection)
        assert connector.is_settled(connection)
        connection.select_db("app")
        with pytest.raises(pymysql.err.InterfaceError):
            connector.reset_session(connection)


def test_reset_session_works_on_a_server_without_autocommit(arguments: dict[str, Any], other: Any) -> None:
    run(other, "SET GLOBAL autocommit = 0")
    try:
        with connected(PyMySQLConnector(**{**arguments, "database": None}, autocommit=None)) as connection:
            connector = PyMySQLConnector(**arguments)
            assert not connection.get_autocommit()
            connector.reset_session(connection)
            assert connector.is_settled(connection)
    finally:
        run(other, "SET GLOBAL autocommit = 1")


# Connecting


def test_callables_are_called_at_each_connect_and_cancel(arguments: dict[str, Any], other: Any) -> None:
    password = ["first"]
    connector = PyMySQLConnector(**{**arguments, "user": lambda: "app"}, password=lambda: password[-1])
    try:
        with connected(connector) as connection:
            run(other, "ALTER USER app@localhost IDENTIFIED BY 'second'")
            with pytest.raises(pymysql.err.OperationalError) as raised:
                connector.connect()
            assert "first" not in str(raised.value)
            password.append("second")
            with connected(connector) as another:
                assert run(another, "SELECT USER()") == (("app@localhost",),)
            interrupt(lambda: sleeping(connection))
            connector.cancel(connection)
            eventually(lambda: not is_there(other, connection))
    finally:
        run(other, "ALTER USER app@localhost IDENTIFIED BY 'first'")


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+pymysql"])
def test_a_pool_can_be_made_from_a_url_and_a_callable_of_options(mariadb: KeptMariaDB, other: Any, scheme: str) -> None:
    url = f"{scheme}://app:first@localhost/app?unix_socket={mariadb.path}&autocommit=true&ssl_disabled=1"
    with Pool.from_url(url, options=lambda: {"charset": "utf8"}, max_connections=1) as pool:
        for _ in range(2):
            with pool.connection() as connection:
                assert run(connection, "SELECT USER(), DATABASE(), @@autocommit") == (("app@localhost", "app", 1),)
                assert connection.charset == "utf8"
        assert pool.stats().opened == 1
        with pool.connection() as connection, suppress(gevent.Timeout), gevent.Timeout(0.05):
            sleeping(connection)
        eventually(lambda: not is_there(other, connection))


def test_a_client_connects_over_tls(arguments: dict[str, Any]) -> None:
    del arguments["ssl_disabled"]
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with Pool(PyMySQLConnector(**arguments, ssl=context), max_connections=1) as pool:
        for _ in range(2):
            with pool.connection() as connection:
                assert isinstance(connection._sock, gevent.ssl.SSLSocket)
                assert run(connection, "SHOW STATUS LIKE 'Ssl_cipher'")[0][1]
        assert pool.stats().opened == 1


def test_connections_without_tls_arguments_share_one_context(arguments: dict[str, Any]) -> None:
    """From version 1.2 on, PyMySQL takes what TLS it gets, and loads the certificates of the system at each connect."""
    del arguments["ssl_disabled"]
    connector = PyMySQLConnector(**arguments)
    with connected(connector) as first, connected(connector) as second:
        assert getattr(first, "ctx", None) is getattr(second, "ctx", None)
        assert isinstance(first._sock, gevent.ssl.SSLSocket) is hasattr(first, "ctx")


def test_a_failed_connect_raises_the_error_of_pymysql() -> None:
    before = open_sockets()
    with refusing_address() as (host, port), pytest.raises(pymysql.err.OperationalError, match="refused"):
        PyMySQLConnector(host=host, port=port).connect()
    assert open_sockets() <= before


@pytest.fixture
def greeting(mariadb: KeptMariaDB) -> bytes:
    """What a server that has TLS says first."""
    with closing(gevent.socket.create_connection(("127.0.0.1", mariadb.port))) as client:
        return bytes(client.recv(1000))


@contextmanager
def greeting_listener(greeting: bytes) -> Iterator[tuple[str, int]]:
    """An address that greets, and then does nothing: neither a handshake nor a login comes to an end."""

    def greet(peer: Any) -> None:
        peer.sendall(greeting)
        while peer.recv(1000):
            pass

    with Server(greet) as server:
        yield server.host, server.port


@pytest.mark.parametrize("address", [hanging_address, silent_listener, greeting_listener])
@pytest.mark.parametrize("error", [gevent.Timeout(), gevent.GreenletExit()], ids=["timeout", "kill"])
def test_an_interrupted_connect_leaves_no_socket(address: Any, error: BaseException, greeting: bytes) -> None:
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with address(*(greeting for _ in range(address is greeting_listener))) as (host, port):
        before = open_sockets()
        caught: list[BaseException] = []

        def open_it() -> None:
            try:
                PyMySQLConnector(host=host, port=port, ssl=context).connect()
            except BaseException as error:
                # With it, its frames live on, and the library's local variables.
                caught.append(error)

        opener = gevent.spawn(open_it)
        # The greeting one has a socket here, too.
        eventually(lambda: len(open_sockets()) > len(before))
        gevent.sleep(0.05)
        opener.kill(error)
        assert caught == [error]
        eventually(lambda: open_sockets() == before)


def test_a_connection_may_be_closed_twice(connector: PyMySQLConnector) -> None:
    before = open_sockets()
    connection = connector.connect()
    connector.close(connection)
    connector.close(connection)
    assert open_sockets() == before


# The documentation


def test_the_examples_of_the_guide_run(arguments: dict[str, Any], mariadb: KeptMariaDB, other: Any) -> None:
    source = joined(blocks(ROOT / "docs" / "clients" / "mysql.rst"))
    source = source.replace("monkey.patch_all()", "").replace("app:secret@localhost", "app:first@localhost")
    source = source.replace("/app?charset=utf8mb4", f"/app?charset=utf8mb4&unix_socket={mariadb.path}")
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(source, "mysql.rst", "exec"), names)
    assert values(other, "visits") == [1]
    for name in ("pool", "clean"):
        names[name].close()
    run(other, "DROP TABLE visits")


# Bad input, and secrets

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("url", {"url": f"http://me:{SECRET}@host/app"}),
        ("url", {"url": f"mysql://me:{SECRET}@[somewhere"}),
        ("url", {"url": f"mysql://me:{SECRET}@host:port/app"}),
        ("url", {"url": f"mysql://me:/{SECRET}@host/app"}),
        ("url", {"url": f"mysql://me:#{SECRET}@host/app"}),
        ("url", {"url": f"mysql://{SECRET}".encode()}),
        ("pasword", {"url": f"mysql://host/app?pasword={SECRET}"}),
        ("conv", {"url": f"mysql://host/app?conv={SECRET}"}),
        ("port", {"url": f"mysql://host/app?password={SECRET}&port=many"}),
        ("pasword", {"pasword": SECRET}),
        ("defer_connect", {"defer_connect": True, "password": SECRET}),
        ("port", {"port": "3306", "password": SECRET}),
        ("charset", {"charset": "no such", "password": SECRET}),
        ("read_timeout", {"read_timeout": -1, "password": SECRET}),
        ("password", {"password": f"€{SECRET}"}),
    ],
)
def test_a_bad_argument_is_refused_with_its_name_and_without_its_secret(
    argument: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        PyMySQLConnector(**arguments)
    check_refused(raised.value, argument, SECRET)


def test_a_file_of_defaults_that_is_none_is_refused_without_its_secret(tmp_path: Path) -> None:
    file = tmp_path / "my.cnf"
    file.write_text(f"password={SECRET}\n")
    with pytest.raises(InvalidArgumentError) as raised:
        PyMySQLConnector(user="m", read_default_file=str(file))
    check_refused(raised.value, "read_default_file", SECRET)


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("url", {"url": lambda: f"http://{SECRET}"}),
        ("url", {"url": lambda: None}),
        ("port", {"port": lambda: "3306", "password": lambda: SECRET}),
    ],
)
def test_a_bad_value_from_a_callable_is_refused_when_it_is_called(argument: str, arguments: dict[str, Any]) -> None:
    connector = PyMySQLConnector(**arguments)
    with pytest.raises(InvalidArgumentError) as raised:
        connector.connect()
    check_refused(raised.value, argument, SECRET)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({}, "PyMySQLConnector()"),
        (
            {"url": f"mysql://me:{SECRET}@db:3307/app?init_command={SECRET}"},
            "PyMySQLConnector(host=db port=3307 user=me database=app)",
        ),
        ({"url": "mysql://a%40b:p@[::1]/", "database": "mine"}, "PyMySQLConnector(host=::1 user=a@b database=mine)"),
        ({"host": "db", "password": SECRET, "init_command": SECRET}, "PyMySQLConnector(host=db)"),
        ({"url": lambda: SECRET, "host": lambda: SECRET, "port": 3307}, "PyMySQLConnector(port=3307)"),
    ],
)
def test_the_repr_shows_the_server_and_no_secret(arguments: dict[str, Any], shown: str) -> None:
    assert repr(PyMySQLConnector(**arguments)) == shown


def test_importing_the_connector_without_pymysql_says_what_to_install() -> None:
    said = error_without("pymysql", "gsocketpool.connectors.pymysql")
    assert said.endswith("PyMySQLConnector needs PyMySQL: pip install 'gsocketpool[pymysql]'")
