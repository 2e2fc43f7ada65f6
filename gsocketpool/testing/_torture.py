"""Tortures a pool: makes everything go wrong, many times, and checks that the pool survives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import SystemRandom
from typing import Any, TypeVar

from gsocketpool import Pool
from gsocketpool.connectors import Connector
from gsocketpool.settings import check_count
from gsocketpool.testing._checks import Checks
from gsocketpool.testing._report import TortureError, TortureReport
from gsocketpool.testing._run import Run
from gsocketpool.testing._server import FlakyServer
from gsocketpool.testing._sockets import open_sockets
from gsocketpool.testing._worker import ROUND

C = TypeVar("C")


def exchange_line(connection: Any, message: bytes) -> bytes:
    """Send a line over a :class:`~gsocketpool.StreamConnection`, and return the line that comes back."""
    connection.send(message + b"\n")
    line: bytes = connection.recv_until(b"\n")
    return line.removesuffix(b"\n")


def torture(
    pool: Pool[C] | Callable[[], C] | Connector[C],
    *,
    seed: int | None = None,
    rounds: int = 1000,
    exchange: Callable[[C, bytes], bytes] = exchange_line,
    server: FlakyServer | None = None,
    greenlets: int = 16,
    max_connections: int = 4,
    forks: int = 2,
) -> TortureReport:
    """Let many greenlets exchange messages while everything that can goes wrong, and return a report.

    Exceptions are thrown into these greenlets, and into the pool's own, in random turns of the event loop. The pool is
    drained, resized and swept, the process is forked while replies are outstanding, and the server misbehaves: each
    fault spoils some answers or openings. In some rounds an `OSError` or a `gevent.Timeout` is caught inside the block,
    which then ends well. At the end the server works normally, and the pool must work as before.

    :param pool: a pool that no other code uses; or a factory of connections or a connector, for which the torture makes
        a pool and closes it at the end.
    :param seed: the seed of all random decisions; by default a new one. The same seed repeats a torture, as far as the
        kernel's timing is the same.
    :param rounds: how often connections are used, by all greenlets together.
    :param exchange: gets a connection and a message of letters, digits and hyphens, lets the backend send the message
        back, and returns the reply. By default :func:`exchange_line`.
    :param server: the server that the connections lead to, to let it misbehave. Without one, the backend has no faults.
    :param greenlets: how many greenlets use connections at the same time.
    :param max_connections: the limit of the pool, if the torture makes it.
    :param forks: how many processes to fork. Each uses the pool as its parent does. Fewer if the rounds end first.
    :raises TortureError: an AssertionError with the seed in its message, if a reply reached the wrong caller, a
        connection was used by two greenlets or processes, the limit was exceeded, capacity was lost, an exception was
        swallowed or hidden by ``from None``, a greenlet hung, an exchange failed at a fork, a forked process kept a
        socket of its parent open or, if the torture made the pool, a socket was left open.
    :raises InvalidArgumentError: if an argument can't be used.
    """
    check_count("rounds", rounds, least=1)
    check_count("greenlets", greenlets, least=1)
    check_count("forks", forks)
    if seed is None:
        seed = SystemRandom().randrange(2**32)
    check_count("seed", seed)
    report = TortureReport(seed)
    sockets = open_sockets()
    with _silence():
        if isinstance(pool, Pool):
            checks = Checks(pool, exchange, server, report, sockets)
            Run(checks, seed, rounds, server, forks, greenlets).execute()
        else:
            times: Any = {"open_timeout": ROUND, "close_timeout": ROUND, "reap_interval": 0.1}
            with Pool(pool, max_connections=max_connections, **times) as made:
                checks = Checks(made, exchange, server, report, sockets)
                Run(checks, seed, rounds, server, forks, greenlets).execute()
            checks.check_open_sockets()
    if checks.failures:
        raise TortureError(checks.failures, report)
    return report


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the pool's log while things go wrong on purpose."""
    logger = logging.getLogger("gsocketpool")
    nothing = lambda record: False  # noqa: E731
    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)
