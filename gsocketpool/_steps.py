"""The steps of a user's connection, asked so that no answer can do harm.

A connection need not derive from :class:`~gsocketpool.Connection`. One that doesn't is asked what gsocketpool 0.1.6
asked (``open``, ``close``, ``is_connected``, ``is_expired``) and nothing else: a stand-in from a test answers anything
with something true, and what a class calls ``is_reusable`` may have nothing to do with pools.
"""

from __future__ import annotations

import logging
from types import FunctionType
from typing import Any

from gsocketpool._base import Connection
from gsocketpool._entry import ASIDE, PLAINLY, PROMPTLY
from gsocketpool._stream import StreamConnection

logger = logging.getLogger("gsocketpool")

#: The answers to is_usable() that are known not to block.
_PROMPT = (Connection.is_usable, StreamConnection.is_usable)


def open_what_was_made(connection: Any) -> None:
    """Opens what a factory returned."""
    # Only a real True counts as open: 0.1.6 opened whatever a factory made.
    if connection.is_connected() is not True:
        connection.open()


def open_if_closed(connection: Any) -> None:
    if not connection.is_connected():
        connection.open()


def close_if_open(connection: Any) -> None:
    # Some classes assert that they are open when they are closed. One that is not may still have a socket.
    if connection.is_connected():
        connection.close()
    else:
        let_go(connection)


def how_to_ask(connection: Any) -> str:
    """In which of the ways of :class:`~gsocketpool._entry.Entry` a connection is asked whether it is still good."""
    if not _is_ours(connection):
        return PLAINLY
    if all(_function(connection, step) is getattr(Connection, step) for step in ("is_usable", "is_reusable", "get")):
        # There is nothing else to look at.
        return PLAINLY
    return PROMPTLY if _function(connection, "is_usable") in _PROMPT else ASIDE


def _is_ours(connection: Any) -> bool:
    # Not by isinstance(), which believes a stand-in that has this class for its specification.
    return issubclass(type(connection), Connection)


def _function(connection: Connection, step: str) -> object:
    """What is called for a step; whatever the class has under that name, if it is no function."""
    in_class = getattr(type(connection), step, None)
    if not isinstance(in_class, FunctionType):
        # Looking at a property would run it.
        return in_class
    # Not by way of __dict__, which Python would have to make for the connection, for good.
    found = getattr(connection, step)
    return found.__func__ if getattr(found, "__self__", None) is connection else found


def looks_usable(connection: Connection) -> bool:
    """Whether an idle connection may be handed out, by the check that no class can make block."""
    try:
        return Connection.is_usable(connection)
    except Exception:
        logger.debug("%r failed its check", connection, exc_info=True)
        return False


def is_expired(connection: Any) -> bool:
    """Whether an idle connection says that it is too old."""
    if not hasattr(connection, "is_expired"):
        return False
    try:
        return bool(connection.is_expired())
    except Exception:
        logger.warning("%r could not say whether it is expired, and is closed", connection, exc_info=True)
        return True


def let_go(connection: Any) -> None:
    """Lets go of what belongs to the parent process, or of what would not close."""
    try:
        if _is_ours(connection):
            connection.let_go()
    except Exception:
        logger.warning("%r could not be let go of", connection, exc_info=True)
