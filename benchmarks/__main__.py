"""``python -m benchmarks``: measure, and print the results."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from benchmarks import cases, goals, guard, machine, processors, report, results
from benchmarks.cases.base import Case
from benchmarks.run import run
from benchmarks.workers import Workers

ROUNDS, QUICK_ROUNDS, QUICK_EFFORT = 5, 3, 0.3


@click.command(help="Compare the speed of gsocketpool, of other pools, and of no pool at all.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    show_default=f"{ROUNDS}, or {QUICK_ROUNDS} with --quick",
    help="How many rounds to measure.",
)
@click.option(
    "--only", type=click.Choice(cases.NAMES), multiple=True, help="Measure only this case; may be given several times."
)
@click.option("--quick", is_flag=True, help="Take less time, for less precise figures.")
@click.option("--check", is_flag=True, help="Only check whether something has become slower, and fail if so.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write the medians and quartiles to this file, as JSON."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the results into this SVG or PNG file.")
def main(
    rounds: int | None, only: tuple[str, ...], quick: bool, check: bool, output: Path | None, plot: Path | None
) -> None:
    """Run the benchmarks."""
    log = Path(tempfile.gettempdir()) / "gsocketpool-benchmarks.log"
    processors.divide()
    if check:
        if rounds or only or quick or output or plot:
            raise click.UsageError("--check can't be combined with another option.")
        sys.exit(guard.check(log))
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    effort = QUICK_EFFORT if quick else 1.0
    chosen = [cases.load(name) for name in only or cases.NAMES]
    found = results.Results()
    measure(chosen, found, log, rounds, effort)
    found.about = machine.describe(sys.argv[1:], rounds, effort)
    verdicts = [goals.judge(goal, found) for goal in goals.GOALS if goal.case in {case.name for case in chosen}]
    click.echo(report.text(found, chosen, verdicts))
    if output is not None:
        results.save(found, output)
    if plot is not None:
        from benchmarks.plot import draw

        draw(found, plot)


def measure(chosen: list[Case], found: results.Results, log: Path, rounds: int, effort: float) -> None:
    """Add the results of the chosen cases to `found`, and show the progress."""
    steps = rounds * sum(len(case.contestants) for case in chosen)
    with (
        click.progressbar(length=steps, file=sys.stderr, item_show_func=lambda text: text, show_pos=True) as bar,
        Workers(log) as workers,
    ):
        run(chosen, workers, found, rounds=rounds, effort=effort, progress=lambda text: bar.update(1, text))


if __name__ == "__main__":
    main()
