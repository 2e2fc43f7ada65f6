"""SELECT 1 with psycopg, in autocommit mode, so that it is one round trip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from typing import Any

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus
from sqlalchemy import event
from sqlalchemy.pool import QueuePool

from benchmarks.throughput import Prepare
from gsocketpool import Connection, Pool
from gsocketpool.connectors.psycopg import PsycopgConnector

QUERY = "SELECT 1"

#: The statements that reset a session. DISCARD ALL would also remove statements that psycopg prepared and still uses.
#: These must go only if the caller has temporary tables or its own statements: the first result says so.
RESET = """
SELECT pg_my_temp_schema() <> 0 OR EXISTS (SELECT FROM pg_prepared_statement() WHERE from_sql),
    pg_advisory_unlock_all();
CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DISCARD TEMP; DISCARD SEQUENCES; UNLISTEN *;
"""


class PsycopgConnection(Connection):
    """The connection class that a user would write for psycopg."""

    client: Any = None

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    def open(self) -> None:
        self.client = psycopg.connect(self._conninfo, autocommit=True)

    def close(self) -> None:
        self.client.close()

    def is_connected(self) -> bool:
        return self.client is not None and not self.client.closed

    def is_reusable(self, error: BaseException | None) -> bool:
        return super().is_reusable(error) and self.client.pgconn.transaction_status == TransactionStatus.IDLE

    def get(self) -> int:
        # The pool peeks at it to detect a connection that died while idle.
        descriptor: int = self.client.fileno()
        return descriptor


@contextmanager
def pooled(conninfo: str, size: int) -> Iterator[Prepare]:
    """Measure gsocketpool."""
    with Pool(PsycopgConnection, {"conninfo": conninfo}, max_connections=size) as pool:

        def act() -> None:
            with pool.connection() as connection:
                _ask(connection.client)

        yield lambda: act


@contextmanager
def connector(conninfo: str, size: int, reset: str = "unsettled") -> Iterator[Prepare]:
    """Measure gsocketpool with its connector."""
    with Pool(PsycopgConnector(conninfo, autocommit=True), max_connections=size, reset=reset) as pool:

        def act() -> None:
            with pool.connection() as client:
                _ask(client)

        yield lambda: act


def connector_resetting(conninfo: str, size: int) -> AbstractContextManager[Prepare]:
    """Measure the same with a reset after each use."""
    return connector(conninfo, size, reset="always")


@contextmanager
def psycopgs_own(conninfo: str, size: int, reset: Callable[[Any], None] | None = None) -> Iterator[Prepare]:
    """Measure psycopg_pool."""
    settings = {"autocommit": True}
    with psycopg_pool.ConnectionPool(
        conninfo, kwargs=settings, min_size=size, max_size=size, timeout=60, reset=reset
    ) as pool:

        def act() -> None:
            with pool.connection() as client:
                _ask(client)

        yield lambda: act


def psycopgs_own_resetting(conninfo: str, size: int) -> AbstractContextManager[Prepare]:
    """Measure psycopg_pool with a reset after each use."""
    return psycopgs_own(conninfo, size, reset=_reset)


@contextmanager
def sqlalchemys(conninfo: str, size: int, reset: Callable[[Any], None] | None = None) -> Iterator[Prepare]:
    """Measure SQLAlchemy's pool, without an engine."""
    connect: Any = partial(psycopg.connect, conninfo, autocommit=True)
    pool = QueuePool(connect, pool_size=size, max_overflow=0)
    if reset is not None:
        event.listen(pool, "reset", lambda client, record, state: reset(client))

    def act() -> None:
        # Before SQLAlchemy 2.1, the connection is not a context manager.
        with closing(pool.connect()) as proxy:
            _ask(proxy.dbapi_connection)

    yield lambda: act
    pool.dispose()


def sqlalchemys_resetting(conninfo: str, size: int) -> AbstractContextManager[Prepare]:
    """Measure SQLAlchemy's pool with a reset after each use."""
    return sqlalchemys(conninfo, size, reset=_reset)


@contextmanager
def dedicated(conninfo: str, size: int) -> Iterator[Prepare]:
    """Measure one connection for each greenlet."""
    clients = []

    def prepare() -> Any:
        client = psycopg.connect(conninfo, autocommit=True)
        clients.append(client)
        return lambda: _ask(client)

    yield prepare
    for client in clients:
        client.close()


def _ask(client: Any) -> None:
    client.execute(QUERY).fetchone()


def _reset(client: Any) -> None:
    must_forget, _ = client.execute(RESET, prepare=False).fetchone()
    if must_forget:
        client.execute("DEALLOCATE ALL")
