"""socketpool, of 2014. Its `max_size` limits the idle connections, not the open ones."""

from __future__ import annotations

import itertools
import time
from typing import Any

from socketpool import ConnectionPool, Connector
from socketpool.util import is_connected as is_socket_connected

from benchmarks.contestants.base import OpenPool

_births = itertools.count()


class _Connector:
    """What socketpool needs of a connection. Its own connector does the same for sockets."""

    def open(self: Any) -> None:
        # socketpool sorts by this, and fails if two are equal.
        self._born = time.time() + next(_births) / 1000
        super().open()  # type: ignore[misc]

    def matches(self, **options: Any) -> bool:
        return True

    def is_connected(self: Any) -> bool:
        if not super().is_connected():  # type: ignore[misc]
            return False
        socket = getattr(self, "socket", None)
        return True if socket is None else bool(is_socket_connected(socket))

    def handle_exception(self, error: Exception) -> None:
        raise error

    def get_lifetime(self: Any) -> float:
        born: float = self._born
        return born

    def invalidate(self: Any) -> None:
        self.close()


def open_pool(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    pooled: Any = type("Pooled", (_Connector, kind, Connector), {})

    def connect(backend_mod: object, pool: object) -> Any:
        connection = pooled(**options)
        connection.open()
        return connection

    pool = ConnectionPool(connect, max_size=size, backend="gevent")
    return OpenPool(pool.get, pool.release_connection, pool.release_all, pool.connection)
