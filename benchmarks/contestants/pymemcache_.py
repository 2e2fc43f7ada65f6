"""pymemcache's ObjectPool. It does not wait: a caller gets an error if all connections are in use."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

from pymemcache.pool import ObjectPool

from benchmarks.contestants.base import OpenPool


def open_pool(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    def connect() -> Any:
        connection = kind(**options)
        connection.open()
        return connection

    pool: Any = ObjectPool(connect, after_remove=operator.methodcaller("close"), max_size=size)
    # The argument that pymemcache's own client passes.
    block = partial(pool.get_and_release, destroy_on_fail=True)
    return OpenPool(pool.get, pool.release, pool.clear, block)
