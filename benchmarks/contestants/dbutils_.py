"""DBUtils' PooledDB. It checks a connection with its ``ping()``, and rolls back on return."""

from __future__ import annotations

import operator
from typing import Any

from dbutils.pooled_db import PooledDB

from benchmarks.contestants.base import OpenPool


class _DbApi:
    """What PooledDB needs of a connection."""

    def ping(self: Any, reconnect: bool = False) -> bool:
        return bool(self.is_alive())

    def cursor(self) -> None:
        raise NotImplementedError

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass


class _Driver:
    """What PooledDB needs of a driver."""

    threadsafety = 1
    OperationalError = InterfaceError = InternalError = OSError

    def __init__(self, pooled: Any, options: dict[str, Any]) -> None:
        self._pooled = pooled
        self._options = options

    def connect(self) -> Any:
        connection = self._pooled(**self._options)
        connection.open()
        return connection


def open_pool(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    driver = _Driver(type("Pooled", (kind, _DbApi), {}), options)
    pool = PooledDB(driver, maxconnections=size, blocking=True)
    return OpenPool(
        acquire=pool.connection,
        release=operator.methodcaller("close"),
        close=pool.close,
        block=pool.connection,
        raw=operator.attrgetter("_con._con"),
    )
