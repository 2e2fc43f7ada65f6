"""Identifies the current thread, and ends its pools when it ends."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Protocol

from gevent.monkey import get_original

# gevent's versions would distinguish greenlets.
get_ident = get_original("_thread", "get_ident")
_local = get_original("_thread", "_local")


class Orphan(Protocol):
    """The closer of a collected pool."""

    def abort_all(self) -> None: ...
    def abort_rest(self) -> None: ...


class OwnedPool(Protocol):
    """The part of a pool that its thread needs."""

    def _thread_ended(self) -> None: ...


class Thread:
    """Identifies one thread. Unlike a thread id, no later thread reuses it."""

    has_ended = False

    def __init__(self) -> None:
        self.ident = get_ident()
        #: The closers of collected pools that have not finished.
        self.orphans: list[Orphan] = []
        #: The pools that it owns. A list, because a WeakSet must not change while another thread iterates over it.
        self._pools: list[weakref.ref[OwnedPool]] = []

    def own(self, pool: OwnedPool) -> None:
        """Call ``pool._thread_ended()`` at the end of the thread, if the pool is still alive."""
        self._pools.append(weakref.ref(pool, self._pools.remove))

    # Defaults, because at interpreter exit this module's globals are gone before the main thread is.
    def end(
        self, get_ident: Callable[[], int] = get_ident, is_finalizing: Callable[[], bool] = sys.is_finalizing
    ) -> None:
        """Abort the connections that no event loop will close any more."""
        self.has_ended = True
        if is_finalizing() or get_ident() != self.ident:
            # At exit, the system closes them. In a forked child, where the parent's other threads end at once, the
            # at-fork handler does it next.
            return
        for reference in self._pools[:]:
            pool = reference()
            if pool is not None:  # pragma: no branch - it may be collected in this very moment
                pool._thread_ended()
        for orphan in self.orphans[:]:
            orphan.abort_rest()


class _EndOfThread:
    """Calls :meth:`Thread.end` when the thread ends, because only the thread refers to it."""

    def __init__(self, thread: Thread) -> None:
        self._thread = thread

    def __del__(self) -> None:
        self._thread.end()


class _Current(_local):  # type: ignore[misc, valid-type]
    def __init__(self) -> None:
        #: The current thread.
        self.thread = Thread()
        self._life = _EndOfThread(self.thread)


current = _Current()
