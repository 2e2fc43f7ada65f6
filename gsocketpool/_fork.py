"""Tells pools about a fork.

An at-fork handler can't be taken back, so there is a single one, for every pool.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Callable
from typing import Protocol

import gevent

from gsocketpool._threads import Orphan
from gsocketpool.connection import _sockets

logger = logging.getLogger("gsocketpool")


class Forkable(Protocol):
    def _after_fork(self) -> None: ...


_listeners: weakref.WeakSet[Forkable] = weakref.WeakSet()
#: What collected pools have left to be closed. A list, for a destructor must not take a lock.
orphans: list[Orphan] = []
_references: list[object] = []


def call_after_fork(listener: Forkable) -> None:
    """Have ``listener._after_fork()`` called in every forked child, for as long as the listener is alive."""
    _listeners.add(listener)


def keep_reference(connection: object) -> None:
    """Keep in a child what belongs to the parent: a destructor might say goodbye on the parent's behalf."""
    _references.append(connection)


def stop(copied: gevent.Greenlet) -> None:
    """Kill a greenlet in a child, and first cut off the sockets that it has: it may run once more before it ends."""
    for candidate in _sockets.held_by(copied.gr_frame):
        # Where there is no descriptor to spare for that, killing must do.
        with contextlib.suppress(OSError):
            _sockets.replace(candidate)
    copied.kill(block=False)


def _after_fork_in_child() -> None:
    listeners = list(_listeners)
    if listeners or orphans:
        # Only gevent's own fork() does so by itself, and multiprocessing uses that where os is patched. Without it, the
        # child could not resolve a name. To do it twice does no harm.
        _try(gevent.reinit)
    for listener in listeners:
        _try(listener._after_fork)
    # Each takes itself off the list.
    for orphan in orphans[:]:
        _try(orphan.abort_all)
    orphans.clear()


def _try(step: Callable[[], object]) -> None:
    try:
        step()
    except Exception:
        # The others must hear of the fork all the same.
        logger.exception("%r failed after a fork", step)


os.register_at_fork(after_in_child=_after_fork_in_child)
