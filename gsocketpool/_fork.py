"""Notifies pools in a forked child.

An at-fork handler can't be unregistered, so a single one serves all pools.
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
#: Closers that collected pools have left behind. A list, because a destructor must not take a lock.
orphans: list[Orphan] = []
_references: list[object] = []


def call_after_fork(listener: Forkable) -> None:
    """Call ``listener._after_fork()`` in every forked child, as long as the listener is alive."""
    _listeners.add(listener)


def keep_reference(connection: object) -> None:
    """Keep a parent's connection alive in the child, where its destructor might say goodbye to the server."""
    _references.append(connection)


def stop(copied: gevent.Greenlet) -> None:
    """Kill a copied greenlet in a child. It may run once more before it ends, so first cut off its sockets."""
    for candidate in _sockets.held_by(copied.gr_frame):
        # This fails if no descriptor is free.
        with contextlib.suppress(OSError):
            _sockets.replace(candidate)
    copied.kill(block=False)


def _after_fork_in_child() -> None:
    listeners = list(_listeners)
    if listeners or orphans:
        # Only gevent's own fork() does this by itself. Otherwise the child could not resolve names. Twice does no harm.
        _try(gevent.reinit)
    for listener in listeners:
        _try(listener._after_fork)
    # On a copy, because each removes itself from the list.
    for orphan in orphans[:]:
        _try(orphan.abort_all)
    orphans.clear()


def _try(step: Callable[[], object]) -> None:
    try:
        step()
    except Exception:
        # The other listeners must still be called.
        logger.exception("%r failed after a fork", step)


os.register_at_fork(after_in_child=_after_fork_in_child)
