"""Closes connections, each in its own greenlet and within a time limit."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import gevent

from gsocketpool import _fork
from gsocketpool._adapter import ENDS, Adapter
from gsocketpool._threads import Thread
from gsocketpool.connectors._base import CANCEL_TIMEOUT
from gsocketpool.settings import timer_seconds

logger = logging.getLogger("gsocketpool")

#: Seconds that :meth:`Closer.wait` waits beyond the time limits for greenlets that overrun.
GRACE = 1.0


class Closer:
    """Closes the connections of one pool.

    Giving back must not switch, so it only queues a connection by :meth:`add`, which takes no lock and runs no user
    code. The event loop then calls :meth:`start`, which starts the greenlets. Errors in closing are logged.
    """

    def __init__(self, timeout: float, adapter: Adapter) -> None:
        self._timeout = timeout
        self._adapter = adapter
        #: The connections to close, and whether to cancel the server's work for them first.
        self._pending: list[tuple[Any, bool]] = []
        #: The running greenlets and the connections that they close.
        self._closing: dict[gevent.Greenlet, Any] = {}
        #: Those that cancel first.
        self._cancelling: set[gevent.Greenlet] = set()
        #: Connections whose first greenlet was killed, and which a second one closes.
        self._retried: list[Any] = []
        #: The thread whose event loop closes the connections of a collected pool.
        self._thread: Thread | None = None

    def __len__(self) -> int:
        """Return how many connections are being closed or cancelled."""
        return len(self._pending) + len(self._closing)

    def add(self, connection: Any, *, cancel: bool = False) -> None:
        """Queue a connection for :meth:`start`.

        :param cancel: whether the server may still be at work for it, and should be told to stop.
        """
        self._pending.append((connection, cancel))

    def start(self) -> None:
        """Start closing the queued connections."""
        while self._pending:
            # If this fails, near the recursion limit or in a spawn callback of user code, the connection stays queued.
            self._start_greenlet(*self._pending[0])
            del self._pending[0]

    def wait(self) -> None:
        """Start closing the queued connections, and wait until all are closed or their time is over."""
        self.start()
        # By identity. The dict keeps them alive, so that no new connection can get the same id().
        connections = {id(connection): connection for connection in self._closing.values()}
        deadline = time.monotonic() + (CANCEL_TIMEOUT if self._cancelling else 0) + self._timeout + GRACE
        # In a loop, because a killed greenlet is replaced once.
        while greenlets := [one for one, connection in self._closing.items() if id(connection) in connections]:
            gevent.joinall(greenlets, timeout=timer_seconds(deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                break
        for greenlet in greenlets:
            # Its close() ignores the time limit.
            greenlet.kill(block=False)
            connection = self._closing.pop(greenlet, None)
            self._forget(connection)
            self._abort(connection)

    def abort_all(self) -> None:
        """Abort all connections in a forked child, where they belong to the parent."""
        connections = [*self._closing.values(), *(connection for connection, _ in self._pending)]
        for greenlet in self._closing:
            _fork.stop(greenlet)
        self._closing.clear()
        self._cancelling.clear()
        self._pending.clear()
        self._retried.clear()
        for connection in connections:
            self._adapter.abort(connection)
            _fork.keep_reference(connection)
        self._leave_orphans()

    def outlive_pool(self, loop: Any, thread: Thread, *stops: Callable[[], None]) -> None:
        """Let the event loop of `thread` close the queued connections of a pool that is being collected.

        This takes no lock and runs no user code, so any code may call it. The exception is a thread that has ended, and
        with it the event loop: the connections are then aborted now, which runs user code.

        :param stops: called first by the event loop, to stop the pool's greenlets.
        """
        self._thread = thread
        _fork.orphans.append(self)
        if loop is not None and not loop.default:
            # Only the main thread's event loop is sure to run again. This comes before the look at has_ended, because
            # the thread may end at any moment.
            thread.orphans.append(self)
        if loop is None or thread.has_ended:
            self.abort_rest()
        else:
            loop.run_callback_threadsafe(self._finish, stops)

    def abort_rest(self) -> None:
        """Abort the remaining connections of a thread that has ended, with its event loop."""
        rest = [*self._closing.values(), *(connection for connection, _ in self._pending)]
        self._closing.clear()
        self._cancelling.clear()
        self._pending.clear()
        for connection in rest:
            self._adapter.abort(connection)
        self._leave_orphans()

    def _finish(self, stops: tuple[Callable[[], None], ...]) -> None:
        for stop in stops:
            stop()
        self.start()
        self._leave_orphans()

    def _leave_orphans(self) -> None:
        if not len(self) and self._thread is not None:
            for orphans in (_fork.orphans, self._thread.orphans):
                # Another thread may have removed it, when its own thread ended.
                with contextlib.suppress(ValueError):
                    orphans.remove(self)

    def _start_greenlet(self, connection: Any, cancel: bool) -> None:
        cancel = cancel and self._adapter.can_cancel
        greenlet = gevent.Greenlet(self._close, connection, cancel)
        greenlet.rawlink(self._greenlet_ended)
        if cancel:
            self._cancelling.add(greenlet)
        self._closing[greenlet] = connection
        try:
            greenlet.start()
        except BaseException:
            self._cancelling.discard(greenlet)
            del self._closing[greenlet]
            raise

    def _close(self, connection: Any, cancel: bool) -> bool:
        if cancel:
            self._cancel(connection)
        self.close_within_timeout(connection)
        return True

    def _cancel(self, connection: Any) -> None:
        try:
            with gevent.Timeout(CANCEL_TIMEOUT):
                self._adapter.cancel(connection)
        except ENDS:
            raise
        except BaseException:
            logger.debug("could not cancel the server's work for %r", connection, exc_info=True)

    def close_within_timeout(self, connection: Any) -> None:
        """Close `connection` in the current greenlet; abort it if that takes too long or raises."""
        limit = gevent.Timeout(self._timeout)
        try:
            with limit:
                self._adapter.close(connection)
        except BaseException as error:
            self._adapter.abort(connection)
            if error is limit:
                # The traceback would keep the locals of close() alive.
                error.__traceback__ = None
                logger.warning("closing %r took longer than %s s, so it was aborted", connection, self._timeout)
            elif isinstance(error, Exception | gevent.Timeout):
                logger.warning("closing %r failed, so it was aborted", connection, exc_info=True)
            else:
                raise

    def _greenlet_ended(self, greenlet: gevent.Greenlet) -> None:
        self._cancelling.discard(greenlet)
        connection = self._closing.pop(greenlet, None)
        if connection is None or greenlet.value is True:
            self._forget(connection)
        elif any(one is connection for one in self._retried):
            self._forget(connection)
            self._abort(connection)
        else:
            # Some programs kill every greenlet they find. This one may not even have started.
            self._retried.append(connection)
            self.add(connection)
            self.start()
        self._leave_orphans()

    def _forget(self, connection: Any) -> None:
        self._retried = [one for one in self._retried if one is not connection]

    def _abort(self, connection: Any) -> None:
        if connection is not None:
            self._adapter.abort(connection)
