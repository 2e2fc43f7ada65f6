"""Write the tables of the benchmarks, from the results that the repository keeps."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import cases, goals, report, results
from benchmarks.cases.base import Case

RESULTS = ROOT / "benchmarks" / "results.json"


def reference() -> str:
    """Return how it was measured, the goals and whether they were met, and every figure, as RST."""
    found = results.load(RESULTS)
    verdicts = [goals.judge(goal, found) for goal in goals.GOALS]
    lines = [*about(found), *section("Goals"), *table(list(report.verdict_rows(verdicts)))]
    for name in cases.NAMES:
        if not found.has(name):
            # The case is newer than the results.
            continue
        case = cases.load(name)
        lines += [*section(case.name.replace("_", " ").capitalize()), case.method, ""]
        lines += tables(found, case)
    return "\n".join(lines) + "\n"


def about(found: results.Results) -> Iterator[str]:
    """Return where, when and with what it was measured."""
    facts = {name: value for name, value in found.about.items() if isinstance(value, str)}
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in found.about["versions"].items())
    for name, value in facts.items():
        yield from (f"{name.capitalize()}:", f"   {value}", "")


def section(title: str) -> list[str]:
    """Return a heading."""
    return [title, "-" * len(title), ""]


def tables(found: results.Results, case: Case) -> Iterator[str]:
    """Return the tables of a case, and what could not be measured."""
    for each in case.tables:
        rows = list(report.rows(found, case, each))
        if len(rows) > 1:
            yield from (f"**{each.title}**", "", *table(rows))
    yield from (f"- {problem}" for problem in report.problems(found, case))
    yield ""


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [".. list-table::", "   :header-rows: 1", "   :stub-columns: 1", ""]
    for row in rows:
        for number, cell in enumerate(row):
            # A hyphen alone would begin a list.
            shown = "—" if cell == report.MISSING else cell
            lines.append(f"   {'* -' if number == 0 else '  -'} {shown}".rstrip())
    return [*lines, ""]


if __name__ == "__main__":
    print(reference())
