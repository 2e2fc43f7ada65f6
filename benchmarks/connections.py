"""The connections that the pools hold."""

from __future__ import annotations

import functools
import select
import ssl
from typing import Any, ClassVar

import gevent.socket
import gevent.ssl
from gevent.monkey import get_original

_poll = get_original("select", "poll")


class Nothing:
    """A connection to nowhere, to measure the pool alone.

    An adapter derives its connection class from this one and from the base class that its pool needs.
    """

    #: How many connections were opened, how many are open now, and the most that were open at a time.
    opened: ClassVar[int] = 0
    open_now: ClassVar[int] = 0
    most_open: ClassVar[int] = 0

    _is_open = False

    @classmethod
    def forget(cls) -> None:
        """Reset the counters."""
        Nothing.opened = Nothing.open_now = Nothing.most_open = 0

    def open(self) -> None:
        self._is_open = True
        Nothing.opened += 1
        Nothing.open_now += 1
        Nothing.most_open = max(Nothing.most_open, Nothing.open_now)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            Nothing.open_now -= 1

    def is_connected(self) -> bool:
        return self._is_open

    def is_alive(self) -> bool:
        """Make the check that gsocketpool makes. Pools with a hook for a check, and no check of their own, call it."""
        return self._is_open


class Wire(Nothing):
    """A socket to an echo server. Every pool gets the same kind."""

    def __init__(self, kind: str, address: Any, authority: str = "") -> None:
        self._kind = kind
        self._address = address
        self._authority = authority
        self.socket: Any = None

    def open(self) -> None:
        if self._kind == "unix":
            self.socket = gevent.socket.socket(gevent.socket.AF_UNIX)
            self.socket.connect(self._address)
        else:
            self.socket = gevent.socket.create_connection(tuple(self._address), timeout=None)
            self.socket.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        if self._kind == "tls":
            self.socket = context_trusting(self._authority).wrap_socket(self.socket, server_hostname="localhost")
        super().open()

    def close(self) -> None:
        if self.is_connected():
            self.socket.close()
        super().close()

    def get(self) -> Any:
        return self.socket

    def is_alive(self) -> bool:
        if not self.is_connected():
            return False
        poll = _poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        return not poll.poll(0) or (self._kind == "tls" and self._has_only_tickets())

    def _has_only_tickets(self) -> bool:
        try:
            self.socket._sslobj.read(1)
        except gevent.ssl.SSLWantReadError:
            return True
        except OSError:
            pass
        return False

    def exchange(self, message: bytes) -> None:
        """Send a message and wait for its echo. Close the connection on an error, as clients do."""
        try:
            self.socket.sendall(message)
            missing = len(message)
            while missing:
                data = self.socket.recv(4096)
                if not data:
                    raise ConnectionResetError("the server closed the connection")
                missing -= len(data)
        except OSError:
            self.close()
            raise


@functools.cache
def context_trusting(authority: str) -> ssl.SSLContext:
    """Return the context of a client that trusts only the authority in this file."""
    context: ssl.SSLContext = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority)
    return context
