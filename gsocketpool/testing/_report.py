"""The result of a torture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


class TortureError(AssertionError):
    """A pool or its connections failed a torture."""

    def __init__(self, failures: list[str], report: TortureReport) -> None:
        super().__init__("\n".join([*failures[:10], str(report), f"Again: torture(…, seed={report.seed})"]))
        #: The failures, in words.
        self.failures = failures
        #: What the torture did up to the failure.
        self.report = report


@dataclass
class TortureReport:
    """What :func:`torture` did, and with what results."""

    #: The seed of all random decisions.
    seed: int
    #: How often a greenlet tried to use a connection.
    rounds: int = 0
    #: How many exchanges completed with the right reply.
    exchanges: int = 0
    #: How many exceptions were thrown into greenlets, including the pool's own.
    thrown: int = 0
    #: How many rounds ended by their own timeout.
    timeouts: int = 0
    #: How many errors and timeouts were caught inside a block, which then ended well.
    caught: int = 0
    #: How many answers the server's faults have spoiled.
    spoiled: int = 0
    #: How often each fault of the server happened, and each restart.
    faults: Counter[str] = field(default_factory=Counter)
    #: How often the pool was drained, resized and swept.
    upkeep: Counter[str] = field(default_factory=Counter)
    #: How many processes were forked.
    forks: int = 0
    #: How many rounds raised another error, by the name of its class.
    errors: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"

        return (
            f"seed {self.seed}: {self.rounds} rounds, {self.exchanges} exchanges, {self.thrown} exceptions thrown,"
            f" {self.timeouts} timeouts, {self.caught} caught inside a block, {self.forks} forks;"
            f" {self.spoiled} answers spoiled by faults: {listed(self.faults)}; upkeep: {listed(self.upkeep)};"
            f" errors: {listed(self.errors)}"
        )
