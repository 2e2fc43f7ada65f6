"""What a pool adds to an exchange with a server, over TCP, a Unix socket and TLS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import servers
from benchmarks.cases.base import Case, Figure, Figures, Table
from benchmarks.connections import Wire
from benchmarks.contestants import ALL, DEDICATED, OURS, OWN_CONNECTION, RIVALS
from benchmarks.exchanges import MESSAGE, exchanging, exchanging_alone, exchanging_lines
from benchmarks.throughput import rate

KINDS = {"tcp": "TCP", "unix": "Unix socket", "tls": "TLS"}
CONNECTIONS = 10
#: How long to measure, in seconds.
SPAN = 0.4
#: The contestants that exchange messages in another way than the others.
EXCHANGING = {OWN_CONNECTION.name: exchanging_lines, DEDICATED.name: exchanging_alone}


def measure(name: str, effort: float, arguments: Mapping[str, Any]) -> Figures:
    figures: Figures = {}
    for kind in KINDS:
        pool = ALL[name].open_pool(CONNECTIONS, Wire, **arguments[kind])
        try:
            prepare = EXCHANGING.get(name, exchanging)(pool)
            figures[kind] = rate(prepare, CONNECTIONS, SPAN * effort)
        finally:
            pool.close()
    return figures


CASE = Case(
    name="echo",
    method=f"{CONNECTIONS} greenlets send {len(MESSAGE)} bytes to a server in another process and read them back, over"
    f" {CONNECTIONS} connections. Each connection is a plain gevent socket. gsocketpool is also measured with its own"
    " connections, as users use them.",
    tables=[
        Table(
            "Exchanges with an echo server",
            [Figure(kind, heading, "/s", is_more_better=True) for kind, heading in KINDS.items()],
        )
    ],
    contestants=[each.name for each in [OURS, OWN_CONNECTION, *RIVALS, DEDICATED]],
    measure=measure,
    backend=servers.echo,
)
