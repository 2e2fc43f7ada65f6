"""A greenlet that uses connections in a torture."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import gevent
import gevent.pool

from gsocketpool.testing._checks import Checks, InjectedError

#: Seconds after which a Timeout ends most rounds, and a few rounds.
ROUND, SHORT_ROUND = 0.5, 0.002


class Worker:
    """A greenlet that uses connections in every possible way, while exceptions are thrown at it.

    :param next_round: returns whether to start another round. It may wait.
    :param background: the group for greenlets that this one starts.
    """

    def __init__(
        self, checks: Checks[Any], number: int, next_round: Callable[[], bool], background: gevent.pool.Group
    ) -> None:
        self._checks = checks
        self._pool = checks.pool
        self._number = number
        self._next_round = next_round
        self._background = background
        self._random = Random(f"{checks.report.seed}-{number}")
        #: The exceptions thrown in the current round.
        self._thrown: list[BaseException] = []
        #: The exception caught inside the block in the current round.
        self._caught: BaseException | None = None
        self._limit: gevent.Timeout | None = None
        self._has_expired = False
        #: Whether an exchange is in progress.
        self.is_exchanging = False
        self._calm: object | None = None
        self._is_stopped = False
        #: Whether it uses a connection or waits for one.
        self.is_in_round = False
        self._began = 0.0
        self.greenlet = gevent.spawn(self._run)

    def throw(self, error: BaseException) -> None:
        """Throw `error` into the greenlet in the next turn of the event loop."""
        gevent.get_hub().loop.run_callback(self._throw, error)

    def _throw(self, error: BaseException) -> None:
        # Up to two, so that the second interrupts the handling of the first.
        if self.is_in_round and len(self._thrown) < 2:
            self._checks.report.thrown += 1
            self._thrown.append(error)
            self.greenlet.throw(error)

    def stop(self) -> None:
        """End the greenlet, without checking the outcome."""
        self._is_stopped = True
        self.greenlet.kill(block=False)

    def busy_for(self) -> float:
        """Return the seconds that the current round has taken so far."""
        return time.monotonic() - self._began if self.is_in_round else 0.0

    def began_after(self, moment: float) -> bool:
        """Return whether the current round, if any, began after that time of the monotonic clock."""
        return not self.is_in_round or self._began > moment

    def _run(self) -> None:
        while self._next_round():
            self._calm = self._checks.calm
            self._began = time.monotonic()
            self._has_expired = False
            self.is_in_round = True
            came_out = None
            try:
                self._round()
            except BaseException as error:
                came_out = error
            self.is_in_round = False
            if not self._is_stopped:
                self._judge(came_out)
            self._forget(came_out)
            # Break the cycle: the traceback refers to this frame.
            del came_out
            if self._is_stopped:
                return

    def _judge(self, came_out: BaseException | None) -> None:
        """Check that what was thrown came out, or an error that names it as its cause or context."""
        checks = self._checks
        outcome = self._caught if came_out is None else came_out
        # The last exception may have replaced earlier ones.
        thrown = self._thrown[-1:]
        if self._limit is not None and self._has_expired:
            thrown.append(self._limit)
        if came_out is None and self._caught is not None:
            checks.report.caught += 1
        if outcome is not None and outcome is self._limit:
            # Possibly while another exception was propagating.
            checks.report.timeouts += 1
        elif thrown:
            for one in thrown:
                if not (_has(outcome, one) or _has(self._caught, one)):
                    checks.failures.append(f"{one!r} was thrown, and {outcome!r} came out")
        elif isinstance(outcome, Exception) or outcome in checks.thrown_at_pool:
            checks.report.errors[type(outcome).__name__] += 1
            checks.last_error = repr(outcome)
        elif outcome is not None:  # pragma: no cover - nothing throws one
            checks.failures.append(f"{outcome!r} came out, which was never thrown")

    def _forget(self, came_out: BaseException | None) -> None:
        """Drop the tracebacks, which keep locals alive, such as a half-open client."""
        for error in (came_out, self._caught, self._limit, *self._thrown):
            for one in _chain(error, hidden=True):
                one.__traceback__ = None
        self._thrown.clear()
        self._caught = self._limit = None

    def _round(self) -> None:
        self._yield_turns()
        use = self._random.choices(_USES, _WEIGHTS)[0]
        if use is Worker._detached and self._calm is not None:
            # A detached connection would prevent the fork.
            use = Worker._in_a_block
        self._limit = gevent.Timeout.start_new(SHORT_ROUND if self._random.random() < 0.1 else ROUND)
        try:
            use(self)
        finally:
            self._has_expired = not self._limit.pending
            self._limit.close()

    def _yield_turns(self) -> None:
        for _ in range(self._random.randrange(3)):
            gevent.sleep(0)

    def _exchange(self, connection: Any) -> None:
        with self._checks.using(connection, self._number):
            self._yield_turns()
            self.is_exchanging = True
            try:
                self._checks.check_exchange(connection, self._number, self._calm)
            finally:
                self.is_exchanging = False
            self._yield_turns()

    # The ways to use a connection

    def _in_a_block(self) -> None:
        with self._pool.connection() as connection:
            self._exchange(connection)

    def _in_a_block_that_catches(self) -> None:
        with self._pool.connection() as connection:
            try:
                self._exchange(connection)
            except (OSError, gevent.Timeout) as error:
                self._caught = error

    def _in_a_block_in_a_block(self) -> None:
        with self._pool.connection() as connection:
            self._exchange(connection)
            with self._pool.connection(timeout=SHORT_ROUND) as another:
                self._exchange(another)

    def _in_a_block_that_fails(self) -> None:
        with self._pool.connection() as connection:
            self._exchange(connection)
            raise InjectedError("in a block")

    def _by_hand(self) -> None:
        connection = self._pool.acquire()
        try:
            self._exchange(connection)
        except BaseException:
            self._pool.discard(connection)
            raise
        self._pool.release(connection)

    def _without_waiting(self) -> None:
        with self._pool.connection(timeout=0) as connection:
            self._exchange(connection)

    def _detached(self) -> None:
        connection = self._pool.detach(self._pool.acquire())
        self._checks.detached += 1
        try:
            self._exchange(connection)
        finally:
            self._background.spawn(self._close_detached, connection)

    def _close_detached(self, connection: Any) -> None:
        try:
            self._pool._closer.close_within_timeout(connection)
        finally:
            self._checks.detached -= 1

    def _never_given_back(self) -> None:
        taker = self._background.spawn(self._acquire_and_end)
        self._background.spawn(self._sweep_after, taker)
        taker.join()

    def _acquire_and_end(self) -> None:
        with suppress(Exception, gevent.Timeout):
            self._pool.acquire()
            self._checks.abandoned += 1

    def _sweep_after(self, taker: gevent.Greenlet) -> None:
        taker.join()
        self._pool._reaper.sweep(self._pool)


_RARE = (
    Worker._in_a_block_in_a_block,
    Worker._in_a_block_that_fails,
    Worker._by_hand,
    Worker._without_waiting,
    Worker._detached,
    Worker._never_given_back,
)
_USES = (Worker._in_a_block, Worker._in_a_block_that_catches, *_RARE)
_WEIGHTS = (20, 20, *(3 for _ in _RARE))


def _has(came_out: BaseException | None, thrown: BaseException) -> bool:
    """Return whether `came_out` is what was thrown, or has it as a cause or visible context."""
    return any(one is thrown for one in _chain(came_out, hidden=False))


def _chain(error: BaseException | None, *, hidden: bool) -> list[BaseException]:
    """Return an error with its causes and contexts, including those that ``from None`` hides if `hidden`."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        is_shown = hidden or not error.__suppress_context__
        error = error.__cause__ or (error.__context__ if is_shown else None)
    return found
