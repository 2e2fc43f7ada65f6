"""Show results as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.cases.base import Case, Figure, Table
from benchmarks.goals import Verdict
from benchmarks.results import Results

MISSING = "-"
#: The longest problem that a table cell shows, in characters. Longer ones appear below the table.
LONGEST_PROBLEM = 16


def number(value: float) -> str:
    """Return a number with three significant digits or more, and commas between thousands."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cell(results: Results, case: str, figure: Figure, contestant: str) -> str:
    """Return the median, with half the distance between the quartiles as a share of it."""
    summary = results.summary(case, figure.name, contestant)
    if summary is None:
        problem = results.problems.get(case, {}).get(contestant, {}).get(figure.name, MISSING)
        return problem if len(problem) <= LONGEST_PROBLEM else "error"
    if figure.unit in ("count", "%"):
        return number(summary.median)
    low, high = summary.quartiles
    share = 100 * (high - low) / 2 / summary.median if summary.median else 0
    return f"{number(summary.median)} ±{share:.0f}%"


def rows(results: Results, case: Case, table: Table) -> Iterator[list[str]]:
    """Yield the rows of a table, its heading first."""
    yield ["", *(f"{figure.heading}{_unit(figure)}" for figure in table.figures)]
    for contestant in case.contestants:
        cells = [cell(results, case.name, figure, contestant) for figure in table.figures]
        if set(cells) != {MISSING}:
            yield [contestant, *cells]


def _unit(figure: Figure) -> str:
    return "" if figure.unit in ("count", "/s") else f", {figure.unit}"


def problems(results: Results, case: Case) -> Iterator[str]:
    """Yield a line for each thing that could not be measured, with the reason."""
    for contestant, by_figure in results.problems.get(case.name, {}).items():
        reasons: dict[str, list[str]] = {}
        for figure, problem in by_figure.items():
            if not figure or len(problem) > LONGEST_PROBLEM:
                reasons.setdefault(problem, []).append(figure)
        for problem, figures in reasons.items():
            where = "" if "" in figures or len(figures) == len(case.figures) else f" ({'; '.join(figures)})"
            yield f"{contestant}{where}: {problem}"


def verdict_rows(verdicts: Iterable[Verdict]) -> Iterator[list[str]]:
    """Yield the rows of the table of goals, its heading first."""
    yield ["", "goal", "reached", "against", ""]
    for verdict in verdicts:
        goal = verdict.goal
        sign = "≥" if goal.is_more_better else "≤"
        if verdict.reached is None:
            yield [goal.title, f"{sign} {goal.factor:g}", MISSING, MISSING, "not measured"]
            continue
        word = "yes" if verdict.is_reached else "NO"
        yield [goal.title, f"{sign} {goal.factor:g}", f"{verdict.reached:.3g}", verdict.against or MISSING, word]


def text(results: Results, cases: Sequence[Case], verdicts: Sequence[Verdict]) -> str:
    """Return the whole report, for a terminal."""
    parts = [_about(results)]
    for case in cases:
        if not results.has(case.name):
            continue
        parts.append(f"{case.name.upper()}: {case.method}")
        for table in case.tables:
            lines = list(rows(results, case, table))
            if len(lines) > 1:
                parts.append(f"{table.title}\n{aligned(lines)}")
        told = list(problems(results, case))
        if told:
            parts.append("\n".join(told))
    if verdicts:
        parts.append(f"GOALS\n{aligned(list(verdict_rows(verdicts)))}")
    return "\n\n".join(parts)


def _about(results: Results) -> str:
    return "\n".join(f"{name}: {value}" for name, value in results.about.items() if isinstance(value, str))


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return rows with aligned columns: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
