"""A connection over TCP."""

from __future__ import annotations

import time

import gevent.socket

from gsocketpool.connection.stream import StreamConnection
from gsocketpool.exceptions import InvalidArgumentError
from gsocketpool.settings import check_count


class TcpConnection(StreamConnection):
    """A connection over TCP, by IPv4 or IPv6, with ``TCP_NODELAY`` and keepalive on.

    If the host name resolves to several addresses, they are tried in the resolver's order until one accepts. With a
    `timeout`, each remaining address gets an equal share of the remaining time.

    :param host: a host name or an address.
    :param port: a number from 1 to 65535.
    :param lifetime: seconds after which :meth:`is_expired` returns True; None for never.
    :param timeout: seconds that connecting may take in all, and then each send and each wait for data; None or 0 for
        no limit. `recv_exactly()` and `recv_until()` may wait several times: bound them by a :class:`gevent.Timeout`.
    :raises InvalidArgumentError: if an argument is not as described.
    """

    def __init__(self, host: str, port: int, lifetime: float | None = 600, timeout: float | None = None) -> None:
        super().__init__(lifetime, timeout)
        if not isinstance(host, str) or not host:
            raise InvalidArgumentError("host", host, "a name or an address")
        if check_count("port", port, least=1) > 65535:
            raise InvalidArgumentError("port", port, "a whole number from 1 to 65535")
        self._host = host
        self._port = port

    def _where(self) -> str:
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    def _connect(self) -> None:
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        addresses = gevent.socket.getaddrinfo(self._host, self._port, 0, gevent.socket.SOCK_STREAM)
        # The last address is connected to, or raises.
        for tried, (family, kind, protocol, _, address) in enumerate(addresses, 1):  # pragma: no branch
            try:
                self._sock = gevent.socket.socket(family, kind, protocol)
                if deadline is not None:
                    share = (deadline - time.monotonic()) / (len(addresses) - tried + 1)
                    self._sock.settimeout(max(share, 0.001))
                self._sock.connect(address)
                break
            except OSError:
                if self._sock is not None:
                    self._sock.close()
                if tried == len(addresses):
                    raise
        self._sock.settimeout(self._timeout)
        self._sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        self._sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_KEEPALIVE, 1)
