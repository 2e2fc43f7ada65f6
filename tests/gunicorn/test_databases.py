"""Flask apps talk to PostgreSQL and Valkey in real gevent workers of gunicorn."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from flask import Flask
from psycopg.conninfo import conninfo_to_dict

from benchmarks import servers
from flask_gsocketpool import GSocketPool, health
from tests.support.documents import ROOT, blocks
from tests.support.gunicorn import PATIENCE, eventually
from tests.support.processes import is_stopped
from tests.support.servers import silent_listener

pytestmark = pytest.mark.servers

#: The app of the guide.
PAGE = ROOT / "docs" / "flask" / "databases.rst"
(GUIDE,) = blocks(PAGE)

#: What the tests ask it beside.
VIEWS = """
from flask_gsocketpool import current_connection, health

app.register_blueprint(health.blueprint, url_prefix="/health")

def insert(conn, name):
    conn.execute("INSERT INTO pages (name, body) VALUES (%s, 'text')", [name])
    return str(conn.info.backend_pid)

@app.get("/insert/<name>")
def insert_page(name):
    with db.connection() as conn:
        return insert(conn, name)

@app.get("/abort/<name>")
def insert_and_abort(name):
    with db.connection() as conn:
        insert(conn, name)
        abort(404)

@app.get("/transaction/<name>")
def insert_in_a_transaction(name):
    with db.connection() as conn, conn.transaction():
        return insert(conn, name)

@app.get("/twice/<name>")
def insert_twice_and_fail_once(name):
    with db.connection() as conn:
        pid = insert(conn, name)
        try:
            with conn.transaction():
                insert(conn, name)
        except psycopg.errors.UniqueViolation:
            return pid

@app.get("/own/one/<name>")
def one_place(name):
    current_connection.execute("INSERT INTO pages (name) VALUES (%s)", [name])
    return ""

@app.get("/own/another/<name>")
def another_place(name):
    current_connection.execute("INSERT INTO pages (name) VALUES (%s)", [name])
    return ""

@app.get("/own/commit/<name>")
def committed_place(name):
    current_connection.execute("INSERT INTO pages (name) VALUES (%s)", [name])
    current_connection.commit()
    return ""

@app.get("/wait")
def wait():
    with db.connection() as conn:
        conn.execute("SELECT pg_advisory_xact_lock_shared(20)")
    return "done"
"""


class Site:
    """A gunicorn with one gevent worker that serves the app."""

    def __init__(self, port: int, log: Path, conninfo: str) -> None:
        self._port = port
        self._log = log
        self.conninfo = conninfo

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ask(self, path: str, status: int = 200, method: str = "GET", body: str | None = None) -> str:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)) as client:
            client.request(method, path, body, {"Connection": "close"})
            response = client.getresponse()
            text = response.read().decode()
        assert response.status == status, text + self.log
        return text

    def pool(self, name: str) -> Any:
        return json.loads(self.ask("/health/pools"))["pools"][name]


def url_of(conninfo: str) -> str:
    parts = conninfo_to_dict(conninfo)
    return f"postgresql:///{parts['dbname']}?" + urlencode({"host": parts["host"], "user": parts["user"]})


def environment(directory: Path, db: str, cache: str) -> dict[str, str]:
    """The variables for an app whose module is written to `directory`."""
    (directory / "pages.py").write_text(GUIDE + VIEWS)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("FLASK_", "GUNICORN_"))},
        "FLASK_SOCKETPOOL_URL": db,
        "FLASK_SOCKETPOOL_POOLS__db__url": db,
        "FLASK_SOCKETPOOL_POOLS__cache__url": cache,
        "PYTHONPATH": str(ROOT),
        "HOME": str(directory),
    }


@pytest.fixture(scope="module")
def site(conninfo: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    with (
        observer(conninfo) as other,
        servers.valkey() as valkey,
        (directory / "log").open("wb") as log,
        # It listens already, so that a request waits until the app is there.
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        other.execute("CREATE TABLE pages (name text PRIMARY KEY, body text)")
        gunicorn = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1"),
                *("-b", f"fd://{listener.fileno()}", "--graceful-timeout", "5", "pages:app"),
            ],
            cwd=directory,
            env=environment(directory, url_of(conninfo), f"valkey://127.0.0.1:{valkey['port']}/0"),
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        site = Site(listener.getsockname()[1], directory / "log", conninfo)
        try:
            yield site
            gunicorn.terminate()
            assert gunicorn.wait(PATIENCE) == 0, site.log
        finally:
            if gunicorn.poll() is None:
                os.killpg(gunicorn.pid, signal.SIGKILL)
                gunicorn.wait()
        assert "Traceback" not in site.log
        assert "before gevent patched" not in site.log
        other.execute("DROP TABLE pages")


@contextmanager
def observer(conninfo: str) -> Iterator[Any]:
    """A session in which each statement is a transaction of its own."""
    with closing(psycopg.connect(conninfo, autocommit=True)) as connection:
        yield connection


def is_there(site: Site, name: str) -> bool:
    with observer(site.conninfo) as other:
        return bool(other.execute("SELECT FROM pages WHERE name = %s", [name]).fetchall())


def test_the_app_of_the_guide_works_under_gunicorn(site: Site) -> None:
    site.ask("/pages/guide", status=404)
    for text in ("one", "two"):
        site.ask("/pages/guide", status=204, method="PUT", body=text)
        # From PostgreSQL, and from Valkey.
        assert [site.ask("/pages/guide") for _ in range(2)] == [text] * 2
    assert site.pool("cache")["opened"] == 1


def test_a_block_commits_its_transaction(site: Site) -> None:
    site.ask("/insert/block")
    assert is_there(site, "block")


def test_an_abort_in_a_block_rolls_back_and_keeps_the_connection(site: Site) -> None:
    session = site.ask("/insert/before")
    before = site.pool("db")
    for name in ("first", "second"):
        site.ask(f"/abort/{name}", status=404)
        assert not is_there(site, name)
        # It is reset in the background.
        eventually(lambda: not site.pool("db")["resetting"], "the connection is reset")
    assert site.ask("/insert/after") == session
    after = site.pool("db")
    assert (after["opened"], after["discarded"]) == (before["opened"], before["discarded"])


def test_a_transaction_in_a_block_commits_once_or_is_a_savepoint(site: Site) -> None:
    site.ask("/transaction/transaction")
    assert is_there(site, "transaction")
    site.ask("/twice/savepoint")
    assert is_there(site, "savepoint")


def test_current_connection_does_not_commit_and_each_place_is_reported_once(site: Site) -> None:
    for number in range(2):
        for path in ("one", "another"):
            site.ask(f"/own/{path}/{number}")
            assert not is_there(site, str(number))
        site.ask(f"/own/commit/{number}")
        assert is_there(site, str(number))
    reports = [line for line in site.log.splitlines() if "left work open" in line]
    assert [line.split()[-1] for line in reports] == ["one_place", "another_place"]
    assert not site.pool("default")["discarded"]


def test_queries_that_wait_do_not_block_the_worker(site: Site) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with observer(site.conninfo) as other, ThreadPoolExecutor(5) as clients:
        other.execute("SELECT pg_advisory_lock(20)")
        answers = [clients.submit(site.ask, "/wait") for _ in range(5)]
        try:
            # All at the same time, and the worker answers others meanwhile.
            eventually(lambda: other.execute(waiting).fetchone() == (5,), "all queries wait")
            site.ask("/insert/meanwhile")
        finally:
            other.execute("SELECT pg_advisory_unlock(20)")
        assert [answer.result() for answer in answers] == ["done"] * 5


def test_a_worker_whose_backend_accepts_and_hangs_is_not_ready(site: Site) -> None:
    assert json.loads(site.ask("/health/ready"))["ok"] is True
    session = int(site.ask("/insert/hanging"))
    os.kill(session, signal.SIGSTOP)
    try:
        eventually(lambda: is_stopped(session))
        answer = json.loads(site.ask("/health/ready", status=503))
    finally:
        os.kill(session, signal.SIGCONT)
    assert [name for name, pool in answer["pools"].items() if not pool["ok"]] == ["db"]
    assert json.loads(site.ask("/health/ready"))["ok"] is True


@pytest.mark.patched
def test_an_app_whose_backend_accepts_and_never_answers_is_not_ready() -> None:
    with silent_listener() as (host, port):
        app = Flask("app")
        app.config["SOCKETPOOL_POOLS"] = {
            "db": {"url": f"postgresql://{host}:{port}/app?sslmode=disable"},
            "cache": {"url": f"valkey://{host}:{port}"},
        }
        GSocketPool(app)
        app.register_blueprint(health.blueprint)
        answer = app.test_client().get("/ready")
        app.extensions["gsocketpool"].close()
    assert answer.status_code == 503
    assert {name: pool["ok"] for name, pool in answer.get_json()["pools"].items()} == {"db": False, "cache": False}


def test_the_check_command_of_the_guide_reports_a_backend_that_accepts_and_hangs(tmp_path: Path, conninfo: str) -> None:
    (command,) = [line.split()[2:] for line in PAGE.read_text().splitlines() if "$ python -m gevent.monkey" in line]
    with silent_listener() as (host, port):
        run = subprocess.run(
            [sys.executable, *command, "--timeout", "1"],
            cwd=tmp_path,
            env=environment(tmp_path, url_of(conninfo), f"valkey://{host}:{port}")
            | {"FLASK_SOCKETPOOL_POOLS__db__url": f"postgresql://{host}:{port}/app?sslmode=disable"},
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE,
        )
    results = {line.split()[0]: line for line in run.stdout.splitlines()[1:]}
    assert results["default"].endswith("ok"), run
    for name in ("db", "cache"):
        assert f"{host}:{port}" in results[name]
        assert "TimeoutError: not open, or no answer to a ping, after 1 s" in results[name]
    assert run.returncode == 1
