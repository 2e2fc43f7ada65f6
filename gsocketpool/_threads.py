"""Which thread runs this, and whether it has ended."""

from __future__ import annotations

from typing import Protocol

from gevent.monkey import get_original

# Patched, these would tell greenlets apart.
get_ident = get_original("_thread", "get_ident")
_local = get_original("_thread", "_local")


class Orphan(Protocol):
    def abort_rest(self) -> None: ...


class Thread:
    """Stands for one thread: unlike an identity, which the system gives again, no later thread has the same."""

    has_ended = False

    def __init__(self) -> None:
        #: What its event loop has left to close of collected pools.
        self.orphans: list[Orphan] = []


class _Life:
    """Ends with the thread, which alone refers to it."""

    def __init__(self, thread: Thread) -> None:
        self._thread = thread

    def __del__(self) -> None:
        self._thread.has_ended = True
        for orphan in list(self._thread.orphans):
            orphan.abort_rest()


class _Current(_local):  # type: ignore[misc, valid-type]
    def __init__(self) -> None:
        #: The present thread.
        self.thread = Thread()
        self._life = _Life(self.thread)


current = _Current()
