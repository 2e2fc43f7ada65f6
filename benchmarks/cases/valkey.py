"""A real protocol: Valkey's, which is also that of Redis.

All send commands to the same server over RESP2. In addition:

- gsocketpool uses a connection class with hiredis alone, without a client library, as the dedicated connections do.
- gsocketpool with redis-py by hand has a client for each connection. It guards each exchange by ``exchange()``, and
  checks the socket before it hands a connection out.
- gsocketpool with a connector makes the same check, and another one on return. In between, it records each command that
  leaves something open.
- redis-py checks the socket before it hands a connection out.

The contestants that reset a session after each use all send RESET, in one more round trip. In gsocketpool a greenlet of
the pool does this, in redis-py the caller.
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

#: The functions of :mod:`benchmarks.clients.valkey`, by contestant.
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
    method=f"{CONNECTIONS} greenlets send commands to a Valkey server over {CONNECTIONS} TCP connections. hiredis"
    " parses the replies for all except valkey-py, which uses libvalkey, a fork of hiredis. redis-py is measured as"
    " users use it, and again without its client: take a connection from its pool, send, read, give it back."
    " gsocketpool uses a connection class over hiredis alone, a class of a few lines around redis-py's client, or a"
    " connector, which records what each command leaves open. Those that reset the session after each use send RESET.",
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
