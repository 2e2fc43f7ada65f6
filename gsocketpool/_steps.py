"""The steps of a connection's life, carried out by its own class or by a connector.

A connection need not derive from :class:`~gsocketpool.Connection`. On one that doesn't, the pool calls only what
gsocketpool 0.1.6 called: ``open``, ``close``, ``is_connected`` and ``is_expired``. A mock returns something truthy from
any method, and an ``is_reusable`` of another class may have nothing to do with pools.

Nothing here guards against errors of user code; the adapter and the core do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, Protocol

from gsocketpool._records import BY_ADAPTER, CONNECTED_ONLY, FOREIGN, REUSABLE, STREAM
from gsocketpool.connection import Connection, StreamConnection, _sockets
from gsocketpool.connection.base import raw_connection
from gsocketpool.connectors import Connector
from gsocketpool.exceptions import InvalidArgumentError

#: Returns whether a connection is good, by its truth.
Check = Callable[[Any], object]
#: Does something with a connection.
Step = Callable[[Any], object]

#: The built-in is_usable() methods, none of which block.
_NON_BLOCKING = (Connection.is_usable, StreamConnection.is_usable)


class Steps(Protocol):
    """The steps in the life of a connection."""

    #: Whether :meth:`cancel` does anything.
    can_cancel: bool

    def choose_checks(self, connection: Any) -> tuple[Check | None, str]: ...
    def open_if_closed(self, connection: Any) -> None: ...
    def close(self, connection: Any) -> None: ...
    def abort(self, connection: Any) -> None: ...
    def cancel(self, connection: Any) -> None: ...
    def ping(self, connection: Any) -> None: ...
    def can_ping(self, connection: Any) -> bool: ...
    def is_alive(self, connection: Any) -> object: ...
    def peek_target(self, connection: Any) -> object: ...
    def is_expired(self, connection: Any) -> object: ...
    def is_reusable(self, connection: Any, error: BaseException | None) -> object: ...
    def is_settled(self, connection: Any) -> object: ...
    def can_reset(self, connection: Any) -> bool: ...
    def can_reset_session(self, connection: Any) -> bool: ...
    def reset(self, connection: Any) -> None: ...
    def reset_session(self, connection: Any) -> None: ...
    def completion(self, connection: Any) -> Step | None: ...


class ConnectionSteps:
    """Calls the connections themselves."""

    can_cancel = False

    def choose_checks(self, connection: Any) -> tuple[Check | None, str]:
        """Return the check before a connection is handed out, None if it may block, and the return mode."""
        if not _is_ours(connection):
            return _unbound(connection, "is_connected"), FOREIGN
        check: Check | None
        if not any(_overrides(connection, step) for step in ("is_usable", "is_reusable", "get")):
            # There is nothing else to check.
            check, mode = _unbound(connection, "is_connected"), CONNECTED_ONLY
        else:
            usable = _function(connection, "is_usable")
            check = _unbound(connection, "is_usable") if usable in _NON_BLOCKING else None
            mode = REUSABLE
            if _function(connection, "is_connected") is StreamConnection.is_connected:
                # Its answer is an attribute, which the fast ways read instead of calling it.
                if usable is StreamConnection.is_usable:
                    check = _unbound(connection, "_is_open_and_silent")
                if _function(connection, "is_reusable") is StreamConnection.is_reusable:
                    mode = STREAM
        return check, BY_ADAPTER if _settles(connection) else mode

    def open_if_closed(self, connection: Any) -> None:
        """Open a connection that a subclass's ``_create_connection()`` returned closed."""
        if not connection.is_connected():
            connection.open()

    def close(self, connection: Any) -> None:
        """Close a connection if it is open; otherwise abort it, because it may still have a socket.

        Some classes raise if a closed connection is closed again.
        """
        if connection.is_connected():
            connection.close()
        else:
            self.abort(connection)

    def abort(self, connection: Any) -> None:
        if _is_ours(connection):
            connection.abort()

    def cancel(self, connection: Any) -> None:  # pragma: no cover - can_cancel is False
        pass

    def ping(self, connection: Any) -> None:
        if _is_ours(connection):
            connection.ping()

    def can_ping(self, connection: Any) -> bool:
        """Return whether a ping exchanges anything."""
        return _is_ours(connection) and _overrides(connection, "ping")

    def is_alive(self, connection: Any) -> object:
        return connection.is_connected() and _sockets.is_silent(self.peek_target(connection))

    def peek_target(self, connection: Any) -> object:
        # For a class with a check of its own, a readable socket may be normal.
        if not _is_ours(connection) or _function(connection, "is_usable") not in _NON_BLOCKING:
            return None
        return raw_connection(connection)

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
        """Return the step that completes a block; None if there is nothing to complete."""
        has_one = _settles(connection) and _overrides(connection, "complete")
        return _unbound(connection, "complete") if has_one else None


class ConnectorSteps:
    """Calls the connector that made the connections."""

    def __init__(self, connector: Connector[Any]) -> None:
        self._connector = connector
        self._can_reset = type(connector).reset is not Connector.reset
        self._can_reset_session = self._can_reset or type(connector).reset_session is not Connector.reset_session
        self.can_cancel = type(connector).cancel is not Connector.cancel
        self._can_ping = type(connector).ping is not Connector.ping
        self.peek_target = connector.peek_target
        # Bound once, to save an object per connection.
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
        # connect() returns an open client.
        pass

    def can_ping(self, connection: Any) -> bool:
        return self._can_ping

    def is_alive(self, connection: Any) -> object:
        return _sockets.is_silent(self.peek_target(connection))

    def is_expired(self, connection: Any) -> object:
        return False

    def can_reset(self, connection: Any) -> bool:
        return self._can_reset

    def can_reset_session(self, connection: Any) -> bool:
        return self._can_reset_session

    def completion(self, connection: Any) -> Step | None:
        return self._complete


def steps_for(factory: object, options: object) -> Steps:
    """Return the steps for the connections of a factory or connector.

    :raises InvalidArgumentError: if a pool can't use the factory, or not with these options.
    """
    if isinstance(factory, type) and issubclass(factory, Connector):
        raise InvalidArgumentError("factory", factory, "an instance of a connector, not its class")
    if isinstance(factory, Connector):
        if options is not None:
            raise InvalidArgumentError("options", type(options), "left out for a connector, which has its own")
        return ConnectorSteps(factory)
    if not callable(factory):
        raise InvalidArgumentError("factory", factory, "a Connection class, a callable or a Connector")
    if options is not None and not isinstance(options, Mapping) and not callable(options):
        allowed = "a mapping of keyword arguments or a callable that returns one"
        raise InvalidArgumentError("options", type(options), allowed)
    return ConnectionSteps()


def _unbound(connection: Any, step: str) -> Check:
    """Return a function that calls a method of the connection it gets.

    This is the class's own function if possible, which saves a bound method per connection.
    """
    function = getattr(type(connection), step, None)
    if isinstance(function, FunctionType) and _function(connection, step) is function:
        return function
    check: Callable[[], object] = getattr(connection, step)
    return lambda _: check()


def open_new(connection: Any) -> None:
    """Open a connection from a factory, unless it says that it is open.

    Only ``True`` counts: 0.1.6 opened whatever a factory returned, mocks included.
    """
    if connection.is_connected() is not True:
        connection.open()


def _is_ours(connection: Any) -> bool:
    # Not by isinstance(), which a mock with this class as its spec would pass.
    return issubclass(type(connection), Connection)


def _settles(connection: Any) -> bool:
    """Return whether a class can tell what is left open. Otherwise its reset() may mean something else."""
    return _is_ours(connection) and _overrides(connection, "is_settled")


def _overrides(connection: Connection, step: str) -> bool:
    return _function(connection, step) is not getattr(Connection, step)


def _function(connection: Connection, step: str) -> object:
    """Return the function that a method call runs; the class's attribute if that is no function."""
    in_class = getattr(type(connection), step, None)
    if not isinstance(in_class, FunctionType):
        # Reading a property from the connection would run it.
        return in_class
    # Not through __dict__, which Python would create for the connection and keep.
    found = getattr(connection, step)
    return found.__func__ if getattr(found, "__self__", None) is connection else found
