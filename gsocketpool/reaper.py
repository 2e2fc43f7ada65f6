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
    is_alive = True
    while is_alive:
        # Somebody may throw something at every greenlet there is, wherever it waits.
        try:
            gevent.sleep(interval)
            is_alive = _sweep_if_alive(reference)
        except (Exception, gevent.Timeout):
            logger.exception("a sweep failed")


def _sweep_if_alive(reference: weakref.WeakMethod[Callable[[], None]]) -> bool:
    # A function of its own, so that the next sleep does not keep the object alive.
    sweep = reference()
    if sweep is None:
        return False
    sweep()
    return True
