"""A connection as the server sees it."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import gevent.socket
import gevent.ssl

from gsocketpool.connection import _sockets
from gsocketpool.testing._peers import peer_pid

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class ServedConnection:
    """A connection as the server sees it. Nothing here changes any more once it has ended."""

    def __init__(self, sock: Any, number: int) -> None:
        self._sock = sock
        self._upstream: Any = None
        #: How many there were before it.
        self.number = number
        #: The process that opened it; None where that can't be found out, as outside of Linux.
        self.pid = peer_pid(sock)
        #: Everything that came over it.
        self.received = bytearray()
        #: The requests that came over it, each with its delimiter. Empty with an upstream, whose protocol is unknown.
        self.requests: list[bytes] = []
        #: How it has ended: ``"closed"`` or ``"reset"`` by the client, ``"cut off"`` by a client that left without the
        #: goodbye that TLS asks for, or ``"by the server"``. None while it is open.
        self.end: str | None = None
        #: Whether something came that has not been answered.
        self.is_asking = False

    def __repr__(self) -> str:
        return f"<connection {self.number} of process {self.pid}: {self.end or 'open'}, {bytes(self.received[-80:])!r}>"

    @property
    def is_open(self) -> bool:
        return self.end is None


def end(served: ServedConnection, how: str = "by the server", *, reset: bool = False) -> None:
    """Close a connection that is open, and note how it has ended."""
    if not served.is_open:
        return
    served.end = how
    with contextlib.suppress(OSError):
        if reset:
            served._sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_LINGER, _RESET_ON_CLOSE)
        elif isinstance(served._sock, gevent.ssl.SSLSocket) and served._sock._sslobj is not None:
            _sockets.say_goodbye(served._sock)
    # More than close(), which gevent puts off where a greenlet waits for the socket: the client would find it open
    # until the event loop has come round.
    _sockets.abort(served._sock)
