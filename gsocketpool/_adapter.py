"""The one seam to user code: asks a connection, and guards against every answer and error.

A connection need not derive from :class:`~gsocketpool.Connection`. One that doesn't is asked what gsocketpool 0.1.6
asked (``open``, ``close``, ``is_connected``, ``is_expired``) and nothing else: a stand-in from a test answers anything
with something true, and what a class calls ``is_reusable`` may have nothing to do with pools.

What every acquire and release asks, the core asks by itself, inside a guard of its own: another call would cost too
much. This module chooses the question, once, when a connection has been opened.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import FunctionType
from typing import Any

import gevent

from gsocketpool._records import (
    CONNECTED_ONLY,
    FOREIGN,
    IN_CONTEXT,
    IN_USE,
    REUSABLE,
    STREAM,
    Entry,
)
from gsocketpool.connection import Connection, StreamConnection, TlsConnection, _sockets
from gsocketpool.connection.base import raw_connection
from gsocketpool.settings import timer_seconds

logger = logging.getLogger("gsocketpool")

#: Returns a context manager to enter around user code; None for nothing.
Context = Callable[[], AbstractContextManager[object] | None]

#: Those is_usable() of ours that don't block.
_NON_BLOCKING = (Connection.is_usable, StreamConnection.is_usable, TlsConnection.is_usable)


class Adapter:
    """Asks the connections of one pool.

    :param context: entered around everything that a connection is asked; None for nothing.
    """

    def __init__(self, context: Context | None) -> None:
        self._context = context
        #: The greenlets in which checks that may block are under way.
        self._asking: set[gevent.Greenlet] = set()

    def in_context(self) -> AbstractContextManager[object]:
        """Return the context manager to enter around user code."""
        context = None if self._context is None else self._context()
        return nullcontext() if context is None else context

    def how_to_ask(self, connection: Any) -> tuple[Callable[[Any], object] | None, str]:
        """Return how to ask an open connection: whether it may be handed out, and, as a mode, whether it may be kept.

        The former is None where it may block, and so takes a greenlet.
        """
        ask: Callable[[Any], object] | None
        if not is_ours(connection):
            ask, mode = _question(connection, "is_connected"), FOREIGN
        elif _overrides_no_check(connection):
            # There is nothing else to look at.
            ask, mode = _question(connection, "is_connected"), CONNECTED_ONLY
        else:
            is_quick = _function(connection, "is_usable") in _NON_BLOCKING
            ask = _question(connection, "is_usable") if is_quick else None
            is_stream = _function(connection, "is_reusable") is StreamConnection.is_reusable
            mode = STREAM if is_stream else REUSABLE
        if self._context is None or (mode is STREAM and ask is not None):
            # The checks of our own streams need no context.
            return ask, mode
        return None if ask is None else partial(_ask_in_context, self._context, ask), IN_CONTEXT

    # Opening and closing

    def open_if_closed(self, connection: Any) -> None:
        """Open what a subclass's ``_create_connection()`` has returned closed."""
        if not connection.is_connected():
            connection.open()

    def close_if_open(self, connection: Any) -> None:
        """Close a connection. Some classes insist on being open then; one that is not may still have a socket."""
        with self.in_context():
            if connection.is_connected():
                connection.close()
            else:
                self.abort(connection)

    def abort(self, connection: Any) -> None:
        """Close a connection without a goodbye: it is the parent process's, or would not close."""
        try:
            if is_ours(connection):
                connection.abort()
        except Exception:
            logger.warning("could not abort %r", connection, exc_info=True)

    # Checking

    def is_usable(self, entry: Entry, seconds: float) -> bool:
        """Return whether a connection whose check may block is good. The check takes `seconds` at most.

        What the connection raises counts as False. What is thrown at the caller meanwhile goes on.
        """
        if seconds > 0:
            return self._ask_in_greenlet(entry, seconds)
        try:
            with self.in_context():
                # Without time there is only the check that no class can make block.
                return Connection.is_usable(entry.connection)
        except Exception:
            logger.debug("%r failed its check", entry.connection, exc_info=True)
            return False

    def _ask_in_greenlet(self, entry: Entry, seconds: float) -> bool:
        # What is thrown at the caller is then never mistaken for what the connection raised, nor the other way round.
        asking = gevent.spawn(self._ask, entry)
        self._asking.add(asking)
        try:
            asking.join(None if seconds == float("inf") else timer_seconds(seconds))
        finally:
            asking.kill(block=False)
            self._asking.discard(asking)
        return asking.value is True

    def stop_asking(self) -> None:
        """Cut short the checks that are under way; their connections don't pass."""
        for asking in list(self._asking):
            asking.kill(block=False)

    def _ask(self, entry: Entry) -> bool:
        try:
            with self.in_context():
                # In a forked child, which has a copy of this greenlet, the connection is the parent's.
                return entry.status is IN_USE and bool(entry.connection.is_usable())
        except (Exception, gevent.Timeout):
            # A timeout is the connection's own, since the pool throws none at this greenlet.
            logger.debug("%r failed its check", entry.connection, exc_info=True)
            return False

    def is_reusable(self, connection: Any, error: BaseException | None) -> bool:
        """Return, inside of the context, whether a connection may be kept that comes back. It may raise."""
        with self.in_context():
            if is_ours(connection):
                return connection.is_reusable(error) is True
            return error is None and bool(connection.is_connected())

    def is_alive(self, connection: Any) -> bool:
        """Return whether an idle connection is open and silent. This never makes a round trip."""
        try:
            with self.in_context():
                if not connection.is_connected():
                    return False
                return not is_ours(connection) or _sockets.is_silent(raw_connection(connection))
        except (Exception, gevent.Timeout):
            logger.debug("%r failed its check", connection, exc_info=True)
            return False

    def is_expired(self, connection: Any) -> bool:
        """Return whether an idle connection says that it is too old. One that fails to say so is."""
        try:
            with self.in_context():
                return hasattr(connection, "is_expired") and bool(connection.is_expired())
        except (Exception, gevent.Timeout):
            logger.warning("%r could not say whether it is expired, and is closed", connection, exc_info=True)
            return True


def _ask_in_context(context: Context, ask: Callable[[Any], object], connection: Any) -> object:
    entered = context()
    if entered is None:
        return ask(connection)
    with entered:
        return ask(connection)


def _question(connection: Any, step: str) -> Callable[[Any], object]:
    """Return what asks a connection by a step. Its class has that once; a bound method would be one for each."""
    function = getattr(type(connection), step, None)
    if isinstance(function, FunctionType) and _function(connection, step) is function:
        return function
    ask: Callable[[], object] = getattr(connection, step)
    return lambda _: ask()


def open_what_was_made(connection: Any) -> None:
    """Open what a factory has returned. Only a real True counts as open: 0.1.6 opened whatever a factory made."""
    if connection.is_connected() is not True:
        connection.open()


def is_ours(connection: Any) -> bool:
    """Return whether a connection derives from Connection."""
    # Not by isinstance(), which believes a stand-in that has this class for its specification.
    return issubclass(type(connection), Connection)


def _overrides_no_check(connection: Connection) -> bool:
    steps = ("is_usable", "is_reusable", "get")
    return all(_function(connection, step) is getattr(Connection, step) for step in steps)


def _function(connection: Connection, step: str) -> object:
    """Return the function that is called for a step; what the class has under that name, if it is no function."""
    in_class = getattr(type(connection), step, None)
    if not isinstance(in_class, FunctionType):
        # Looking at a property would run it.
        return in_class
    # Not by way of __dict__, which Python would have to make for the connection, for good.
    found = getattr(connection, step)
    return found.__func__ if getattr(found, "__self__", None) is connection else found
