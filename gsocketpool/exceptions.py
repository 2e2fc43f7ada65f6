"""The errors that this package raises by itself.

What a backend or a connection class raises, an ``OSError`` from :meth:`~gsocketpool.Connection.open` for one, is
passed on as it is and is not found here.
"""

from __future__ import annotations

import contextlib
import traceback


class PoolError(Exception):
    """The base of every error of this package."""


class InvalidArgumentError(PoolError, ValueError):
    """An argument has a value that can't be used."""

    def __init__(self, argument: str, given: object, allowed: str) -> None:
        super().__init__(argument, given, allowed)
        #: The name of the argument, or of the configuration key it was read from.
        self.argument = argument
        #: The value as it was given.
        self.given = given
        #: What would have been accepted, in words.
        self.allowed = allowed

    def __str__(self) -> str:
        return f"{self.argument} must be {self.allowed}, not {shown(self.given)}"


class PoolExhaustedError(PoolError):
    """No connection could be had in time, or the queue for one is full.

    The numbers are those of the moment at which the caller gave up. All of them are 0, or None, on an error that was
    made without them.
    """

    def __init__(
        self,
        message: str = "no connection could be had from the pool",
        *,
        in_use: int = 0,
        idle: int = 0,
        opening: int = 0,
        waiting: int = 0,
        max_connections: int | None = None,
        timeout: float | None = None,
        waited: float = 0.0,
        held_by_caller: int = 0,
        last_open_error: str | None = None,
        pool_name: str | None = None,
    ) -> None:
        super().__init__(message)
        #: Connections out of the pool.
        self.in_use = in_use
        #: Connections waiting to be used: seldom more than 0 here.
        self.idle = idle
        #: Connections on their way to be opened.
        self.opening = opening
        #: Other callers in the queue.
        self.waiting = waiting
        #: The limit on all connections together.
        self.max_connections = max_connections
        #: The seconds that the caller was ready to spend; None when there was no bound.
        self.timeout = timeout
        #: The seconds that the caller did spend.
        self.waited = waited
        #: How many of the connections in use were acquired by the very greenlet that asked for another one.
        self.held_by_caller = held_by_caller
        #: What the most recent failure to open a connection said; None when opening last succeeded.
        self.last_open_error = last_open_error
        #: The name of the pool.
        self.pool_name = pool_name


class PoolClosedError(PoolError):
    """The pool has been closed and hands out nothing any more."""


class PoolNotReadyError(PoolError):
    """:meth:`~gsocketpool.Pool.wait_ready` ran out of time before ``min_connections`` were open."""

    def __init__(
        self,
        message: str = "the pool is not ready",
        *,
        connections: int = 0,
        min_connections: int = 0,
        last_open_error: str | None = None,
    ) -> None:
        super().__init__(message)
        #: How many connections were open.
        self.connections = connections
        #: How many were asked for.
        self.min_connections = min_connections
        #: What the most recent failure to open a connection said; None when opening last succeeded.
        self.last_open_error = last_open_error


class WrongThreadError(PoolError, RuntimeError):
    """The pool is in use by another thread, whose event loop its sockets belong to."""


class ConnectionNotFoundError(PoolError):
    """The connection is not the pool's, or not in the state that was asked for."""


class ConnectionClosedError(PoolError, ConnectionError):
    """The connection is not open, or its stream has ended in the middle of what was to be read."""

    def __init__(self, message: str = "the connection is closed", partial: bytes = b"") -> None:
        super().__init__(message)
        #: The bytes that came before the stream ended.
        self.partial = partial


class LimitExceededError(PoolError):
    """No delimiter came within the number of bytes that the caller was ready to read."""

    def __init__(self, message: str = "the delimiter was not found", limit: int = 0) -> None:
        super().__init__(message)
        #: The greatest number of bytes that was allowed, the delimiter included.
        self.limit = limit


def shown(value: object) -> str:
    """Return what errors say of any value: an integer of thousands of digits, for one, has no repr()."""
    try:
        return repr(value)
    except Exception:
        return f"a value of type {type(value).__name__} that can't be shown"


def add_note(error: BaseException, note: str) -> None:
    """Add `note` to the traceback of an error that user code raised, once: it may raise the same one again."""
    # Its class may have something else under that name.
    with contextlib.suppress(Exception):
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def described(error: BaseException) -> str:
    """Return an error in one line, like the last line of a traceback."""
    return "; ".join(line.strip() for line in traceback.format_exception_only(error))
