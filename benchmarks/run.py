"""Run the cases: in each round, measure every contestant once, in another order."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.cases.base import Case
from benchmarks.results import Results
from benchmarks.workers import WorkerError, Workers


def run(
    cases: Sequence[Case],
    workers: Workers,
    results: Results,
    *,
    rounds: int,
    effort: float,
    wanted: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    progress: Callable[[str], object] = lambda text: None,
) -> None:
    """Measure, and add the figures to `results`. The rounds spread changes in the machine's speed over all contestants.

    :param effort: the share of the usual time that a measurement takes.
    :param wanted: the figures to measure, by case and contestant. By default, all figures of all contestants.
    :param progress: called before each measurement, with its description.
    """
    for case in cases:
        taking_part = list(case.contestants if wanted is None else wanted[case.name])
        for _ in range(rounds):
            with ExitStack() as stack:
                # A process keeps its speed while it runs, and that depends on how its memory happens to be laid out. So
                # each round starts new ones.
                stack.callback(workers.stop)
                try:
                    arguments = stack.enter_context(case.backend())
                except Exception as error:
                    for name in taking_part:
                        results.add_problem(case.name, name, f"no backend: {error}")
                    break
                for name in random.sample(taking_part, len(taking_part)):
                    progress(f"{case.name}: {name}")
                    told = arguments if wanted is None else {**arguments, "figures": wanted[case.name][name]}
                    if not results.has_failed(case.name, name):
                        _measure(case, name, workers, results, effort, told)


def _measure(
    case: Case, name: str, workers: Workers, results: Results, effort: float, arguments: Mapping[str, Any]
) -> None:
    try:
        if case.is_from_outside:
            results.add(case.name, name, case.measure(name, effort, arguments))
            return
        answer = workers.measure(case.name, name, effort, arguments)
    except (WorkerError, OSError, RuntimeError) as error:
        results.add_problem(case.name, name, str(error))
        return
    if "error" in answer:
        results.add_problem(case.name, name, answer["error"])
    else:
        results.add(case.name, name, answer["figures"])
