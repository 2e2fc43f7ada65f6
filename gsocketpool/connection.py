"""Connections over TCP, TLS and Unix sockets."""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING

import gevent
import gevent.socket
import gevent.ssl
from gevent.monkey import get_original

from gsocketpool import _descriptors
from gsocketpool._base import Connection
from gsocketpool._stream import StreamConnection
from gsocketpool.exceptions import InvalidArgumentError
from gsocketpool.settings import check_count

if TYPE_CHECKING:
    import ssl

__all__ = ["Connection", "StreamConnection", "TcpConnection", "TlsConnection", "UnixConnection"]


class TcpConnection(StreamConnection):
    """A connection over TCP, to IPv4 and IPv6 alike, with ``TCP_NODELAY`` and keepalive on.

    Every address that the host's name resolves to is tried, in the resolver's order, until one accepts; when `timeout`
    is set, each of those left gets an equal share of what is left of it.

    :param host: a name or an address.
    :param port: a number from 1 to 65535.
    :param lifetime: seconds after which :meth:`is_expired` answers True; None for never.
    :param timeout: seconds that connecting may take in all, and then each send and receive; None for no limit.
    :raises InvalidArgumentError: if one of these is something else.
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
        for tried, (family, kind, protocol, _, address) in enumerate(addresses, 1):
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


class TlsConnection(TcpConnection):
    """A TCP connection secured by TLS. The server's certificate is verified, and so is that it was made for `host`.

    :param ssl_context: an :class:`ssl.SSLContext` to use instead of the default one, for a private authority, a
        client certificate, or less strictness.
    :param server_hostname: the name to ask the server for (SNI) and to verify; `host` by default.

    The other parameters are those of :class:`TcpConnection`; `timeout` bounds connecting and the handshake together.
    """

    def __init__(
        self,
        host: str,
        port: int,
        lifetime: float | None = 600,
        timeout: float | None = None,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> None:
        super().__init__(host, port, lifetime, timeout)
        if ssl_context is not None and not isinstance(ssl_context, get_original("ssl", "SSLContext")):
            raise InvalidArgumentError("ssl_context", ssl_context, "an ssl.SSLContext or None")
        if server_hostname is not None and not _is_name(server_hostname):
            raise InvalidArgumentError("server_hostname", server_hostname, "a name or None")
        if server_hostname is None and not _is_name(host):
            raise InvalidArgumentError("host", host, "a name or an address")
        self._ssl_context = ssl_context
        self._server_hostname = server_hostname or host

    def _connect(self) -> None:
        context = self._ssl_context or _default_ssl_context()
        super()._connect()
        # Not context.wrap_socket(): outside of monkey patching, a context of the standard library's would wrap it into
        # a socket that blocks the whole process.
        self._sock = gevent.ssl.SSLSocket(
            sock=self._sock,
            server_hostname=self._server_hostname,
            do_handshake_on_connect=False,
            _context=context,
        )
        self._sock.do_handshake()

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Sends all of `data`, as :meth:`StreamConnection.send` does."""
        if self._timeout is None:
            super().send(data)
            return
        # By itself, a TLS socket of gevent's has as much time again whenever it waits.
        limit = gevent.Timeout(self._timeout)
        try:
            with limit:
                super().send(data)
        except gevent.Timeout as error:
            if error is not limit:
                raise
            raise TimeoutError(f"sending to {self._where()} took longer than {self._timeout} s") from None

    def close(self) -> None:
        """Says goodbye as TLS does, without waiting for an answer, and closes the socket."""
        if self._connected:
            _descriptors.say_goodbye(self._sock)
        super().close()


def _is_name(name: object) -> bool:
    """Whether a server can be asked for `name`. An SSLSocket that finds out that it can't loses its descriptor."""
    if not isinstance(name, str):
        return False
    try:
        encoded = name.encode("idna")
    except UnicodeError:
        return False
    return bool(encoded) and not encoded.startswith(b".") and b"\0" not in encoded


@functools.cache
def _default_ssl_context() -> ssl.SSLContext:
    # Loading the authorities takes tens of milliseconds, too long to do it for every connection.
    context: ssl.SSLContext = gevent.ssl.create_default_context()
    return context


class UnixConnection(StreamConnection):
    """A connection over a Unix domain socket.

    :param path: the socket's path; one that starts with a NUL character is in Linux' abstract namespace.
    :param lifetime: seconds after which :meth:`is_expired` answers True; None for never.
    :param timeout: seconds that connecting may take, and then each send and receive; None for no limit.
    :raises InvalidArgumentError: if one of these is something else.
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
                # Not gevent's connect(): when the server's backlog is full, it would ask without a pause.
                self._sock._sock.connect(self._path)
                return
            except BlockingIOError:
                # Nothing tells when there is room again.
                gevent.sleep(pause)
                pause = min(2 * pause, 0.1)
