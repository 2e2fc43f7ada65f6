"""The one seam to user code: calls it, and guards the pool against its answers and errors.

The core itself runs the checks of every acquire and release, in a guard of its own, to save a call. This module chooses
those checks, once per connection, when it has been opened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final

import gevent
import gevent.ssl
from gevent.hub import Hub

from gsocketpool._records import BY_ADAPTER, IN_USE, STREAM, Entry
from gsocketpool._steps import Check, Step, Steps
from gsocketpool.connection import Connection, _sockets
from gsocketpool.exceptions import PoolError
from gsocketpool.settings import timer_seconds

logger = logging.getLogger("gsocketpool")

#: Exceptions that end a greenlet, and so are no error of the user code that let them through.
ENDS = (gevent.GreenletExit, KeyboardInterrupt, SystemExit)

#: Returns a context manager to enter around user code, or None to enter nothing.
Context = Callable[[], AbstractContextManager[object] | None]

#: The check before a connection is handed out, or None if it needs a greenlet; the return mode; what completes a block,
#: if anything; and whether it has a ping.
Checks = tuple[Check | None, str, Step | None, bool]

#: Returned by :meth:`Adapter.check_returned` if the connection may be kept after a reset. User code can't return it.
RESET: Final = object()


class Adapter:
    """Runs user code for one pool.

    :param context: returns the context manager to enter around user code; None for none.
    :param reset: when to reset a connection that comes back, as in :attr:`Settings.reset`.
    """

    def __init__(self, steps: Steps, context: Context | None, reset: str) -> None:
        self._steps = steps
        self.can_cancel = steps.can_cancel
        self._context = context
        self._reset = reset
        #: Whether the connections have a socket to peek at; None before the first was opened.
        self.can_peek: bool | None = None
        self._uses_tls = False
        #: The greenlets that run checks that may block.
        self._checking: set[gevent.Greenlet] = set()

    def in_context(self) -> AbstractContextManager[object]:
        """Return the context manager to enter around user code."""
        context = None if self._context is None else self._context()
        return nullcontext() if context is None else context

    def choose_checks(self, connection: Any) -> Checks:
        """Return the checks for an open connection."""
        check, mode = self._steps.choose_checks(connection)
        can_ping = self._steps.can_ping(connection)
        self._note_target(self._steps.peek_target(connection), connection)
        if self._context is None or (mode is STREAM and check is not None):
            # The built-in checks of a stream need no context.
            return check, mode, self._steps.completion(connection), can_ping
        complete = self._steps.completion(connection)
        return (
            None if check is None else partial(_check_in_context, self._context, check),
            BY_ADAPTER,
            None if complete is None else partial(self._call_in_context, complete, "complete()"),
            can_ping,
        )

    def _call_in_context(self, step: Step, what: str, connection: Any) -> None:
        """Call a step whose error must not get lost."""
        with self.in_context():
            step(connection)
            return
        raise PoolError(f"the pool's context has suppressed the error that {what} raised")

    def _note_target(self, target: object, connection: Any) -> None:
        is_first = self.can_peek is None
        self.can_peek = _sockets.can_peek(target)
        self._uses_tls = isinstance(target, gevent.ssl.SSLSocket)
        if is_first and not self.can_peek:
            logger.debug("%r has no socket to peek at: if it dies while idle, its next use will notice", connection)

    # Opening and closing

    def open_if_closed(self, connection: Any) -> None:
        """Open a connection that a subclass's ``_create_connection()`` returned closed."""
        self._steps.open_if_closed(connection)

    def close(self, connection: Any) -> None:
        """Close a connection. This may block and raise."""
        try:
            with self.in_context():
                self._steps.close(connection)
        finally:
            self.clear_tls_errors()

    def clear_tls_errors(self) -> None:
        """Clear what a connection that was discarded or closed may have left for others, if it used TLS."""
        if self._uses_tls:
            _sockets.clear_tls_errors()

    def cancel(self, connection: Any) -> None:
        """Cancel the server's work for a connection. This may block and raise."""
        with self.in_context():
            self._steps.cancel(connection)

    def abort(self, connection: Any) -> None:
        """Close a connection without a goodbye.

        It belongs to the parent process or to a thread that has ended, or it would not close.
        """
        try:
            self._steps.abort(connection)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # It does not switch, so nothing was thrown from outside. The caller has more connections to abort.
            if isinstance(gevent.getcurrent(), Hub):
                # Logging may switch, which the event loop's own greenlet can't do.
                gevent.spawn(logger.warning, "could not abort %r", connection, exc_info=error)
            else:
                logger.warning("could not abort %r", connection, exc_info=True)

    # Checking

    def ping(self, connection: Any) -> None:
        """Ping the backend. This may block and raise."""
        self._call_in_context(self._steps.ping, "ping()", connection)

    def ping_idle(self, connection: Any) -> bool | None:
        """Ping an idle connection, and complete what only the ping leaves open. This may block and raise.

        :return: whether the connection may be kept; None if it was dead before the ping.
        """
        with self.in_context():
            steps = self._steps
            if not steps.is_alive(connection):
                # Unread bytes would pass for the answer.
                return None
            # Without resets, a failed block may have left its transaction open.
            may_complete = self._reset != "never" or steps.is_settled(connection)
            steps.ping(connection)
            complete = steps.completion(connection)
            if complete is not None and may_complete:
                complete(connection)
            if not steps.is_reusable(connection, None):
                return False
            return self._reset == "never" or bool(steps.is_settled(connection))
        return False

    def is_usable(self, entry: Entry, seconds: float) -> bool:
        """Return whether a connection is good, by a check that may block for up to `seconds`.

        An error of the connection counts as False. What is thrown at the caller propagates.
        """
        if seconds > 0:
            return self._check_in_greenlet(entry, seconds)
        try:
            with self.in_context():
                # No time to block, as the check of the class may. A connector's checks never do.
                return Connection.is_usable(entry.connection)
        except Exception:
            logger.debug("%r failed its check", entry.connection, exc_info=True)
            return False

    def _check_in_greenlet(self, entry: Entry, seconds: float) -> bool:
        # In a greenlet, so that what is thrown at the caller can't be confused with what the connection raises.
        checking = gevent.spawn(self._check, entry)
        self._checking.add(checking)
        until = time.monotonic() + seconds
        try:
            # In a loop, because a libuv timer may fire early.
            while not checking.ready() and (left := until - time.monotonic()) > 0:
                checking.join(None if left == float("inf") else timer_seconds(left))
        finally:
            checking.kill(block=False)
            self._checking.discard(checking)
        return checking.value is True

    def stop_checks(self) -> None:
        """Kill the running checks; their connections count as bad."""
        for checking in list(self._checking):
            checking.kill(block=False)

    def _check(self, entry: Entry) -> bool:
        try:
            with self.in_context():
                # In a forked child this is a copy of the greenlet, and the connection belongs to the parent.
                return entry.status is IN_USE and bool(entry.connection.is_usable())
        except (Exception, gevent.Timeout):
            # The timeout is the connection's own: the pool throws none at this greenlet.
            logger.debug("%r failed its check", entry.connection, exc_info=True)
            return False

    def is_alive(self, connection: Any) -> bool:
        """Return whether an idle connection is open and has nothing to read. This makes no round trip."""
        try:
            with self.in_context():
                return bool(self._steps.is_alive(connection))
        except (Exception, gevent.Timeout):
            logger.debug("%r failed its check", connection, exc_info=True)
            return False

    def is_expired(self, connection: Any) -> bool:
        """Return whether an idle connection is expired by its own account. An error counts as True."""
        try:
            with self.in_context():
                return bool(self._steps.is_expired(connection))
        except (Exception, gevent.Timeout):
            logger.warning("checking whether %r is expired failed, so it is closed", connection, exc_info=True)
            return True

    # Coming back

    def check_returned(self, connection: Any, error: BaseException | None) -> object:
        """Return whether a connection that comes back may be kept: True, False or :data:`RESET`. This may raise."""
        if self._context is None:
            # Entering an empty context would take as long as the check.
            return self._check_returned(connection, error)
        with self.in_context():
            return self._check_returned(connection, error)
        return False

    def _check_returned(self, connection: Any, error: BaseException | None) -> object:
        steps, reset = self._steps, self._reset
        if not steps.is_reusable(connection, error):
            return False
        if reset == "never":
            return True
        if not steps.is_settled(connection):
            return RESET if steps.can_reset(connection) else False
        return RESET if reset == "always" and steps.can_reset_session(connection) else True

    def is_settled(self, connection: Any) -> bool:
        """Return whether nothing is left open. An error of the connection counts as False."""
        try:
            with self.in_context():
                return bool(self._steps.is_settled(connection))
        except (Exception, gevent.Timeout):
            pass
        return False

    def reset(self, connection: Any) -> bool:
        """Reset a connection and return whether it may be kept. This may block and raise."""
        with self.in_context():
            if not self._steps.is_settled(connection):
                self._steps.reset(connection)
            if self._reset == "always":
                self._steps.reset_session(connection)
            return bool(self._steps.is_reusable(connection, None)) and bool(self._steps.is_settled(connection))
        return False


def _check_in_context(context: Context, check: Callable[[Any], object], connection: Any) -> object:
    entered = context()
    if entered is None:
        return check(connection)
    with entered:
        return check(connection)
