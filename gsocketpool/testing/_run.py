"""What is done to a pool in a torture, and what must hold all the same."""

from __future__ import annotations

import json
import os
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any, Generic, TypeVar

import gevent
import gevent.os
import gevent.pool
from gevent.monkey import get_original

from gsocketpool import InvalidArgumentError, Pool, PoolExhaustedError
from gsocketpool.testing._faults import FAULTS
from gsocketpool.testing._report import TortureReport
from gsocketpool.testing._server import FlakyServer
from gsocketpool.testing._sockets import open_sockets
from gsocketpool.testing._worker import ROUND, TorturersError, Worker

C = TypeVar("C")

#: Seconds without any progress after which something counts as hanging.
HANG = 20.0
#: What happens a round, on average: exceptions thrown, faults of the server, and what is done to the pool.
_THROWN, _FAULTS, _KEPT_UP = 0.5, 0.02, 0.03
#: The turns of the event loop that a fault lasts, at most.
_LONGEST_FAULT = 50


class Run(Generic[C]):
    """One torture of one pool. Its greenlet decides, turn by turn, what goes wrong."""

    def __init__(
        self,
        pool: Pool[C],
        seed: int,
        rounds: int,
        exchange: Callable[[C, bytes], bytes],
        server: FlakyServer | None,
        forks: int,
    ) -> None:
        self.pool = pool
        self.exchange = exchange
        self.server = server
        self.report = TortureReport(seed)
        self.failures: list[str] = []
        self.rounds_left = self._rounds = rounds
        #: Who uses which connection, by its identity.
        self.holders: dict[int, object] = {}
        #: What may come out of an acquire as the error of an opening.
        self.thrown_at_pool: dict[int, BaseException] = {}
        #: What the last round that failed raised.
        self.last_error: BaseException | None = None
        self._messages = 0
        self.is_over = False
        #: How many connections were acquired by greenlets that ended without giving them back.
        self.taken_away = 0
        #: How many connections are used that the pool does not know any more, and can't let go of in a fork.
        self.detached = 0
        self._taken_back_before = self._taken_back()
        self._forks = forks
        self._random = Random(seed)
        self._limit = pool.stats().max_connections
        self._allowed = self._limit
        self._least = max(1, pool._settings.min_connections)
        self._background = gevent.pool.Group()

    def execute(self, greenlets: int) -> None:
        self._make_sure_that_it_works()
        self._workers = [Worker(self, number) for number in range(greenlets)]
        try:
            self._torture()
            self._recover()
        finally:
            # Where all is well, they have ended by now.
            self.is_over = True
            workers = [worker.greenlet for worker in self._workers]
            gevent.killall(workers, block=False)
            gevent.joinall(workers, timeout=ROUND)
            # Among these are closings.
            self._background.join(timeout=2 * ROUND)
            self._background.kill(block=False)

    def _make_sure_that_it_works(self) -> None:
        """Lets out what a mistake in the test raises, before anything goes wrong on purpose."""
        with gevent.Timeout(HANG), self.pool.connection() as connection:
            reply = self.exchange(connection, b"torture")
        if reply != b"torture":
            raise InvalidArgumentError(
                "exchange", reply, "a callable that returns the message it was given, b'torture'"
            )

    def _torture(self) -> None:
        heal_in = 0
        while self._is_anybody_alive() and not self.failures:
            gevent.sleep(0)
            self._check_limit()
            heal_in -= 1
            if heal_in == 0 and self.server is not None:
                self.server.heal()
            for _ in self._workers:
                if self._is_time_for(_THROWN, self.report.thrown):
                    self._strike()
            if self._is_time_for(self._forks / self._rounds, self.report.forks) and not self.detached:
                self._fork()
            elif self._is_time_for(_KEPT_UP, self.report.upkeep.total()):
                self._keep_up()
            elif heal_in <= 0 and self.server is not None and self._is_time_for(_FAULTS, self.report.faults.total()):
                heal_in = self._sabotage(self.server)

    # What goes wrong

    def _is_time_for(self, often: float, done: int) -> bool:
        """Whether it is to happen in this turn, so that it happens so often a round."""
        return done < often * self.report.rounds and self._random.random() < 0.05

    def _strike(self) -> None:
        """Throws something at somebody."""
        if self._random.random() < 0.9:
            self._random.choice(self._workers).strike(self._error())
            return
        own = [one for one in (*self.pool._state.opening, *self.pool._closer._at_work) if one.gr_frame is not None]
        if own:
            self.report.thrown += 1
            error = self._error()
            self.thrown_at_pool[id(error)] = error
            self._random.choice(own).kill(error, block=False)

    def _error(self) -> BaseException:
        return self._random.choice((gevent.GreenletExit, gevent.Timeout, TorturersError))()

    def _keep_up(self) -> None:
        what = self._random.choice(("drained", "resized", "swept"))
        self.report.upkeep[what] += 1
        if what == "drained":
            self.in_background(self.pool.drain)
        elif what == "swept":
            self.in_background(self.pool._reaper.sweep, self.pool)
        else:
            self.in_background(self.pool.resize, self._random.randint(self._least, self._limit))

    def _sabotage(self, server: FlakyServer) -> int:
        """Has the server misbehave, and returns for how many turns."""
        fault = self._random.choice((*FAULTS, "restart", "close idle"))
        self.report.faults[fault] += 1
        if fault == "restart":
            server.restart(reset=self._random.random() < 0.5)
        elif fault == "close idle":
            server.close_idle()
        else:
            server.fail(fault)
            return self._random.randint(1, _LONGEST_FAULT)
        return 0

    def _fork(self) -> None:
        self.report.forks += 1
        if self.server is not None:
            # Nobody will heal it while the child lives.
            self.server.heal()
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            # Python warns of a fork in a process with threads, and gevent resolves names in some.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = gevent.os.fork_gevent()
        if child == 0:
            try:
                try:
                    self._live_in_the_child()
                except BaseException:
                    self.failures.append(traceback.format_exc())
                os.write(writing, json.dumps(self.failures).encode())
            finally:
                os._exit(0)
        os.close(writing)
        try:
            self._hear_of(child, reading)
        finally:
            os.close(reading)
            # The event loop may have done so already.
            with suppress(ChildProcessError):
                get_original("os", "waitpid")(child, 0)

    def _live_in_the_child(self) -> None:
        """What the greenlets began in the parent they go on to do here, until some exchanges have been completed."""
        self.failures.clear()
        self.holders.clear()
        self.last_error = None
        self.report.exchanges = 0
        self.rounds_left = max(self.rounds_left, 100)
        with gevent.Timeout(HANG / 2, False):
            while self.report.exchanges < 10 and not self.failures:
                gevent.sleep(0)
                self._check_limit()
        if self.report.exchanges < 10 and not self.failures:
            self.failures.append(
                f"only {self.report.exchanges} exchanges in {HANG / 2} s; its pool is {self.pool!r}, and the last"
                f" error was {self.last_error!r}"
            )

    def _hear_of(self, child: int, reading: int) -> None:
        heard = b""
        with gevent.Timeout(HANG, False):
            while True:
                if get_original("select", "select")([reading], [], [], 0)[0]:
                    data = os.read(reading, 65536)
                    if not data:
                        break
                    heard += data
                gevent.sleep(0)
        if not heard:
            get_original("os", "kill")(child, 9)
            self.failures.append("a forked process said nothing")
            return
        self.failures += [f"in a forked process: {failure}" for failure in json.loads(heard)]

    # What must hold

    def _check_limit(self) -> None:
        stats = self.pool.stats()
        # Where the limit was lowered, those above it go as they come back.
        self._allowed = max(stats.max_connections, min(self._allowed, self.pool.size))
        if self.pool.size > self._allowed:
            self.failures.append(f"more than {self._allowed} connections: {self.pool!r}")

    def _is_anybody_alive(self) -> bool:
        stuck = [worker for worker in self._workers if worker.busy_for() > HANG]
        self.failures += [f"a greenlet has hung for {HANG} s:\n{_stack(worker.greenlet)}" for worker in stuck]
        return any(not worker.greenlet.ready() for worker in self._workers)

    def _recover(self) -> None:
        """Lets all come to rest, and looks at whether everything is there again."""
        if self.server is not None:
            self.server.heal()
            self.failures += [f"the server has failed: {error!r}" for error in self.server._service.errors]
        self._look_for_shared_connections()
        if self.failures:
            return
        self._background.join(timeout=HANG)
        self.failures += [f"it has not ended within {HANG} s:\n{_stack(one)}" for one in self._background]
        self.pool.resize(self._limit)
        looking = gevent.spawn(self._look_for_lost_capacity)
        looking.join(timeout=2 * HANG)
        if not looking.ready():
            self.failures.append(f"the connections can't be used afterwards: {self.pool!r}\n{_stack(looking)}")

    def _look_for_lost_capacity(self) -> None:
        stats = self.pool.stats()
        # A sweep takes back what greenlets have lost that have ended. Only those that were made for it may do so.
        lost = stats.in_use + self._taken_back() - self._taken_back_before - self.taken_away
        if lost:
            self.failures.append(f"{lost} connections were lost: {self.pool!r}")
        self.pool._reaper.sweep(self.pool)
        taken: list[C] = []
        deadline = time.monotonic() + HANG
        while len(taken) < self._limit:
            try:
                taken.append(self._take_a_working_one())
            except Exception as error:
                # What began to be opened while the server misbehaved may fail yet.
                if time.monotonic() > deadline:
                    self.failures.append(f"only {len(taken)} of {self._limit} could be used afterwards: {error!r}")
                    break
                gevent.sleep(0.01)
        else:
            with suppress(PoolExhaustedError):
                taken.append(self.pool.acquire(timeout=0))
                self.failures.append(f"a connection above the limit: {self.pool!r}")
        for connection in taken:
            self.pool.release(connection)

    def _take_a_working_one(self) -> C:
        connection = self.pool.acquire(timeout=HANG)
        try:
            self.check_exchange(connection, "afterwards")
        except BaseException:
            self.pool.discard(connection)
            raise
        return connection

    def _taken_back(self) -> int:
        return self.pool.stats().discarded.get("holder_dead", 0)

    def _look_for_shared_connections(self) -> None:
        for served in () if self.server is None else self.server.connections:
            processes = set(re.findall(rb"torture-(\d+)-", served.received))
            if len(processes) > 1:
                self.failures.append(f"{len(processes)} processes used {served!r}")

    def look_for_open_sockets(self, before: dict[tuple[int, int], str]) -> None:
        """To be called when the pool is closed. The server's own sockets don't count."""

        def left() -> list[str]:
            passed_over = set(before) if self.server is None else set(before) | self.server._own_sockets()
            return [what for which, what in open_sockets().items() if which not in passed_over]

        with gevent.Timeout(HANG, False):
            while left():
                gevent.sleep(0.001)
        self.failures += [f"a socket is still open: {what}" for what in left()]

    # What the workers do

    def in_background(self, function: Callable[..., object], *arguments: Any) -> gevent.Greenlet:
        return self._background.spawn(function, *arguments)

    def check_exchange(self, connection: C, by: object) -> None:
        process = os.getpid()
        self._messages += 1
        message = f"torture-{process}-{by}-{self._messages}".encode()
        reply = self.exchange(connection, message)
        if process != os.getpid():
            self.failures.append(
                f"a forked process read what its parent had asked for: {reply!r}. Its connection needs a get() that"
                " returns the socket, or an abort()"
            )
        if reply != message:
            self.failures.append(f"a reply reached the wrong caller: {message!r} was answered {reply!r}")
        self.report.exchanges += 1

    @contextmanager
    def using(self, connection: C, by: object) -> Iterator[None]:
        if id(connection) in self.holders:
            self.failures.append(f"{connection!r} is used by {by} and {self.holders[id(connection)]}")
        self.holders[id(connection)] = by
        try:
            yield
        finally:
            self.holders.pop(id(connection), None)


def _stack(greenlet: gevent.Greenlet) -> str:
    return "".join(traceback.format_stack(greenlet.gr_frame))
