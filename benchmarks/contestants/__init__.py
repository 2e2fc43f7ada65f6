"""Who takes part: gsocketpool, other pools, and the least that could be called one."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from benchmarks.contestants.base import OpenPool


@dataclass(frozen=True)
class Contestant:
    """A pool, and where its adapter and its version are to be found."""

    name: str
    #: The module here that has its ``open_pool(size, kind, is_checked, options)``.
    module: str
    #: What it is called on PyPI.
    package: str
    function: str = "open_pool"

    def open_pool(self, size: int, kind: type[Any], /, *, is_checked: bool = False, **options: Any) -> OpenPool:
        """A pool of `size` connections, of a class made of `kind` and of what this pool asks for.

        :param is_checked: whether to turn on its check of connections, where that is a choice.
        :param options: what `kind` is made with.
        """
        module = importlib.import_module(f"benchmarks.contestants.{self.module}")
        opened: OpenPool = getattr(module, self.function)(size, kind, is_checked, options)
        return opened


OURS = Contestant("gsocketpool", "ours", "gsocketpool")
#: For cases with a server: with the connections it brings, while all others pool the same bare ones.
OWN_CONNECTION = Contestant(f"{OURS.name}, its own connection", "ours", "gsocketpool", "open_own")
#: It has the name of ours, and so it has a Python environment of its own.
PREDECESSOR = Contestant("gsocketpool 0.1.6", "predecessor", "gsocketpool")

RIVALS = [
    PREDECESSOR,
    Contestant("socketpool", "socketpool_", "socketpool"),
    Contestant("SQLAlchemy QueuePool", "sqlalchemy_", "SQLAlchemy"),
    Contestant("psycopg_pool", "psycopg_pool_", "psycopg-pool"),
    Contestant("redis-py", "redis_", "redis"),
    Contestant("pymemcache", "pymemcache_", "pymemcache"),
    Contestant("DBUtils", "dbutils_", "DBUtils"),
    Contestant("generic-connection-pool", "generic", "generic-connection-pool"),
]

LIFO_QUEUE = Contestant("gevent LifoQueue", "floors", "gevent", "open_queue")
SEMAPHORE = Contestant("semaphore + deque", "floors", "gevent", "open_semaphore")
HAND_OVER = Contestant("bare hand-over", "floors", "gevent", "open_hand_over")
DEDICATED = Contestant("dedicated", "floors", "gevent", "open_dedicated")

#: No pools: they keep no books, check nothing and forgive nothing.
FLOORS = [LIFO_QUEUE, SEMAPHORE, HAND_OVER]

ALL = {each.name: each for each in [OURS, OWN_CONNECTION, *RIVALS, *FLOORS, DEDICATED]}


def resetting(name: str) -> str:
    """Return what a contestant is called that resets a connection after each use."""
    return f"{name}, reset after each use"
