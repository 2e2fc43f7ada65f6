"""redis-py's BlockingConnectionPool. It has no context manager for one connection."""

from __future__ import annotations

import os
from typing import Any

from redis.connection import BlockingConnectionPool

from benchmarks.contestants.base import PATIENCE, OpenPool


class _RedisConnection:
    """What redis-py's pool needs of a connection."""

    def connect(self: Any) -> None:
        if not self.is_connected():
            self.open()

    def disconnect(self: Any, *arguments: object) -> None:
        self.close()

    def can_read(self: Any, timeout: float = 0) -> bool:
        return not self.is_alive()

    def should_reconnect(self) -> bool:
        return False


def open_pool(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    class Pooled(_RedisConnection, kind):
        # The pool tells its own connections from a parent process's by this.
        pid = os.getpid()

        def __init__(self, **_: object) -> None:
            kind.__init__(self, **options)

    pool = BlockingConnectionPool(max_connections=size, timeout=PATIENCE, connection_class=Pooled)
    return OpenPool(pool.get_connection, pool.release, pool.disconnect)
