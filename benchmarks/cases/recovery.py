"""What happens to requests when the backend restarts while connections to it are idle."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import gevent
import gevent.socket

from benchmarks import servers
from benchmarks.cases.base import Case, Figure, Figures, Table
from benchmarks.connections import Nothing, Wire
from benchmarks.contestants import ALL, OURS, RIVALS
from benchmarks.exchanges import exchanging
from benchmarks.timing import now

CONNECTIONS = 10
#: How often a greenlet tries before it gives up.
TRIES = 20


def measure(name: str, effort: float, arguments: Mapping[str, Any]) -> Figures:
    pool = ALL[name].open_pool(CONNECTIONS, Wire, is_checked=True, **arguments["tcp"])
    try:
        for connection in [pool.acquire() for _ in range(CONNECTIONS)]:
            pool.raw(connection).exchange(b"warm")
            pool.release(connection)
        restart(arguments["pid"], arguments["tcp"]["address"])
        Nothing.forget()
        act = exchanging(pool)()
        failed = 0
        has_given_up = False

        def insist() -> None:
            nonlocal failed, has_given_up
            for _ in range(TRIES):
                try:
                    act()
                except Exception:
                    failed += 1
                    gevent.sleep(0)
                else:
                    return
            has_given_up = True

        began = now()
        gevent.joinall([gevent.spawn(insist) for _ in range(CONNECTIONS)])
        took = (now() - began) / 1e6
        return {"failed": failed, "opened": Nothing.opened, "time": "never" if has_given_up else took}
    finally:
        pool.close()


def restart(pid: int, address: Any) -> None:
    """Wait until the echo server has closed every connection and listens again."""
    watching = gevent.socket.create_connection(tuple(address))
    os.kill(pid, signal.SIGHUP)
    watching.recv(1)
    watching.close()
    while True:
        try:
            gevent.socket.create_connection(tuple(address)).close()
        except ConnectionRefusedError:
            time.sleep(0.001)
        else:
            return


CASE = Case(
    name="recovery",
    method=f"{CONNECTIONS} connections to an echo server are idle when it restarts. Then {CONNECTIONS} greenlets each"
    f" try to exchange a message, at most {TRIES} times. A connection closes itself on an error, and the checks that a"
    " pool offers are turned on.",
    tables=[
        Table(
            "After a restart of the backend",
            [
                Figure("failed", "failed requests", "count"),
                Figure("opened", "connections opened", "count", is_more_better=None),
                Figure("time", "until all were answered", "ms"),
            ],
        )
    ],
    contestants=[each.name for each in [OURS, *RIVALS]],
    measure=measure,
    backend=servers.echo,
)
