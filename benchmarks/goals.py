"""The goals, as ratios of medians of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cases import flask_route, mysql, postgres, valkey
from benchmarks.contestants import DEDICATED, HAND_OVER, OURS, PREDECESSOR, RIVALS, resetting
from benchmarks.results import Results

OTHERS = tuple(each.name for each in RIVALS if each is not PREDECESSOR)


@dataclass(frozen=True)
class Goal:
    """A figure of ours that must be at most, or at least, some multiple of another figure."""

    title: str
    case: str
    figure: str
    factor: float
    #: The contestants to compare with: the best of them counts. None if the factor itself is the limit.
    rivals: tuple[str, ...] | None
    #: The figure of theirs to compare with, if it differs from `figure`.
    measure: str | None = None
    is_more_better: bool = False
    #: The contestant whose figure it is.
    subject: str = OURS.name
    #: Figures that must be 0 for a rival to count. A pool that refuses callers is no match for one that serves all.
    none_of: tuple[str, ...] = ()
    #: A figure and its limit: a rival that exceeds the limit does not count.
    within: tuple[str, float] | None = None
    #: Whether ``--check`` checks this goal.
    is_guarded: bool = True
    #: The ratio reached before, if the goal was missed or beaten by far. ``--check`` compares with this instead.
    held: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The outcome of a goal."""

    goal: Goal
    #: The ratio reached, or None if a figure it needs was not measured.
    reached: float | None
    #: The contestant that the figure was compared with.
    against: str = ""

    @property
    def is_reached(self) -> bool:
        """Whether the ratio meets the goal."""
        return self._is_within(1.0, self.goal.factor)

    def is_kept(self, tolerance: float) -> bool:
        """Return whether the ratio is at most this factor worse than the goal, or than the ratio held."""
        return self._is_within(tolerance, self.goal.factor if self.goal.held is None else self.goal.held)

    def _is_within(self, tolerance: float, factor: float) -> bool:
        if self.reached is None:
            return False
        if self.goal.is_more_better:
            return self.reached * tolerance >= factor
        return self.reached <= factor * tolerance


def judge(goal: Goal, results: Results) -> Verdict:
    """Return the outcome of a goal in these results."""
    ours = results.median(goal.case, goal.figure, goal.subject)
    if ours is None:
        return Verdict(goal, None)
    if goal.rivals is None:
        return Verdict(goal, ours)
    candidates = []
    for name in goal.rivals:
        theirs = results.median(goal.case, goal.measure or goal.figure, name)
        if theirs and _counts(goal, results, name):
            candidates.append((theirs, name))
    if not candidates:
        return Verdict(goal, None)
    theirs, name = max(candidates) if goal.is_more_better else min(candidates)
    return Verdict(goal, ours / theirs, name)


def _counts(goal: Goal, results: Results, name: str) -> bool:
    if any(results.median(goal.case, figure, name) for figure in goal.none_of):
        return False
    if goal.within is None:
        return True
    figure, limit = goal.within
    return (results.median(goal.case, figure, name) or 0) <= limit


def _flat(what: str, heading: str) -> list[Goal]:
    return [
        Goal(
            f"{heading}, 10,000 others {state}, to no others",
            "uncontended",
            f"{what}, 10000 {state}",
            1.15,
            (OURS.name,),
            measure=f"{what}, alone",
        )
        for state in ("in use", "idle")
    ]


GOALS: Sequence[Goal] = [
    Goal("with block, to 0.1.6", "uncontended", "with, alone", 0.6, (PREDECESSOR.name,), held=1.2),
    # 0.1.6 checks nothing when it hands a connection out.
    Goal("acquire and release, to 0.1.6", "uncontended", "pair, alone", 3.0, (PREDECESSOR.name,), held=8.1),
    Goal("acquire and release, to the fastest other pool", "uncontended", "pair, alone", 0.4, OTHERS, held=1.0),
    *_flat("pair", "acquire and release"),
    *_flat("with", "with block"),
    Goal("500 greenlets, to a bare hand-over", "contended", "rate, 500", 0.75, (HAND_OVER.name,), is_more_better=True),
    Goal(
        "500 greenlets, to the fastest other pool that keeps its limit and refuses no caller",
        "contended",
        "rate, 500",
        1.0,
        # 0.1.6 refuses callers: it polls, and gives up after a second.
        OTHERS,
        is_more_better=True,
        none_of=("refused, 500", "lost, 500"),
        within=("open, 500", 10),
    ),
    Goal(
        "500 greenlets, longest wait to median wait",
        "contended",
        "longest, 500",
        2.0,
        (OURS.name,),
        measure="median, 500",
        held=1.2,
    ),
    Goal(
        "10,000 greenlets, uses a second to those of 500",
        "contended",
        "rate, 10000",
        1.0,
        (OURS.name,),
        measure="rate, 500",
        is_more_better=True,
        held=0.79,
    ),
    *(
        Goal(
            f"echo over {heading}, to dedicated sockets",
            "echo",
            kind,
            0.95,
            (DEDICATED.name,),
            is_more_better=True,
            held=0.72,
        )
        for kind, heading in [("tcp", "TCP"), ("unix", "a Unix socket"), ("tls", "TLS")]
    ),
    *(
        Goal(
            f"Valkey {command.upper()}, to redis-py",
            "valkey",
            command,
            2.0,
            (valkey.REDIS, valkey.REDIS_POOL),
            is_more_better=True,
            held=4.0,
        )
        for command in ("ping", "get")
    ),
    *(
        Goal(f"PostgreSQL SELECT 1, to {rival}", "postgres", "select", 1.0, (rival,), is_more_better=True)
        for rival in (postgres.PSYCOPG_POOL, postgres.SQLALCHEMY)
    ),
    # A connector checks more than a class of a few lines does. The cost of that must be within the noise.
    *(
        Goal(
            f"{title}, to {rival}",
            case,
            figure,
            factor,
            (rival,),
            is_more_better=True,
            subject=subject,
            is_guarded=False,
        )
        for title, case, figure, subject, others in (
            (
                "PsycopgConnector, SELECT 1",
                "postgres",
                "select",
                postgres.CONNECTOR,
                {OURS.name: 0.97, postgres.PSYCOPG_POOL: 1.0, postgres.SQLALCHEMY: 1.0},
            ),
            (
                "PsycopgConnector that resets, SELECT 1",
                "postgres",
                "select",
                resetting(postgres.CONNECTOR),
                {resetting(postgres.PSYCOPG_POOL): 1.0, resetting(postgres.SQLALCHEMY): 1.0},
            ),
            (
                "PyMySQLConnector, SELECT 1",
                "mysql",
                "select",
                mysql.CONNECTOR,
                {OURS.name: 0.97, mysql.DBUTILS: 1.0, mysql.SQLALCHEMY: 1.0},
            ),
            (
                "PyMySQLConnector that resets, SELECT 1",
                "mysql",
                "select",
                resetting(mysql.CONNECTOR),
                {resetting(mysql.DBUTILS): 1.0, resetting(mysql.SQLALCHEMY): 1.0},
            ),
            *(
                (f"{title}, {command.upper()}", "valkey", command, subject, others)
                for command in ("ping", "get")
                for title, subject, others in (
                    ("RedisConnector", valkey.REDIS_CONNECTOR, {valkey.BY_HAND: 0.97, valkey.REDIS: 1.0}),
                    ("RedisConnector that resets", resetting(valkey.REDIS_CONNECTOR), {resetting(valkey.REDIS): 1.0}),
                )
            ),
        )
        for rival, factor in others.items()
    ),
    *(
        Goal(
            f"Flask page, to {rival}",
            "flask_route",
            "rate",
            factor,
            (rival,),
            is_more_better=True,
            subject=flask_route.EXTENSION,
            is_guarded=False,
        )
        for rival, factor in [(flask_route.BY_HAND, 0.98), (flask_route.CONNECTING, 1.25)]
    ),
    Goal("bytes for an idle connection", "memory", "idle", 400, None, held=240),
]
