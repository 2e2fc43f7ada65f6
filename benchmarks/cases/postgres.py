"""A pool around a client library that brings its own sockets, written in C: psycopg.

All connect to the same server in autocommit mode, and ask the same in a block. What each does beside that:

- gsocketpool, by hand: looks at the descriptor before it hands a connection out, and at the state of the transaction
  when it comes back.
- gsocketpool with its connector: the same, and when a connection comes back it looks for a pipeline, a kept generator
  and changed settings as well.
- psycopg_pool: looks at the state of the transaction when a connection comes back.
- SQLAlchemy: rolls back when a connection comes back, which without a transaction is no round trip.

Those that reset a session after each use all do so by the same statements, in one more round trip. In gsocketpool a
greenlet of the pool's own does it, in psycopg_pool a worker, in SQLAlchemy the caller.
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

#: By the names of those who take part, functions of :mod:`benchmarks.clients.postgres`.
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
    method=f"{CONNECTIONS} greenlets ask a PostgreSQL server over {CONNECTIONS} connections of psycopg's by a Unix"
    " socket, in autocommit mode. gsocketpool and psycopg_pool look at the state of the transaction when a connection"
    " comes back, and SQLAlchemy rolls back. gsocketpool has a connection class of a few lines, or its connector, which"
    " looks at more. Those that reset the session after each use do so by the same statements.",
    tables=[Table("Queries to PostgreSQL", [Figure("select", "SELECT 1", "/s", is_more_better=True)])],
    contestants=list(CLIENTS),
    measure=measure,
    backend=servers.postgres,
)
