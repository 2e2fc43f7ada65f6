"""The steps of a user's connection, asked so that no answer can do harm.

A connection need not derive from :class:`~gsocketpool.Connection`. One that doesn't is asked what gsocketpool 0.1.6
asked (``open``, ``close``, ``is_connected``, ``is_expired``) and nothing else: a stand-in from a test answers anything
with something true, and what a class calls ``is_reusable`` may have nothing to do with pools.
"""

from __future__ import annotations

import logging
from typing import Any

from gsocketpool._base import Connection
from gsocketpool.connection import StreamConnection

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


def is_usable(connection: Any, *, at_a_glance: bool = False) -> bool:
    """Whether an idle connection may be handed out, as it says itself, or by the check that no class can make block."""
    try:
        if not isinstance(connection, Connection):
            return bool(connection.is_connected())
        return bool(Connection.is_usable(connection) if at_a_glance else connection.is_usable())
    except Exception:
        logger.debug("%r failed its check", connection, exc_info=True)
        return False


def may_block_when_asked(connection: Any) -> bool:
    """Whether :func:`is_usable` runs code of the user's that is allowed to block."""
    if not isinstance(connection, Connection):
        return False
    return getattr(connection.is_usable, "__func__", None) not in _PROMPT


def is_reusable(connection: Any, error: BaseException | None) -> bool:
    """Whether a connection that comes back may be used again."""
    try:
        if isinstance(connection, Connection):
            return connection.is_reusable(error) is True
        return error is None and bool(connection.is_connected())
    except Exception:
        logger.warning("%r could not say whether it can be used again, and is closed", connection, exc_info=True)
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
        if isinstance(connection, Connection):
            connection.let_go()
    except Exception:
        logger.warning("%r could not be let go of", connection, exc_info=True)
