"""What a pool asks of a connection: the class to derive from."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from gsocketpool.connection import _sockets

logger = logging.getLogger("gsocketpool")


class Connection:
    """A connection to some backend. Derive from it to teach a pool a protocol.

    A subclass defines :meth:`open`, :meth:`close` and :meth:`is_connected`, and :meth:`get` if there is a socket to
    look at. The other methods have defaults that suit most protocols. Every method may raise; the pool then takes the
    safe way. Which of them a class overrides is looked up once, when a connection has been opened.
    """

    #: How many exchanges have begun and not ended well.
    _unfinished_exchanges = 0

    def open(self) -> None:
        """Connect, and log in if the protocol asks for it. It may block; raise an error if it fails.

        The pool calls it in a greenlet of its own and bounds it by ``open_timeout``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no open()")

    def close(self) -> None:
        """Say goodbye if the protocol asks for it, and disconnect. It may block, for ``close_timeout`` at most.

        The pool asks :meth:`is_connected` before it calls this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no close()")

    def get(self) -> Any:
        """Return the raw connection: a socket, or the client object that is wrapped.

        If it is a socket or a descriptor, the defaults use it to see whether the connection is still good, and to abort
        it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no get()")

    def is_connected(self) -> bool:
        """Return whether the connection is open, from what this object knows. It must not block.

        The pool asks this whenever the connection is acquired or released.
        """
        raise NotImplementedError(f"{type(self).__name__} has no is_connected()")

    def is_expired(self) -> bool:
        """Return whether the connection is too old to be kept: False by default. It must not block.

        Only the reaper asks this, of idle connections: until then the pool may hand out an expired connection. Use the
        pool's ``max_lifetime`` for a limit that always holds.
        """
        return False

    def is_usable(self) -> bool:
        """Return whether the connection may be handed out. It may block, within the time of the acquire.

        By default an open connection is usable if its socket has nothing to read: that would be the end of the stream
        or bytes that the caller did not ask for. This costs one system call and no switch. Override it where that isn't
        enough, to send a ping for instance; an error counts as False. An acquire that must not wait uses the default.
        """
        return self.is_connected() and _sockets.is_silent(raw_connection(self))

    def is_reusable(self, error: BaseException | None) -> bool:
        """Return whether the pool may keep the connection when it comes back. It must not block.

        By default it may if it is open, `error` is None, and every :meth:`exchange` has ended well.

        :param error: the exception that left the block ``with pool.connection()``; None if the block ended well or
            :meth:`Pool.release() <gsocketpool.Pool.release>` was called. An interrupted exchange may be half done, so
            only a class that knows the exchange to be complete should answer True to an error.
        """
        return error is None and not self._unfinished_exchanges and self.is_connected()

    def is_settled(self) -> bool:
        """Return whether nothing is left open that :meth:`reset` would mend, such as a transaction. It must not block.

        The pool asks this of a reusable connection, if the class overrides it. By default every connection is settled.
        """
        return True

    def reset(self) -> None:
        """Make an unsettled connection settled. It may block, within ``reset_timeout``.

        The pool calls it in a greenlet of its own. A class that does not override it has its unsettled connections
        discarded.
        """
        raise NotImplementedError(f"{type(self).__name__} has no reset()")

    def reset_session(self) -> None:
        """End what outlives a transaction: settings, locks. It may block, within ``reset_timeout``.

        A pool with ``reset="always"`` calls it after each use of a settled connection. By default this is
        :meth:`reset`.
        """
        self.reset()

    def complete(self) -> None:
        """Complete what a block has done, when it ends well: a COMMIT, for instance. It may block, in the caller.

        What it raises leaves the block, and the connection is discarded. By default there is nothing to complete.
        """

    def ping(self) -> None:
        """Exchange something cheap with the backend, and raise if that fails. It may block, within ``ping_timeout``.

        Health checks use it, and so does ``keepalive_interval``, between two uses. By default nothing is exchanged.
        """

    def exchange(self) -> AbstractContextManager[None]:
        """Return a context manager for one exchange, from its request to the end of its reply.

        A connection is not reusable after an exchange that an exception has left, also if the exception is caught
        inside the block of the pool, nor while an exchange still goes on. Use it in every method that talks to the
        backend through a client of its own::

            def ask(self, path):
                with self.exchange():
                    self.client.request("GET", path)
                    return self.client.getresponse().read()
        """
        return _Exchange(self)

    def abort(self) -> None:
        """Close the connection without a goodbye. It must not block, nor send anything.

        The pool calls this in a forked child, since the connection is the parent's there, and where :meth:`close` was
        not enough. By default the socket's descriptor is closed, without a shutdown, which a parent can't notice.
        """
        _sockets.abort(raw_connection(self))

    def reconnect(self) -> None:
        """Close the connection if it is open, and open it again. A failure is logged; ask :meth:`is_connected`."""
        try:
            if self.is_connected():
                self.close()
            self.open()
        except Exception:
            logger.exception("could not reconnect %r", self)


class _Exchange:
    """One exchange of a connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection._unfinished_exchanges += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._connection._unfinished_exchanges -= 1


def raw_connection(connection: Connection) -> Any:
    """Return what ``get()`` returns; None where a class has none to give."""
    if type(connection).get is Connection.get:
        return None
    try:
        return connection.get()
    except Exception:
        return None
