"""The checks of a torture."""

from __future__ import annotations

import os
import re
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import gevent

from gsocketpool import InvalidArgumentError, Pool, PoolExhaustedError
from gsocketpool.testing._report import TortureReport
from gsocketpool.testing._server import FlakyServer
from gsocketpool.testing._sockets import open_sockets

C = TypeVar("C")

#: Seconds without progress after which something counts as hanging.
HANG = 20.0
#: Seconds that a child gets to close the sockets of its parent.
GRACE = 2.0


class InjectedError(Exception):
    """An ordinary error that the torture raises on purpose."""


class Checks(Generic[C]):
    """Checks what a pool and its connections do, and records their failures.

    :param sockets: the sockets that were open before the torture.
    """

    def __init__(
        self,
        pool: Pool[C],
        exchange: Callable[[C, bytes], bytes],
        server: FlakyServer | None,
        report: TortureReport,
        sockets: dict[tuple[int, int], str],
    ) -> None:
        self.pool = pool
        self.report = report
        #: The failures so far, in words.
        self.failures: list[str] = []
        #: How many exchanges are in progress.
        self.under_way = 0
        #: A new object for each calm, a period around a fork in which the server works normally; None outside of one.
        #: An exchange that begins and ends in the same calm must succeed.
        self.calm: object | None = None
        #: The timeouts thrown at the pool's greenlets, which may come out of an acquire. Weak, because their tracebacks
        #: keep the locals of half-open connections alive.
        self.thrown_at_pool: weakref.WeakSet[BaseException] = weakref.WeakSet()
        #: The error of the last failed round, in words.
        self.last_error = "none"
        #: How many connections were acquired by greenlets that ended without giving them back.
        self.abandoned = 0
        #: How many detached connections are in use. The pool no longer knows them, and can't abort them in a child.
        self.detached = 0
        self._exchange = exchange
        self._server = server
        self._sockets = sockets
        self._messages = 0
        #: The users of the connections, by id() of the connection.
        self._holders: dict[int, object] = {}
        self._reclaimed_before = self._reclaimed()
        self._allowed = self.limit = pool.stats().max_connections

    # Before anything goes wrong

    def check_setup(self) -> None:
        """Make one exchange, to raise errors that come from a mistake in the test."""
        with gevent.Timeout(HANG), self.pool.connection() as connection:
            reply = self._exchange(connection, b"torture")
        if reply != b"torture":
            raise InvalidArgumentError(
                "exchange", reply, "a callable that returns the message it was given, b'torture'"
            )

    # While a connection is used

    @contextmanager
    def using(self, connection: C, by: object) -> Iterator[None]:
        """Record one use of a connection, which must be the only one at the time."""
        if id(connection) in self._holders:
            self.failures.append(f"{connection!r} is used by {by} and {self._holders[id(connection)]}")
        self._holders[id(connection)] = by
        try:
            yield
        finally:
            self._holders.pop(id(connection), None)

    def check_exchange(self, connection: C, by: object, calm: object | None = None) -> None:
        """Exchange a unique message, and check the reply.

        :param calm: the value of :attr:`calm` when the connection was acquired.
        """
        process = os.getpid()
        self._messages += 1
        message = f"torture-{process}-{by}-{self._messages}".encode()
        self.under_way += 1
        try:
            reply = self._exchange(connection, message)
        except Exception as error:
            if calm is not None and calm is self.calm and not _is_injected_or_timeout(error):
                self.failures.append(
                    f"an exchange failed at a fork although the server worked normally: {error!r}. In a child, abort()"
                    " may have changed the parent's connection"
                )
            raise
        finally:
            self.under_way -= 1
        if process != os.getpid():
            self.failures.append(
                f"a forked process read a reply meant for its parent: {reply!r}. Its connection needs a get() that"
                " returns the socket, or an abort()"
            )
        if reply != message:
            self.failures.append(
                f"a reply reached the wrong caller: {message!r} was answered by {reply!r}. The pool has kept a"
                " connection after an incomplete exchange, or with an unread reply"
            )
        self.report.exchanges += 1

    # In each turn

    def check_limit(self) -> None:
        stats = self.pool.stats()
        # After the limit was lowered, surplus connections close as they come back.
        self._allowed = max(stats.max_connections, min(self._allowed, self.pool.size))
        if self.pool.size > self._allowed:
            self.failures.append(f"more than {self._allowed} connections: {self.pool!r}")

    # In a forked child

    def reset_in_child(self) -> None:
        """Forget what belongs to the parent. From here on, the child's exchanges must succeed."""
        self.failures.clear()
        self._holders.clear()
        self.last_error = "none"
        self.report.exchanges = 0
        self.calm = object()

    def client_sockets(self) -> dict[tuple[int, int], str]:
        """Return the sockets of the connections that are open now."""
        passed_over = self._ignored_sockets()
        return {which: what for which, what in open_sockets().items() if which not in passed_over}

    def check_parent_sockets(self, sockets: dict[tuple[int, int], str]) -> None:
        """Wait until the child has closed these sockets."""
        self._wait_for(lambda: not sockets.keys() & open_sockets().keys(), GRACE)
        self.failures += [
            f"a forked process keeps a socket of its parent open: {sockets[which]}. Its connection needs a get() that"
            " returns the socket, or an abort()"
            for which in sockets.keys() & open_sockets().keys()
        ]

    # At the end

    def check_shared_connections(self) -> None:
        for served in () if self._server is None else self._server.connections:
            processes = set(re.findall(rb"torture-(\d+)-", served.received))
            if len(processes) > 1:
                self.failures.append(f"{len(processes)} processes used {served!r}")

    def check_capacity(self) -> None:
        stats = self.pool.stats()
        # A sweep reclaims connections from greenlets that have ended. Only the deliberate ones may lose any.
        lost = stats.in_use + self._reclaimed() - self._reclaimed_before - self.abandoned
        if lost:
            self.failures.append(f"{lost} connections were lost: {self.pool!r}")
        self.pool._reaper.sweep(self.pool)
        taken: list[C] = []
        deadline = time.monotonic() + HANG
        while len(taken) < self.limit:
            try:
                taken.append(self._acquire_working())
            except Exception as error:  # pragma: no cover - depends on random timing
                # An opening that began while the server misbehaved may still fail.
                if time.monotonic() > deadline:
                    self.failures.append(f"only {len(taken)} of {self.limit} could be used afterwards: {error!r}")
                    break
                gevent.sleep(0.01)
        else:
            with suppress(PoolExhaustedError):
                taken.append(self.pool.acquire(timeout=0))
                # No pool has done this yet.
                self.failures.append(f"a connection above the limit: {self.pool!r}")  # pragma: no cover
        for connection in taken:
            self.pool.release(connection)

    def check_open_sockets(self) -> None:
        """Wait until every socket is closed that was not open before. Call this when the pool is closed."""

        def left() -> list[str]:
            passed_over = self._ignored_sockets()
            return [what for which, what in open_sockets().items() if which not in passed_over]

        self._wait_for(lambda: not left(), HANG)
        self.failures += [f"a socket is still open: {what}" for what in left()]

    def _ignored_sockets(self) -> set[tuple[int, int]]:
        return set(self._sockets) if self._server is None else set(self._sockets) | self._server._own_sockets()

    def _wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        with gevent.Timeout(seconds, False):
            while not condition():
                gevent.sleep(0.001)

    def _acquire_working(self) -> C:
        connection = self.pool.acquire(timeout=HANG)
        try:
            self.check_exchange(connection, "afterwards")
        except BaseException:  # pragma: no cover - depends on random timing
            self.pool.discard(connection)
            raise
        return connection

    def _reclaimed(self) -> int:
        return self.pool.stats().discarded.get("holder_dead", 0)


def _is_injected_or_timeout(error: BaseException) -> bool:
    """Return whether an error comes from an injected one, or from a timeout, which a slow machine may cause."""
    expected: Any = (gevent.GreenletExit, gevent.Timeout, InjectedError, TimeoutError)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, expected):
        cause = cause.__cause__ or cause.__context__
    return cause is not None
