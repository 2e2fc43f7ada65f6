"""Code of the user's that may block: run within a time, and apart from the greenlet that asked for it.

What is thrown at that greenlet is then never mistaken for what the code raised, nor the other way round.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import gevent

from gsocketpool import _steps
from gsocketpool._entry import IN_USE, Entry
from gsocketpool._forking import keep_alive, tell_after_fork
from gsocketpool.settings import timer_seconds

logger = logging.getLogger("gsocketpool")

#: Makes what surrounds code of the user's.
Context = Callable[[], AbstractContextManager[object]]


def open_within(timeout: float | None, make: Callable[..., None], *arguments: Any) -> None:
    """Calls `make`, which makes and opens a connection. To be called in a greenlet made for it.

    :raises TimeoutError: if that takes longer than `timeout` seconds.
    """
    limit = gevent.Timeout(timeout)
    try:
        with limit:
            make(*arguments)
    except gevent.Timeout as error:
        if error is not limit:
            raise
        raise TimeoutError(f"opening a connection took longer than open_timeout ({timeout} s)") from None


def is_usable_within(timeout: float, entry: Entry, context: Context) -> bool:
    """Whether a connection says, within `timeout` seconds and in a `context`, that it may be handed out."""
    asking = gevent.spawn(_ask, entry, context)
    try:
        asking.join(None if timeout == math.inf else timer_seconds(timeout))
    finally:
        asking.kill(block=False)
    return asking.value is True


def _ask(entry: Entry, context: Context) -> bool:
    try:
        with context():
            # In a forked child, which has a copy of this greenlet, it is the parent's.
            return entry.status is IN_USE and bool(entry.connection.is_usable())
    except (Exception, gevent.Timeout):
        # A timeout is one of its own, since nobody else throws any at this greenlet.
        logger.debug("%r failed its check", entry.connection, exc_info=True)
        return False


class Closer:
    """Closes connections, each in a greenlet of its own, in a `context` and within `timeout` seconds.

    What closing raises is logged. The greenlet that gave up a connection may wait for it to be closed, and may be
    killed while it does: the connection is closed all the same.
    """

    def __init__(self, timeout: float, context: Context) -> None:
        self._timeout = timeout
        self._context = context
        self._at_work: dict[gevent.Greenlet, Any] = {}
        self._left: list[Any] = []
        tell_after_fork(self)

    def close(self, connection: Any) -> gevent.Greenlet:
        """Starts to close `connection`, and returns the greenlet that does it."""
        greenlet = gevent.Greenlet(self._close, connection)
        self._at_work[greenlet] = connection
        greenlet.rawlink(self._ended)
        greenlet.start()
        return greenlet

    def leave(self, connections: list[Any]) -> None:
        """Notes what :meth:`close_left` is to close. This takes no lock and calls nobody."""
        self._left += connections

    def close_left(self) -> None:
        """Starts to close what was left to be closed."""
        left, self._left = self._left, []
        for connection in left:
            self.close(connection)

    def wait(self) -> None:
        """Returns when everything is closed that is being closed now."""
        greenlets = list(self._at_work)
        gevent.joinall(greenlets, timeout=self._timeout + 1)
        for greenlet in greenlets:
            if not greenlet.ready():
                # Its close() does not heed the limit. This makes _ended() let go of its connection.
                greenlet.kill(block=False)
                self._ended(greenlet)

    def _after_fork(self) -> None:
        """In a forked child: what is being closed is the parent's."""
        connections = [*self._at_work.values(), *self._left]
        for greenlet in self._at_work:
            greenlet.kill(block=False)
        self._at_work.clear()
        self._left.clear()
        for connection in connections:
            _steps.let_go(connection)
            keep_alive(connection)

    def _close(self, connection: Any) -> bool:
        with self._context():
            close_within(self._timeout, connection)
        return True

    def _ended(self, greenlet: gevent.Greenlet) -> None:
        connection = self._at_work.pop(greenlet, None)
        if connection is not None and greenlet.value is not True:
            # Somebody who kills every greenlet there is has killed this one, perhaps before it began.
            _steps.let_go(connection)


def close_within(timeout: float, connection: Any) -> None:
    """Closes `connection`, or at least its descriptor if that takes longer than `timeout` seconds or raises."""
    limit = gevent.Timeout(timeout)
    try:
        with limit:
            _steps.close_if_open(connection)
    except BaseException as error:
        _steps.let_go(connection)
        if error is limit:
            logger.warning("closing %r took longer than %s s", connection, timeout)
        elif isinstance(error, Exception | gevent.Timeout):
            logger.warning("closing %r failed", connection, exc_info=True)
        else:
            raise
