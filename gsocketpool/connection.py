"""Connections over sockets."""

from __future__ import annotations

import errno
import functools
import os
import time
from typing import TYPE_CHECKING, Any

import gevent
import gevent.socket
import gevent.ssl
from gevent.monkey import get_original

from gsocketpool import _descriptors
from gsocketpool._base import Connection
from gsocketpool.exceptions import ConnectionClosedError, InvalidArgumentError, LimitExceededError, add_note
from gsocketpool.settings import check_count, check_seconds

if TYPE_CHECKING:
    import ssl

__all__ = ["Connection", "StreamConnection", "TcpConnection", "TlsConnection", "UnixConnection"]

#: Bytes to ask the operating system for at once, at most: Python sets aside as many before it asks.
LARGEST_PIECE = 1 << 20


class StreamConnection(Connection):
    """The part that connections over a stream socket share: everything but connecting.

    An error or an interruption in the middle of sending or receiving leaves the stream at an unknown place, and so does
    a read that has left bytes behind: such a connection still works for who holds it, but is not :meth:`reused
    <is_reusable>`.

    :param lifetime: seconds after which :meth:`is_expired` answers True; None for never.
    :param timeout: seconds that connecting may take in all, and then each send and receive; None for no limit.
    :raises InvalidArgumentError: if one of these is something else.
    """

    _sock: Any = None
    _connected = False
    _created: float | None = None
    #: What has been received and not returned yet.
    _unread: bytes | bytearray = b""
    #: Whether an exchange may be half done.
    _in_doubt = False

    def __init__(self, lifetime: float | None = 600, timeout: float | None = None) -> None:
        if lifetime is not None:
            check_seconds("lifetime", lifetime)
        if timeout is not None:
            check_seconds("timeout", timeout, zero=True)
        self._lifetime = lifetime
        # 0 has always meant no timeout here.
        self._timeout = timeout or None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self._where()}, {'open' if self._connected else 'closed'}>"

    def _where(self) -> str:
        raise NotImplementedError

    def _connect(self) -> None:
        """Connects a socket. It is in ``_sock`` before anything blocks, so that a fork meanwhile can let go of it."""
        raise NotImplementedError

    @property
    def socket(self) -> Any:
        """The gevent socket; None before the connection was opened."""
        return self._sock

    def get(self) -> Any:
        """Returns the gevent socket; None before the connection was opened."""
        return self._sock

    def open(self) -> None:
        """Connects.

        :raises OSError: if that fails; `TimeoutError`, which is one, if it takes longer than `timeout`.
        """
        if self._connected:
            raise OSError(errno.EISCONN, f"{self!r} is open already")
        self._unread = bytearray()
        self._in_doubt = False
        limit = gevent.Timeout(self._timeout)
        try:
            with limit:
                self._connect()
                self._sock.settimeout(self._timeout)
        except BaseException as error:
            if self._sock is not None:
                self._sock.close()
            if error is limit:
                raise TimeoutError(f"connecting to {self._where()} took longer than {self._timeout} s") from None
            add_note(error, f"while connecting to {self._where()}")
            raise
        self._connected = True
        self._created = time.monotonic()

    def close(self) -> None:
        """Closes the socket. A greenlet that waits for it gets an `OSError`."""
        if self._connected:
            self._connected = False
            self._unread = b""
            self._sock.close()

    def is_connected(self) -> bool:
        """Returns whether the connection was opened and neither closed nor found at the end of its stream."""
        return self._connected

    def is_expired(self) -> bool:
        """Returns whether the connection was opened longer than `lifetime` ago."""
        if self._lifetime is None or self._created is None:
            return False
        return time.monotonic() - self._created > self._lifetime

    def is_usable(self) -> bool:
        """Returns whether the connection is open and nothing can be read from its socket."""
        return self._connected and _descriptors.is_silent(self._sock)

    def is_reusable(self, error: BaseException | None) -> bool:
        """Returns whether the connection is open, at the end of a message and free of doubt."""
        return error is None and self._connected and not self._unread and not self._in_doubt

    def let_go(self) -> None:
        """Closes the socket's descriptor, without a shutdown, and counts as closed."""
        super().let_go()
        self._connected = False
        self._unread = b""

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Sends all of `data`.

        :param data: bytes, a bytearray or a memoryview.
        :raises TypeError: if it is something else, a str for instance.
        :raises ConnectionClosedError: if the connection is not open.
        :raises OSError: if sending fails; `TimeoutError`, which is one, if it takes longer than `timeout`.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"send() takes bytes, not {type(data).__name__}")
        if not self._connected:
            raise self._not_open()
        sock = self._sock
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        try:
            try:
                # Without waiting, but for TLS. Most messages go at once, for which sendall() takes three times as long.
                sent = sock.send(data, 0, 0.0) if size else 0
            except BlockingIOError:
                sent = 0
            if sent < size:
                sock.sendall(memoryview(data).cast("B")[sent:])
        except BaseException:
            self._doubt(sock)
            raise

    def recv(self, size: int = 1024) -> bytes:
        """Returns what has come, at least one byte and at most `size`, or ``b""`` at the end of the stream.

        The end of the stream marks the connection as closed.

        :raises ConnectionClosedError: if the connection is not open.
        :raises OSError: if receiving fails; `TimeoutError`, which is one, if nothing comes for `timeout`.
        """
        if type(size) is not int or not 0 < size <= LARGEST_PIECE:
            check_count("size", size, least=1)
        if self._unread:
            return self._take(size)
        data = self._receive(size)
        if not data:
            self.close()
        return data

    def recv_exactly(self, size: int) -> bytes:
        """Returns the next `size` bytes.

        :raises ConnectionClosedError: if the connection is not open, or the stream ends before that; then its
            ``partial`` has what came.
        :raises OSError: as :meth:`recv` does.
        """
        check_count("size", size)
        while len(self._unread) < size:
            self._receive_more(size - len(self._unread), f"{size} bytes had come")
        return self._take(size)

    def recv_until(self, delimiter: bytes, limit: int = 65536) -> bytes:
        """Returns what comes up to the next `delimiter`, and the delimiter itself as the last part of it.

        Bytes that came behind the delimiter stay for the next call.

        :param delimiter: the bytes that end a message: a line feed, for instance.
        :param limit: the greatest number of bytes to return.
        :raises LimitExceededError: if there is no delimiter within `limit` bytes.
        :raises ConnectionClosedError: as :meth:`recv_exactly` does.
        :raises OSError: as :meth:`recv` does.
        """
        if not isinstance(delimiter, bytes) or not delimiter:
            raise InvalidArgumentError("delimiter", delimiter, "bytes, at least one")
        check_count("limit", limit, least=len(delimiter))
        searched = 0
        while (found := self._unread.find(delimiter, searched, limit)) < 0:
            if len(self._unread) >= limit:
                self._in_doubt = True
                raise LimitExceededError(f"{delimiter!r} did not come within {limit} bytes", limit)
            # The delimiter may have come in part.
            searched = max(0, len(self._unread) - len(delimiter) + 1)
            self._receive_more(4096, f"{delimiter!r} had come")
        return self._take(found + len(delimiter))

    def _take(self, size: int) -> bytes:
        data = bytes(self._unread[:size])
        self._unread = self._unread[size:]
        return data

    def _receive_more(self, size: int, awaited: str) -> None:
        data = self._receive(size)
        if not data:
            partial = bytes(self._unread)
            self.close()
            raise ConnectionClosedError(f"the stream from {self._where()} ended before {awaited}", partial)
        self._unread += data

    def _receive(self, size: int) -> bytes:
        if not self._connected:
            raise self._not_open()
        sock = self._sock
        try:
            data: bytes = sock.recv(min(size, LARGEST_PIECE))
        except BaseException:
            self._doubt(sock)
            raise
        return data

    def _doubt(self, sock: Any) -> None:
        # Another greenlet may have closed that stream, which is what this one was told, and even opened another.
        if self._connected and sock is self._sock:
            self._in_doubt = True

    def _not_open(self) -> ConnectionClosedError:
        return ConnectionClosedError(f"{self!r} is not open")


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
