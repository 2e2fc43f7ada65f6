"""What a pool asks, in the words of what answers: a connection's own class, or a connector.

A connection need not derive from :class:`~gsocketpool.Connection`. One that doesn't is asked what gsocketpool 0.1.6
asked (``open``, ``close``, ``is_connected``, ``is_expired``) and nothing else: a stand-in from a test answers anything
with something true, and what a class calls ``is_reusable`` may have nothing to do with pools.

Nothing here guards against what user code raises; the adapter and the core do.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Protocol

from gsocketpool._records import BY_ADAPTER, CONNECTED_ONLY, FOREIGN, REUSABLE, STREAM
from gsocketpool.connection import Connection, StreamConnection, TlsConnection, _sockets
from gsocketpool.connection.base import raw_connection
from gsocketpool.connectors import Connector

#: Asks a connection something, and takes a step with it.
Check = Callable[[Any], object]
Step = Callable[[Any], object]

#: Those is_usable() of ours that don't block.
_NON_BLOCKING = (Connection.is_usable, StreamConnection.is_usable, TlsConnection.is_usable)


class Steps(Protocol):
    """The steps in the life of a connection, whatever takes them."""

    #: Whether there is anything that :meth:`cancel` does.
    can_cancel: bool

    def choose_checks(self, connection: Any) -> tuple[Check | None, str]: ...
    def open_if_closed(self, connection: Any) -> None: ...
    def close(self, connection: Any) -> None: ...
    def abort(self, connection: Any) -> None: ...
    def cancel(self, connection: Any) -> None: ...
    def ping(self, connection: Any) -> None: ...
    def can_ping(self, connection: Any) -> bool: ...
    def is_usable_nowait(self, connection: Any) -> object: ...
    def is_alive(self, connection: Any) -> object: ...
    def can_peek(self, connection: Any) -> bool: ...
    def is_expired(self, connection: Any) -> object: ...
    def is_reusable(self, connection: Any, error: BaseException | None) -> object: ...
    def is_settled(self, connection: Any) -> object: ...
    def can_reset(self, connection: Any) -> bool: ...
    def can_reset_session(self, connection: Any) -> bool: ...
    def reset(self, connection: Any) -> None: ...
    def reset_session(self, connection: Any) -> None: ...
    def completion(self, connection: Any) -> Step | None: ...


class ConnectionSteps:
    """Asks the connections themselves."""

    can_cancel = False

    def choose_checks(self, connection: Any) -> tuple[Check | None, str]:
        """Return what asks an open connection whether it may be handed out, and how it is asked when it comes back.

        The former is None where it may block, and so takes a greenlet.
        """
        if not _is_ours(connection):
            return _unbound(connection, "is_connected"), FOREIGN
        check: Check | None
        if not any(_overrides(connection, step) for step in ("is_usable", "is_reusable", "get")):
            # There is nothing else to look at.
            check, mode = _unbound(connection, "is_connected"), CONNECTED_ONLY
        else:
            is_quick = _function(connection, "is_usable") in _NON_BLOCKING
            check = _unbound(connection, "is_usable") if is_quick else None
            is_stream = _function(connection, "is_reusable") is StreamConnection.is_reusable
            mode = STREAM if is_stream else REUSABLE
        return check, BY_ADAPTER if _settles(connection) else mode

    def open_if_closed(self, connection: Any) -> None:
        """Open what a subclass's ``_create_connection()`` has returned closed."""
        if not connection.is_connected():
            connection.open()

    def close(self, connection: Any) -> None:
        """Close a connection. Some classes insist on being open then; one that is not may still have a socket."""
        if connection.is_connected():
            connection.close()
        else:
            self.abort(connection)

    def abort(self, connection: Any) -> None:
        if _is_ours(connection):
            connection.abort()

    def cancel(self, connection: Any) -> None:
        pass

    def ping(self, connection: Any) -> None:
        if _is_ours(connection):
            connection.ping()

    def can_ping(self, connection: Any) -> bool:
        """Return whether a ping exchanges anything."""
        return _is_ours(connection) and _overrides(connection, "ping")

    def is_usable_nowait(self, connection: Any) -> object:
        """Ask by the check that no class can make block."""
        return Connection.is_usable(connection)

    def is_alive(self, connection: Any) -> object:
        if not connection.is_connected():
            return False
        return not self.can_peek(connection) or _sockets.is_silent(raw_connection(connection))

    def can_peek(self, connection: Any) -> bool:
        # A class with a check of its own may know better what being readable means.
        if not _is_ours(connection) or _function(connection, "is_usable") not in _NON_BLOCKING:
            return False
        return _sockets.can_peek(raw_connection(connection))

    def is_expired(self, connection: Any) -> object:
        return hasattr(connection, "is_expired") and connection.is_expired()

    def is_reusable(self, connection: Any, error: BaseException | None) -> object:
        if _is_ours(connection):
            return connection.is_reusable(error) is True
        return error is None and connection.is_connected()

    def is_settled(self, connection: Any) -> object:
        return not _settles(connection) or connection.is_settled()

    def can_reset(self, connection: Any) -> bool:
        return _settles(connection) and _overrides(connection, "reset")

    def can_reset_session(self, connection: Any) -> bool:
        return self.can_reset(connection) or (_settles(connection) and _overrides(connection, "reset_session"))

    def reset(self, connection: Any) -> None:
        connection.reset()

    def reset_session(self, connection: Any) -> None:
        connection.reset_session()

    def completion(self, connection: Any) -> Step | None:
        """Return what completes a block; None where there is nothing to complete."""
        has_one = _settles(connection) and _overrides(connection, "complete")
        return _unbound(connection, "complete") if has_one else None


class ConnectorSteps:
    """Asks a connector about the connections that it has made."""

    def __init__(self, connector: Connector[Any]) -> None:
        self._connector = connector
        self._can_reset = type(connector).reset is not Connector.reset
        self._can_reset_session = self._can_reset or type(connector).reset_session is not Connector.reset_session
        self.can_cancel = type(connector).cancel is not Connector.cancel
        self._can_ping = type(connector).ping is not Connector.ping
        self._peek_target = connector.peek_target
        # The same objects for all connections: a bound method would be one for each.
        self._check = self.is_alive
        self._complete = connector.complete if type(connector).complete is not Connector.complete else None
        self.cancel = connector.cancel
        self.close = connector.close
        self.abort = connector.abort
        self.ping = connector.ping
        self.is_reusable = connector.is_reusable
        self.is_settled = connector.is_settled
        self.reset = connector.reset
        self.reset_session = connector.reset_session

    def choose_checks(self, connection: Any) -> tuple[Check | None, str]:
        return self._check, BY_ADAPTER

    def open_if_closed(self, connection: Any) -> None:
        # connect() returns it open.
        pass

    def can_ping(self, connection: Any) -> bool:
        return self._can_ping

    def is_usable_nowait(self, connection: Any) -> object:
        return self.is_alive(connection)

    def is_alive(self, connection: Any) -> object:
        return _sockets.is_silent(self._peek_target(connection))

    def can_peek(self, connection: Any) -> bool:
        return _sockets.can_peek(self._peek_target(connection))

    def is_expired(self, connection: Any) -> object:
        return False

    def can_reset(self, connection: Any) -> bool:
        return self._can_reset

    def can_reset_session(self, connection: Any) -> bool:
        return self._can_reset_session

    def completion(self, connection: Any) -> Step | None:
        return self._complete


def _unbound(connection: Any, step: str) -> Check:
    """Return what asks a connection by a step. Its class has that once; a bound method would be one for each."""
    function = getattr(type(connection), step, None)
    if isinstance(function, FunctionType) and _function(connection, step) is function:
        return function
    check: Callable[[], object] = getattr(connection, step)
    return lambda _: check()


def open_new(connection: Any) -> None:
    """Open what a factory has returned. Only a real True counts as open: 0.1.6 opened whatever a factory made."""
    if connection.is_connected() is not True:
        connection.open()


def _is_ours(connection: Any) -> bool:
    # Not by isinstance(), which believes a stand-in that has this class for its specification.
    return issubclass(type(connection), Connection)


def _settles(connection: Any) -> bool:
    """Return whether a class can tell what is left open. Without that, a reset() of its own means something else."""
    return _is_ours(connection) and _overrides(connection, "is_settled")


def _overrides(connection: Connection, step: str) -> bool:
    return _function(connection, step) is not getattr(Connection, step)


def _function(connection: Connection, step: str) -> object:
    """Return the function that is called for a step; what the class has under that name, if it is no function."""
    in_class = getattr(type(connection), step, None)
    if not isinstance(in_class, FunctionType):
        # Looking at a property would run it.
        return in_class
    # Not by way of __dict__, which Python would have to make for the connection, for good.
    found = getattr(connection, step)
    return found.__func__ if getattr(found, "__self__", None) is connection else found
