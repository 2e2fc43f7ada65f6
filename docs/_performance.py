"""Writes the tables of the benchmarks, from the results that are kept in the repository."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import cases, goals, report, results

RESULTS = ROOT / "benchmarks" / "results.json"


def reference() -> str:
    """How it was measured, the goals and what has become of them, and every figure, as RST."""
    found = results.load(RESULTS)
    verdicts = [goals.judge(goal, found) for goal in goals.GOALS]
    lines = [*_about(found), *_section("Goals"), *_table(list(report.verdict_rows(verdicts)))]
    for name in cases.NAMES:
        case = cases.load(name)
        lines += [*_section(case.name.replace("_", " ").capitalize()), case.method, ""]
        for table in case.tables:
            rows = list(report.rows(found, case, table))
            if len(rows) > 1:
                lines += [f"**{table.title}**", "", *_table(rows)]
        lines += [f"- {problem}" for problem in report.problems(found, case)] + [""]
    return "\n".join(lines) + "\n"


def _about(found: results.Results) -> Iterator[str]:
    about = {name: value for name, value in found.about.items() if isinstance(value, str)}
    about["versions"] = ", ".join(f"{name} {version}" for name, version in found.about["versions"].items())
    for name, value in about.items():
        yield from (f"{name.capitalize()}:", f"   {value}", "")


def _section(title: str) -> list[str]:
    return [title, "-" * len(title), ""]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [".. list-table::", "   :header-rows: 1", "   :stub-columns: 1", ""]
    for row in rows:
        for number, cell in enumerate(row):
            lines.append(f"   {'* -' if number == 0 else '  -'} {cell}".rstrip())
    return [*lines, ""]


if __name__ == "__main__":
    print(reference())
