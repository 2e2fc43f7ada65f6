"""Runs a torture: throws exceptions, forks, and lets the server misbehave."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any, Generic, TypeVar

import gevent
import gevent.pool
from gevent.event import Event
from gevent.monkey import get_original

from gsocketpool.testing import _checks
from gsocketpool.testing._checks import Checks, InjectedError
from gsocketpool.testing._forking import PipeEnd, fork
from gsocketpool.testing._sabotage import Sabotage
from gsocketpool.testing._server import FlakyServer
from gsocketpool.testing._worker import ROUND, Worker

C = TypeVar("C")

#: Average numbers per round: exceptions thrown, and drains, resizes or sweeps of the pool.
_THROWN, _MAINTAINED = 0.5, 0.03
#: Turns of the event loop between the first unanswered exchange and the fork, so that others can start.
_TURNS_BEFORE_FORK = 10


class Run(Generic[C]):
    """One torture of one pool. Its greenlet decides in each turn of the event loop what goes wrong."""

    def __init__(
        self, checks: Checks[C], seed: int, rounds: int, server: FlakyServer | None, forks: int, greenlets: int
    ) -> None:
        self._checks = checks
        self._pool = checks.pool
        self._report = checks.report
        self._server = server
        self._rounds = self._rounds_left = rounds
        self._forks = forks
        self._random = Random(seed)
        self._least = max(1, self._pool._settings.min_connections)
        self._background = gevent.pool.Group()
        self._workers: list[Worker] = []
        #: The classes of errors to throw next, each once before any is repeated.
        self._to_throw: list[type[BaseException]] = []
        self._greenlets = greenlets
        self._sabotage = Sabotage(server, checks, self._workers, self._random) if server is not None else None
        #: Cleared to keep further rounds from starting.
        self._may_go_on = Event()
        self._may_go_on.set()
        #: The round in which to clear it.
        self._pause_in_round: int | None = None

    def execute(self) -> None:
        """Torture the pool, then check that it works as before."""
        self._checks.check_setup()
        self._workers += [
            Worker(self._checks, number, self._next_round, self._background) for number in range(self._greenlets)
        ]
        try:
            self._torture()
            self._recover()
        finally:
            # After a success they have ended already.
            for worker in self._workers:
                worker.stop()
            gevent.joinall([worker.greenlet for worker in self._workers], timeout=ROUND)
            # Some of these close connections.
            self._background.join(timeout=2 * ROUND)
            self._background.kill(block=False)

    def _next_round(self) -> bool:
        if self._report.rounds == self._pause_in_round:
            self._may_go_on.clear()
        self._may_go_on.wait()
        if self._rounds_left <= 0 or self._checks.failures:
            return False
        self._rounds_left -= 1
        self._report.rounds += 1
        return True

    def _torture(self) -> None:
        sabotage = self._sabotage
        while self._goes_on():
            self._turn()
            if sabotage is not None:
                sabotage.go_on()
                if sabotage.is_patient:
                    continue
            self._maybe_throw()
            if sabotage is not None and sabotage.is_committing:  # pragma: no cover - depends on random timing
                self._maybe_maintain()
            elif self._is_due(self._forks / self._rounds, self._report.forks):
                self._fork()
            elif sabotage is not None and sabotage.is_due() and self._throws_due() < 1:
                sabotage.begin()
            else:
                self._maybe_maintain()
        self._heal()

    def _turn(self) -> None:
        gevent.sleep(0)
        self._checks.check_limit()

    def _goes_on(self) -> bool:
        """Return whether any worker is alive and nothing has failed."""
        hang = _checks.HANG
        stuck = [worker for worker in self._workers if worker.busy_for() > hang]
        self._checks.failures += [f"a greenlet has hung for {hang} s:\n{_stack(worker.greenlet)}" for worker in stuck]
        return not self._checks.failures and any(not worker.greenlet.ready() for worker in self._workers)

    # What goes wrong

    def _is_due(self, often: float, done: int) -> bool:
        """Return whether something should happen in this turn, so that it happens `often` times per round."""
        return done < often * self._report.rounds and self._random.random() < 0.05

    def _throws_due(self) -> float:
        return _THROWN * self._report.rounds - self._report.thrown

    def _maybe_throw(self) -> None:
        if self._throws_due() > len(self._workers):
            # Many exchanges end in each turn. Catch up, because a fault of the server begins only if none is due.
            for _ in range(min(int(self._throws_due()), 2 * len(self._workers))):
                self._throw_somewhere()
        for _ in self._workers:
            if self._is_due(_THROWN, self._report.thrown):
                self._throw_somewhere()

    def _throw_somewhere(self) -> None:
        """Throw an exception into a greenlet, sometimes one of the pool's own."""
        if not self._to_throw:
            self._to_throw = [gevent.GreenletExit, gevent.Timeout, InjectedError]
            self._random.shuffle(self._to_throw)
        error = self._to_throw.pop()()
        if self._random.random() < 0.85:
            # Prefer exchanges, because a worker spends most of a round in the queue.
            exchanging = [worker for worker in self._workers if worker.is_exchanging]
            aim = exchanging if exchanging and self._random.random() < 0.6 else self._workers
            self._random.choice(aim).throw(error)
            return
        # Closings and resets are rare and short.
        pool = self._pool
        own: list[Any] = [
            one for one in (*pool._closer._closing, *pool._lifecycle.upkeep.running) if one.gr_frame is not None
        ]
        if not own or self._random.random() < 0.5:
            openers: list[Any] = list(pool._state.opening)
            own += [one for one in openers if one.gr_frame is not None]
        if own:
            self._report.thrown += 1
            if isinstance(error, gevent.Timeout):
                self._checks.thrown_at_pool.add(error)
            self._random.choice(own).kill(error, block=False)

    def _maybe_maintain(self) -> None:
        if self._is_due(_MAINTAINED, self._report.upkeep.total()):
            self._maintain()

    def _maintain(self) -> None:
        what = self._random.choice(("drained", "resized", "swept"))
        self._report.upkeep[what] += 1
        if what == "drained":
            self._background.spawn(self._pool.drain)
        elif what == "swept":
            self._background.spawn(self._pool._reaper.sweep, self._pool)
        else:
            self._background.spawn(self._pool.resize, self._random.randint(self._least, self._checks.limit))

    def _heal(self) -> None:
        if self._sabotage is not None:
            self._sabotage.heal()

    # Forks

    def _fork(self) -> None:
        """Fork while exchanges are in progress over connections that no fault has affected."""
        checks = self._checks
        self._heal()
        self._pause_in_round = self._report.rounds
        self._wait_while(lambda: checks.detached or any(worker.is_in_round for worker in self._workers))
        checks.calm = object()
        draining = self._background.spawn(self._pool.drain)
        self._wait_while(lambda: not draining.ready())
        self._go_on()
        if self._wait_for_exchanges():
            self._report.forks += 1
            self._pause_in_round = self._report.rounds + len(self._workers)
            sockets = checks.client_sockets()
            child, link = fork()
            if child == 0:
                self._run_child(link, sockets)
            try:
                self._run_parent(child, link)
            finally:
                link.close()
                # The event loop may have reaped the child already.
                with suppress(ChildProcessError):
                    get_original("os", "waitpid")(child, 0)
                self._go_on()
        self._heal()
        checks.calm = None

    def _wait_while(self, condition: Callable[[], object]) -> None:
        while self._goes_on() and condition():
            self._turn()
            self._maybe_throw()

    def _wait_for_exchanges(self) -> bool:
        """Wait until exchanges are in progress, with late answers. Return whether to go on."""
        if self._server is not None:
            self._server.fail("late")
        deadline = time.monotonic() + ROUND
        turns = _TURNS_BEFORE_FORK
        while self._goes_on() and turns and time.monotonic() < deadline:
            self._turn()
            turns -= self._checks.under_way > 0
            if turns == 0 and not self._checks.under_way:  # pragma: no cover - depends on random timing
                turns = 1
        return self._goes_on()

    def _run_parent(self, child: int, link: PipeEnd) -> None:
        hang = _checks.HANG
        # Wait until the child has forgotten the parent's connections, and then until it has tried to read from them.
        # Otherwise this process would read the replies first.
        link.wait_for(1, hang)
        self._heal()
        # Late answers are sent in this turn, and can be read in the next.
        gevent.sleep(0)
        link.send(b".")
        link.wait_for(2, 1.0)
        # Longer than the child waits for its exchanges.
        with gevent.Timeout(2 * hang, False):
            while not (link.is_at_end or self._checks.failures):
                self._turn()
                link.poll()
        if not link.is_at_end:
            get_original("os", "kill")(child, 9)
            if not self._checks.failures:  # pragma: no cover - depends on random timing
                self._checks.failures.append("a forked process did not report")
            return
        found = json.loads(link.received.lstrip(b".") or b'["it exited without a report"]')
        self._checks.failures += [f"in a forked process: {failure}" for failure in found]

    def _run_child(self, link: PipeEnd, sockets: dict[tuple[int, int], str]) -> None:
        try:
            try:
                self._continue_in_child(link)
                if not self._checks.failures:
                    self._checks.check_parent_sockets(sockets)
            except BaseException:  # pragma: no cover - depends on random timing
                self._checks.failures.append(traceback.format_exc())
            link.send(json.dumps(self._checks.failures).encode())
        finally:
            os._exit(0)

    def _continue_in_child(self, link: PipeEnd) -> None:
        """Let the copied greenlets continue what they began in the parent, until they complete some exchanges."""
        checks = self._checks
        checks.reset_in_child()
        self._rounds_left = max(self._rounds_left, 100)
        self._go_on()
        link.send(b".")
        patience = _checks.HANG
        with gevent.Timeout(patience, False):
            while not link.received:
                gevent.sleep(0)
                link.poll()
            # Time to read what can be read.
            for _ in range(3):
                gevent.sleep(0.001)
            link.send(b".")
            while checks.report.exchanges < 10 and not checks.failures:
                self._turn()
        if checks.report.exchanges < 10 and not checks.failures:
            checks.failures.append(
                f"only {checks.report.exchanges} exchanges in {patience} s; its pool is {self._pool!r}, and the last"
                f" error was {checks.last_error}"
            )

    def _go_on(self) -> None:
        self._pause_in_round = None
        self._may_go_on.set()

    # At the end

    def _recover(self) -> None:
        """Wait for everything to finish, and check that no capacity was lost."""
        checks, hang = self._checks, _checks.HANG
        if self._server is not None:
            checks.failures += [f"the server has failed: {error!r}" for error in self._server._service.errors]
        checks.check_shared_connections()
        if checks.failures:
            return
        self._background.join(timeout=hang)
        checks.failures += [f"a greenlet has not ended within {hang} s:\n{_stack(one)}" for one in self._background]
        self._pool.resize(checks.limit)
        looking = gevent.spawn(checks.check_capacity)
        looking.join(timeout=2 * hang)
        if not looking.ready():  # pragma: no cover - no pool has done this yet
            checks.failures.append(f"the connections can't be used afterwards: {self._pool!r}\n{_stack(looking)}")


def _stack(greenlet: gevent.Greenlet) -> str:
    return "".join(traceback.format_stack(greenlet.gr_frame))
