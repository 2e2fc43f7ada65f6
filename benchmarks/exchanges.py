"""What a greenlet does with a pool of connections to an echo server."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.contestants.base import OpenPool
from benchmarks.throughput import Prepare

MESSAGE = b"thirty bytes and a line feed.\n"


def exchanging(pool: OpenPool) -> Prepare:
    """Return one exchange, in the pool's own context manager if it has one."""
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
    """Return one exchange with the methods of gsocketpool's own connections, as users write it."""

    def act() -> None:
        assert pool.block is not None
        with pool.block() as connection:
            connection.send(MESSAGE)
            connection.recv_until(b"\n")

    return lambda: act


def exchanging_alone(pool: OpenPool) -> Prepare:
    """Return one exchange over a connection that the greenlet keeps."""

    def prepare() -> Callable[[], object]:
        exchange = pool.acquire().exchange
        return lambda: exchange(MESSAGE)

    return prepare
