"""A real protocol: Valkey's, which Redis speaks, too."""

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
    " for all of them. redis-py is measured as one uses it, and again without its client: taking a connection from its"
    " pool, sending, reading and giving it back.",
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
