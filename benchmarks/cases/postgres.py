"""A pool around a client library that brings its own sockets, written in C: psycopg.

All connect to the same server in autocommit mode, and send the same query in a block. In addition:

- gsocketpool, by hand, checks the descriptor before it hands a connection out, and the transaction status on return.
- gsocketpool with its connector does the same. On return, it also checks for a pipeline, an unfinished generator and
  changed settings.
- psycopg_pool checks the transaction status on return.
- SQLAlchemy rolls back on return. Without a transaction, that is no round trip.

The contestants that reset a session after each use all send the same statements, in one more round trip. In gsocketpool
a greenlet of the pool does this, in psycopg_pool a worker, in SQLAlchemy the caller.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from benchmarks import servers
from benchmarks.cases.base import Case, Figure, Figures, Table
from benchmarks.contestants import DEDICATED, OURS, resetting
from benchmarks.throughput import rate

CONNECTIONS = 10
SPAN = 0.6

CONNECTOR = f"{OURS.name}, PsycopgConnector"
PSYCOPG_POOL, SQLALCHEMY = "psycopg_pool", "SQLAlchemy QueuePool"

#: The functions of :mod:`benchmarks.clients.postgres`, by contestant.
CLIENTS = {
    OURS.name: "pooled",
    CONNECTOR: "connector",
    PSYCOPG_POOL: "psycopgs_own",
    SQLALCHEMY: "sqlalchemys",
    DEDICATED.name: "dedicated",
    resetting(CONNECTOR): "connector_resetting",
    resetting(PSYCOPG_POOL): "psycopgs_own_resetting",
    resetting(SQLALCHEMY): "sqlalchemys_resetting",
}


def measure(name: str, effort: float, arguments: Mapping[str, Any]) -> Figures:
    clients = importlib.import_module("benchmarks.clients.postgres")
    with getattr(clients, CLIENTS[name])(arguments["conninfo"], CONNECTIONS) as prepare:
        return {"select": rate(prepare, CONNECTIONS, SPAN * effort)}


CASE = Case(
    name="postgres",
    method=f"{CONNECTIONS} greenlets query a PostgreSQL server over {CONNECTIONS} psycopg connections by a Unix socket,"
    " in autocommit mode. When a connection comes back, gsocketpool and psycopg_pool check the transaction status, and"
    " SQLAlchemy rolls back. gsocketpool uses a connection class of a few lines, or its connector, which checks more."
    " Those that reset the session after each use send the same statements.",
    tables=[Table("Queries to PostgreSQL", [Figure("select", "SELECT 1", "/s", is_more_better=True)])],
    contestants=list(CLIENTS),
    measure=measure,
    backend=servers.postgres,
)
