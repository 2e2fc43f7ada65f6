"""Does to a pool what a bad day does, many times over, and looks at what is left."""

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
    """Have many greenlets exchange messages while everything goes wrong that can. Return what was done.

    Exceptions are thrown into the greenlets, and into those of the pool's own, in random turns of the event loop. The
    pool is drained, resized and swept, the process is forked while replies are outstanding, and the server misbehaves:
    each fault spoils some answers or openings. In some rounds an `OSError` or a `gevent.Timeout` is caught inside the
    block, which then ends well. In the end, the server is well again, and all must be as if nothing had happened.

    :param pool: a pool that no other code uses; or a factory of connections, or a connector, of which the torture makes
        a pool that it closes at the end.
    :param seed: decides everything that is decided here; a new one by default. The same seed does the same again, as
        far as the kernel takes the same turns.
    :param rounds: how often connections are used, all greenlets together.
    :param exchange: gets a connection and a message of letters, digits and hyphens, has the backend send that message
        back, and returns what came. By default :func:`exchange_line`.
    :param server: where the connections lead, to have it misbehave. Without one the backend is left in peace.
    :param greenlets: how many use connections at the same time.
    :param max_connections: the limit of a pool that is made here.
    :param forks: how many processes are forked; each uses the pool as its parent does. Fewer if the rounds end before.
    :raises TortureError: an AssertionError that has the seed, if a reply reached the wrong caller, a connection was
        used by two greenlets or processes, the limit was exceeded, capacity was lost, an exception was swallowed or
        hidden by ``from None``, a greenlet hung, an exchange failed at a fork, a forked process kept a socket of its
        parent open or, where the pool is closed here, a socket was left open.
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
