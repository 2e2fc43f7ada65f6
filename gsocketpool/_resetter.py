"""Resets connections between two uses, behind the callers' backs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
from gevent import getcurrent

from gsocketpool._adapter import ENDS, Adapter
from gsocketpool._records import RESETTING, Entry

logger = logging.getLogger("gsocketpool")

#: How many greenlets are kept for the next resets: to make one takes longer than all the rest of a reset.
MOST_IDLE = 16


class Resetter:
    """Resets the connections of one pool, each in a greenlet.

    :param ended: called with an entry whose reset is over, and whether its connection may be kept.
    """

    def __init__(self, timeout: float, adapter: Adapter, ended: Callable[[Entry, bool], None]) -> None:
        self._timeout = timeout
        self._adapter = adapter
        self._ended = ended
        self._hub: Any = None
        self.at_work: dict[gevent.Greenlet, Entry] = {}
        #: Greenlets that wait for an entry.
        self.idle: list[gevent.Greenlet] = []

    def attach(self, hub: Any) -> None:
        """Work in the event loop of `hub` from now on."""
        self._hub = hub

    def start(self, entry: Entry) -> None:
        """Reset a connection. The event loop calls this."""
        if entry.status is not RESETTING:
            return
        # One that was killed is dead.
        while self.idle and self.idle[-1].dead:
            self.idle.pop()
        greenlet = self.idle.pop() if self.idle else gevent.Greenlet(self._work)
        self.at_work[greenlet] = entry
        # At once: to start it would take another turn of the event loop.
        greenlet.switch()

    def kill(self) -> None:
        """Cut short the resets that are under way, and end the greenlets."""
        for greenlet in (*self.at_work, *self.idle):
            greenlet.kill(block=False)
        self.idle.clear()

    def after_fork(self) -> None:
        """Forget the parent's greenlets, in a forked child."""
        self.kill()
        self.at_work.clear()

    def _work(self) -> None:
        greenlet = getcurrent()
        while greenlet in self.at_work:
            self._reset(self.at_work[greenlet], greenlet)
            if len(self.idle) >= MOST_IDLE:
                return
            self.idle.append(greenlet)
            try:
                self._hub.switch()
            except ENDS:
                raise
            except BaseException:
                # Thrown at a reset that had ended by then.
                return

    def _reset(self, entry: Entry, greenlet: gevent.Greenlet) -> None:
        is_good = False
        try:
            is_good = self._try(entry, greenlet)
        finally:
            # Otherwise the pool was closed meanwhile, or a fork has copied this greenlet.
            if self.at_work.pop(greenlet, None) is entry and entry.status is RESETTING:
                self._ended(entry, is_good)

    def _try(self, entry: Entry, greenlet: gevent.Greenlet) -> bool:
        """Return whether the connection may be kept."""
        connection = entry.connection
        # A gevent.Timeout for each would take ten times as long.
        limit = self._hub.loop.timer(self._timeout)
        limit.start(greenlet.throw, gevent.Timeout, update=True)
        error: BaseException | None = None
        try:
            is_good = self._adapter.reset(connection)
        except ENDS:
            raise
        except BaseException as raised:
            is_good = False
            error = raised
        finally:
            # A reset that has swallowed the Timeout has lost what it waited for.
            is_late = not limit.active
            limit.close()
        if is_good and not is_late:
            return True
        if entry.status is not RESETTING:
            # As above.
            pass
        elif is_late:
            logger.warning("resetting %r took longer than %s s", connection, self._timeout)
        elif error is None:
            logger.warning("%r was reset, and still can't be used again", connection)
        else:
            logger.warning("resetting %r failed", connection, exc_info=error)
        if error is not None:
            # Its traceback would keep what reset() had in its locals.
            error.__traceback__ = None
        return False
