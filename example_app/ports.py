"""Which ports can be had."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection
from random import SystemRandom

HOST = "127.0.0.1"
#: Below those that systems give to outgoing connections, which come and go.
CANDIDATES = range(10000, 30000)


def why_unavailable(port: int) -> str | None:
    """Returns why nobody can listen on `port` now; None if somebody can."""
    with socket.socket() as candidate:
        # As the servers do: connections that have ended a moment ago are no obstacle.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError as error:
            return "is in use" if error.errno == errno.EADDRINUSE else f"can't be used ({error.strerror})"
    return None


def first_free(start: int, taken: Collection[int] = ()) -> int:
    """Returns the first port from `start` on that is free and not among those `taken`.

    :raises OSError: if the next 100 ports are all in use.
    """
    for port in range(start, start + 100):
        if port not in taken and why_unavailable(port) is None:
            return port
    raise OSError(errno.EADDRINUSE, f"no port from {start} to {start + 99} is free")


def find_free(count: int) -> list[int]:
    """Returns `count` different ports that nobody listens on.

    :raises OSError: if there are not that many.
    """
    free: list[int] = []
    for port in SystemRandom().sample(CANDIDATES, k=1000):
        if len(free) == count:
            return free
        if why_unavailable(port) is None:
            free.append(port)
    raise OSError(errno.EADDRINUSE, f"there are no {count} free ports")
