"""Pools of psycopg connections to PostgreSQL, with transactions."""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks.subjects.base import LONG, Subject
from gsocketpool import Pool
from gsocketpool.connectors.psycopg import PsycopgConnector

QUERY = "SELECT %s || repeat('x', %s)"
LATE = "SELECT pg_sleep(%s)"
#: The server tells the sessions of this process from others by this.
TAG = f"kills-{os.getpid()}"


class Postgres(Subject):
    """A pool of psycopg connections."""

    # On this signal, PostgreSQL disconnects its clients and exits.
    ending = signal.SIGINT

    @property
    def conninfo(self) -> str:
        return f"{self.server['conninfo']} application_name={TAG}"

    def ask(self, connection: Any, number: int) -> str:
        word = self.word(number)
        return str(self.fetch(connection, QUERY, (word, 0 if number % 3 else LONG)))[: len(word)]

    def ask_late(self, connection: Any, seconds: float) -> None:
        self.fetch(connection, LATE, (seconds,))

    def fetch(self, connection: Any, query: str, parameters: tuple[Any, ...]) -> Any:
        """Return the single value of the single row."""
        return connection.execute(query, parameters).fetchone()[0]

    def watch(self) -> None:
        self._observer = psycopg.connect(self.server["conninfo"], autocommit=True)

    def sessions(self) -> int:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
        return int(self.fetch(self._observer, query, (TAG,)))

    def process(self) -> int:
        return int(Path(self.server["directory"], "data", "postmaster.pid").read_text().split()[0])


class Ours(Postgres):
    """gsocketpool."""

    def open(self) -> None:
        connector = PsycopgConnector(self.conninfo)
        self._pool = Pool(connector, max_connections=self.size, acquire_timeout=self.patience)

    def lease(self) -> AbstractContextManager[Any]:
        return self._pool.connection()


class PsycopgPool(Postgres):
    """psycopg_pool."""

    def open(self) -> None:
        from psycopg_pool import ConnectionPool

        self._pool = ConnectionPool(
            self.conninfo,
            min_size=self.size,
            max_size=self.size,
            timeout=self.patience,
            check=ConnectionPool.check_connection,
            open=True,
        )
        self._pool.wait()

    def lease(self) -> AbstractContextManager[Any]:
        lease: AbstractContextManager[Any] = self._pool.connection()
        return lease


class DBUtils(Postgres):
    """DBUtils' PooledDB."""

    def open(self) -> None:
        from dbutils.pooled_db import PooledDB

        self._pool = PooledDB(
            psycopg, maxconnections=self.size, blocking=True, reset=True, ping="SELECT 1", conninfo=self.conninfo
        )

    def lease(self) -> AbstractContextManager[Any]:
        connection: AbstractContextManager[Any] = self._pool.connection()
        return connection

    def fetch(self, connection: Any, query: str, parameters: tuple[Any, ...]) -> Any:
        if isinstance(connection, psycopg.Connection):
            return super().fetch(connection, query, parameters)
        with connection.cursor() as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchone()[0]


class SQLAlchemy(Postgres):
    """SQLAlchemy's QueuePool."""

    def open(self) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import QueuePool

        self._open(create_engine, poolclass=QueuePool, pool_pre_ping=True)

    def _open(self, create_engine: Any, **options: Any) -> None:
        self._engine = create_engine(
            "postgresql+psycopg://",
            connect_args=conninfo_to_dict(self.conninfo),
            pool_size=self.size,
            max_overflow=0,
            pool_timeout=self.patience,
            **options,
        )

    def lease(self) -> AbstractContextManager[Any]:
        connection: AbstractContextManager[Any] = self._engine.connect()
        return connection

    def fetch(self, connection: Any, query: str, parameters: tuple[Any, ...]) -> Any:
        if isinstance(connection, psycopg.Connection):
            return super().fetch(connection, query, parameters)
        return connection.exec_driver_sql(query, parameters).scalar()

    def after_fork(self) -> None:
        self._engine.dispose(close=False)


class GeventPool(SQLAlchemy):
    """gsocketpool under SQLAlchemy."""

    def open(self) -> None:
        from sqlalchemy import create_engine

        from gsocketpool.sqlalchemy import GeventPool

        self._open(create_engine, poolclass=GeventPool)

    def after_fork(self) -> None:
        # GeventPool needs nothing.
        pass
