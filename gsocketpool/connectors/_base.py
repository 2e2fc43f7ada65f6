"""What a pool asks of a client library: the class to derive from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from gsocketpool.connection import _sockets

C = TypeVar("C")

#: How long a cancellation may take, in seconds.
CANCEL_TIMEOUT = 2.0


class Connector(ABC, Generic[C]):
    """Teaches a pool to handle the connections of a client library that knows nothing of pools.

    The pool hands out the client's own objects, without a proxy: ``Pool(MyConnector())``. A subclass defines
    :meth:`connect` and :meth:`is_settled`; the other steps have defaults that suit most clients. Every step may raise;
    the pool then takes the safe way, and discards the connection. Which steps a class overrides is looked up once.

    When a connection comes back, the pool asks :meth:`is_reusable` first, and discards the connection if the answer is
    False. Then it asks :meth:`is_settled`: if something is left open, :meth:`reset` mends that in a greenlet of the
    pool's own before the next caller gets the connection.
    """

    @abstractmethod
    def connect(self) -> C:
        """Return an open client. It may block, within ``open_timeout``."""

    @abstractmethod
    def is_settled(self, connection: C) -> bool:
        """Return whether nothing is left open that :meth:`reset` would mend, such as a transaction. It must not block.

        A connector that can't tell returns False; without a :meth:`reset`, its connections are then used once.
        """

    def complete(self, connection: C) -> None:
        """Complete what a block has done, when it ends well: a COMMIT, for instance. It may block, in the caller.

        What it raises leaves the block, and the connection is discarded. ``release()`` without a block does not
        complete anything. By default there is nothing to complete.
        """

    def reset(self, connection: C) -> None:
        """Make an unsettled connection settled: a ROLLBACK, for instance. It may block, within ``reset_timeout``.

        A connector that does not override it has its unsettled connections discarded.
        """
        raise NotImplementedError(f"{type(self).__name__} has no reset()")

    def reset_session(self, connection: C) -> None:
        """End what outlives a transaction: settings, locks, temporary tables. It may block, within ``reset_timeout``.

        A pool with ``reset="always"`` calls it after each use of a settled connection. By default this is
        :meth:`reset`.
        """
        self.reset(connection)

    def is_reusable(self, connection: C, error: BaseException | None) -> bool:
        """Return whether the pool may keep a connection that comes back. It must not block.

        A connection in the middle of an exchange is never reusable: with a reply unread, a query that runs, or a
        subscription, the next user would read what was meant for this one. By default a connection is reusable if no
        error has left the block.

        :param error: the exception that left the block; None if the block ended well or ``release()`` was called.
        """
        return error is None

    def peek_target(self, connection: C) -> Any:
        """Return the socket or the descriptor that shows whether an idle connection is alive. It must not block.

        An idle connection whose socket can be read is dead or out of step. Return None if being readable means nothing,
        as with a client that gets messages at any time. By default this is the client if it is a socket, or its
        ``fileno()`` if it has one. Return the socket itself if the client uses TLS, which sends records of its own.
        """
        if _sockets.is_socket(connection):
            return connection
        fileno = getattr(connection, "fileno", None)
        return fileno() if callable(fileno) else None

    def close(self, connection: C) -> None:
        """Close a connection, with a goodbye if the protocol has one. It may block, within ``close_timeout``."""
        connection.close()  # type: ignore[attr-defined]

    def abort(self, connection: C) -> None:
        """Cut a connection off without a goodbye. It must not block, nor send anything.

        The pool calls this in a forked child, since the connection is the parent's there, and where :meth:`close` was
        not enough. It may do so more than once. By default another file takes the place of the descriptor of
        :meth:`peek_target`; the client's object stays as it is, and never closes a descriptor that belongs to another
        object.
        """
        _sockets.replace(self.peek_target(connection))

    def cancel(self, connection: C) -> None:
        """Cancel what the server still does for a connection, before :meth:`close`. It may block, for 2 s at most.

        The pool calls this in a greenlet of its own, for connections that are discarded while in use or being reset.
        What it raises does no harm. By default there is nothing to cancel.
        """

    def ping(self, connection: C) -> None:
        """Exchange something cheap with the server, and raise if that fails. It may block, within ``ping_timeout``.

        Health checks use it, so that a backend that accepts connections and answers nothing is not healthy. So does
        ``keepalive_interval``, between two uses. By default nothing is exchanged.
        """
