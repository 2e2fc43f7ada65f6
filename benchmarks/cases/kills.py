"""What kills, Timeouts, restarts and forks leave of pools of real clients: ``python -m benchmarks.kills``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import servers
from benchmarks.cases.base import Case, Figure, Figures, Table
from benchmarks.contestants import OURS

SIZE, REQUESTS, FORK_REQUESTS, WAITERS = 5, 40, 50, 200

#: What gsocketpool promises.
OURS_SAYS = "A kill or a Timeout loses no capacity, wherever it falls. A forked child starts with no connections."


@dataclass(frozen=True)
class Contestant:
    """A pool with a client, its options, and what its documentation says."""

    name: str
    #: One of :data:`benchmarks.servers.RESTARTABLE`.
    server: str
    #: The class of :mod:`benchmarks.subjects`, in the module of the server's name.
    subject: str
    #: The names on PyPI of the pool and its client.
    packages: tuple[str, ...]
    options: str
    says: str


CONTESTANTS = [
    Contestant(
        f"{OURS.name}, PsycopgConnector",
        "postgres",
        "Ours",
        ("gsocketpool", "psycopg"),
        "The defaults.",
        OURS_SAYS,
    ),
    Contestant(
        f"{OURS.name}, GeventPool for SQLAlchemy",
        "postgres",
        "GeventPool",
        ("gsocketpool", "SQLAlchemy", "psycopg"),
        "``max_overflow=0``, without ``pool_pre_ping``.",
        f"{OURS_SAYS} It needs no ``dispose()``.",
    ),
    Contestant(
        "psycopg_pool",
        "postgres",
        "PsycopgPool",
        ("psycopg-pool", "psycopg"),
        "``min_size`` is ``max_size``, ``check=ConnectionPool.check_connection``.",
        "``check`` verifies a connection before the caller gets it. It says nothing about kills and forks.",
    ),
    Contestant(
        "SQLAlchemy QueuePool",
        "postgres",
        "SQLAlchemy",
        ("SQLAlchemy", "psycopg"),
        "``max_overflow=0``, ``pool_pre_ping=True``; ``engine.dispose(close=False)`` in the forked child.",
        "``pool_pre_ping`` replaces dead connections. Connections must not be shared with a"
        " forked child, which calls ``dispose(close=False)``.",
    ),
    Contestant(
        "DBUtils PooledDB",
        "postgres",
        "DBUtils",
        ("DBUtils", "psycopg"),
        '``blocking=True``, ``reset=True``, ``ping="SELECT 1"``.',
        "It is thread-safe. It reopens connections that were lost in a restart. It says nothing about forks.",
    ),
    Contestant(
        f"{OURS.name}, RedisConnector",
        "valkey",
        "Ours",
        ("gsocketpool", "redis"),
        "The defaults.",
        OURS_SAYS,
    ),
    Contestant(
        "redis-py BlockingConnectionPool",
        "valkey",
        "RedisPy",
        ("redis",),
        "``health_check_interval=1``, and the ten retries that a client with its default pool has.",
        "It is thread-safe. It checks whether the process was forked, and starts again in the child.",
    ),
    Contestant(
        f"{OURS.name}, PymemcacheConnector",
        "memcached",
        "Ours",
        ("gsocketpool", "pymemcache"),
        "The defaults.",
        OURS_SAYS,
    ),
    Contestant(
        "pymemcache PooledClient",
        "memcached",
        "Pymemcache",
        ("pymemcache",),
        "``RetryingClient`` around it, with three attempts; not ``ignore_exc``, which makes errors look like misses.",
        "It is thread-safe, and raises an error at ``max_pool_size``; here, the caller tries again every millisecond."
        " It says nothing about forks.",
    ),
    Contestant(
        f"{OURS.name}, a connector by hand for happybase",
        "hbase",
        "Ours",
        ("gsocketpool", "happybase"),
        "The defaults.",
        OURS_SAYS,
    ),
    Contestant(
        "happybase ConnectionPool",
        "hbase",
        "Happybase",
        ("happybase",),
        "The defaults: there are no checks to turn on.",
        "It is thread-safe. It replaces a connection that fails, and passes on the error: it does not retry.",
    ),
]

BY_NAME = {each.name: each for each in CONTESTANTS}


def measure(name: str, effort: float, arguments: Mapping[str, Any]) -> Figures:
    """Hit a pool with the blow that the arguments name. No other blow follows in the same process."""
    # Import late: only some environments have psycopg, redis-py and so on.
    blows = importlib.import_module("benchmarks.blows")
    contestant = BY_NAME[name]
    subjects = importlib.import_module(f"benchmarks.subjects.{contestant.server}")
    server = arguments[contestant.server]
    patience = blows.PATIENCE if arguments["blow"] != "waits" else 20 * blows.PATIENCE
    subject = getattr(subjects, contestant.subject)(server, SIZE, patience)
    figures: Figures = blows.BLOWS[arguments["blow"]](subject, effort)
    return figures


#: The figures of each blow. A pool that hangs gets none of them.
FIGURES = {
    "kills": ["usable", "wrong", "failed", "stuck", "sessions", "hit waiting", "hit exchanging", "hit giving back"],
    "given up": ["sessions, late", "sessions, then"],
    "restart": ["restart"],
    "fork": ["fork"],
    "waits": ["longest", "median", "ratio"],
}

CASE = Case(
    name="kills",
    method=f"Pools of {SIZE} connections of real clients to real servers.",
    tables=[
        Table(
            "What is left",
            [
                Figure("usable", f"connections left, of {SIZE}", "count", is_more_better=True),
                Figure("wrong", "wrong answers", "count"),
                Figure("restart", f"failed after a restart, of {REQUESTS}", "count"),
                Figure("fork", f"failed after a fork, of {2 * FORK_REQUESTS}", "count"),
                Figure("ratio", "longest wait to median", "count"),
                Figure("sessions, late", "most sessions above the limit", "count"),
                Figure("sessions, then", "above it after 0.5 s", "count"),
            ],
        ),
        Table(
            "Details",
            [
                Figure("hit waiting", "hit while waiting", "count", is_more_better=None),
                Figure("hit exchanging", "hit while exchanging", "count", is_more_better=None),
                Figure("hit giving back", "hit while giving back", "count", is_more_better=None),
                Figure("failed", "failed without being hit", "count"),
                Figure("stuck", "stuck at the end", "count"),
                Figure("sessions", "sessions above the limit during the kills", "count"),
                Figure("longest", "longest wait, ms", "count"),
                Figure("median", "median wait, ms", "count"),
            ],
        ),
    ],
    contestants=list(BY_NAME),
    measure=measure,
    backend=lambda: servers.restartable(servers.RESTARTABLE),
)
