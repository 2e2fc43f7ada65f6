"""What a pool can tell: the moments of its connections' lives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent

if TYPE_CHECKING:
    from gsocketpool._lease import Lease
    from gsocketpool.exceptions import PoolExhaustedError
    from gsocketpool.pool import Pool

logger = logging.getLogger("gsocketpool")


class PoolEvents:
    """Derive from it, override what you want to hear of, and pass an instance as ``Pool(…, events=)``.

    Which methods are overridden is looked up once, when the pool is made; the others cost nothing. A method that raises
    is logged and harms nothing. One instance may serve several pools.
    """

    def opened(self, pool: Pool[Any], connection: Any) -> None:
        """A connection was opened. The greenlet that opened it runs this."""

    def closed(self, pool: Pool[Any], connection: Any, reason: str) -> None:
        """A connection has left the pool and is being closed.

        The event loop's own greenlet runs this: it must not wait.

        :param reason: as in :attr:`PoolStats.discarded` and :attr:`PoolStats.retired`.
        """

    def acquired(self, lease: Lease[Any]) -> None:
        """A connection was handed out. The greenlet that acquired it runs this, before it gets the connection."""

    def released(self, pool: Pool[Any], connection: Any) -> None:
        """A connection came back, was reset if need be, and the pool keeps it; by now it may be in use again.

        The event loop's own greenlet runs this: it must not wait.
        """

    def waiting(self, pool: Pool[Any]) -> None:
        """A caller is about to wait: no connection is idle. Its greenlet runs this."""

    def exhausted(self, pool: Pool[Any], error: PoolExhaustedError) -> None:
        """A caller did not get a connection in time, or was refused. Its greenlet runs this; then `error` is raised."""

    def leaked(self, pool: Pool[Any], connection: Any) -> None:
        """A connection has been in use for longer than ``leak_threshold``, or its greenlet has died."""


class Listener:
    """The methods of one pool's listener, each of them None unless it is overridden."""

    def __init__(self, events: PoolEvents | None) -> None:
        def overridden(name: str) -> Callable[..., None] | None:
            if events is None or getattr(type(events), name, None) is getattr(PoolEvents, name):
                return None
            method: Callable[..., None] = getattr(events, name)
            return method

        self.opened = overridden("opened")
        self.closed = overridden("closed")
        self.acquired = overridden("acquired")
        self.released = overridden("released")
        self.waiting = overridden("waiting")
        self.exhausted = overridden("exhausted")
        self.leaked = overridden("leaked")


def tell(method: Callable[..., None], *arguments: Any) -> None:
    """Call a method of a listener, and log its errors. A kill, or a timeout of the caller's, goes on."""
    try:
        method(*arguments)
    except Exception:
        logger.warning("%r has failed", method, exc_info=True)


def tell_in_loop(method: Callable[..., None], *arguments: Any) -> None:
    """Call a method of a listener in the event loop's own greenlet, and log its errors."""
    try:
        method(*arguments)
    except (Exception, gevent.Timeout) as error:
        # A timeout is the listener's own, since nothing is thrown at the event loop. Logging may switch, which the
        # event loop's own greenlet can't.
        gevent.spawn(logger.warning, "%r has failed", method, exc_info=error)
