"""A client library that speaks MySQL's protocol in Python: PyMySQL.

All connect to the same MariaDB server in autocommit mode, and ask the same in a block. What each does beside that:

- gsocketpool, by hand: looks at the socket before it hands a connection out, and whether a transaction is open when it
  comes back.
- gsocketpool with its connector: the same, and it notes the beginning and the end of each exchange. When a connection
  comes back, it looks for unread rows and changed settings as well.
- DBUtils: rolls back when a connection comes back, in one round trip. Before it hands one out it sends a PING, in
  another one: that is its default.
- SQLAlchemy: rolls back when a connection comes back, in one round trip.

Those that reset a session after each use all send COM_RESET_CONNECTION, the character set and the database, in three
more round trips. In gsocketpool a greenlet of the pool's own does it, in the others the caller.
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

#: By the names of those that take part, functions of :mod:`benchmarks.clients.mysql`.
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
    method=f"{CONNECTIONS} greenlets ask a MariaDB server over {CONNECTIONS} connections of PyMySQL's by a Unix"
    " socket, in autocommit mode. gsocketpool looks at the socket, and whether the server has told of a transaction."
    " DBUtils sends a PING before each use and a ROLLBACK after it, and SQLAlchemy a ROLLBACK after it; those are their"
    " defaults. gsocketpool has a connection class of a few lines, or its connector, which looks at more. Those that"
    " reset the session after each use send the same for it.",
    tables=[Table("Queries to MariaDB", [Figure("select", "SELECT 1", "/s", is_more_better=True)])],
    contestants=list(CLIENTS),
    measure=measure,
    backend=servers.mariadb,
)
