"""A connection over a Unix domain socket."""

from __future__ import annotations

import os

import gevent
import gevent.socket

from gsocketpool.connection.stream import StreamConnection
from gsocketpool.exceptions import InvalidArgumentError


class UnixConnection(StreamConnection):
    """A connection over a Unix domain socket.

    :param path: the socket's path. If it starts with a NUL character, it is in the abstract namespace of Linux.
    :param lifetime: seconds after which :meth:`is_expired` returns True; None for never.
    :param timeout: seconds that connecting may take, and then each send and each wait for data; None or 0 for no limit.
        `recv_exactly()` and `recv_until()` may wait several times: bound them by a :class:`gevent.Timeout`.
    :raises InvalidArgumentError: if an argument is not as described.
    """

    def __init__(
        self, path: str | os.PathLike[str], lifetime: float | None = 600, timeout: float | None = None
    ) -> None:
        super().__init__(lifetime, timeout)
        name = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(name, str) or not name:
            raise InvalidArgumentError("path", path, "a path")
        self._path = name

    def _where(self) -> str:
        return self._path.replace("\0", "@")

    def _connect(self) -> None:
        self._sock = gevent.socket.socket(gevent.socket.AF_UNIX, gevent.socket.SOCK_STREAM)
        pause = 0.005
        while True:
            try:
                # Not gevent's connect(), which would retry without a pause while the server's backlog is full.
                self._sock._sock.connect(self._path)
                return
            except BlockingIOError:
                # No event reports that the backlog has room again.
                gevent.sleep(pause)
                pause = min(2 * pause, 0.1)
