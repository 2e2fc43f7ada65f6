"""The errors that this package raises.

Errors of a backend or a connection class, such as an ``OSError`` from :meth:`~gsocketpool.Connection.open`, are passed
on unchanged.
"""

from __future__ import annotations

import contextlib
import traceback


class PoolError(Exception):
    """The base class of every error of this package."""


class InvalidArgumentError(PoolError, ValueError):
    """An argument has a value that can't be used."""

    def __init__(self, argument: str, given: object, allowed: str) -> None:
        super().__init__(argument, given, allowed)
        #: The name of the argument or configuration key.
        self.argument = argument
        #: The value that was given.
        self.given = given
        #: What is allowed, in words.
        self.allowed = allowed

    def __str__(self) -> str:
        return f"{self.argument} must be {self.allowed}, not {shown(self.given)}"


class PoolExhaustedError(PoolError):
    """No connection was available in time, or the queue is full.

    The attributes describe the pool when the caller gave up. Each is 0 or None if the error was made without it.
    """

    def __init__(
        self,
        message: str = "the pool has no connection available",
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
        #: Connections that callers hold.
        self.in_use = in_use
        #: Idle connections, rarely more than 0 here.
        self.idle = idle
        #: Connections being opened.
        self.opening = opening
        #: Other callers in the queue.
        self.waiting = waiting
        #: The limit on all connections together.
        self.max_connections = max_connections
        #: The caller's timeout in seconds; None for no limit.
        self.timeout = timeout
        #: Seconds that the caller waited.
        self.waited = waited
        #: How many of the connections in use the calling greenlet itself holds.
        self.held_by_caller = held_by_caller
        #: The last open error in words; None if the last opening succeeded.
        self.last_open_error = last_open_error
        #: The pool's name.
        self.pool_name = pool_name


class PoolClosedError(PoolError):
    """The pool is closed and hands out no more connections."""


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
        #: How many the pool should keep open.
        self.min_connections = min_connections
        #: The last open error in words; None if the last opening succeeded.
        self.last_open_error = last_open_error


class WrongThreadError(PoolError, RuntimeError):
    """The pool belongs to another thread and its event loop."""


class ConnectionNotFoundError(PoolError):
    """The connection is not this pool's, or not in the state that the call requires."""


class ConnectionClosedError(PoolError, ConnectionError):
    """The connection is not open, or its stream ended in the middle of a read."""

    def __init__(self, message: str = "the connection is closed", partial: bytes = b"") -> None:
        super().__init__(message)
        #: The bytes that came before the stream ended.
        self.partial = partial


class LimitExceededError(PoolError):
    """No delimiter came within the limit of :meth:`~gsocketpool.StreamConnection.recv_until`."""

    def __init__(self, message: str = "the delimiter was not found", limit: int = 0) -> None:
        super().__init__(message)
        #: The limit in bytes, delimiter included.
        self.limit = limit


def shown(value: object) -> str:
    """Return the repr() of a value, or a substitute if it has none, like an integer of thousands of digits."""
    try:
        return repr(value)
    except Exception:
        return f"a value of type {type(value).__name__} that can't be shown"


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error that user code raised, unless it is there: user code may raise the same object again."""
    # The class may define these names in another way.
    with contextlib.suppress(Exception):
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def described(error: BaseException) -> str:
    """Return an error in one line, like the last line of a traceback."""
    return "; ".join(line.strip() for line in traceback.format_exception_only(error))
