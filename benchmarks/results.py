"""What a run has found: every value, and what is made of them."""

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


@dataclass
class Results:
    """The values of each figure of each case for each contestant, one a round, and what could not be measured."""

    #: Machine, versions and all that else is needed to judge a figure.
    about: dict[str, Any] = field(default_factory=dict)
    values: dict[str, dict[str, dict[str, list[float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    )
    #: What kept a contestant from a figure, or from a whole case, whose figure is "".
    problems: dict[str, dict[str, dict[str, str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )

    def add(self, case: str, contestant: str, figures: Figures) -> None:
        for figure, value in figures.items():
            if isinstance(value, str):
                self.problems[case][contestant][figure] = value
            else:
                self.values[case][figure][contestant].append(value)

    def add_problem(self, case: str, contestant: str, problem: str) -> None:
        """Notes what is true of all figures of a case."""
        self.problems[case][contestant][""] = problem

    def has_failed(self, case: str, contestant: str) -> bool:
        """Whether such a problem was noted."""
        return "" in self.problems.get(case, {}).get(contestant, {})

    def median(self, case: str, figure: str, contestant: str) -> float | None:
        """None if it was not measured."""
        values = self._values(case, figure, contestant)
        return statistics.median(values) if values else None

    def spread(self, case: str, figure: str, contestant: str) -> tuple[float, float]:
        """The quartiles: half of the values are between them."""
        values = self._values(case, figure, contestant)
        if len(values) < 2:
            return values[0], values[0]
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return low, high

    def _values(self, case: str, figure: str, contestant: str) -> Sequence[float]:
        return self.values.get(case, {}).get(figure, {}).get(contestant, [])


def save(results: Results, file: Path) -> None:
    """Writes everything as JSON: the medians and quartiles for readers, and all values for who doubts them."""
    cases: dict[str, Any] = {}
    for case, figures in results.values.items():
        for figure, by_contestant in figures.items():
            for contestant, values in by_contestant.items():
                low, high = results.spread(case, figure, contestant)
                cases.setdefault(case, {}).setdefault(figure, {})[contestant] = {
                    "median": _rounded(statistics.median(values)),
                    "quartiles": [_rounded(low), _rounded(high)],
                    "values": [_rounded(value) for value in values],
                }
    content = {**results.about, "cases": cases, "problems": results.problems}
    file.write_text(_compact(json.dumps(content, indent=1, ensure_ascii=False)) + "\n")


def load(file: Path) -> Results:
    """The opposite of :func:`save`."""
    content = json.loads(file.read_text())
    results = Results()
    for case, figures in content.pop("cases").items():
        for figure, by_contestant in figures.items():
            for contestant, entry in by_contestant.items():
                results.values[case][figure][contestant] = entry["values"]
    for case, by_name in content.pop("problems").items():
        results.problems[case].update(by_name)
    results.about = content
    return results


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _compact(text: str) -> str:
    """Lists of numbers in one line each."""

    return re.sub(r"\[[-\d.,e\s]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
