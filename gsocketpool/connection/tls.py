"""A TCP connection secured by TLS."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import gevent
import gevent.ssl
from gevent.monkey import get_original

from gsocketpool.connection import _sockets
from gsocketpool.connection.tcp import TcpConnection
from gsocketpool.exceptions import InvalidArgumentError

if TYPE_CHECKING:
    import ssl


class TlsConnection(TcpConnection):
    """A TCP connection secured by TLS. The server's certificate must be valid, and issued for `host`.

    :param ssl_context: an :class:`ssl.SSLContext` to use instead of the default one, for a private certificate
        authority, a client certificate, or fewer checks.
    :param server_hostname: the host name to send to the server (SNI) and to verify; by default `host`.

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
        # Not context.wrap_socket(): without monkey patching, a standard library context would return a socket that
        # blocks the whole process.
        self._sock = gevent.ssl.SSLSocket(
            sock=self._sock,
            server_hostname=self._server_hostname,
            do_handshake_on_connect=False,
            _context=context,
        )
        self._sock.do_handshake()

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, as :meth:`StreamConnection.send` does."""
        # gevent's TLS socket applies its timeout to each wait, not to the whole call.
        limit = gevent.Timeout(self._timeout)
        try:
            with limit:
                super().send(data)
            return
        except OSError:
            _sockets.clear_tls_errors()
            raise
        except gevent.Timeout as error:
            if error is not limit:
                raise
        raise TimeoutError(self._timed_out("sending to", self._timeout))

    def _is_open_and_silent(self) -> bool:
        return self._connected and _sockets.is_tls_silent(self._sock)

    def close(self) -> None:
        """Send the closing alert of TLS, without waiting for an answer, and close the socket."""
        if self._connected:
            _sockets.say_goodbye(self._sock)
        super().close()


def _is_name(name: object) -> bool:
    """Return whether `name` is valid for SNI. An SSLSocket that finds it invalid loses its descriptor."""
    if not isinstance(name, str):
        return False
    try:
        encoded = name.encode("idna")
    except UnicodeError:
        return False
    return bool(encoded) and not encoded.startswith(b".") and b"\0" not in encoded


@functools.cache
def _default_ssl_context() -> ssl.SSLContext:
    # Loading the certificate authorities takes tens of milliseconds, too long for every connection.
    context: ssl.SSLContext = gevent.ssl.create_default_context()
    return context
