"""The one seam to user code: asks a connection, and guards against every answer and error.

What every acquire and release asks, the core asks by itself, inside a guard of its own: another call would cost too
much. This module chooses the question, once, when a connection has been opened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final

import gevent

from gsocketpool._records import BY_ADAPTER, IN_USE, STREAM, Entry
from gsocketpool._steps import Check, Step, Steps
from gsocketpool.exceptions import PoolError
from gsocketpool.settings import timer_seconds

logger = logging.getLogger("gsocketpool")

#: What ends a greenlet, and is not taken for the error of a step that has raised it.
ENDS = (gevent.GreenletExit, KeyboardInterrupt, SystemExit)

#: Returns a context manager to enter around user code; None for nothing.
Context = Callable[[], AbstractContextManager[object] | None]

#: How a connection is asked: whether it may be handed out; how, when it comes back; what completes a block; and whether
#: it can be pinged.
Checks = tuple[Check | None, str, Step | None, bool]

#: The answer of a connection that may be kept once it was reset. No connection can answer it by itself.
RESET: Final = object()


class Adapter:
    """Asks the connections of one pool.

    :param context: entered around everything that a connection is asked; None for nothing.
    :param reset: when a connection that comes back is reset, as :attr:`Settings.reset` has it.
    """

    def __init__(self, steps: Steps, context: Context | None, reset: str) -> None:
        self._steps = steps
        self.can_cancel = steps.can_cancel
        self._context = context
        self._reset = reset
        #: Whether the connections have a socket to look at; None until one was opened.
        self.can_peek: bool | None = None
        #: The greenlets in which checks that may block are under way.
        self._checking: set[gevent.Greenlet] = set()

    def in_context(self) -> AbstractContextManager[object]:
        """Return the context manager to enter around user code."""
        context = None if self._context is None else self._context()
        return nullcontext() if context is None else context

    def choose_checks(self, connection: Any) -> Checks:
        """Return how to ask an open connection."""
        check, mode = self._steps.choose_checks(connection)
        can_ping = self._steps.can_ping(connection)
        self._note_can_peek(connection)
        if self._context is None or (mode is STREAM and check is not None):
            # The checks of our own streams need no context.
            return check, mode, self._steps.completion(connection), can_ping
        complete = self._steps.completion(connection)
        return (
            None if check is None else partial(_check_in_context, self._context, check),
            BY_ADAPTER,
            None if complete is None else partial(self._call_in_context, complete, "completing what a block has done"),
            can_ping,
        )

    def _call_in_context(self, step: Step, what: str, connection: Any) -> None:
        """Take a step whose error must not get lost."""
        with self.in_context():
            step(connection)
            return
        raise PoolError(f"the context of the pool has suppressed what {what} raised")

    def _note_can_peek(self, connection: Any) -> None:
        is_first = self.can_peek is None
        self.can_peek = self._steps.can_peek(connection)
        if is_first and not self.can_peek:
            logger.debug("%r has no socket to look at: what has died while idle is noticed when it is used", connection)

    # Opening and closing

    def open_if_closed(self, connection: Any) -> None:
        """Open what a subclass's ``_create_connection()`` has returned closed."""
        self._steps.open_if_closed(connection)

    def close(self, connection: Any) -> None:
        """Close a connection, which may block and raise."""
        with self.in_context():
            self._steps.close(connection)

    def cancel(self, connection: Any) -> None:
        """Cancel what the server still does for a connection, which may block and raise."""
        with self.in_context():
            self._steps.cancel(connection)

    def abort(self, connection: Any) -> None:
        """Close a connection without a goodbye: it is the parent process's, or would not close."""
        try:
            self._steps.abort(connection)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            # Nothing is thrown at it from outside, since it does not switch; and others are still to be aborted.
            logger.warning("could not abort %r", connection, exc_info=True)

    # Checking

    def ping(self, connection: Any) -> None:
        """Exchange something cheap with the backend, which may block and raise."""
        self._call_in_context(self._steps.ping, "a ping", connection)

    def ping_idle(self, connection: Any) -> bool | None:
        """Ping an idle connection. Return whether it may be kept; None if it had died before. It may block and raise.

        Whatever the ping leaves open is completed, as at the end of a block.
        """
        with self.in_context():
            steps = self._steps
            if not steps.is_alive(connection):
                # What it has to read would be taken for the answer.
                return None
            steps.ping(connection)
            complete = steps.completion(connection)
            if complete is not None:
                complete(connection)
            if not steps.is_reusable(connection, None):
                return False
            return self._reset == "never" or bool(steps.is_settled(connection))
        return False

    def is_usable(self, entry: Entry, seconds: float) -> bool:
        """Return whether a connection whose check may block is good. The check takes `seconds` at most.

        What the connection raises counts as False. What is thrown at the caller meanwhile goes on.
        """
        if seconds > 0:
            return self._check_in_greenlet(entry, seconds)
        try:
            with self.in_context():
                # There is no time for more.
                return bool(self._steps.is_usable_nowait(entry.connection))
        except Exception:
            logger.debug("%r failed its check", entry.connection, exc_info=True)
            return False

    def _check_in_greenlet(self, entry: Entry, seconds: float) -> bool:
        # What is thrown at the caller is then never mistaken for what the connection raised, nor the other way round.
        checking = gevent.spawn(self._check, entry)
        self._checking.add(checking)
        until = time.monotonic() + seconds
        try:
            # A timer of libuv's may be early, and in what it leaves no other connection could be checked.
            while not checking.ready() and (left := until - time.monotonic()) > 0:
                checking.join(None if left == float("inf") else timer_seconds(left))
        finally:
            checking.kill(block=False)
            self._checking.discard(checking)
        return checking.value is True

    def stop_checks(self) -> None:
        """Cut short the checks that are under way; their connections don't pass."""
        for checking in list(self._checking):
            checking.kill(block=False)

    def _check(self, entry: Entry) -> bool:
        try:
            with self.in_context():
                # In a forked child, which has a copy of this greenlet, the connection is the parent's.
                return entry.status is IN_USE and bool(entry.connection.is_usable())
        except (Exception, gevent.Timeout):
            # A timeout is the connection's own, since the pool throws none at this greenlet.
            logger.debug("%r failed its check", entry.connection, exc_info=True)
            return False

    def is_alive(self, connection: Any) -> bool:
        """Return whether an idle connection is open and silent. This never makes a round trip."""
        try:
            with self.in_context():
                return bool(self._steps.is_alive(connection))
        except (Exception, gevent.Timeout):
            logger.debug("%r failed its check", connection, exc_info=True)
            return False

    def is_expired(self, connection: Any) -> bool:
        """Return whether an idle connection says that it is too old. One that fails to say so is."""
        try:
            with self.in_context():
                return bool(self._steps.is_expired(connection))
        except (Exception, gevent.Timeout):
            logger.warning("%r could not say whether it is expired, and is closed", connection, exc_info=True)
            return True

    # Keeping

    def check_returned(self, connection: Any, error: BaseException | None) -> object:
        """Return whether a connection that comes back may be kept: True, False or :data:`RESET`. It may raise."""
        if self._context is None:
            # Most pools have none, and entering an empty one would take as long as all the rest.
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
        """Return whether nothing is left open. What the connection raises counts as False."""
        try:
            with self.in_context():
                return bool(self._steps.is_settled(connection))
        except (Exception, gevent.Timeout):
            pass
        return False

    def reset(self, connection: Any) -> bool:
        """Reset a connection. Return whether it may be kept. It may block and raise."""
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
