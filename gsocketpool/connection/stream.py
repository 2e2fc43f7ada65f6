"""The common part of connections over a stream socket: everything except connecting."""

from __future__ import annotations

import errno
import time
from typing import Any

import gevent
import gevent.socket
import gevent.ssl

from gsocketpool.connection._sockets import READABLE, new_poll
from gsocketpool.connection.base import Connection
from gsocketpool.exceptions import ConnectionClosedError, InvalidArgumentError, LimitExceededError, add_note
from gsocketpool.settings import check_count, check_seconds

#: The arguments of a timeout of gevent's sockets: others are thrown by user code, which chose their text.
_SOCKET_TIMEOUTS = (("timed out",), *((f"The {step} operation timed out",) for step in ("read", "write", "handshake")))

#: The most bytes per recv(), because Python allocates as many before it receives.
MAX_RECV_SIZE = 1 << 20


class StreamConnection(Connection):
    """The common part of connections over a stream socket: everything except connecting.

    An error or interruption while sending or receiving leaves the stream at an unknown position, and so does a read
    that leaves bytes unread. Its holder may go on using such a connection, but the pool does not :meth:`keep
    <is_reusable>` it.

    :param lifetime: seconds after which :meth:`is_expired` returns True; None for never.
    :param timeout: seconds that connecting may take in all, and then each send and each wait for data; None or 0 for
        no limit. `recv_exactly()` and `recv_until()` may wait several times: bound them by a :class:`gevent.Timeout`.
    :raises InvalidArgumentError: if `lifetime` or `timeout` is no such number.
    """

    _sock: Any = None
    _connected = False
    _created: float | None = None
    #: A poll object, kept because making one takes a third as long as polling, and the raw socket that it polls.
    _poll: Any = None
    _polled: Any = None
    #: Bytes received but not returned yet.
    _unread: bytes | bytearray = b""

    def __init__(self, lifetime: float | None = 600, timeout: float | None = None) -> None:
        self._lifetime = None if lifetime is None else check_seconds("lifetime", lifetime)
        # As in 0.1.6, 0 means no timeout.
        self._timeout = None if timeout is None else check_seconds("timeout", timeout, zero=True) or None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self._where()}, {'open' if self._connected else 'closed'}>"

    def _where(self) -> str:
        raise NotImplementedError

    def _connect(self) -> None:
        """Connect a socket. Set ``_sock`` before anything blocks, so that a child forked meanwhile can abort it."""
        raise NotImplementedError

    @property
    def socket(self) -> Any:
        """The gevent socket; None before the first :meth:`open`."""
        return self._sock

    def get(self) -> Any:
        """Return the gevent socket; None before the first :meth:`open`."""
        return self._sock

    def open(self) -> None:
        """Connect.

        :raises OSError: if connecting fails; a `TimeoutError` if it takes longer than `timeout`.
        """
        if self._connected:
            raise OSError(errno.EISCONN, f"{self!r} is open already")
        self._unread = bytearray()
        # A reconnect may be part of an exchange, which is still in progress.
        self._unfinished_exchanges -= self._failed_exchanges
        self._failed_exchanges = 0
        limit = gevent.Timeout(self._timeout)
        try:
            with limit:
                self._connect()
                self._sock.settimeout(self._timeout)
                self._prepare_poll()
        except BaseException as error:
            if self._sock is not None:
                self._sock.close()
            if error is not limit:
                self._add_context(error, "connecting to", self._timeout)
                raise
            # The traceback would keep this frame, and with it the socket.
            error.__traceback__ = None
        else:
            self._connected = True
            self._created = time.monotonic()
            return
        raise TimeoutError(self._timed_out("connecting to", self._timeout))

    def close(self) -> None:
        """Close the socket. A greenlet that waits on it gets an `OSError`."""
        if self._connected:
            self._connected = False
            self._unread = b""
            self._poll = self._polled = None
            self._sock.close()

    def is_connected(self) -> bool:
        """Return whether the connection is open: neither closed, nor read to the end of its stream."""
        return self._connected

    def is_expired(self) -> bool:
        """Return whether the connection was opened longer than `lifetime` ago."""
        if self._lifetime is None or self._created is None:
            return False
        return time.monotonic() - self._created > self._lifetime

    def is_usable(self) -> bool:
        """Return whether the connection is open and its socket has nothing to read.

        Over TLS, records of TLS itself, such as session tickets, don't count.
        """
        return bool(self.is_connected()) and self._is_open_and_silent()

    def _is_open_and_silent(self) -> bool:
        """Return whether the connection is usable, unless a subclass overrides ``is_connected()``. Pools call this.

        :meth:`Core._check_out` does the same without the call, if the socket is still the same.
        """
        if not self._connected or self._sock.fileno() < 0:
            return False
        if self._sock._sock is not self._polled:
            # A subclass has replaced the socket.
            self._prepare_poll()
        return not self._poll.poll(0)

    def _prepare_poll(self) -> None:
        # A subclass's own socket may have no raw one.
        self._polled = getattr(self._sock, "_sock", None)
        self._poll = new_poll()
        self._poll.register(self._sock.fileno(), READABLE)

    def is_reusable(self, error: BaseException | None) -> bool:
        """Return whether the connection is open, has no unread bytes and no unfinished exchange."""
        return error is None and not self._unread and not self._unfinished_exchanges and bool(self.is_connected())

    def abort(self) -> None:
        """Close the socket's descriptor without a shutdown, and mark the connection as closed."""
        super().abort()
        self._connected = False
        self._unread = b""
        self._poll = self._polled = None

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`.

        :param data: bytes, a bytearray or a memoryview.
        :raises TypeError: if `data` is something else, such as a str.
        :raises ConnectionClosedError: if the connection is not open.
        :raises OSError: if sending fails; a `TimeoutError` if it takes longer than `timeout`.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"send() takes bytes, not {type(data).__name__}")
        if not self._connected:
            raise self._not_open()
        sock = self._sock
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        try:
            try:
                # Without waiting, except with TLS. Most messages fit, and sendall() would take three times as long.
                sent = sock.send(data, 0, 0.0) if size else 0
            except BlockingIOError:
                sent = 0
            if sent < size:
                sock.sendall(memoryview(data).cast("B")[sent:])
        except BaseException as error:
            self._mark_unfinished(sock)
            self._add_context(error, "sending to", sock.gettimeout())
            raise

    def recv(self, size: int = 1024) -> bytes:
        """Return at least one byte and at most `size` bytes, or ``b""`` at the end of the stream.

        The end of the stream closes the connection.

        :raises ConnectionClosedError: if the connection is not open.
        :raises OSError: if receiving fails; a `TimeoutError` if nothing arrives within `timeout`.
        """
        if type(size) is not int or not 0 < size <= MAX_RECV_SIZE:
            check_count("size", size, least=1)
        if self._unread:
            return self._take(size)
        data = self._receive(size)
        if not data:
            self.close()
        return data

    def recv_exactly(self, size: int) -> bytes:
        """Return exactly the next `size` bytes.

        :raises ConnectionClosedError: if the connection is not open, or the stream ends first; the error's ``partial``
            has the bytes that came.
        :raises OSError: as from :meth:`recv`.
        """
        check_count("size", size)
        while len(self._unread) < size:
            self._receive_more(size - len(self._unread), f"{size} bytes had come")
        return self._take(size)

    def recv_until(self, delimiter: bytes, limit: int = 65536) -> bytes:
        """Return the bytes up to and including the next `delimiter`.

        Bytes after the delimiter are kept for the next call.

        :param delimiter: the bytes that end a message, such as a line feed.
        :param limit: the most bytes to return, delimiter included.
        :raises LimitExceededError: if no delimiter comes within `limit` bytes.
        :raises ConnectionClosedError: as from :meth:`recv_exactly`.
        :raises OSError: as from :meth:`recv`.
        """
        if not isinstance(delimiter, bytes) or not delimiter:
            raise InvalidArgumentError("delimiter", delimiter, "bytes that are not empty")
        check_count("limit", limit, least=len(delimiter))
        searched = 0
        while (found := self._unread.find(delimiter, searched, limit)) < 0:
            if len(self._unread) >= limit:
                self._note_failed_exchange()
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
            data: bytes = sock.recv(min(size, MAX_RECV_SIZE))
        except BaseException as error:
            self._mark_unfinished(sock)
            self._add_context(error, "receiving from", sock.gettimeout())
            raise
        return data

    def _mark_unfinished(self, sock: Any) -> None:
        # Another greenlet may have closed that stream, which caused the error here, and even opened another one.
        if self._connected and sock is self._sock:
            self._note_failed_exchange()

    def _note_failed_exchange(self) -> None:
        self._unfinished_exchanges += 1
        self._failed_exchanges += 1

    def _add_context(self, error: BaseException, what: str, timeout: float | None) -> None:
        """Add to an error's text where the connection leads and, for a timeout of the socket, the seconds."""
        if not isinstance(error, OSError):
            return
        if isinstance(error, TimeoutError) and (error.args in _SOCKET_TIMEOUTS or hasattr(error, "_is_of_socket")):
            error.args = (self._timed_out(what, timeout),)
            # Some versions of gevent raise the same object each time.
            error._is_of_socket = True  # type: ignore[attr-defined]
        elif isinstance(error, gevent.ssl.SSLError) or error.errno is None:
            # Their text can't be extended.
            add_note(error, f"while {what} {self._where()}")
        elif error.filename is None:
            # An OSError appends its filename to its text.
            error.filename = self._where()

    def _timed_out(self, what: str, timeout: float | None) -> str:
        return f"{what} {self._where()} took longer than {timeout} s"

    def _not_open(self) -> ConnectionClosedError:
        return ConnectionClosedError(f"{self!r} is not open: discard() it, and acquire another one")
