"""Lets the server misbehave in a torture, one fault after another."""

from __future__ import annotations

import time
from random import Random
from typing import Any

from gsocketpool.testing._checks import Checks
from gsocketpool.testing._faults import FAULTS, OF_CONNECTING
from gsocketpool.testing._server import FlakyServer
from gsocketpool.testing._worker import ROUND, Worker

#: Faults per round, until each has happened once, and later. They take long, so later ones are rare and short.
_FIRST, _LATER = 0.1, 0.02
_ALL = (*FAULTS, "restart", "close idle")
#: The faults that may affect the next exchange over the same connection.
_WITH_CONSEQUENCES = ("silent", "half", "twice")
#: The range of answers that a fault spoils the first time, the range later, and the range of spoiled openings.
_FIRST_ANSWERS, _LATER_ANSWERS, _OPENINGS = (4, 8), (1, 3), (1, 2)


class Sabotage:
    """Lets a server misbehave, one fault after another."""

    def __init__(self, server: FlakyServer, checks: Checks[Any], workers: list[Worker], random: Random) -> None:
        self._server = server
        self._pool = checks.pool
        self._report = checks.report
        self._workers = workers
        self._random = random
        self._spoiled_before = server._faults.spoiled
        #: The faults to come, each once before any is repeated.
        self._to_come: list[str] = []
        #: The current fault; None while the server works normally.
        self._fault: str | None = None
        #: When the fault ends at the latest.
        self._until = 0.0
        #: The number of open errors that ends a fault of connecting.
        self._open_errors = 0
        #: The number of spoiled answers that ends the fault "late".
        self._late_answers = 0
        #: When the fault was over; None while it is not.
        self._over: float | None = None
        #: The round in which the server heals.
        self._heal_in_round = 0
        #: Whether exchanges and openings affected by the fault are left to end without interruptions.
        self.is_patient = False

    @property
    def is_committing(self) -> bool:
        """Whether the server has a fault now."""
        return self._fault is not None

    def is_due(self) -> bool:
        """Return whether the next fault should begin now."""
        committed = self._report.faults.total()
        if committed < len(_ALL):
            return committed < _FIRST * self._report.rounds
        return committed < _LATER * self._report.rounds and self._random.random() < 0.05

    def begin(self) -> None:
        """Start a fault of the server, or close its connections."""
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
            # While good idle connections are left, the pool opens no new ones.
            self._server.close_idle()
        elif fault == "late":
            # More answers than connections, so that some connection is used again after its first exchange was given
            # up. The server then heals and sends the first answer to the second caller.
            limit = self._pool.stats().max_connections
            self._late_answers = self._server._faults.spoiled + limit + self._random.randint(1, limit)
            self._server.fail(fault)
        else:
            self._server.fail(fault, times=self._random.randint(*answers))

    def go_on(self) -> None:
        """Heal the server if the fault is over and has had its consequences."""
        if self._fault is None:
            return
        if self._over is None and self._is_over():
            self._over = time.monotonic()
            self._heal_in_round = self._report.rounds + self._random.randint(0, len(self._workers))
        # With a time limit, because a fault may affect no exchange, for example while all connections shake hands.
        if self._is_time_to_heal() or time.monotonic() > self._until:
            self.heal()

    def heal(self) -> None:
        """Let the server work normally."""
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
        return self._report.rounds >= self._heal_in_round  # pragma: no cover - depends on random timing
