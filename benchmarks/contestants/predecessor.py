"""gsocketpool 0.1.6, of 2016. It checks nothing, and polls for a released connection ten times, every 0.1 s."""

from __future__ import annotations

from typing import Any

import gsocketpool
from benchmarks.contestants.base import OpenPool

if hasattr(gsocketpool, "PoolClosedError"):
    raise ImportError(f"expected gsocketpool 0.1.6, but found another version: {gsocketpool.__file__}")


def open_pool(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    pooled = type("Pooled", (kind, gsocketpool.Connection), {})
    pool: Any = gsocketpool.Pool(pooled, options, max_connections=size)
    return OpenPool(pool.acquire, pool.release, block=pool.connection)
