"""SQLAlchemy's QueuePool, without an engine."""

from __future__ import annotations

import operator
from contextlib import closing
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from benchmarks.contestants.base import PATIENCE, OpenPool


class _DbApi:
    """What QueuePool needs of a connection on return."""

    def rollback(self) -> None:
        pass


def _check(connection: Any, record: object, proxy: object) -> None:
    if not connection.is_alive():
        raise DisconnectionError


def open_pool(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    pooled: Any = type("Pooled", (kind, _DbApi), {})

    def connect() -> Any:
        connection = pooled(**options)
        connection.open()
        return connection

    pool = QueuePool(connect, pool_size=size, max_overflow=0, timeout=PATIENCE)
    if is_checked:
        event.listen(pool, "checkout", _check)
    return OpenPool(
        acquire=pool.connect,
        release=operator.methodcaller("close"),
        close=pool.dispose,
        # Before SQLAlchemy 2.1, the connection is not a context manager.
        block=pool.connect if hasattr(PoolProxiedConnection, "__enter__") else lambda: closing(pool.connect()),
        raw=operator.attrgetter("dbapi_connection"),
    )
