"""A pool without a server, which hands out one object."""

from __future__ import annotations

import sys
from collections import Counter
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gevent import getcurrent

from gsocketpool import ConnectionNotFoundError, InvalidArgumentError, Pool, PoolClosedError, PoolStats
from gsocketpool.exceptions import shown
from gsocketpool.settings import check_count, check_seconds

C = TypeVar("C")


class FakePool(Generic[C]):
    """Hands out the same object to every caller, for tests of code that uses a :class:`~gsocketpool.Pool`.

    It opens, checks and closes nothing and has no limit: any number of callers may hold the connection at a time, and
    none waits. It counts acquires and releases, so that :meth:`stats` shows whether all callers have given it back. The
    methods of :class:`~gsocketpool.Pool` that it lacks raise an AttributeError that says so.

    :param connection: any object. The pool calls none of its methods.
    :param name: the pool's name in statistics and errors.
    """

    def __init__(self, connection: C, name: str = "fake") -> None:
        #: The pool's name in statistics and errors.
        self.name = name
        self._connection = connection
        self._leases: list[FakeLease[C]] = []
        self._acquired = 0
        self._discarded: Counter[str] = Counter()
        self._closed = False

    def acquire(self, retry: int | None = None, *, timeout: float | None = None) -> C:
        """Return the connection.

        :raises PoolClosedError: if the pool is closed.
        :raises InvalidArgumentError: as from :meth:`Pool.acquire <gsocketpool.Pool.acquire>`.
        """
        if retry is not None:
            check_count("retry", retry)
            if timeout is not None:
                raise InvalidArgumentError("timeout", timeout, "left out where retry is given")
        return self.lease(timeout).connection

    def connection(self, timeout: float | None = None) -> FakeLease[C]:
        """Return a lease: its ``with`` block acquires the connection on entry, and gives it back at the end.

        If an exception leaves the block, this counts as a discard with the reason ``"error"``.
        """
        if timeout is not None:
            check_seconds("timeout", timeout, zero=True, endless=True)
        return FakeLease(self, timeout)

    def lease(self, timeout: float | None = None) -> FakeLease[C]:
        """Acquire the connection and return its lease."""
        lease = self.connection(timeout)
        lease._begin()
        return lease

    def release(self, connection: C) -> None:
        """Give the connection back.

        :raises ConnectionNotFoundError: if it is another object, or not in use.
        """
        self._last_lease(connection).release()

    def discard(self, connection: C) -> None:
        """Count the connection as discarded. The next caller gets the same object.

        :raises ConnectionNotFoundError: if it is another object, or not in use.
        """
        self._last_lease(connection).discard()

    def ping(self, timeout: float | None = None) -> None:
        """Acquire the connection and give it back, without calling its ``ping()``."""
        with self.connection(timeout):
            pass

    def close(self, timeout: float = 5.0) -> None:
        """Hand out no more connections. This does not wait, nor close the connection."""
        self._closed = True

    def __enter__(self) -> FakePool[C]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """The number of callers that hold the connection."""
        return len(self._leases)

    def stats(self) -> PoolStats:
        """Return how many callers hold the connection, and how often it was acquired and discarded."""
        return PoolStats(
            name=self.name,
            max_connections=sys.maxsize,
            idle=0,
            in_use=len(self._leases),
            opening=0,
            resetting=0,
            closing=0,
            can_peek=None,
            waiting=0,
            acquired_at_once=self._acquired,
            acquired_after_wait=0,
            timed_out=0,
            refused=0,
            opened=0,
            open_errors=0,
            detached=0,
            discarded=MappingProxyType(dict(self._discarded)),
            retired=MappingProxyType({}),
            wait_time=0.0,
            use_time=0.0,
            open_time=0.0,
        )

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"<FakePool {self.name!r} of {shown(self._connection)}: {len(self._leases)} in use{closed}>"

    if not TYPE_CHECKING:  # pragma: no branch

        def __getattr__(self, name: str) -> Any:
            hint = "; use a real Pool" if hasattr(Pool, name) else ""
            raise AttributeError(f"a FakePool has no {name!r}{hint}", name=name, obj=self)

    def _last_lease(self, connection: C) -> FakeLease[C]:
        if connection is not self._connection or not self._leases:
            raise ConnectionNotFoundError(f"{shown(connection)} is not in use in pool {self.name!r}")
        # A block gives back its own lease.
        by_hand = [lease for lease in self._leases if not lease._is_entered]
        return (by_hand or self._leases)[-1]


class FakeLease(Generic[C]):
    """One use of the connection of a :class:`FakePool`, with the methods of a :class:`~gsocketpool.Lease`."""

    def __init__(self, pool: FakePool[C], timeout: float | None = None) -> None:
        #: The pool that the connection belongs to.
        self.pool = pool
        #: Seconds that acquiring may take. It never waits.
        self.timeout = timeout
        self._is_entered = False
        self._holder: Any = None

    @property
    def holder(self) -> Any:
        """The greenlet that acquired the connection, or last called :meth:`transfer`; None once the lease is over."""
        return self._holder if self.is_active else None

    @property
    def is_active(self) -> bool:
        """Whether the connection was acquired and has not been given back."""
        return any(lease is self for lease in self.pool._leases)

    @property
    def is_settled(self) -> bool:
        """Always True, because the pool does not look at the connection."""
        return True

    @property
    def connection(self) -> C:
        """The connection.

        :raises ConnectionNotFoundError: if the lease is not active.
        """
        self._require_active()
        return self.pool._connection

    def release(self, *, warn: bool = True) -> None:
        """Give the connection back.

        :param warn: ignored.
        :raises ConnectionNotFoundError: if the lease is not active.
        """
        self._require_active()
        self.pool._leases.remove(self)

    def discard(self, reason: str = "explicit") -> None:
        """Give the connection back, and count a discard.

        :raises ConnectionNotFoundError: if the lease is not active.
        """
        self.release()
        self.pool._discarded[reason] += 1

    def transfer(self) -> None:
        """Make the calling greenlet the holder.

        :raises ConnectionNotFoundError: if the lease is not active.
        """
        self._require_active()
        self._holder = getcurrent()

    def __enter__(self) -> C:
        if self._is_entered:
            raise RuntimeError("a lease is for one use: call connection() again for another")
        self._is_entered = True
        if not self.is_active:
            self._begin()
        return self.connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # It is no error if the block itself has given the connection back.
        if self.is_active and kind is None:
            self.release()
        elif self.is_active:
            self.discard("error")

    def _begin(self) -> None:
        if self.pool._closed:
            raise PoolClosedError(f"pool {self.pool.name!r} is closed")
        self.pool._acquired += 1
        self._holder = getcurrent()
        self.pool._leases.append(self)

    def _require_active(self) -> None:
        if not self.is_active:
            raise ConnectionNotFoundError("the lease is not active: its connection was given back, or not acquired yet")
