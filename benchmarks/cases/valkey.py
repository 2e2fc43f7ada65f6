"""A real protocol: Valkey's, which Redis speaks, too.

All ask the same server by RESP2. What each does beside that:

- gsocketpool: a connection class that speaks by hiredis alone, without a client library, as the dedicated ones do.
- gsocketpool with redis-py by hand: a client for each connection, each exchange guarded by ``exchange()``, and a look
  at the socket before it hands a connection out.
- gsocketpool with a connector: the same look, when a connection comes back another one, and in between a note of each
  command that leaves something open.
- redis-py: looks at the socket before it hands a connection out.

Those that reset a session after each use all send RESET, in one more round trip. In gsocketpool a greenlet of the
pool's own does it, in redis-py the caller.
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
SPAN = 0.4
REDIS, REDIS_POOL = "redis-py", "redis-py, its pool alone"

BY_HAND = f"{OURS.name}, redis-py by hand"
REDIS_CONNECTOR, VALKEY_CONNECTOR = f"{OURS.name}, RedisConnector", f"{OURS.name}, ValkeyConnector"

#: By the names of those who take part, functions of :mod:`benchmarks.clients.valkey`.
CLIENTS = {
    OURS.name: "pooled",
    BY_HAND: "by_hand",
    REDIS_CONNECTOR: "redis_connector",
    VALKEY_CONNECTOR: "valkey_connector",
    REDIS: "redis_client",
    REDIS_POOL: "redis_pool",
    DEDICATED.name: "dedicated",
    resetting(REDIS_CONNECTOR): "redis_connector_resetting",
    resetting(VALKEY_CONNECTOR): "valkey_connector_resetting",
    resetting(REDIS): "redis_client_resetting",
}


def measure(name: str, effort: float, arguments: Mapping[str, Any]) -> Figures:
    clients = importlib.import_module("benchmarks.clients.valkey")
    port = arguments["port"]
    clients.fill(port)
    with getattr(clients, CLIENTS[name])(port, CONNECTIONS) as (ping, get):
        return {
            "ping": rate(ping, CONNECTIONS, SPAN * effort),
            "get": rate(get, CONNECTIONS, SPAN * effort),
        }


CASE = Case(
    name="valkey",
    method=f"{CONNECTIONS} greenlets ask a Valkey server over {CONNECTIONS} TCP connections; hiredis reads the replies"
    " for all of them, and libvalkey, which is made of it, for valkey-py. redis-py is measured as one uses it, and"
    " again without its client: taking a connection from its pool, sending, reading and giving it back. gsocketpool has"
    " a connection class over hiredis alone, a class of a few lines around redis-py's client, or a connector, which"
    " notes what each command leaves open. Those that reset the session after each use send RESET.",
    tables=[
        Table(
            "Commands to Valkey",
            [
                Figure("ping", "PING", "/s", is_more_better=True),
                Figure("get", "GET", "/s", is_more_better=True),
            ],
        )
    ],
    contestants=list(CLIENTS),
    measure=measure,
    backend=servers.valkey,
)
