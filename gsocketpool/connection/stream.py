"""What connections over a stream socket share: everything but connecting."""

from __future__ import annotations

import errno
import time
from typing import Any

import gevent
import gevent.socket
import gevent.ssl

from gsocketpool.connection._sockets import READABLE, is_readable, new_poll
from gsocketpool.connection.base import Connection
from gsocketpool.exceptions import ConnectionClosedError, InvalidArgumentError, LimitExceededError, add_note
from gsocketpool.settings import check_count, check_seconds

#: Bytes to ask the operating system for at once, at most: Python sets aside as many before it asks.
MAX_RECV_SIZE = 1 << 20


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
    #: A poll object, kept since making one takes as long as a third of the poll, and the descriptor that it is for.
    _poll: Any = None
    _polled = -1
    #: What has been received and not returned yet.
    _unread: bytes | bytearray = b""

    def __init__(self, lifetime: float | None = 600, timeout: float | None = None) -> None:
        self._lifetime = None if lifetime is None else check_seconds("lifetime", lifetime)
        # 0 has always meant no timeout here.
        self._timeout = None if timeout is None else check_seconds("timeout", timeout, zero=True) or None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self._where()}, {'open' if self._connected else 'closed'}>"

    def _where(self) -> str:
        raise NotImplementedError

    def _connect(self) -> None:
        """Connect a socket. It is in ``_sock`` before anything blocks, so that a fork meanwhile can let go of it."""
        raise NotImplementedError

    @property
    def socket(self) -> Any:
        """The gevent socket; None before the connection was opened."""
        return self._sock

    def get(self) -> Any:
        """Return the gevent socket; None before the connection was opened."""
        return self._sock

    def open(self) -> None:
        """Connect.

        :raises OSError: if that fails; `TimeoutError`, which is one, if it takes longer than `timeout`.
        """
        if self._connected:
            raise OSError(errno.EISCONN, f"{self!r} is open already")
        self._unread = bytearray()
        self._unfinished_exchanges = 0
        limit = gevent.Timeout(self._timeout)
        try:
            with limit:
                self._connect()
                self._sock.settimeout(self._timeout)
        except BaseException as error:
            if self._sock is not None:
                self._sock.close()
            if error is not limit:
                self._add_context(error, "connecting to")
                raise
            # Its traceback has this frame, and so keeps the socket.
            error.__traceback__ = None
        else:
            self._connected = True
            self._created = time.monotonic()
            self._polled = self._sock.fileno()
            self._poll = new_poll()
            self._poll.register(self._polled, READABLE)
            return
        raise TimeoutError(self._timed_out("connecting to"))

    def close(self) -> None:
        """Close the socket. A greenlet that waits for it gets an `OSError`."""
        if self._connected:
            self._connected = False
            self._unread = b""
            self._sock.close()

    def is_connected(self) -> bool:
        """Return whether the connection was opened and neither closed nor found at the end of its stream."""
        return self._connected

    def is_expired(self) -> bool:
        """Return whether the connection was opened longer than `lifetime` ago."""
        if self._lifetime is None or self._created is None:
            return False
        return time.monotonic() - self._created > self._lifetime

    def is_usable(self) -> bool:
        """Return whether the connection is open and nothing can be read from its socket."""
        if not self._connected:
            return False
        # The raw socket tells its descriptor in half of gevent's time.
        descriptor = self._sock._sock.fileno()
        if descriptor == self._polled:
            return not self._poll.poll(0)
        return not is_readable(descriptor)

    def is_reusable(self, error: BaseException | None) -> bool:
        """Return whether the connection is open, at the end of a message and free of doubt."""
        return error is None and self._connected and not self._unread and not self._unfinished_exchanges

    def abort(self) -> None:
        """Close the socket's descriptor, without a shutdown, and count as closed."""
        super().abort()
        self._connected = False
        self._unread = b""

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`.

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
        except BaseException as error:
            self._mark_unfinished(sock)
            self._add_context(error, "sending to")
            raise

    def recv(self, size: int = 1024) -> bytes:
        """Return what has come, at least one byte and at most `size`, or ``b""`` at the end of the stream.

        The end of the stream marks the connection as closed.

        :raises ConnectionClosedError: if the connection is not open.
        :raises OSError: if receiving fails; `TimeoutError`, which is one, if nothing comes for `timeout`.
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
        """Return the next `size` bytes.

        :raises ConnectionClosedError: if the connection is not open, or the stream ends before that; then its
            ``partial`` has what came.
        :raises OSError: as :meth:`recv` does.
        """
        check_count("size", size)
        while len(self._unread) < size:
            self._receive_more(size - len(self._unread), f"{size} bytes had come")
        return self._take(size)

    def recv_until(self, delimiter: bytes, limit: int = 65536) -> bytes:
        """Return what comes up to the next `delimiter`, and the delimiter itself as the last part of it.

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
                self._unfinished_exchanges += 1
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
            self._add_context(error, "receiving from")
            raise
        return data

    def _mark_unfinished(self, sock: Any) -> None:
        # Another greenlet may have closed that stream, which is what this one was told, and even opened another.
        if self._connected and sock is self._sock:
            self._unfinished_exchanges += 1

    def _add_context(self, error: BaseException, what: str) -> None:
        """Make an error's text say where to the connection leads and, for a timeout, how long it was waited."""
        if not isinstance(error, OSError):
            return
        if isinstance(error, TimeoutError) and error.errno is None:
            error.args = (self._timed_out(what),)
        elif isinstance(error, gevent.ssl.SSLError) or error.errno is None:
            # These show nothing but their own text.
            add_note(error, f"while {what} {self._where()}")
        elif error.filename is None:
            # An OSError shows its filename behind its text.
            error.filename = self._where()

    def _timed_out(self, what: str) -> str:
        return f"{what} {self._where()} took longer than {self._timeout} s"

    def _not_open(self) -> ConnectionClosedError:
        return ConnectionClosedError(f"{self!r} is not open: discard() it, and acquire another one")
