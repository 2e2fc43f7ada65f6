"""Which thread runs this, and what becomes of its pools when it ends."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Protocol

from gevent.monkey import get_original

# Patched, these would tell greenlets apart.
get_ident = get_original("_thread", "get_ident")
_local = get_original("_thread", "_local")


class Orphan(Protocol):
    """What a collected pool has left to be closed."""

    def abort_all(self) -> None: ...
    def abort_rest(self) -> None: ...


class OwnedPool(Protocol):
    """A pool, as far as its thread knows it."""

    def _thread_ended(self) -> None: ...


class Thread:
    """Stands for one thread: unlike an identity, which the system gives again, no later thread has the same."""

    has_ended = False

    def __init__(self) -> None:
        self.ident = get_ident()
        #: What its event loop has left to close of collected pools.
        self.orphans: list[Orphan] = []
        #: The pools that belong to it. A list, for a WeakSet must not lose a member while another thread reads it.
        self._pools: list[weakref.ref[OwnedPool]] = []

    def own(self, pool: OwnedPool) -> None:
        """Have ``pool._thread_ended()`` called at the end of the thread, if the pool is alive then."""
        self._pools.append(weakref.ref(pool, self._pools.remove))

    # The defaults, for when the interpreter ends, the names of this module are gone before the main thread is.
    def end(
        self, get_ident: Callable[[], int] = get_ident, is_finalizing: Callable[[], bool] = sys.is_finalizing
    ) -> None:
        """Have aborted what no event loop will close any more."""
        self.has_ended = True
        if is_finalizing() or get_ident() != self.ident:
            # The system closes what a process leaves. And a forked child, where the other threads of the parent end at
            # once, is told of the fork next.
            return
        for reference in self._pools[:]:
            pool = reference()
            if pool is not None:
                pool._thread_ended()
        for orphan in self.orphans[:]:
            orphan.abort_rest()


class _EndOfThread:
    """Ends with the thread, which alone refers to it."""

    def __init__(self, thread: Thread) -> None:
        self._thread = thread

    def __del__(self) -> None:
        self._thread.end()


class _Current(_local):  # type: ignore[misc, valid-type]
    def __init__(self) -> None:
        #: The present thread.
        self.thread = Thread()
        self._life = _EndOfThread(self.thread)


current = _Current()
