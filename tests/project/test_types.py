"""What a type checker says of a program that uses the package."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flask_gsocketpool
from tests.support.documents import ROOT

#: Has no mistakes. It needs the client libraries, and says by itself which types it expects.
CLEAN_PROGRAM = ROOT / "tests" / "project" / "typed_program.py"

#: The connection of a request may be of any class, and only the app knows which.
UNKNOWN = {"current_connection"}

PROGRAM = """
from functools import partial
from typing import Any

import flask_gsocketpool
import flask_gsocketpool.gunicorn
import flask_gsocketpool.testing
from flask import Flask
from flask_gsocketpool import GSocketPool, current_connections, current_pool, current_pools, named_pool
from gsocketpool import Pool, TcpConnection
from gsocketpool.connectors import Connector
from http.client import HTTPConnection


class HttpConnector(Connector[HTTPConnection]):
    def connect(self) -> HTTPConnection:
        return HTTPConnection("localhost", 2000)

    def is_settled(self, connection: HTTPConnection) -> bool:
        return True


class LineConnection(TcpConnection):
    def ask(self, line: str) -> str:
        self.send(line.encode() + b"\\n")
        return self.recv_until(b"\\n").decode()


def make() -> LineConnection:
    return LineConnection("localhost", 2000)


def ask_for_options() -> dict[str, Any]:
    return {"host": "localhost", "port": 2000}


def use(app: Flask, worker: Any) -> None:
    pool = Pool(LineConnection, {"host": "localhost", "port": 2000})
    reveal_type(pool)  # pool
    with pool.connection(timeout=1) as conn:
        reveal_type(conn)  # of a block
        reveal_type(conn.ask("?"))  # answer
    acquired = pool.acquire()
    reveal_type(acquired)  # acquired
    pool.release(acquired)
    with Pool(make) as by_callable:
        reveal_type(by_callable.acquire())  # by callable
    with Pool(LineConnection, ask_for_options).connection() as conn:
        reveal_type(conn)  # with options that are called
    with Pool(lambda: LineConnection("localhost", 2000)).connection() as conn:
        reveal_type(conn)  # by lambda
    with Pool(partial(LineConnection, "localhost", 2000)).connection() as conn:
        reveal_type(conn)  # by partial
    clients = Pool(HttpConnector(), reset="always", reset_timeout=1, ping_timeout=1)
    reveal_type(clients)  # by connector
    with clients.connection() as client:
        reveal_type(client)  # client
    lease = clients.lease()
    reveal_type(lease.connection)  # leased client
    reveal_type(lease.is_settled)  # settled
    lease.release(warn=False)
    clients.ping(timeout=1)
    reveal_type(pool.stats())  # stats
    reveal_type(current_pool)  # current pool
    reveal_type(current_pools)  # current pools
    reveal_type(named_pool("db", HTTPConnection))  # stand-in
    reveal_type(current_pools["cache"])  # named pool
    reveal_type(current_pool.size)  # size
    reveal_type(GSocketPool().init_app(app))  # registered
    reveal_type(flask_gsocketpool.gunicorn.post_worker_init)  # begin
    reveal_type(flask_gsocketpool.gunicorn.worker_exit)  # end
    reveal_type(flask_gsocketpool.testing.override_pool)  # override
    reveal_type(flask_gsocketpool.testing.fresh_pools)  # fresh
"""

#: Every mistake in here must be seen.
MISTAKES = """

def make_mistakes(app: Flask) -> None:
    pool = Pool(LineConnection, {"host": "localhost", "port": 2000})
    pool.acquire(timeout="1")
    pool.acquire().tell("?")
    with pool.connection() as conn:
        conn.tell("?")
    Pool(LineConnection, max_connection=1)
    current_pool.aquire()
    GSocketPool("app")
    Pool(HttpConnector()).acquire().ask("?")
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What mypy says of each line of the program, and of the names below it, by the line's number."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    base = tmp_path_factory.getbasetemp()
    # Each process of the tests has a directory in that of their run, and the first of them asks for all.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    answers = shared / "types.json"
    with (shared / "types.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not answers.exists():
            answers.write_text(json.dumps(ask_mypy(tmp_path_factory.mktemp("types"))))
    return {int(number): text for number, text in json.loads(answers.read_text()).items()}


def ask_mypy(directory: Path) -> dict[int, str]:
    program = directory / "program.py"
    program.write_text(whole_program())
    config = directory / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\n[mypy-gevent.*,greenlet.*]\nignore_missing_imports = true\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file", config, "--cache-dir", directory / "cache"),
            *("--no-error-summary", "--no-pretty", program, CLEAN_PROGRAM),
        ],
        cwd=directory,
        env={**os.environ, "MYPYPATH": str(ROOT), "MYPY_FORCE_COLOR": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[int, str] = {}
    for line in done.stdout.splitlines():
        place = re.match(r"program\.py:(\d+): (.*)", line)
        # In the package itself there is nothing to complain of, seen from there, and in the other program neither.
        assert place, done.stdout
        found.setdefault(int(place[1]), place[2])
    return found


def whole_program() -> str:
    names = [f"    reveal_type(flask_gsocketpool.{name})  # {name}" for name in flask_gsocketpool.__all__]
    return "\n".join([PROGRAM, "def name_all() -> None:", *names, MISTAKES])


def lines() -> list[tuple[int, str]]:
    return list(enumerate(whole_program().splitlines(), start=1))


def revealed(said: dict[int, str], what: str) -> str:
    """The type of that which has `what` for a comment."""
    (number,) = [number for number, line in lines() if line.endswith(f"  # {what}")]
    found = re.fullmatch(r'note: Revealed type is "(.*)"', said[number])
    assert found, said[number]
    return found[1].replace("builtins.", "").replace("program.", "")


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("pool", "gsocketpool.pool.Pool[LineConnection]"),
        ("of a block", "LineConnection"),
        ("answer", "str"),
        ("acquired", "LineConnection"),
        ("by callable", "LineConnection"),
        ("with options that are called", "LineConnection"),
        ("by lambda", "LineConnection"),
        ("by partial", "LineConnection"),
        ("by connector", "gsocketpool.pool.Pool[http.client.HTTPConnection]"),
        ("client", "http.client.HTTPConnection"),
        ("leased client", "http.client.HTTPConnection"),
        ("settled", "bool"),
        ("stats", "gsocketpool.stats.PoolStats"),
        ("current pool", "gsocketpool.pool.Pool[Any]"),
        ("stand-in", "gsocketpool.pool.Pool[http.client.HTTPConnection]"),
        ("current pools", "flask_gsocketpool.globals.CurrentPools"),
        ("named pool", "gsocketpool.pool.Pool[Any]"),
        ("size", "int"),
        ("registered", "None"),
    ],
)
def test_a_type_checker_reveals_the_expected_type(said: dict[int, str], what: str, kind: str) -> None:
    assert revealed(said, what) == kind


@pytest.mark.parametrize("what", ["begin", "end", "override", "fresh"])
def test_functions_have_types_of_arguments_and_result(said: dict[int, str], what: str) -> None:
    kind = revealed(said, what)
    assert kind.startswith("def (")
    # Nothing is said of a function that returns None, and of one without types that it returns Any.
    assert not kind.endswith("-> Any")


@pytest.mark.parametrize("name", flask_gsocketpool.__all__)
def test_every_public_name_has_a_type(said: dict[int, str], name: str) -> None:
    assert (revealed(said, name) == "Any") is (name in UNKNOWN)


def test_a_program_that_uses_connectors_is_checked(said: dict[int, str]) -> None:
    # What there is to complain of in it has failed the fixture, unless nothing checks its types.
    assert said
    text = CLEAN_PROGRAM.read_text()
    assert text.count("assert_type(") >= 6
    assert "type: ignore" not in text


def test_the_type_checker_reports_only_the_mistakes(said: dict[int, str]) -> None:
    begin = next(number for number, line in lines() if line.startswith("def make_mistakes"))
    complaints = {number for number, text in said.items() if text.startswith("error: ")}
    mistakes = {
        number
        for number, line in lines()
        if number > begin + 1 and line.strip() and not line.strip().startswith("with ")
    }
    assert complaints == mistakes
