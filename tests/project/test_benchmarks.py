"""The benchmarks measure what they say, and judge it rightly. No test depends on how fast anything is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import gevent
import pytest

from benchmarks import cases, goals, guard, load, machine, report, results, servers, timing
from benchmarks.cases import contended, echo, flask_route, memory, recovery, uncontended
from benchmarks.cases.base import Case, Figure, Table
from benchmarks.connections import Nothing
from benchmarks.contestants import (
    ALL,
    DEDICATED,
    FLOORS,
    HAND_OVER,
    OURS,
    OWN_CONNECTION,
    PREDECESSOR,
    RIVALS,
    Contestant,
)
from benchmarks.contestants.base import OpenPool
from benchmarks.goals import Goal, Verdict
from benchmarks.results import Results
from benchmarks.run import run
from benchmarks.workers import WorkerError, Workers

pytestmark = pytest.mark.servers

#: So short that nothing can be said of the figures.
EFFORT = 0.02

VERSIONS = machine.versions()
#: The other pools that are here: all of them, if the extra for the benchmarks is.
INSTALLED = [each.name for each in RIVALS if each is not PREDECESSOR and VERSIONS[each.package] != "not installed"]
if VERSIONS["redis"].startswith(("5.0.", "5.1.", "5.2.")):
    # The pool of these wants the name of a command; the connector takes them.
    INSTALLED.remove("redis-py")
#: That one's environment is made when it is first asked for, which takes a network.
ELSEWHERE = [PREDECESSOR.name] if len(INSTALLED) == len(RIVALS) - 1 else []


@pytest.fixture(autouse=True)
def in_miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncontended, "SIZES", [3])
    monkeypatch.setattr(contended, "CROWDS", [30])
    monkeypatch.setattr(memory, "CONNECTIONS", 50)
    monkeypatch.setattr(memory, "WAITERS", 20)
    # The garbage of all other tests is none of the benchmarks'.
    for module in (timing, contended):
        monkeypatch.setattr(module, "tidy_up", lambda: None)


@pytest.fixture(scope="module")
def backend() -> Iterator[dict[str, Any]]:
    with servers.echo() as backend:
        yield backend


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with Workers(tmp_path_factory.mktemp("workers") / "log") as workers:
        yield workers


def numbers(figures: dict[str, float | str]) -> dict[str, float]:
    """The figures, all of which are numbers."""
    assert not {value for value in figures.values() if isinstance(value, str)}
    return {name: value for name, value in figures.items() if not isinstance(value, str)}


def asked(workers: Workers, case: str, name: str, effort: float, figures: list[str]) -> dict[str, float]:
    """Return what a worker finds. Pools for threads need one: unpatched, they would hold the whole process."""
    answer = workers.measure(case, name, effort, {"figures": figures})
    assert "error" not in answer
    return numbers(answer["figures"])


def rates(measure: Callable[[float], dict[str, float | str]]) -> dict[str, float]:
    """Return figures that are all above 0. On a busy machine, nothing may happen during a short measurement."""
    for factor in (5, 20, 80):
        figures = numbers(measure(factor * EFFORT))
        if min(figures.values()) > 0:
            return figures
    pytest.fail(f"nothing happens: {figures}")


# Cases


@pytest.mark.parametrize("name", [OURS.name, *(floor.name for floor in FLOORS)])
def test_the_uncontended_case_measures_each_kind_of_use(name: str) -> None:
    figures = numbers(uncontended.measure(name, EFFORT, {}))
    kinds = {"pair"} if ALL[name].open_pool(1, Nothing).block is None else {"pair", "with"}
    assert set(figures) == {f"{kind}, {where}" for kind in kinds for where in ("alone", "3 in use", "3 idle")}
    assert min(figures.values()) > 0


@pytest.mark.parametrize("name", [OURS.name, *(floor.name for floor in FLOORS)])
def test_the_contended_case_loses_and_refuses_nothing(name: str) -> None:
    figures = numbers(contended.measure(name, EFFORT, {}))
    assert figures["rate, 30"] > 0
    assert figures["open, 30"] == contended.CONNECTIONS
    assert figures["refused, 30"] == figures["lost, 30"] == 0
    assert figures["median, 30"] <= figures["p99, 30"] <= figures["longest, 30"]


@pytest.mark.parametrize("name", [*INSTALLED, *(pytest.param(name, marks=pytest.mark.torture) for name in ELSEWHERE)])
def test_the_uncontended_case_measures_other_pools(name: str, workers: Workers) -> None:
    figures = asked(workers, "uncontended", name, EFFORT, ["pair, alone"])
    assert min(figures.values()) > 0


@pytest.mark.parametrize("name", INSTALLED)
def test_the_contended_case_measures_other_pools(name: str, workers: Workers) -> None:
    figures = asked(workers, "contended", name, 10 * EFFORT, ["rate, 500", "longest, 500"])
    assert figures["rate, 500"] > 0
    assert set(figures) >= {f"{what}, 500" for what in ("open", "refused", "lost", "median", "p99", "longest")}


def test_gsocketpool_loses_nothing_to_kills() -> None:
    assert contended.measure(OURS.name, EFFORT, {"figures": ["lost to kills"]}) == {"lost to kills": 0}


@pytest.mark.parametrize("name", [OURS.name, OWN_CONNECTION.name, DEDICATED.name])
def test_the_echo_case_measures_every_transport(name: str, backend: dict[str, Any]) -> None:
    figures = rates(lambda effort: echo.measure(name, effort, backend))
    assert set(figures) == {"tcp", "unix", "tls"}


def test_the_recovery_case_fails_no_request(backend: dict[str, Any]) -> None:
    figures = numbers(recovery.measure(OURS.name, EFFORT, backend))
    assert figures["failed"] == 0
    # Who comes late may get what another one has opened and is done with.
    assert 1 <= figures["opened"] <= recovery.CONNECTIONS


def test_the_memory_case_measures_idle_connections_and_waiters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CONNECTIONS", 100)
    monkeypatch.setattr(memory, "WAITERS", 100)
    figures = numbers(memory.measure(OURS.name, EFFORT, {}))
    assert figures["idle"] > 0
    assert figures["waiter"] > 0


def test_the_flask_case_measures_every_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.shutil, "which", lambda program: None)
    # That one takes an environment of its own.
    apps = {name: module for name, module in flask_route.APPS.items() if name != flask_route.BY_HAND}
    with servers.gunicorns(apps, by_hand=flask_route.BY_HAND) as ports:
        for name in apps:
            assert set(rates(lambda effort, name=name: flask_route.measure(name, effort, ports))) == {"rate"}


def test_every_case_is_well_formed() -> None:
    for name in cases.NAMES:
        case = cases.load(name)
        assert case.name == name
        assert len(case.figures) == sum(len(table.figures) for table in case.tables)
    for goal in goals.GOALS:
        case = cases.load(goal.case)
        assert {goal.subject, *(goal.rivals or ())} <= set(case.contestants)
        assert {goal.figure, goal.measure or goal.figure, *goal.none_of} <= set(case.figures)


# A contestant that does everything wrong


class Careless:
    """Refuses every third caller, opens a connection for each of the others, and keeps the first that comes back."""

    def __init__(self) -> None:
        self._asked = 0
        self._lost: list[Any] = []
        self._free: list[Any] = []

    def acquire(self) -> Any:
        self._asked += 1
        if self._asked % 3 == 0:
            raise RuntimeError("come back later")
        connection = contended.Stamped()
        connection.open()
        return connection

    def release(self, connection: Any) -> None:
        connection.close()


class Forgetful:
    """Has a queue, and loses what is released to a waiter that was killed."""

    def __init__(self, size: int, kind: type[Any]) -> None:
        pool = HAND_OVER.open_pool(size, kind)
        self.acquire, self._release = pool.acquire, pool.release
        self._is_first = True

    def release(self, connection: Any) -> None:
        if not self._is_first:
            self._release(connection)
        self._is_first = False


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = ModuleType("fakes")

    def careless(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
        pool = Careless()
        return OpenPool(pool.acquire, pool.release)

    def forgetful(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
        pool = Forgetful(size, kind)
        return OpenPool(pool.acquire, pool.release)

    vars(fakes).update(careless=careless, forgetful=forgetful)
    monkeypatch.setitem(sys.modules, "benchmarks.contestants.fakes", fakes)
    for name in ("careless", "forgetful", "absent"):
        monkeypatch.setitem(ALL, name, Contestant(name, "fakes", "gevent", name))


@pytest.mark.usefixtures("fakes")
def test_a_pool_that_refuses_and_opens_too_many_is_shown() -> None:
    figures = numbers(contended.measure("careless", EFFORT, {"figures": ["open, 30", "refused, 30"]}))
    assert figures["open, 30"] > contended.CONNECTIONS
    assert 20 < figures["refused, 30"] < 50


@pytest.mark.usefixtures("fakes")
def test_a_pool_that_loses_connections_is_shown() -> None:
    assert contended.measure("forgetful", EFFORT, {"figures": ["lost, 30"]})["lost, 30"] == 1


@pytest.mark.usefixtures("fakes")
def test_a_missing_pool_is_shown() -> None:
    figures = uncontended.measure("absent", EFFORT, {})
    assert "AttributeError" in str(figures["pair, alone"])


# Running


def test_workers_report_figures_and_failures(tmp_path: Path) -> None:
    found = Results()
    wanted = {"memory": {HAND_OVER.name: ["idle"], "no such pool": ["idle"]}}
    steps: list[str] = []
    with Workers(tmp_path / "log") as workers:
        run([cases.load("memory")], workers, found, rounds=2, effort=EFFORT, wanted=wanted, progress=steps.append)
    assert sorted(steps) == 2 * ["memory: bare hand-over"] + 2 * ["memory: no such pool"]
    assert len(found.values["memory"]["idle"][HAND_OVER.name]) == 2
    assert "KeyError" in found.problems["memory"]["no such pool"][""]


def test_a_worker_that_dies_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.workers.START", "import os; os._exit(3)")
    found = Results()
    with Workers(tmp_path / "log") as workers:
        wanted = {"memory": {OURS.name: ["idle"]}}
        run([cases.load("memory")], workers, found, rounds=1, effort=EFFORT, wanted=wanted)
    assert "status 3" in found.problems["memory"][OURS.name][""]


@pytest.mark.parametrize("begin", ["", "print('{', end='', flush=True)"], ids=["at once", "within its answer"])
def test_a_worker_that_hangs_is_shown_and_does_not_hold_up_the_others(
    begin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.workers.START", f"input()\n{begin}\ninput()")
    found = Results()
    with Workers(tmp_path / "log", limit=0.5) as workers:
        wanted = {"memory": {OURS.name: ["idle"], HAND_OVER.name: ["idle"]}}
        run([cases.load("memory")], workers, found, rounds=2, effort=EFFORT, wanted=wanted)
    problem = {"": "it took longer than 0.5 s"}
    assert found.problems["memory"] == {OURS.name: problem, HAND_OVER.name: problem}


def test_a_worker_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.workers.START", "input(); input()")
    with Workers(tmp_path / "log", limit=0.1) as workers:
        for _ in range(2):
            with pytest.raises(WorkerError, match=r"longer than 0\.1 s"):
                workers.measure("memory", OURS.name, EFFORT, {})


def test_a_worker_that_dies_within_its_answer_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.workers.START", "print('{', end='', flush=True); raise SystemExit(3)")
    with Workers(tmp_path / "log") as workers, pytest.raises(WorkerError, match="status 3"):
        workers.measure("memory", OURS.name, EFFORT, {})


@pytest.mark.parametrize("is_from_outside", [True, False])
def test_each_round_has_new_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_from_outside: bool) -> None:
    @contextmanager
    def backend() -> Iterator[dict[str, Any]]:
        started.append(len(started))
        yield {"number": len(started)}

    def measure(name: str, effort: float, arguments: Mapping[str, Any]) -> dict[str, float | str]:
        return {"rate": arguments["number"]}

    started: list[int] = []
    case = Case("a case", "", [], ["a"], measure, backend=backend, is_from_outside=is_from_outside)
    found = Results()
    # A worker that answers with its process id.
    answer = "import json, os; input(); print(json.dumps({'figures': {'rate': os.getpid()}}), flush=True); input()"
    monkeypatch.setattr("benchmarks.workers.START", answer)
    with Workers(tmp_path / "log") as workers:
        run([case], workers, found, rounds=3, effort=EFFORT)
    assert len(started) == 3
    assert len(set(found.values["a case"]["rate"]["a"])) == 3


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system can't bind processes to processors")
def test_contestants_have_a_processor_of_their_own(tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from benchmarks import processors, workers
available = os.sched_getaffinity(0)
processors.divide()
workers.START = "import json, os; input(); print(json.dumps(sorted(os.sched_getaffinity(0))), flush=True); input()"
with workers.Workers(Path({str(tmp_path / "log")!r})) as started:
    theirs = set(started.measure("a case", {OURS.name!r}, 1, {{}}))
others = os.sched_getaffinity(0)
assert theirs | others == available
assert len(theirs) == 1
assert len(available) == 1 or not theirs & others
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_backend_that_does_not_start_is_shown(tmp_path: Path) -> None:
    def fail() -> Any:
        raise RuntimeError("no such server")

    case = Case("a case", "", [], ["a", "b"], lambda *arguments: {}, backend=fail)
    found = Results()
    with Workers(tmp_path / "log") as workers:
        run([case], workers, found, rounds=1, effort=EFFORT)
    assert found.problems["a case"] == {name: {"": "no backend: no such server"} for name in "ab"}


# Judging


def values(**by_contestant: list[float]) -> Results:
    found = Results()
    for name, numbers in by_contestant.items():
        for number in numbers:
            found.add("case", name.replace("_", " "), {"figure": number})
    return found


def goal(factor: float, *rivals: str, **more: Any) -> Goal:
    return Goal("a goal", "case", "figure", factor, rivals, subject="ours", **more)


def test_a_goal_compares_medians() -> None:
    found = values(ours=[2, 9, 2], theirs=[1, 4, 90])
    assert goals.judge(goal(0.5, "theirs"), found).reached == 0.5
    assert goals.judge(goal(0.5, "theirs"), found).is_reached
    assert not goals.judge(goal(0.49, "theirs"), found).is_reached


def test_a_goal_may_prefer_more() -> None:
    found = values(ours=[3], theirs=[4])
    assert goals.judge(goal(0.75, "theirs", is_more_better=True), found).is_reached
    assert not goals.judge(goal(0.76, "theirs", is_more_better=True), found).is_reached


def test_a_goal_compares_with_the_best_rival() -> None:
    found = values(ours=[3], slow=[1], fast=[4])
    assert goals.judge(goal(1, "slow", "fast", is_more_better=True), found).against == "fast"
    assert goals.judge(goal(1, "slow", "fast"), found).against == "slow"


def test_a_pool_that_refuses_loses_or_opens_too_many_is_no_rival() -> None:
    found = values(ours=[3], fair=[2], refusing=[90], greedy=[80])
    found.add("case", "refusing", {"refused": 1.0, "open": 10})
    found.add("case", "greedy", {"refused": 0.0, "open": 11})
    strict = goal(1, "fair", "refusing", "greedy", is_more_better=True, none_of=("refused",), within=("open", 10))
    assert goals.judge(strict, found).against == "fair"


def test_a_limit_needs_no_rival() -> None:
    limit = Goal("a goal", "case", "figure", 400, None, subject="ours")
    assert goals.judge(limit, values(ours=[400])).is_reached
    assert not goals.judge(limit, values(ours=[401])).is_reached


def test_a_goal_without_figures_is_not_reached() -> None:
    for found in (values(theirs=[1]), values(ours=[1])):
        verdict = goals.judge(goal(1, "theirs"), found)
        assert verdict.reached is None
        assert not verdict.is_reached


def test_a_tolerance_works_in_both_directions() -> None:
    assert Verdict(goal(1.0), 1.3).is_kept(1.3)
    assert not Verdict(goal(1.0), 1.31).is_kept(1.3)
    assert Verdict(goal(1.0, is_more_better=True), 0.77).is_kept(1.3)
    assert not Verdict(goal(1.0, is_more_better=True), 0.76).is_kept(1.3)


def test_the_guard_holds_a_missed_goal_to_its_last_figure() -> None:
    missed = goal(1.0, held=2.0)
    assert Verdict(missed, 2.6).is_kept(1.3)
    assert not Verdict(missed, 2.61).is_kept(1.3)
    assert not Verdict(missed, 2.0).is_reached


# Guarding


def test_the_guard_measures_only_slow_figures_again() -> None:
    steady, shaky = goal(1.0, "theirs"), goal(2.0, "theirs", measure="other")
    seen = []

    def measure(wanted: guard.Wanted) -> Results:
        seen.append(wanted)
        found = values(ours=[1], theirs=[1])
        found.add("case", "theirs", {"other": 0.1 if len(seen) == 1 else 0.5})
        return found

    verdicts = guard.insist([steady, shaky], measure)
    assert [verdict.is_reached for verdict in verdicts] == [True, True]
    both = {"case": {"ours": ["figure", "figure"], "theirs": ["figure", "other"]}}
    assert seen == [both, {"case": {"ours": ["figure"], "theirs": ["other"]}}]


def test_the_guard_gives_up_after_some_tries() -> None:
    tries = []

    def measure(wanted: guard.Wanted) -> Results:
        tries.append(wanted)
        return values(ours=[2], theirs=[1])

    (verdict,) = guard.insist([goal(1.0, "theirs")], measure)
    assert not verdict.is_kept(guard.TOLERANCE)
    assert len(tries) == guard.TRIES


# Telling


def example() -> tuple[Results, Case]:
    found = Results()
    for value in (1000.0, 1100.0, 1200.0):
        found.add("case", "ours", {"time": value, "lost": 0})
    found.add("case", "theirs", {"time": "refused", "lost": 3})
    found.add("case", "others", {"time": "TypeError: something long", "lost": 0})
    found.add_problem("case", "absent", "ImportError: no such thing")
    table = Table("A table", [Figure("time", "time", "ns"), Figure("lost", "lost", "count")])
    return found, Case("case", "How.", [table], ["ours", "theirs", "others", "absent"], lambda *arguments: {})


def test_the_report_shows_figures_and_failures() -> None:
    found, case = example()
    found.about = {"date": "today", "versions": {}}
    verdicts = [Verdict(goal(2.0, "theirs"), 3.0, "theirs"), Verdict(goal(2.0), None)]
    assert report.text(found, [case], verdicts).splitlines() == [
        "date: today",
        "",
        "CASE: How.",
        "",
        "A table",
        "         time, ns  lost",
        "ours    1,100 ±5%     0",
        "theirs    refused     3",
        "others      error     0",
        "",
        "others (time): TypeError: something long",
        "absent: ImportError: no such thing",
        "",
        "GOALS",
        "        goal  reached  against",
        "a goal   ≤ 2        3   theirs            NO",
        "a goal   ≤ 2        -        -  not measured",
    ]


def test_results_can_be_saved_and_loaded(tmp_path: Path) -> None:
    found, case = example()
    found.about = {"date": "today"}
    results.save(found, tmp_path / "results.json")
    again = results.load(tmp_path / "results.json")
    assert report.text(again, [case], []) == report.text(found, [case], [])


def test_the_machine_is_described() -> None:
    about = machine.describe(["--quick"], 3, 0.5)
    assert about["command"] == "python -m benchmarks --quick"
    assert about["versions"]["gevent"] == gevent.__version__
    assert set(about) >= {"date", "machine", "system", "python", "method", "rounds"}
