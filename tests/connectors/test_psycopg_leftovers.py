"""What a caller of psycopg's has left on its connection, in ways that psycopg itself does not know of."""

from __future__ import annotations

import gevent.socket
import psycopg
import pytest

from gsocketpool import Pool
from gsocketpool.connectors.psycopg import PsycopgConnector
from tests.support.scripted import eventually

pytestmark = pytest.mark.patched


def test_the_next_caller_gets_no_notifications_that_libpq_has_read(conninfo: str) -> None:
    pool = Pool(PsycopgConnector(conninfo), max_connections=1, reset="always")
    with pool.connection() as connection, psycopg.connect(conninfo, autocommit=True) as other:
        connection.execute("LISTEN leftovers")
        connection.commit()
        other.execute("NOTIFY leftovers")
        # As a caller does that waits for notifications in a way of its own.
        gevent.socket.wait_read(connection.fileno(), timeout=10)
        connection.pgconn.consume_input()
    eventually(lambda: pool.stats().idle)
    with pool.connection() as connection:
        assert connection.pgconn.notifies() is None
        assert list(connection.notifies(timeout=0)) == []
    assert pool.stats().opened == 1
    pool.close()


@pytest.mark.parametrize("listens", [False, True])
def test_notifications_that_a_statement_has_received_are_the_next_callers_only_if_connections_listen(
    conninfo: str, listens: bool
) -> None:
    pool = Pool(PsycopgConnector(conninfo, listens=listens, autocommit=True), max_connections=1)
    with pool.connection() as connection, psycopg.connect(conninfo, autocommit=True) as other:
        connection.execute("LISTEN leftovers")
        other.execute("NOTIFY leftovers")
        gevent.socket.wait_read(connection.fileno(), timeout=10)
        connection.execute("UNLISTEN leftovers")
    with pool.connection() as connection:
        # Before 3.2.4, psycopg itself drops them.
        assert len(list(connection.notifies(timeout=0))) == (listens and psycopg.__version__ != "3.2.3")
    assert pool.stats().opened == 1
    pool.close()


def test_a_connection_whose_session_ends_during_its_reset_is_discarded(conninfo: str) -> None:
    pool = Pool(PsycopgConnector(conninfo), max_connections=2)
    with pool.connection() as other:
        other.autocommit = True
        connection = pool.acquire()
        connection.execute("SELECT 1")
        other.execute("SELECT pg_terminate_backend(%s, 10000)", [connection.info.backend_pid])
        pool.release(connection)
        eventually(lambda: connection.closed)
    eventually(lambda: not pool.stats().resetting)
    assert pool.stats().idle == 1
    assert sum(pool.stats().discarded.values()) == 1
    pool.close()
