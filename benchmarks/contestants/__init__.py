"""The contestants: gsocketpool, other pools, and minimal pools as a lower bound."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from benchmarks.contestants.base import OpenPool


@dataclass(frozen=True)
class Contestant:
    """A pool, its adapter and its package."""

    name: str
    #: The module of this package with its ``open_pool(size, kind, is_checked, options)``.
    module: str
    #: Its name on PyPI.
    package: str
    function: str = "open_pool"

    def open_pool(self, size: int, kind: type[Any], /, *, is_checked: bool = False, **options: Any) -> OpenPool:
        """Return a pool of `size` connections, whose class derives from `kind` and from the base that the pool needs.

        :param is_checked: whether to turn on the pool's check of connections, if that is a choice.
        :param options: the arguments of `kind`.
        """
        module = importlib.import_module(f"benchmarks.contestants.{self.module}")
        opened: OpenPool = getattr(module, self.function)(size, kind, is_checked, options)
        return opened


OURS = Contestant("gsocketpool", "ours", "gsocketpool")
#: For cases with a server: gsocketpool with its own connections. All others use the same bare ones.
OWN_CONNECTION = Contestant(f"{OURS.name}, its own connection", "ours", "gsocketpool", "open_own")
#: It has the same package name as ours, so it needs its own Python environment.
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

#: Lower bounds, not real pools: they keep no records, check nothing, and do not survive errors.
FLOORS = [LIFO_QUEUE, SEMAPHORE, HAND_OVER]

ALL = {each.name: each for each in [OURS, OWN_CONNECTION, *RIVALS, *FLOORS, DEDICATED]}


def resetting(name: str) -> str:
    """Return the name of a contestant that resets a connection after each use."""
    return f"{name}, reset after each use"
