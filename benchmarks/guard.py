"""Check whether something has become slower. Repeat what seems slower, because machines that run tests are busy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import click

from benchmarks import cases, report
from benchmarks.goals import GOALS, OTHERS, Goal, Verdict, judge
from benchmarks.results import Results
from benchmarks.run import run
from benchmarks.workers import Workers

#: A ratio that is worse by more than this factor fails.
TOLERANCE = 1.3
TRIES = 3
ROUNDS, EFFORT = 3, 0.15
#: How long a contestant may take for one answer, in seconds.
LIMIT = 20.0
#: The other pools that decide the goals. Measuring all of them would take long.
FASTEST = ("pymemcache", "redis-py")

#: Figures by contestant by case.
Wanted: TypeAlias = "dict[str, dict[str, list[str]]]"


def check(log: Path) -> int:
    """Return the exit status: 1 if a ratio is worse than its goal by more than the tolerance in every try."""
    with Workers(log, limit=LIMIT) as workers:

        def measure(wanted: Wanted) -> Results:
            results = Results()
            chosen = [cases.load(name) for name in wanted]
            run(chosen, workers, results, rounds=ROUNDS, effort=EFFORT, wanted=wanted)
            for case in chosen:
                for problem in report.problems(results, case):
                    click.echo(f"{case.name}: {problem}")
            return results

        verdicts = insist([goal for goal in GOALS if goal.is_guarded], measure)
    click.echo(report.aligned(list(report.verdict_rows(verdicts))))
    lost = [verdict.goal.title for verdict in verdicts if not verdict.is_kept(TOLERANCE)]
    for title in lost:
        click.echo(f"Too slow by more than {TOLERANCE - 1:.0%} in each of {TRIES} tries: {title}")
    return 1 if lost else 0


def insist(goals: Sequence[Goal], measure: Callable[[Wanted], Results]) -> list[Verdict]:
    """Return, for each goal, the first verdict that is good enough, or else the last one."""
    verdicts: dict[Goal, Verdict] = {}
    for _ in range(TRIES):
        missing = [goal for goal in goals if goal not in verdicts or not verdicts[goal].is_kept(TOLERANCE)]
        if not missing:
            break
        results = measure(needs(missing))
        verdicts.update((goal, judge(goal, results)) for goal in missing)
    return [verdicts[goal] for goal in goals]


def needs(goals: Sequence[Goal]) -> Wanted:
    """Return the figures needed to judge these goals."""
    wanted: Wanted = {}
    for goal in goals:
        by_contestant = wanted.setdefault(goal.case, {})
        by_contestant.setdefault(goal.subject, []).append(goal.figure)
        limits = [*goal.none_of, *([goal.within[0]] if goal.within else [])]
        rivals = goal.rivals or ()
        for rival in rivals:
            if rivals != OTHERS or rival in FASTEST:
                by_contestant.setdefault(rival, []).extend([goal.measure or goal.figure, *limits])
    return wanted
