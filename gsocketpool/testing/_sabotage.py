"""What the server does wrong in a torture, and when it is well again."""

from __future__ import annotations

import time
from random import Random
from typing import Any

from gsocketpool.testing._checks import Checks
from gsocketpool.testing._faults import FAULTS, OF_CONNECTING
from gsocketpool.testing._server import FlakyServer
from gsocketpool.testing._worker import ROUND, Worker

#: Faults a round. They are waited for, and so are many and long only until each of them has happened.
_FIRST, _LATER = 0.1, 0.02
_ALL = (*FAULTS, "restart", "close idle")
#: The faults with consequences: the next exchange over the same connection may meet them.
_WITH_CONSEQUENCES = ("silent", "half", "twice")
#: How many answers a fault spoils the first time, and later, and how many openings.
_FIRST_ANSWERS, _LATER_ANSWERS, _OPENINGS = (4, 8), (1, 3), (1, 2)


class Sabotage:
    """Has a server misbehave, one fault after the other."""

    def __init__(self, server: FlakyServer, checks: Checks[Any], workers: list[Worker], random: Random) -> None:
        self._server = server
        self._pool = checks.pool
        self._report = checks.report
        self._workers = workers
        self._random = random
        self._spoiled_before = server._faults.spoiled
        #: What is still to happen before anything happens again.
        self._to_come: list[str] = []
        #: The present fault; None while the server is well.
        self._fault: str | None = None
        #: When it ends at the latest.
        self._until = 0.0
        #: How many openings have failed when it is over, if it is one of connecting.
        self._open_errors = 0
        #: How many answers were spoiled when it is over, if it is that answers are late.
        self._late_answers = 0
        #: When it was over; None while it is not.
        self._over: float | None = None
        #: In which round the server heals.
        self._heal_in_round = 0
        #: Whether every exchange and every opening that meets the fault is left to end by itself.
        self.is_patient = False

    @property
    def is_committing(self) -> bool:
        """Whether there is a fault now."""
        return self._fault is not None

    def is_due(self) -> bool:
        """Return whether the next fault should begin now."""
        committed = self._report.faults.total()
        if committed < len(_ALL):
            return committed < _FIRST * self._report.rounds
        return committed < _LATER * self._report.rounds and self._random.random() < 0.05

    def begin(self) -> None:
        """Have the server commit a fault, or close connections."""
        if not self._to_come:
            self._to_come = list(_ALL)
            self._random.shuffle(self._to_come)
        fault = self._to_come.pop()
        is_first = self._report.faults.total() < len(_ALL)
        self._report.faults[fault] += 1
        if fault == "restart":
            self._server.restart(reset=self._random.random() < 0.5)
        elif fault == "close idle":
            self._server.close_idle()
        else:
            self._fault, self._over = fault, None
            self._until = time.monotonic() + ROUND
            self.is_patient = is_first
            self._begin(fault, _FIRST_ANSWERS if is_first else _LATER_ANSWERS)

    def _begin(self, fault: str, answers: tuple[int, int]) -> None:
        if fault in OF_CONNECTING:
            self._open_errors = self._pool.stats().open_errors + self._random.randint(*_OPENINGS)
            self._server.fail(fault)
            # While those that are idle are good, none is opened.
            self._server.close_idle()
        elif fault == "late":
            # More than there are connections: some are asked again whose first answer was given up. Healed then, the
            # server sends the first answer to the second asker.
            limit = self._pool.stats().max_connections
            self._late_answers = self._server._faults.spoiled + limit + self._random.randint(1, limit)
            self._server.fail(fault)
        else:
            self._server.fail(fault, times=self._random.randint(*answers))

    def go_on(self) -> None:
        """Heal the server if the fault is over, and has had its consequences."""
        if self._fault is None:
            return
        if self._over is None and self._is_over():
            self._over = time.monotonic()
            self._heal_in_round = self._report.rounds + self._random.randint(0, len(self._workers))
        # A fault that nothing meets would last for ever: all connections may be about to shake hands.
        if self._is_time_to_heal() or time.monotonic() > self._until:
            self.heal()

    def heal(self) -> None:
        """Have the server work well."""
        self._fault = None
        self.is_patient = False
        self._server.heal()
        self._report.spoiled = self._server._faults.spoiled - self._spoiled_before

    def _is_over(self) -> bool:
        if self._fault in OF_CONNECTING:
            return self._pool.stats().open_errors >= self._open_errors
        if self._fault == "late":
            return self._server._faults.spoiled >= self._late_answers
        return self._server._faults.present is None

    def _is_time_to_heal(self) -> bool:
        over = self._over
        if over is None or self._fault not in _WITH_CONSEQUENCES:
            return over is not None
        if self.is_patient:
            return all(worker.began_after(over) for worker in self._workers)
        return self._report.rounds >= self._heal_in_round
