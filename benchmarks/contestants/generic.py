"""generic-connection-pool, with one endpoint. It checks a connection before it hands it out."""

from __future__ import annotations

from functools import partial
from typing import Any

from generic_connection_pool.threading import BaseConnectionManager, ConnectionPool

from benchmarks.contestants.base import PATIENCE, OpenPool

ENDPOINT = "there"


class _Manager(BaseConnectionManager[str, Any]):
    def __init__(self, kind: type[Any], options: dict[str, Any]) -> None:
        self._kind = kind
        self._options = options

    def create(self, endpoint: str, timeout: float | None = None) -> Any:
        connection = self._kind(**self._options)
        connection.open()
        return connection

    def dispose(self, endpoint: str, conn: Any, timeout: float | None = None) -> None:
        conn.close()

    def check_aliveness(self, endpoint: str, conn: Any, timeout: float | None = None) -> bool:
        return bool(conn.is_alive())

    def on_connection_dead(self, endpoint: str, conn: Any) -> None:
        conn.close()


def open_pool(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    manager = _Manager(kind, options)
    pool: ConnectionPool[str, Any] = ConnectionPool(
        manager, acquire_timeout=PATIENCE, min_idle=size, max_size=size, total_max_size=size
    )
    return OpenPool(
        acquire=partial(pool.acquire, ENDPOINT),
        release=partial(pool.release, endpoint=ENDPOINT),
        close=partial(pool.close, timeout=1),
        block=partial(pool.connection, ENDPOINT),
    )
