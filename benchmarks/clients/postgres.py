"""SELECT 1, all with psycopg and in autocommit mode, so that it is one round trip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus
from sqlalchemy.pool import QueuePool

from benchmarks.throughput import Prepare
from gsocketpool import Connection, Pool

QUERY = "SELECT 1"


class PsycopgConnection(Connection):
    """What has to be written to use psycopg with gsocketpool."""

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

    def get(self) -> Any:
        return self.client


@contextmanager
def pooled(conninfo: str, size: int) -> Iterator[Prepare]:
    """gsocketpool."""
    with Pool(PsycopgConnection, {"conninfo": conninfo}, max_connections=size) as pool:

        def act() -> None:
            with pool.connection() as connection:
                _ask(connection.client)

        yield lambda: act


@contextmanager
def psycopgs_own(conninfo: str, size: int) -> Iterator[Prepare]:
    """psycopg_pool."""
    settings = {"autocommit": True}
    with psycopg_pool.ConnectionPool(conninfo, kwargs=settings, min_size=size, max_size=size, timeout=60) as pool:

        def act() -> None:
            with pool.connection() as client:
                _ask(client)

        yield lambda: act


@contextmanager
def sqlalchemys(conninfo: str, size: int) -> Iterator[Prepare]:
    """SQLAlchemy's pool, without an engine around it."""
    pool = QueuePool(lambda: psycopg.connect(conninfo, autocommit=True), pool_size=size, max_overflow=0)

    def act() -> None:
        with pool.connect() as proxy:
            _ask(proxy.dbapi_connection)

    yield lambda: act
    pool.dispose()


@contextmanager
def dedicated(conninfo: str, size: int) -> Iterator[Prepare]:
    """A connection for each greenlet."""
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
