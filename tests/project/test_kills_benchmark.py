"""The benchmark of kills sees what a pool does wrong, and its table can be made."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import gevent
import pytest
from gevent.queue import LifoQueue

from benchmarks import blows, cases, kills, report, results, servers
from benchmarks.blows import CAUGHT, KILL, TIMEOUT
from benchmarks.cases.kills import BY_NAME, CASE, CONTESTANTS, FIGURES, REQUESTS, SIZE
from benchmarks.subjects.base import EXCHANGING, GIVING_BACK, PHASES, WAITING, RefusedError, Subject
from gsocketpool import Connection, Pool, PoolExhaustedError
from tests.support.documents import ROOT

OURS = "gsocketpool, RedisConnector"
#: Its earlier versions have not all that makes the most of it.
THEIRS = ["redis-py BlockingConnectionPool"] if not version("redis").startswith("5.") else []

#: So few uses that little can be said of the figures.
EFFORT = 0.05


class Link(Connection):
    """A connection to a server that is made up: a reply comes in a millisecond, and stays until it is read."""

    #: All that are open.
    everyone: ClassVar[list[Link]] = []

    def open(self) -> None:
        self.replies: list[int] = []
        self.everyone.append(self)

    def close(self) -> None:
        self.everyone.remove(self)

    def is_connected(self) -> bool:
        return self in self.everyone

    def is_reusable(self, error: BaseException | None) -> bool:
        return not self.replies

    def ask(self, number: int) -> int:
        self.replies.append(number)
        gevent.sleep(0.001)
        return self.replies.pop(0)


class Scripted(Subject):
    """At a server that is made up. Its pool is gsocketpool's."""

    patience_here = 5.0

    def __init__(self) -> None:
        super().__init__({}, SIZE, self.patience_here)
        Link.everyone.clear()

    def open(self) -> None:
        self.pool = Pool(Link, max_connections=self.size, acquire_timeout=self.patience)

    def lease(self) -> AbstractContextManager[Link]:
        return self.pool.connection()

    def ask(self, connection: Any, number: int) -> str:
        return self.word(connection.ask(number))

    def ask_late(self, connection: Any, seconds: float) -> None:
        connection.ask(0)

    def watch(self) -> None:
        pass

    def sessions(self) -> int:
        return len(Link.everyone)

    def process(self) -> int:
        return 0

    def restart(self) -> None:
        for link in Link.everyone:
            link.replies.append(-1)


class Refusing(Scripted):
    """It lets no caller wait."""

    @contextmanager
    def lease(self) -> Iterator[Link]:
        try:
            lease = self.pool.lease(timeout=0)
        except PoolExhaustedError as error:
            raise RefusedError from error
        with lease as link:
            yield link


class Queued(Scripted):
    """Its pool is a queue."""

    patience_here = 0.2

    def open(self) -> None:
        self.idle: Any = LifoQueue()
        for _ in range(self.size):
            self.idle.put(self.connect())

    def connect(self) -> Link:
        link = Link()
        link.open()
        return link


class Forgetful(Queued):
    """It loses a connection whose block an exception leaves."""

    @contextmanager
    def lease(self) -> Iterator[Link]:
        link = self.idle.get(timeout=self.patience)
        yield link
        self.idle.put(link)


class Careless(Queued):
    """It keeps every connection."""

    @contextmanager
    def lease(self) -> Iterator[Link]:
        link = self.idle.get(timeout=self.patience)
        try:
            yield link
        finally:
            self.idle.put(link)


class Greedy(Queued):
    """It opens a connection for each use, and closes none."""

    @contextmanager
    def lease(self) -> Iterator[Link]:
        yield self.connect()


@pytest.fixture(autouse=True)
def in_miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LIMIT": 2.0, "WAITERS": 20, "SERVED": 200, "REQUESTS_LIMIT": 10.0}.items():
        monkeypatch.setattr(blows, name, value)


def hit(subject: Subject) -> dict[str, Any]:
    return dict(blows.kills(subject, EFFORT))


def test_shots_are_the_same_in_each_run_and_of_all_kinds() -> None:
    shots = [blows.plan(number) for number in range(blows.USES)]
    assert shots == [blows.plan(number) for number in range(blows.USES)]
    kinds = Counter((shot.phase, shot.kind) for shot in shots if shot is not None)
    expected = {*itertools.product(PHASES, (KILL, TIMEOUT)), (EXCHANGING, CAUGHT)}
    assert set(kinds) == expected
    # A few hundred in each phase.
    assert all(sum(kinds[phase, kind] for kind in (KILL, TIMEOUT, CAUGHT)) > 300 for phase in PHASES)


@pytest.mark.parametrize("kind", [Scripted, Refusing])
def test_a_correct_pool_keeps_all_connections(kind: type[Subject]) -> None:
    figures = hit(kind())
    hits = {name: figures.pop(name) for name in list(figures) if name.startswith("hit ")}
    # Those that are being closed are not counted by it.
    del figures["sessions"]
    assert figures == {"usable": SIZE, "wrong": 0, "failed": 0, "stuck": 0}
    assert hits[f"hit {WAITING}"] > 0
    assert hits[f"hit {EXCHANGING}"] > 0
    # It never switches while it takes a connection back.
    assert hits[f"hit {GIVING_BACK}"] == 0


def test_the_benchmark_counts_lost_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blows, "MENDING", 0.1)
    assert hit(Forgetful())["usable"] < SIZE


def test_the_benchmark_counts_wrong_answers() -> None:
    assert hit(Careless())["wrong"] > 0


def test_the_benchmark_counts_sessions_above_the_limit() -> None:
    assert hit(Greedy())["sessions"] > 0
    assert blows.given_up(Greedy(), EFFORT)["sessions, late"] > 0


def test_the_benchmark_counts_requests_that_fail_after_a_restart() -> None:
    # Every connection has a reply of the last server's, and is kept with one that is left over.
    assert blows.restart(Careless(), EFFORT) == {"restart": REQUESTS}
    # Each of these fails once.
    assert blows.restart(Scripted(), EFFORT) == {"restart": SIZE}


def test_the_benchmark_measures_waits() -> None:
    figures = blows.waits(Scripted(), 1)
    assert 0 < figures["median"] <= figures["longest"]


def test_the_case_is_well_formed() -> None:
    assert cases.load("kills") is CASE
    assert set(FIGURES) == set(blows.BLOWS)
    assert sorted(itertools.chain.from_iterable(FIGURES.values())) == sorted(CASE.figures)
    assert {each.server for each in CONTESTANTS} == set(servers.RESTARTABLE)


def test_a_pool_that_hangs_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.workers.START", "input(); input()")
    monkeypatch.setattr(kills, "LIMIT", 0.1)
    figures = kills.hit(OURS, "restart", tmp_path / "log", EFFORT, {})
    assert figures == {"restart": "hangs"}


def test_a_missing_server_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise RuntimeError("not installed")

    monkeypatch.setattr(servers, "RESTARTABLE", {BY_NAME[OURS].server: absent})
    found = kills.run([OURS], tmp_path / "log", EFFORT)
    assert list(report.problems(found, CASE)) == [f"{OURS}: no server: not installed"]


@pytest.mark.servers
def test_the_table_can_be_made_from_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "BLOWS", ["kills", "restart"])
    found = kills.run([OURS, *THEIRS], tmp_path / "log", EFFORT)
    found.about = kills.describe(["--effort", str(EFFORT)], [OURS, *THEIRS])
    ours = {figure: found.median(CASE.name, figure, OURS) for figure in ("usable", "wrong", "restart")}
    assert ours == {"usable": SIZE, "wrong": 0, "restart": 0}
    results.save(found, tmp_path / "kills.json")
    page = reference(monkeypatch)(results.load(tmp_path / "kills.json"))
    assert all(f"* - {name}" in page for name in [OURS, *THEIRS])
    assert all(name in report.text(found, [CASE], []) for name in [OURS, *THEIRS])


def test_the_page_can_be_made_from_the_stored_results(monkeypatch: pytest.MonkeyPatch) -> None:
    page = reference(monkeypatch)()
    assert all(f"* - {each.name}" in page for each in CONTESTANTS)


def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    try:
        return __import__("_kills").reference
    finally:
        for name in ("_kills", "_performance"):
            sys.modules.pop(name, None)
