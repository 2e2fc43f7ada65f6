"""A greenlet that is tortured."""

from __future__ import annotations

import time
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any

import gevent

if TYPE_CHECKING:
    from gsocketpool.testing._run import Run

#: Seconds after which a Timeout ends a round: most rounds, and some.
ROUND, SHORT_ROUND = 0.5, 0.002


class TorturersError(Exception):
    """An ordinary error that is raised here on purpose."""


class Worker:
    """A greenlet that uses connections in every way there is, while exceptions are thrown at it."""

    def __init__(self, run: Run[Any], number: int) -> None:
        self._run = run
        self._pool = run.pool
        self._number = number
        self._random = Random(f"{run.report.seed}-{number}")
        #: What was thrown in the present round.
        self._thrown: list[BaseException] = []
        self._limit: gevent.Timeout | None = None
        self._is_in_round = False
        self._began = 0.0
        self.greenlet = gevent.spawn(self._live)

    def strike(self, error: BaseException) -> None:
        """Throws `error` into the greenlet in the next turn of the event loop."""
        gevent.get_hub().loop.run_callback(self._throw, error)

    def _throw(self, error: BaseException) -> None:
        # The second one hits whatever the first one is in the middle of.
        if self._is_in_round and len(self._thrown) < 2:
            self._run.report.thrown += 1
            self._thrown.append(error)
            self.greenlet.throw(error)

    def busy_for(self) -> float:
        """The seconds that its present round has taken so far."""
        return time.monotonic() - self._began if self._is_in_round else 0.0

    def _live(self) -> None:
        run = self._run
        while run.rounds_left > 0 and not run.failures:
            run.rounds_left -= 1
            run.report.rounds += 1
            self._thrown.clear()
            self._began = time.monotonic()
            self._is_in_round = True
            try:
                self._round()
                came_out = None
            except BaseException as error:
                came_out = error
            self._is_in_round = False
            if run.is_over:
                return
            self._judge(came_out)
            # A frame must not keep the traceback that keeps the frame.
            del came_out

    def _judge(self, came_out: BaseException | None) -> None:
        """What was thrown must have come out, or what somebody has made of it."""
        report = self._run.report
        if came_out is not None and came_out is self._limit:
            # Perhaps while something else was on its way out.
            report.timeouts += 1
        elif self._thrown:
            if not _has(came_out, self._thrown[-1]):
                self._run.failures.append(f"{self._thrown[-1]!r} was thrown, and {came_out!r} came out")
        elif isinstance(came_out, Exception) or id(came_out) in self._run.thrown_at_pool:
            report.errors[type(came_out).__name__] += 1
            self._run.last_error = came_out
        elif came_out is not None:
            self._run.failures.append(f"{came_out!r} came out, which nobody has thrown")

    def _round(self) -> None:
        self._loiter()
        use = self._random.choices((Worker._in_a_block, *_RARE), (40, *(3 for _ in _RARE)))[0]
        self._limit = gevent.Timeout.start_new(SHORT_ROUND if self._random.random() < 0.1 else ROUND)
        try:
            use(self)
        finally:
            self._limit.close()

    def _loiter(self) -> None:
        for _ in range(self._random.randrange(3)):
            gevent.sleep(0)

    def _exchange(self, connection: Any) -> None:
        with self._run.using(connection, self._number):
            self._loiter()
            self._run.check_exchange(connection, self._number)
            self._loiter()

    # The ways to use a connection

    def _in_a_block(self) -> None:
        with self._pool.connection() as connection:
            self._exchange(connection)

    def _in_a_block_in_a_block(self) -> None:
        with self._pool.connection() as connection:
            self._exchange(connection)
            with self._pool.connection(timeout=SHORT_ROUND) as another:
                self._exchange(another)

    def _in_a_block_that_fails(self) -> None:
        with self._pool.connection() as connection:
            self._exchange(connection)
            raise TorturersError("in a block")

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

    def _for_itself(self) -> None:
        connection = self._pool.detach(self._pool.acquire())
        self._run.detached += 1
        try:
            self._exchange(connection)
        finally:
            self._run.detached -= 1
            self._run.in_background(self._pool._closer.close_within_timeout, connection)

    def _without_giving_back(self) -> None:
        taker = self._run.in_background(self._take_one_away)
        self._run.in_background(self._take_it_back, taker)
        taker.join()

    def _take_one_away(self) -> None:
        with suppress(Exception, gevent.Timeout):
            self._pool.acquire()
            self._run.taken_away += 1

    def _take_it_back(self, taker: gevent.Greenlet) -> None:
        taker.join()
        self._pool._reaper.sweep(self._pool)


_RARE = (
    Worker._in_a_block_in_a_block,
    Worker._in_a_block_that_fails,
    Worker._by_hand,
    Worker._without_waiting,
    Worker._for_itself,
    Worker._without_giving_back,
)


def _has(came_out: BaseException | None, thrown: BaseException) -> bool:
    """Whether `came_out` is what was thrown, or was raised because of it."""
    while came_out is not None and came_out is not thrown:
        came_out = came_out.__cause__ or came_out.__context__
    return came_out is thrown
