"""The base class for connectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from gsocketpool.connection import _sockets

C = TypeVar("C")

#: Seconds that a cancellation may take.
CANCEL_TIMEOUT = 2.0


class Connector(ABC, Generic[C]):
    """Lets a pool handle the connections of a client library that knows nothing of pools: ``Pool(MyConnector())``.

    The pool hands out the client's own objects, without a proxy. A subclass defines :meth:`connect` and
    :meth:`is_settled`; the other methods have defaults that suit most clients. Any method may raise; the pool then
    discards the connection. The pool looks up once which methods a class overrides.

    When a connection comes back, the pool first calls :meth:`is_reusable`, and discards the connection if that returns
    False. Then it calls :meth:`is_settled`. If something is left open, a greenlet of the pool calls :meth:`reset`
    before the next caller gets the connection.
    """

    @abstractmethod
    def connect(self) -> C:
        """Return an open client. It may block, within ``open_timeout``."""

    @abstractmethod
    def is_settled(self, connection: C) -> bool:
        """Return whether nothing is left open that :meth:`reset` would end, such as a transaction. It must not block.

        A connector that can't tell returns False; without a :meth:`reset`, each of its connections is used only once.
        """

    def complete(self, connection: C) -> None:
        """Complete the work of a block that ends well, by a COMMIT for instance. It may block, in the caller.

        An error leaves the block, and the pool discards the connection. ``release()`` without a block completes
        nothing. By default there is nothing to complete.
        """

    def reset(self, connection: C) -> None:
        """Make an unsettled connection settled, by a ROLLBACK for instance. It may block, within ``reset_timeout``.

        If a connector does not override it, the pool discards its unsettled connections.
        """
        raise NotImplementedError(f"{type(self).__name__} has no reset()")

    def reset_session(self, connection: C) -> None:
        """Reset session state that outlives a transaction, such as settings, locks and temporary tables.

        A pool with ``reset="always"`` calls it after each use, once the connection is settled. It may block, within
        ``reset_timeout``. By default this is :meth:`reset`.
        """
        self.reset(connection)

    def is_reusable(self, connection: C, error: BaseException | None) -> bool:
        """Return whether the pool may keep a connection that comes back. It must not block.

        A connection in the middle of an exchange is never reusable: if a reply is unread, a query is running or a
        subscription is active, the next user would read messages meant for this one. By default a connection is
        reusable if no error has left the block.

        :param error: the exception that left the block; None if the block ended well or ``release()`` was called.
        """
        return error is None

    def peek_target(self, connection: C) -> Any:
        """Return the socket or descriptor that shows whether an idle connection is alive. It must not block.

        An idle connection whose socket is readable is dead or out of step with its server. Return None if a readable
        socket is normal, as for a client that receives messages at any time. By default this is the client itself if it
        is a socket, or its ``fileno()`` if it has one. If the client uses TLS, return the socket, because TLS sends
        records of its own.
        """
        if _sockets.is_socket(connection):
            return connection
        fileno = getattr(connection, "fileno", None)
        return fileno() if callable(fileno) else None

    def close(self, connection: C) -> None:
        """Close a connection, with a goodbye if the protocol has one. It may block, within ``close_timeout``."""
        connection.close()  # type: ignore[attr-defined]

    def abort(self, connection: C) -> None:
        """Cut a connection off without a goodbye. It must neither block nor send anything.

        The pool calls it, perhaps more than once, in a forked child, where the connection belongs to the parent; when
        :meth:`close` fails or takes too long; and when the thread of the pool ends. By default this replaces the
        descriptor of :meth:`peek_target` by one of the null device. The client object does not change, and closing it
        later can't close a descriptor of another object.
        """
        _sockets.replace(self.peek_target(connection))

    def cancel(self, connection: C) -> None:
        """Cancel the server's work for a connection, before :meth:`close`. It may block, for up to 2 s.

        The pool calls it in a greenlet of its own, for connections that are discarded while in use or being reset. An
        error has no effect. By default there is nothing to cancel.
        """

    def ping(self, connection: C) -> None:
        """Make a cheap round trip to the server, and raise if it fails. It may block, within ``ping_timeout``.

        Health checks call it, to detect a server that accepts connections but does not answer. ``keepalive_interval``
        calls it between two uses. By default this does nothing.
        """
