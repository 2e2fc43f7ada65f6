"""The events in the life of a connection, and how a pool reports them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import gevent

if TYPE_CHECKING:
    from gsocketpool._lease import Lease
    from gsocketpool.exceptions import PoolExhaustedError
    from gsocketpool.pool import Pool

logger: logging.Logger = logging.getLogger("gsocketpool")


class PoolEvents:
    """Base class for a listener: override the events you want, and pass an instance as ``Pool(…, events=)``.

    The pool looks up once, when it is made, which methods are overridden; the others cost nothing. An error that a
    method raises is logged and has no other effect. One instance may serve several pools.
    """

    def opened(self, pool: Pool[Any], connection: Any) -> None:
        """Handle a new connection, in the greenlet that opened it."""

    def closed(self, pool: Pool[Any], connection: Any, reason: str) -> None:
        """Handle a connection that has left the pool and is being closed.

        The event loop runs this, so it must not block.

        :param reason: a key of :attr:`PoolStats.discarded` or :attr:`PoolStats.retired`.
        """

    def acquired(self, lease: Lease[Any]) -> None:
        """Handle an acquired connection, in the greenlet that acquired it, before that greenlet gets the connection."""

    def released(self, pool: Pool[Any], connection: Any) -> None:
        """Handle a connection that came back and that the pool keeps. If it needed a reset, the reset is done.

        The event loop runs this, so it must not block. By then the connection may be in use again.
        """

    def waiting(self, pool: Pool[Any]) -> None:
        """Handle a caller that is about to wait because no connection is idle, in the caller's greenlet."""

    def exhausted(self, pool: Pool[Any], error: PoolExhaustedError) -> None:
        """Handle a caller that ran out of time or was refused, in its greenlet, before `error` is raised there."""

    def leaked(self, pool: Pool[Any], connection: Any) -> None:
        """Handle a connection that was in use for longer than ``leak_threshold``, or whose greenlet has died."""


#: A method of a listener.
Method: TypeAlias = Callable[..., None]


class Listener:
    """The overridden methods of one pool's :class:`PoolEvents`; None for each that is not overridden."""

    def __init__(self, events: PoolEvents | None) -> None:
        def overridden(name: str) -> Method | None:
            if events is None or getattr(type(events), name, None) is getattr(PoolEvents, name):
                return None
            method: Method = getattr(events, name)
            return method

        self.opened: Method | None = overridden("opened")
        self.closed: Method | None = overridden("closed")
        self.acquired: Method | None = overridden("acquired")
        self.released: Method | None = overridden("released")
        self.waiting: Method | None = overridden("waiting")
        self.exhausted: Method | None = overridden("exhausted")
        self.leaked: Method | None = overridden("leaked")


def tell(method: Method, *arguments: Any) -> None:
    """Call a listener's method and log its errors. A kill or a timeout thrown at the caller propagates."""
    try:
        method(*arguments)
    except Exception:
        logger.warning("listener %r failed", method, exc_info=True)


def tell_in_loop(method: Method, *arguments: Any) -> None:
    """Call a listener's method in the event loop's own greenlet, and log its errors."""
    try:
        method(*arguments)
    except (Exception, gevent.Timeout) as error:
        # Nothing throws a timeout at the event loop, so it is the listener's own. Logging may switch, which the event
        # loop's greenlet can't do.
        gevent.spawn(logger.warning, "listener %r failed", method, exc_info=error)
