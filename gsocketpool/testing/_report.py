"""What comes of a torture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


class TortureError(AssertionError):
    """A pool, or its connections, did what must never happen."""

    def __init__(self, failures: list[str], report: TortureReport) -> None:
        super().__init__("\n".join([*failures[:10], str(report), f"Again: torture(…, seed={report.seed})"]))
        #: What happened, in words.
        self.failures = failures
        #: What had been done until then.
        self.report = report


@dataclass
class TortureReport:
    """What was done by :func:`torture`, and what came of it."""

    #: What decided everything that was decided by chance.
    seed: int
    #: How often a greenlet set out to use a connection.
    rounds: int = 0
    #: How many exchanges were completed, with the right reply.
    exchanges: int = 0
    #: How many exceptions were thrown into greenlets, those of the pool's own included.
    thrown: int = 0
    #: How many rounds were ended by a timeout of their own.
    timeouts: int = 0
    #: How many errors and timeouts were caught inside a block, which then ended well.
    caught: int = 0
    #: How many answers the faults of the server have spoiled.
    spoiled: int = 0
    #: The faults of the server, by name, and the restarts.
    faults: Counter[str] = field(default_factory=Counter)
    #: How often the pool was drained, resized and swept.
    upkeep: Counter[str] = field(default_factory=Counter)
    #: How many processes were forked.
    forks: int = 0
    #: How the rounds ended that raised something else, by the name of its class.
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
