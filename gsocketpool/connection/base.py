"""The base class for connections."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from gsocketpool.connection import _sockets

logger: logging.Logger = logging.getLogger("gsocketpool")


class Connection:
    """Base class for a connection to a backend. A subclass implements a protocol.

    A subclass defines :meth:`open`, :meth:`close` and :meth:`is_connected`, and :meth:`get` if it has a socket. The
    other methods have defaults that suit most protocols. Any method may raise; the pool then discards the connection.
    The pool looks up once per connection, when it is open, which methods its class overrides.
    """

    #: How many exchanges have begun and have not completed: those in progress and those that have failed.
    _unfinished_exchanges = 0
    #: How many of them have failed.
    _failed_exchanges = 0

    def open(self) -> None:
        """Connect, and log in if the protocol requires it. It may block, within ``open_timeout``, and raise.

        The pool calls it in a greenlet of its own.
        """
        raise NotImplementedError(f"{type(self).__name__} has no open()")

    def close(self) -> None:
        """Say goodbye if the protocol requires it, and disconnect. It may block, within ``close_timeout``.

        The pool calls this only if :meth:`is_connected` returns True.
        """
        raise NotImplementedError(f"{type(self).__name__} has no close()")

    def get(self) -> Any:
        """Return the raw connection: a socket, a descriptor or a wrapped client object.

        The default methods use a socket or descriptor to check whether the connection is good, and to abort it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no get()")

    def is_connected(self) -> bool:
        """Return whether the connection is open, as far as this object knows. It must not block.

        The pool calls it whenever the connection is acquired or released.
        """
        raise NotImplementedError(f"{type(self).__name__} has no is_connected()")

    def is_expired(self) -> bool:
        """Return whether the connection is too old to keep: False by default. It must not block.

        Only the reaper calls this, on idle connections, so the pool may hand out an expired connection before the next
        sweep. For a limit that always holds, use the pool's ``max_lifetime``.
        """
        return False

    def is_usable(self) -> bool:
        """Return whether the connection may be handed out. It may block, within the time of the acquire.

        By default an open connection is usable if its socket has nothing to read: anything readable would be the end of
        the stream, or bytes that the caller did not ask for. This costs one system call and no switch. Override it to
        check more, by a ping for instance. An error counts as False. An acquire that must not wait uses the default.
        """
        return bool(self.is_connected()) and _sockets.is_silent(raw_connection(self))

    def is_reusable(self, error: BaseException | None) -> bool:
        """Return whether the pool may keep the connection when it comes back. It must not block.

        By default it may if it is open, `error` is None, and every :meth:`exchange` has completed. An override must
        return True itself: the pool discards the connection after any other answer.

        :param error: the exception that left the block ``with pool.connection()``; None if the block ended well or
            :meth:`Pool.release() <gsocketpool.Pool.release>` was called. An interrupted exchange may be half done, so
            return True for an error only if the class knows that the exchange is complete.
        """
        return error is None and not self._unfinished_exchanges and bool(self.is_connected())

    def is_settled(self) -> bool:
        """Return whether nothing is left open that :meth:`reset` would end, such as a transaction. It must not block.

        The pool calls it on reusable connections, if the class overrides it. By default every connection is settled.
        Only in a class that overrides this does the pool call :meth:`complete`, :meth:`reset` and
        :meth:`reset_session`: in an older class, methods of these names may mean something else.
        """
        return True

    def reset(self) -> None:
        """Make an unsettled connection settled. It may block, within ``reset_timeout``.

        The pool calls it in a greenlet of its own, and only if the class also overrides :meth:`is_settled`. If a class
        does not override this, the pool discards its unsettled connections.
        """
        raise NotImplementedError(f"{type(self).__name__} has no reset()")

    def reset_session(self) -> None:
        """Reset session state that outlives a transaction, such as settings and locks.

        A pool with ``reset="always"`` calls it after each use, once the connection is settled, if the class also
        overrides :meth:`is_settled`. It may block, within ``reset_timeout``. By default this is :meth:`reset`.
        """
        self.reset()

    def complete(self) -> None:
        """Complete the work of a block that ends well, by a COMMIT for instance. It may block, in the caller.

        The pool calls it only if the class also overrides :meth:`is_settled`. An error leaves the block, and the pool
        discards the connection. By default there is nothing to complete.
        """

    def ping(self) -> None:
        """Make a cheap round trip to the backend, and raise if it fails. It may block, within ``ping_timeout``.

        Health checks call it, and so does ``keepalive_interval`` between two uses. By default this does nothing.
        """

    def exchange(self) -> AbstractContextManager[None]:
        """Return a context manager for one exchange, from the request to the end of the reply.

        If an exception leaves the exchange, the connection is not reusable, even if user code catches the exception in
        the pool's block. Nor is it reusable while an exchange is in progress. Use it in every method that talks to the
        backend through another client::

            def ask(self, path):
                with self.exchange():
                    self.client.request("GET", path)
                    return self.client.getresponse().read()
        """
        return _Exchange(self)

    def abort(self) -> None:
        """Close the connection without a goodbye. It must neither block nor send anything.

        The pool calls it in a forked child, where the connection belongs to the parent; when :meth:`close` fails or
        takes too long; instead of :meth:`close` if :meth:`is_connected` returns False, because there may still be a
        socket; and when the thread of the pool ends. By default this closes the socket's descriptor without a shutdown,
        which a parent does not notice.
        """
        _sockets.abort(raw_connection(self))

    def reconnect(self) -> None:
        """Close the connection if it is open, and open it again. A failure is only logged; see :meth:`is_connected`."""
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
        else:
            self._connection._failed_exchanges += 1


def raw_connection(connection: Connection) -> Any:
    """Return what ``get()`` returns; None if the class does not override it, or it raises."""
    if type(connection).get is Connection.get:
        return None
    try:
        return connection.get()
    except Exception:
        return None
