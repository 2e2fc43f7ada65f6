"""Does to a pool what a bad day does, many times over, and looks at what is left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import SystemRandom
from typing import Any, TypeVar

from gsocketpool import Pool
from gsocketpool.settings import check_count
from gsocketpool.testing._report import TortureError, TortureReport
from gsocketpool.testing._run import Run
from gsocketpool.testing._server import FlakyServer
from gsocketpool.testing._sockets import open_sockets
from gsocketpool.testing._worker import ROUND

C = TypeVar("C")


def exchange_line(connection: Any, message: bytes) -> bytes:
    """Sends a line over a :class:`~gsocketpool.StreamConnection`, and returns the one that comes back."""
    connection.send(message + b"\n")
    line: bytes = connection.recv_until(b"\n")
    return line.removesuffix(b"\n")


def torture(
    pool: Pool[C] | Callable[[], C],
    *,
    seed: int | None = None,
    rounds: int = 1000,
    exchange: Callable[[C, bytes], bytes] = exchange_line,
    server: FlakyServer | None = None,
    greenlets: int = 16,
    max_connections: int = 4,
    forks: int = 2,
) -> TortureReport:
    """Has many greenlets exchange messages while everything goes wrong that can, and returns what was done.

    Exceptions are thrown into the greenlets, and into those of the pool's own, in random turns of the event loop. The
    pool is drained, resized and swept, the process is forked, and the server misbehaves. In the end, the server is well
    again, and all must be as if nothing had happened.

    :param pool: a pool that nobody else uses, or a factory of connections to make one of and to close it at the end.
    :param seed: decides everything that is decided here; a new one by default. The same seed does the same again, as
        far as the kernel takes the same turns.
    :param rounds: how often connections are used, all greenlets together.
    :param exchange: gets a connection and a message of letters, digits and hyphens, has the backend send that message
        back, and returns what came. By default :func:`exchange_line`.
    :param server: where the connections lead, to have it misbehave. Without one the backend is left in peace.
    :param greenlets: how many use connections at the same time.
    :param max_connections: the limit of a pool that is made here.
    :param forks: how many processes are forked; each uses the pool as its parent does.
    :raises TortureError: an AssertionError that has the seed, if a reply reached the wrong caller, a connection was
        used by two greenlets or processes, the limit was exceeded, capacity was lost, an exception was swallowed, a
        greenlet hung or, where the pool is closed here, a socket was left open.
    :raises InvalidArgumentError: if an argument can't be used.
    """
    check_count("rounds", rounds, least=1)
    check_count("greenlets", greenlets, least=1)
    check_count("forks", forks)
    if seed is None:
        seed = SystemRandom().randrange(2**32)
    check_count("seed", seed)
    with _silence():
        if isinstance(pool, Pool):
            run = Run(pool, seed, rounds, exchange, server, forks)
            run.execute(greenlets)
        else:
            sockets = open_sockets()
            times: Any = {"open_timeout": ROUND, "close_timeout": ROUND, "reap_interval": 0.1}
            with Pool(pool, max_connections=max_connections, **times) as made:
                run = Run(made, seed, rounds, exchange, server, forks)
                run.execute(greenlets)
            run.look_for_open_sockets(sockets)
    if run.failures:
        raise TortureError(run.failures, run.report)
    return run.report


@contextmanager
def _silence() -> Iterator[None]:
    """Logs nothing of what is done to a pool on purpose."""
    logger = logging.getLogger("gsocketpool")
    nothing = lambda record: False  # noqa: E731
    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)
