"""The results of a run: every value while it runs, medians and quartiles in the file."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cases.base import Figures


@dataclass(frozen=True)
class Summary:
    """The median of a figure's values, and the quartiles: half of the values lie between these."""

    median: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Return the summary of at least one value."""
        if len(values) < 2:
            return cls(values[0], (values[0], values[0]))
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, (low, high))


@dataclass
class Results:
    """The results of each figure of each case for each contestant, and the problems that kept one from a figure."""

    #: The machine, the versions and other facts about the run.
    about: dict[str, Any] = field(default_factory=dict)
    #: The values that this process measured, one for each round.
    values: dict[str, dict[str, dict[str, list[float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    )
    #: The summaries that :func:`load` read.
    loaded: dict[str, dict[str, dict[str, Summary]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    #: Why a contestant has no figure, by its name, or no figure of a whole case, by "".
    problems: dict[str, dict[str, dict[str, str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )

    def add(self, case: str, contestant: str, figures: Figures) -> None:
        """Add the figures of one round."""
        for figure, value in figures.items():
            if isinstance(value, str):
                self.problems[case][contestant][figure] = value
            else:
                self.values[case][figure][contestant].append(value)

    def add_problem(self, case: str, contestant: str, problem: str) -> None:
        """Add a problem that concerns all figures of a case."""
        self.problems[case][contestant][""] = problem

    def has_failed(self, case: str, contestant: str) -> bool:
        """Return whether a problem concerns all figures of a case."""
        return "" in self.problems.get(case, {}).get(contestant, {})

    def has(self, case: str) -> bool:
        """Return whether there are results or problems of a case."""
        return any(case in found for found in (self.values, self.loaded, self.problems))

    def contestants(self, case: str, figure: str) -> list[str]:
        """Return the contestants for which a figure was measured."""
        return list(self.values.get(case, {}).get(figure) or self.loaded.get(case, {}).get(figure, {}))

    def summary(self, case: str, figure: str, contestant: str) -> Summary | None:
        """Return the summary of a figure, or None if it was not measured."""
        values = self.values.get(case, {}).get(figure, {}).get(contestant)
        if values:
            return Summary.of(values)
        return self.loaded.get(case, {}).get(figure, {}).get(contestant)

    def median(self, case: str, figure: str, contestant: str) -> float | None:
        """Return the median of a figure, or None if it was not measured."""
        summary = self.summary(case, figure, contestant)
        return None if summary is None else summary.median


def save(results: Results, file: Path) -> None:
    """Write the median and the quartiles of every figure as JSON. The values of the rounds are not kept."""
    cases: dict[str, Any] = {}
    for case, figures in results.values.items():
        for figure, by_contestant in figures.items():
            for contestant, values in by_contestant.items():
                summary = Summary.of(values)
                cases.setdefault(case, {}).setdefault(figure, {})[contestant] = {
                    "median": _rounded(summary.median),
                    "quartiles": [_rounded(quartile) for quartile in summary.quartiles],
                }
    content = {**results.about, "cases": cases, "problems": results.problems}
    file.write_text(_compact(json.dumps(content, indent=1, ensure_ascii=False)) + "\n")


def load(file: Path) -> Results:
    """Read the results that :func:`save` has written."""
    content = json.loads(file.read_text())
    results = Results()
    for case, figures in content.pop("cases").items():
        for figure, by_contestant in figures.items():
            for contestant, entry in by_contestant.items():
                low, high = entry["quartiles"]
                results.loaded[case][figure][contestant] = Summary(entry["median"], (low, high))
    for case, by_name in content.pop("problems").items():
        results.problems[case].update(by_name)
    results.about = content
    return results


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _compact(text: str) -> str:
    """Return JSON text with each list of numbers on one line."""
    return re.sub(r"\[[-\d.,e\s]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
