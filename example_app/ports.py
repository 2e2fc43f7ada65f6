"""Find free ports."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection
from random import SystemRandom

HOST = "127.0.0.1"
#: Below the range that operating systems use for outgoing connections.
CANDIDATES = range(10000, 30000)


def why_unavailable(port: int) -> str | None:
    """Return why a server can't listen on `port` now, or None if it can."""
    with socket.socket() as candidate:
        # The servers set this, too. Without it, connections that ended a moment ago would block the port.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError as error:
            return "is in use" if error.errno == errno.EADDRINUSE else f"can't be used ({error.strerror})"
    return None


def first_free(start: int, taken: Collection[int] = ()) -> int:
    """Return the first free port from `start` on that is not among `taken`.

    :raises OSError: if none of the next 100 ports is free.
    """
    for port in range(start, start + 100):
        if port not in taken and why_unavailable(port) is None:
            return port
    raise OSError(errno.EADDRINUSE, f"no port from {start} to {start + 99} is free")


def find_free(count: int) -> list[int]:
    """Return `count` different free ports.

    :raises OSError: if there are fewer.
    """
    free: list[int] = []
    for port in SystemRandom().sample(CANDIDATES, k=1000):
        if len(free) == count:
            return free
        if why_unavailable(port) is None:
            free.append(port)
    raise OSError(errno.EADDRINUSE, f"fewer than {count} ports are free")
