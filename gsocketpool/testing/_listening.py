"""Accepts clients, refuses them, or leaves their connects unanswered."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Any

import gevent
import gevent.pool
import gevent.socket

from gsocketpool.connection import _sockets

#: Seconds between two attempts to accept a client, after one that failed.
_PAUSE = 0.01


class Acceptor:
    """The address of a server, on which it listens or not.

    :param path: the path of a Unix domain socket. By default, a free TCP port of 127.0.0.1.
    :param begin: called with each accepted socket. It must not switch.
    """

    def __init__(self, path: str | None, begin: Callable[[Any], None], greenlets: gevent.pool.Group) -> None:
        self._begin = begin
        self._greenlets = greenlets
        self._accepting: gevent.Greenlet | None = None
        self._listener: Any = None
        #: Reserves the port while the server does not listen.
        self._placeholder: Any = None
        self._fillers: list[Any] = []
        self.address: Any = path
        if path is None:
            self._placeholder = self._bound(("127.0.0.1", 0))
            self.address = self._placeholder.getsockname()

    def close(self) -> None:
        """Free the address, on which the server no longer listens."""
        if self._placeholder is not None:
            self._placeholder.close()
        else:
            _remove_socket(self.address)

    def sockets(self) -> list[Any]:
        """Return the sockets in use here. Some may be None or closed."""
        return [self._listener, self._placeholder, *self._fillers]

    def is_listening(self) -> bool:
        """Return whether connections are accepted."""
        return self._accepting is not None

    def listen(self) -> None:
        """Accept connections."""
        self._listener = self._bound(self.address)
        self._listener.listen(1024)
        self._accepting = self._greenlets.spawn(self._accept, self._listener)

    def stop_listening(self) -> None:
        """Refuse connections."""
        if self._accepting is not None:
            self._accepting.kill()
            self._accepting = None
            # Accept the clients in the backlog, which count as connected. Without a switch, or more would come.
            with contextlib.suppress(OSError):
                while _sockets.is_readable(self._listener.fileno()):
                    self._begin(self._listener.accept()[0])
        for sock in (self._listener, *self._fillers):
            sock.close()
        self._fillers.clear()

    def fill_backlog(self) -> None:
        """Fill the backlog, so that further connects are not answered. The server must not be listening."""
        self._listener = self._bound(self.address)
        self._listener.listen(0)
        while True:
            filler = gevent.socket.socket(self._listener.family)
            self._fillers.append(filler)
            # On the raw socket, which does not wait.
            filler._sock.connect_ex(self.address)
            try:
                gevent.socket.wait_write(filler.fileno(), timeout=0.02)
                filler.getpeername()
            except OSError:
                return

    def _bound(self, address: Any) -> Any:
        if isinstance(address, str):
            _remove_socket(address)
            bound = gevent.socket.socket(gevent.socket.AF_UNIX)
        else:
            bound = gevent.socket.socket()
            bound.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_REUSEADDR, 1)
            bound.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_REUSEPORT, 1)
        try:
            bound.bind(address)
        except OSError:
            bound.close()
            raise
        return bound

    def _accept(self, listener: Any) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                if listener.fileno() < 0:
                    return
                # No descriptor may be free at the moment.
                gevent.sleep(_PAUSE)
            else:
                self._begin(sock)


def _remove_socket(path: str) -> None:
    # Only a socket: any other file is left, and binding raises.
    if not path.startswith("\0") and os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
        os.unlink(path)
