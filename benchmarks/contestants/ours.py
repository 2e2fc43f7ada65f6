"""gsocketpool, as it is here. It always checks a connection before it hands it out."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants.base import PATIENCE, OpenPool
from gsocketpool import Connection, Pool


def open_pool(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    pooled = type("Pooled", (kind, Connection), {})
    pool: Pool[Any] = Pool(pooled, options, max_connections=size, acquire_timeout=PATIENCE)
    return OpenPool(pool.acquire, pool.release, lambda: pool.close(timeout=0), pool.connection)
