"""One use of one connection, from acquire to release."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from gsocketpool import _callsite
from gsocketpool._records import IN_USE, Entry
from gsocketpool._threads import Thread, current
from gsocketpool.exceptions import ConnectionNotFoundError

if TYPE_CHECKING:
    from gsocketpool._adapter import Adapter
    from gsocketpool.pool import Pool

C = TypeVar("C")


#: Replaces a lease's timeout once its block was entered.
_ENTERED: Any = object()


class LeasingPool(Protocol):
    """The part of a pool that a lease needs."""

    _adapter: Adapter
    _tells_acquired: bool
    _thread: Thread | None

    def _check_out(self, timeout: float | None) -> Entry: ...
    def _check_in(
        self, entry: Entry, generation: int, error: BaseException | None, is_deferred: bool = ...
    ) -> None: ...
    def _complete(self, entry: Entry, generation: int) -> None: ...
    def _release(self, entry: Entry, generation: int, callsite: list[_callsite.Frame]) -> None: ...
    def _discard(self, entry: Entry, generation: int, reason: str = ...) -> None: ...
    def _transfer(self, entry: Entry) -> None: ...
    def _tell_acquired(self, lease: Any) -> None: ...
    def _ensure_owner(self) -> None: ...
    def _defer(self, method: Callable[..., None], *arguments: Any) -> None: ...
    def _run_in_owner(self, entry: Entry, method: Callable[..., None], *arguments: Any) -> None: ...


class Lease(Generic[C]):
    """One use of one connection, as returned by :meth:`Pool.connection` and :meth:`Pool.lease`.

    Its ``with`` block returns the connection and gives it back at the end. A lease from
    :meth:`Pool.connection` acquires it on entry. A lease is for one use: entering it twice raises a RuntimeError.
    """

    # A class, because a generator would cost as much as the rest of an acquire and release.

    __slots__ = ("__weakref__", "_entry", "_generation", "_pool", "_timeout")

    def __init__(self, pool: LeasingPool, timeout: float | None = None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._entry: Entry | None = None
        self._generation = 0

    def __enter__(self) -> C:
        pool = self._pool
        timeout = self._timeout
        if timeout is _ENTERED:
            raise RuntimeError("a lease is for one use: call connection() again for another")
        self._timeout = _ENTERED
        if self._entry is not None:
            return self.connection
        self._entry = entry = pool._check_out(timeout)
        self._generation = entry.generation
        if pool._tells_acquired:
            try:
                pool._tell_acquired(self)
            except RecursionError:  # pragma: no cover - only near the recursion limit, where coverage can't measure
                pool._defer(pool._discard, entry, entry.generation, "interrupted")
                raise
        return entry.connection  # type: ignore[no-any-return]

    def _adopt(self, entry: Entry) -> None:
        """Become the lease of an entry that is already checked out."""
        self._entry = entry
        self._generation = entry.generation

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pool = self._pool
        entry: Any = self._entry
        # It is no error if the block itself has released, discarded or detached the connection.
        if current.thread is pool._thread:
            if entry.complete is not None and error is None:
                try:
                    if entry.generation == self._generation and entry.status is IN_USE:
                        pool._complete(entry, self._generation)
                except RecursionError:
                    pool._defer(pool._discard, entry, self._generation, "error")
                    raise
            try:
                pool._check_in(entry, self._generation, error)
            except RecursionError:  # pragma: no cover - only near the recursion limit, where coverage can't measure
                pool._defer(pool._check_in, entry, self._generation, error, True)
        elif entry is not None and self.is_active:
            if error is None and entry.complete is not None:
                # Only the pool's own thread could complete the block.
                pool._run_in_owner(entry, pool._release, entry, self._generation, _callsite.callers(1))
            else:
                pool._run_in_owner(entry, pool._check_in, entry, self._generation, error)

    def __repr__(self) -> str:
        if self._entry is None:
            return "<Lease, not acquired yet>"
        return f"<Lease of {self._entry.connection!r}{'' if self.is_active else ', over'}>"

    @property
    def pool(self) -> Pool[C]:
        """The pool that the connection belongs to."""
        pool: Any = self._pool
        return pool  # type: ignore[no-any-return]

    @property
    def timeout(self) -> float | None:
        """Seconds that the acquire may take, as for :meth:`Pool.acquire`. It can be set until the block is entered.

        Afterwards it is None, as it is for a lease from :meth:`Pool.lease`, which is acquired already.
        """
        return None if self._timeout is _ENTERED else self._timeout

    @timeout.setter
    def timeout(self, timeout: float | None) -> None:
        if self._timeout is not _ENTERED and self._entry is None:
            self._timeout = timeout

    @property
    def holder(self) -> Any:
        """The greenlet that acquired the connection, or the last one that called :meth:`transfer`.

        None once the lease is over or the greenlet was garbage-collected.
        """
        entry = self._entry
        return entry.holder() if entry is not None and entry.is_leased(self._generation) and entry.holder else None

    @property
    def is_active(self) -> bool:
        """Whether the connection was acquired and has not been given back in any way."""
        entry = self._entry
        return entry is not None and entry.generation == self._generation and entry.status is IN_USE

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left open that a reset would end, such as a transaction.

        :raises ConnectionNotFoundError: if the lease is not active.
        """
        return self._pool._adapter.is_settled(self._active_entry().connection)

    @property
    def connection(self) -> C:
        """The connection.

        :raises ConnectionNotFoundError: if the lease is not active.
        """
        connection: C = self._active_entry().connection
        return connection

    def release(self, *, warn: bool = True) -> None:
        """Give the connection back, as :meth:`Pool.release` does, from any thread.

        Unlike the end of a block, this does not complete unfinished work, such as a transaction: the pool resets it.

        :param warn: whether to log a warning if work is left unfinished.
        :raises ConnectionNotFoundError: if the lease is not active; nothing changes then.
        """
        entry = self._active_entry()
        pool, arguments = self._pool, (entry, self._generation, None)
        give_back: Callable[..., None] = pool._check_in
        if warn and entry.complete is not None:
            give_back, arguments = pool._release, (entry, self._generation, _callsite.callers(1))  # type: ignore[assignment]
        if current.thread is pool._thread:
            give_back(*arguments)
        else:
            pool._run_in_owner(entry, give_back, *arguments)

    def discard(self, reason: str = "explicit") -> None:
        """Close a connection that must not be used again, as :meth:`Pool.discard` does, from any thread.

        :param reason: the key to count it under in :attr:`PoolStats.discarded`.
        :raises ConnectionNotFoundError: if the lease is not active; nothing changes then.
        """
        self._pool._discard(self._active_entry(), self._generation, reason)

    def transfer(self) -> None:
        """Make the calling greenlet the holder of the connection.

        The pool takes a connection back and closes it when its holder has ended. So a greenlet that is given another
        greenlet's connection calls this first.

        :raises ConnectionNotFoundError: if the lease is not active; nothing changes then.
        """
        entry = self._active_entry()
        self._pool._ensure_owner()
        self._pool._transfer(entry)

    def _active_entry(self) -> Entry:
        entry = self._entry
        if entry is None or not entry.is_leased(self._generation):
            raise ConnectionNotFoundError("the lease is not active: its connection was given back, or not acquired yet")
        return entry
