"""The background greenlet of a pool."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable

import gevent

logger = logging.getLogger("gsocketpool")


def start_reaper(sweep: Callable[[], None], interval: float) -> gevent.Greenlet:
    """Starts a greenlet that calls the method `sweep` every `interval` seconds, for as long as its object is alive."""
    reaper: gevent.Greenlet = gevent.spawn(_reap, weakref.WeakMethod(sweep), interval)
    return reaper


def _reap(reference: weakref.WeakMethod[Callable[[], None]], interval: float) -> None:
    while True:
        gevent.sleep(interval)
        sweep = reference()
        if sweep is None:
            return
        try:
            sweep()
        except (Exception, gevent.Timeout):
            logger.exception("a sweep failed")
        # The next sleep must not keep the object alive.
        del sweep
