"""SELECT 1 with PyMySQL, in autocommit mode, so that it is one round trip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from typing import Any

import pymysql
from dbutils.pooled_db import PooledDB
from pymysql.constants.SERVER_STATUS import SERVER_STATUS_IN_TRANS
from sqlalchemy import event
from sqlalchemy.pool import QueuePool

from benchmarks.throughput import Prepare
from gsocketpool import Connection, Pool
from gsocketpool.connectors.pymysql import PyMySQLConnector

QUERY = "SELECT 1"
COM_RESET_CONNECTION = 0x1F


class PyMySQLConnection(Connection):
    """The connection class that a user would write for PyMySQL."""

    client: Any = None

    def __init__(self, **options: Any) -> None:
        self._options = options

    def open(self) -> None:
        self.client = pymysql.connect(**self._options)

    def close(self) -> None:
        self.client.close()

    def is_connected(self) -> bool:
        return self.client is not None and self.client.open

    def is_reusable(self, error: BaseException | None) -> bool:
        return super().is_reusable(error) and not self.client.server_status & SERVER_STATUS_IN_TRANS

    def get(self) -> Any:
        # The pool peeks at it to detect a connection that died while idle.
        return self.client._sock


@contextmanager
def pooled(options: dict[str, Any], size: int) -> Iterator[Prepare]:
    """Measure gsocketpool."""
    with Pool(PyMySQLConnection, {**options, "autocommit": True}, max_connections=size) as pool:

        def act() -> None:
            with pool.connection() as connection:
                _ask(connection.client)

        yield lambda: act


@contextmanager
def connector(options: dict[str, Any], size: int, reset: str = "unsettled") -> Iterator[Prepare]:
    """Measure gsocketpool with its connector."""
    with Pool(PyMySQLConnector(**options, autocommit=True), max_connections=size, reset=reset) as pool:

        def act() -> None:
            with pool.connection() as client:
                _ask(client)

        yield lambda: act


def connector_resetting(options: dict[str, Any], size: int) -> AbstractContextManager[Prepare]:
    """Measure the same with a reset after each use."""
    return connector(options, size, reset="always")


@contextmanager
def dbutils(options: dict[str, Any], size: int, connection_class: Any = pymysql.Connection) -> Iterator[Prepare]:
    """Measure DBUtils' PooledDB."""
    # DBUtils needs a driver module; this class stands in for it.
    driver: Any = type("Driver", (), {**vars(pymysql), "connect": connection_class})
    pool = PooledDB(driver, maxconnections=size, blocking=True, **options, autocommit=True)

    def act() -> None:
        with pool.connection() as client, client.cursor() as cursor:
            cursor.execute(QUERY)
            cursor.fetchone()

    yield lambda: act
    pool.close()


class ResettingConnection(pymysql.Connection):
    """The connection class that a user would write to have DBUtils reset each session after each use."""

    def rollback(self) -> None:
        # A reset also rolls back.
        _reset(self)


def dbutils_resetting(options: dict[str, Any], size: int) -> AbstractContextManager[Prepare]:
    """Measure DBUtils' PooledDB with a reset after each use."""
    return dbutils(options, size, ResettingConnection)


@contextmanager
def sqlalchemys(options: dict[str, Any], size: int, is_resetting: bool = False) -> Iterator[Prepare]:
    """Measure SQLAlchemy's pool, without an engine."""
    connect: Any = partial(pymysql.connect, **options, autocommit=True)
    # A reset also rolls back.
    pool = QueuePool(connect, pool_size=size, max_overflow=0, reset_on_return=None if is_resetting else "rollback")
    if is_resetting:
        event.listen(pool, "reset", lambda client, record, state: _reset(client))

    def act() -> None:
        # Before SQLAlchemy 2.1, the connection is not a context manager.
        with closing(pool.connect()) as proxy:
            _ask(proxy.dbapi_connection)

    yield lambda: act
    pool.dispose()


def sqlalchemys_resetting(options: dict[str, Any], size: int) -> AbstractContextManager[Prepare]:
    """Measure SQLAlchemy's pool with a reset after each use."""
    return sqlalchemys(options, size, is_resetting=True)


@contextmanager
def dedicated(options: dict[str, Any], size: int) -> Iterator[Prepare]:
    """Measure one connection for each greenlet."""
    clients = []

    def prepare() -> Any:
        client = pymysql.connect(**options, autocommit=True)
        clients.append(client)
        return lambda: _ask(client)

    yield prepare
    for client in clients:
        client.close()


def _ask(client: Any) -> None:
    with client.cursor() as cursor:
        cursor.execute(QUERY)
        cursor.fetchone()


def _reset(client: Any) -> None:
    client._execute_command(COM_RESET_CONNECTION, "")
    client._read_ok_packet()
    client.set_character_set(client.charset, client.collation)
    client.select_db(client.db)
