"""What a pool adds to an exchange with a server, over TCP, a Unix socket and TLS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gevent

from benchmarks import servers
from benchmarks.cases.base import Case, Figure, Figures, Table
from benchmarks.connections import Wire
from benchmarks.contestants import ALL, DEDICATED, OURS, RIVALS
from benchmarks.contestants.base import OpenPool
from benchmarks.timing import now, tidy_up

KINDS = {"tcp": "TCP", "unix": "Unix socket", "tls": "TLS"}
CONNECTIONS = 10
#: Seconds that are measured.
SPAN = 0.4
MESSAGE = b"thirty bytes and a line feed.\n"


def measure(name: str, effort: float, arguments: Mapping[str, Any]) -> Figures:
    figures: Figures = {}
    for kind in KINDS:
        pool = ALL[name].open_pool(CONNECTIONS, Wire, **arguments[kind])
        try:
            figures[kind] = rate(exchanging(pool, is_dedicated=ALL[name] is DEDICATED), CONNECTIONS, SPAN * effort)
        finally:
            pool.close()
    return figures


def exchanging(pool: OpenPool, *, is_dedicated: bool) -> Callable[[], Callable[[], object]]:
    """Something that makes, for a greenlet, what it does again and again."""
    raw = pool.raw

    def with_own() -> Callable[[], object]:
        exchange = pool.acquire().exchange
        return lambda: exchange(MESSAGE)

    def with_block() -> None:
        assert pool.block is not None
        with pool.block() as connection:
            raw(connection).exchange(MESSAGE)

    def by_hand() -> None:
        connection = pool.acquire()
        try:
            raw(connection).exchange(MESSAGE)
        finally:
            pool.release(connection)

    if is_dedicated:
        return with_own
    return lambda: by_hand if pool.block is None else with_block


def rate(prepare: Callable[[], Callable[[], object]], greenlets: int, seconds: float) -> float:
    """How often a second something is done, by so many greenlets together."""
    is_over = False
    done = 0

    def work() -> None:
        nonlocal done
        act = prepare()
        while not is_over:
            act()
            done += 1

    working = [gevent.spawn(work) for _ in range(greenlets)]
    # Until everything is open.
    gevent.sleep(seconds / 4)
    tidy_up()
    began, before = now(), done
    gevent.sleep(seconds)
    result = (done - before) / (now() - began) * 1e9
    is_over = True
    gevent.joinall(working, raise_error=True, timeout=10)
    return result


CASE = Case(
    name="echo",
    method=f"{CONNECTIONS} greenlets send {len(MESSAGE)} bytes to a server in another process and read them back, over"
    f" {CONNECTIONS} connections, each of which is a gevent socket and nothing else.",
    tables=[
        Table(
            "Exchanges with an echo server",
            [Figure(kind, heading, "/s", is_more_better=True) for kind, heading in KINDS.items()],
        )
    ],
    contestants=[each.name for each in [OURS, *RIVALS, DEDICATED]],
    measure=measure,
    backend=servers.echo,
)
