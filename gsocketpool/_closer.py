"""Closes connections, each in a greenlet of its own and within a time."""

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

#: Seconds that a pool's end waits, beyond the limits, for greenlets that were cut short.
GRACE = 1.0


class Closer:
    """Closes the connections of one pool.

    Giving back must not switch, so it leaves a connection here by :meth:`add`, which takes no lock and runs no user
    code. The greenlets begin with :meth:`start`, which the event loop calls. What closing raises is logged.
    """

    def __init__(self, timeout: float, adapter: Adapter) -> None:
        self._timeout = timeout
        self._adapter = adapter
        #: The connections to close, and whether to cancel what the server does for them first.
        self._pending: list[tuple[Any, bool]] = []
        self._closing: dict[gevent.Greenlet, Any] = {}
        #: Those of them that cancel first.
        self._cancelling: set[gevent.Greenlet] = set()
        #: Connections whose closing is begun again after its greenlet was killed.
        self._retried: list[Any] = []
        #: The thread whose event loop does the rest for a pool that was collected.
        self._thread: Thread | None = None

    def __len__(self) -> int:
        """How many connections are being closed or cancelled."""
        return len(self._pending) + len(self._closing)

    def add(self, connection: Any, *, cancel: bool = False) -> None:
        """Leave a connection to be closed by :meth:`start`.

        :param cancel: whether it is in the middle of something, which the server is told to give up.
        """
        self._pending.append((connection, cancel))

    def start(self) -> None:
        """Begin to close what was left here."""
        while self._pending:
            # What fails to begin, near the recursion limit, stays here.
            self._start_greenlet(*self._pending[0])
            del self._pending[0]

    def wait(self) -> None:
        """Begin to close what was left here, and return when all of it is closed, or its time is over."""
        self.start()
        # By identity, and kept, so that no other connection can have the same.
        connections = {id(connection): connection for connection in self._closing.values()}
        deadline = time.monotonic() + (CANCEL_TIMEOUT if self._cancelling else 0) + self._timeout + GRACE
        # One whose greenlet is killed is begun again, in another greenlet.
        while greenlets := [one for one, connection in self._closing.items() if id(connection) in connections]:
            gevent.joinall(greenlets, timeout=timer_seconds(deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                break
        for greenlet in greenlets:
            # Its close() does not heed the limit.
            greenlet.kill(block=False)
            connection = self._closing.pop(greenlet, None)
            self._forget(connection)
            self._abort(connection)

    def abort_all(self) -> None:
        """Abort what is being closed: in a forked child, where it is the parent's."""
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
        """Have the event loop of `thread` close what was left here, for a pool that is being collected.

        That takes no lock and runs no user code, so this may be called anywhere. Once the thread has ended, there is no
        event loop to leave it to, and what was left is aborted here and now.

        :param stops: what the event loop calls first, to stop the pool's greenlets.
        """
        self._thread = thread
        _fork.orphans.append(self)
        if loop is not None and not loop.default:
            # The main thread's event loop is there until the end. That of another thread may not come to it. Before its
            # end is asked for, or it could end in between.
            thread.orphans.append(self)
        if loop is None or thread.has_ended:
            self.abort_rest()
        else:
            loop.run_callback_threadsafe(self._finish, stops)

    def abort_rest(self) -> None:
        """Abort what no event loop will close any more: its thread has ended."""
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
                # Its thread may end while another one does this.
                with contextlib.suppress(ValueError):
                    orphans.remove(self)

    def _start_greenlet(self, connection: Any, cancel: bool) -> None:
        cancel = cancel and self._adapter.can_cancel
        greenlet = gevent.Greenlet(self._close, connection, cancel)
        if cancel:
            self._cancelling.add(greenlet)
        self._closing[greenlet] = connection
        greenlet.rawlink(self._greenlet_ended)
        greenlet.start()

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
            logger.debug("could not cancel what is done for %r", connection, exc_info=True)

    def close_within_timeout(self, connection: Any) -> None:
        """Close `connection` in the present greenlet; abort it if that takes too long or raises."""
        limit = gevent.Timeout(self._timeout)
        try:
            with limit:
                self._adapter.close(connection)
        except BaseException as error:
            self._adapter.abort(connection)
            if error is limit:
                # Its traceback would keep what close() had in its locals.
                error.__traceback__ = None
                logger.warning("closing %r took longer than %s s", connection, self._timeout)
            elif isinstance(error, Exception | gevent.Timeout):
                logger.warning("closing %r failed", connection, exc_info=True)
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
            # A program that kills every greenlet there is has killed this one, perhaps before it began.
            self._retried.append(connection)
            self._start_greenlet(connection, False)
        self._leave_orphans()

    def _forget(self, connection: Any) -> None:
        self._retried = [one for one in self._retried if one is not connection]

    def _abort(self, connection: Any) -> None:
        if connection is not None:
            self._adapter.abort(connection)
