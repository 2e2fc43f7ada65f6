"""What a greenlet does with a pool of connections to an echo server."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.contestants.base import OpenPool
from benchmarks.throughput import Prepare

MESSAGE = b"thirty bytes and a line feed.\n"


def exchanging(pool: OpenPool) -> Prepare:
    """One exchange, by the pool's own context manager if it has one."""
    raw = pool.raw

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

    return lambda: by_hand if pool.block is None else with_block


def exchanging_lines(pool: OpenPool) -> Prepare:
    """The same by the methods of gsocketpool's own connections, as its users write it."""

    def act() -> None:
        assert pool.block is not None
        with pool.block() as connection:
            connection.send(MESSAGE)
            connection.recv_until(b"\n")

    return lambda: act


def exchanging_alone(pool: OpenPool) -> Prepare:
    """The same over a connection that a greenlet keeps for itself."""

    def prepare() -> Callable[[], object]:
        exchange = pool.acquire().exchange
        return lambda: exchange(MESSAGE)

    return prepare
