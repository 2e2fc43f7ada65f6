"""A client library that speaks MySQL's protocol in Python: PyMySQL.

All connect to the same MariaDB server in autocommit mode, and send the same query in a block. In addition:

- gsocketpool, by hand, checks the socket before it hands a connection out. On return, it checks whether a transaction
  is open.
- gsocketpool with its connector does the same, and records the beginning and end of each exchange. On return, it also
  checks for unread rows and changed settings.
- DBUtils rolls back on return, in one round trip. Before it hands a connection out, it sends a PING, in another: that
  is its default.
- SQLAlchemy rolls back on return, in one round trip.

The contestants that reset a session after each use all send COM_RESET_CONNECTION, the character set and the database,
in three more round trips. In gsocketpool a greenlet of the pool does this, in the others the caller.
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

CONNECTOR = f"{OURS.name}, PyMySQLConnector"
DBUTILS, SQLALCHEMY = "DBUtils PooledDB", "SQLAlchemy QueuePool"

#: The functions of :mod:`benchmarks.clients.mysql`, by contestant.
CLIENTS = {
    OURS.name: "pooled",
    CONNECTOR: "connector",
    DBUTILS: "dbutils",
    SQLALCHEMY: "sqlalchemys",
    DEDICATED.name: "dedicated",
    resetting(CONNECTOR): "connector_resetting",
    resetting(DBUTILS): "dbutils_resetting",
    resetting(SQLALCHEMY): "sqlalchemys_resetting",
}


def measure(name: str, effort: float, arguments: Mapping[str, Any]) -> Figures:
    clients = importlib.import_module("benchmarks.clients.mysql")
    with getattr(clients, CLIENTS[name])(arguments["options"], CONNECTIONS) as prepare:
        return {"select": rate(prepare, CONNECTIONS, SPAN * effort)}


CASE = Case(
    name="mysql",
    method=f"{CONNECTIONS} greenlets query a MariaDB server over {CONNECTIONS} PyMySQL connections by a Unix socket, in"
    " autocommit mode. gsocketpool checks the socket, and whether the server has reported a transaction. DBUtils sends"
    " a PING before each use and a ROLLBACK after it, SQLAlchemy a ROLLBACK after it; these are their defaults."
    " gsocketpool uses a connection class of a few lines, or its connector, which checks more. Those that reset the"
    " session after each use send the same commands.",
    tables=[Table("Queries to MariaDB", [Figure("select", "SELECT 1", "/s", is_more_better=True)])],
    contestants=list(CLIENTS),
    measure=measure,
    backend=servers.mariadb,
)
