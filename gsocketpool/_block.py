"""What ``with pool.connection()`` runs."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from gsocketpool._entry import Entry

if TYPE_CHECKING:
    from gevent import Greenlet

    from gsocketpool._driver import Driver

C = TypeVar("C")


class Block(Generic[C]):
    """A context manager for one use of a connection."""

    # Written by hand: a generator would cost as much as the pool.

    __slots__ = ("_driver", "_entry", "_timeout", "_uses")

    def __init__(self, driver: Driver, timeout: float | None) -> None:
        self._driver = driver
        self._timeout = timeout
        self._entry: Entry
        #: Which use of the entry is the block's; 0 before it is entered.
        self._uses = 0

    def __enter__(self) -> C:
        if self._uses:
            raise RuntimeError("a block is for one use: call connection() again for another")
        self._uses = -1
        self._entry = entry = self._driver._acquire(self._timeout)
        self._uses = entry.uses
        connection: C = entry.connection
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        closing = self._driver._hand_in(self._entry, self._uses, error)
        if closing is not None:
            self._driver._wait_for([closing])

    def _is_held(self) -> bool:
        # It may have been discarded, detached or even released by hand meanwhile, or closed with the pool.
        return self._entry.is_in(self._uses)

    def _hand_in(self, error: BaseException | None) -> Greenlet | None:
        """What leaving the block does, but for waiting. Returns what closes the connection, if it is closed."""
        return self._driver._hand_in(self._entry, self._uses, error)
