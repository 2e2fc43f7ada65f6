"""Writes the table of the comparison that has figures, from the results that are kept in the repository."""

from __future__ import annotations

from _kills import RESULTS as KILLS
from _performance import RESULTS, table

from benchmarks import report, results

#: The columns: what a pool is called here, in the benchmarks, and in those of the kills.
POOLS = [
    ("gsocketpool", "gsocketpool", "gsocketpool, PsycopgConnector"),
    ("psycopg_pool", "psycopg_pool", "psycopg_pool"),
    ("SQLAlchemy QueuePool", "SQLAlchemy QueuePool", "SQLAlchemy QueuePool"),
    ("redis-py", "redis-py", "redis-py BlockingConnectionPool"),
    ("DBUtils PooledDB", "DBUtils", "DBUtils PooledDB"),
    ("gevent LifoQueue", "gevent LifoQueue", ""),
]

#: What gsocketpool has for a client of its rivals'.
OURS = {"postgres": "gsocketpool, PsycopgConnector", "valkey": "gsocketpool, RedisConnector"}

#: The rows: a title, a case of the benchmarks and a figure.
FIGURES = [
    ("Acquire and release, ns", "uncontended", "pair, alone"),
    ("500 greenlets over 10 connections: uses a second", "contended", "rate, 500"),
    ("500 greenlets over 10 connections: longest wait, ms", "contended", "longest, 500"),
    ("PostgreSQL, ``SELECT 1`` a second", "postgres", "select"),
    ("Valkey, ``GET`` a second", "valkey", "get"),
    ("An idle connection, bytes", "memory", "idle"),
    ("Kills and Timeouts: connections left, of 5", "kills", "usable"),
    ("Callers that give up: most sessions above the limit", "kills", "sessions, late"),
    ("Restart of the server: failed requests, of 40", "kills", "restart"),
    ("Fork: failed requests, of 100", "kills", "fork"),
]


def reference() -> str:
    """Return the table, and the date and the versions of what was measured, as RST."""
    measured, kills = results.load(RESULTS), results.load(KILLS)
    rows = [["", *(name for name, *_ in POOLS)]]
    for title, case, figure in FIGURES:
        found = kills if case == "kills" else measured
        cells = []
        for name, usual, when_hit in POOLS:
            contestant = when_hit if case == "kills" else usual
            if name == "gsocketpool":
                contestant = OURS.get(case, contestant)
            median = found.median(case, figure, contestant)
            cells.append(report.MISSING if median is None else report.number(median))
        rows.append([title, *cells])
    versions = {**measured.about["versions"], **kills.about["versions"]}
    wanted = ["gsocketpool", "psycopg", "psycopg-pool", "SQLAlchemy", "redis", "DBUtils", "gevent"]
    told = ", ".join(f"{name} {versions[name]}" for name in wanted)
    about = f"Measured on {measured.about['date'][:10]} with {told}, on {measured.about['python'].split(',')[0]}."
    lines = [*table(rows), about]
    return "\n".join(lines) + "\n"
