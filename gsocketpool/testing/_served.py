"""A client's connection, on the server's side."""

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
    """A client's connection, on the server's side."""

    def __init__(self, sock: Any, number: int) -> None:
        self._sock = sock
        self._upstream: Any = None
        #: The number of connections before it.
        self.number = number
        #: The process that opened it; None if unknown, as on systems other than Linux.
        self.pid: int | None = peer_pid(sock)
        #: All bytes received.
        self.received: bytearray = bytearray()
        #: The requests received, each with its delimiter. Empty with an upstream, because its protocol is unknown.
        self.requests: list[bytes] = []
        #: How it has ended: ``"closed"`` or ``"reset"`` by the client, ``"cut off"`` by the client without the closing
        #: alert of TLS, or ``"by the server"``. None while it is open.
        self.end: str | None = None
        #: Whether a request was received and not answered.
        self.is_asking = False

    def __repr__(self) -> str:
        return f"<connection {self.number} of process {self.pid}: {self.end or 'open'}, {bytes(self.received[-80:])!r}>"

    @property
    def is_open(self) -> bool:
        return self.end is None


def send(served: ServedConnection, data: bytes) -> None:
    """Send all of `data`."""
    try:
        served._sock.sendall(data)
    except OSError:
        _sockets.clear_tls_errors()
        raise


def end(served: ServedConnection, how: str = "by the server", *, reset: bool = False) -> None:
    """Close a connection if it is open, and record how it ended."""
    if not served.is_open:
        return
    served.end = how
    with contextlib.suppress(OSError):
        if reset:
            served._sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_LINGER, _RESET_ON_CLOSE)
        elif isinstance(served._sock, gevent.ssl.SSLSocket) and served._sock._sslobj is not None:
            _sockets.say_goodbye(served._sock)
    # Not close(), which gevent defers to the loop's next turn if a greenlet waits on the socket.
    _sockets.abort(served._sock)
