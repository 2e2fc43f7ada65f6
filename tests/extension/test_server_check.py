"""A server that does not run requests in greenlets is reported once."""

from __future__ import annotations

import http.client
import itertools
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import greenlet
import pytest
from flask import Flask, copy_current_request_context
from gevent.pywsgi import WSGIServer

from flask_gsocketpool import GSocketPool, _server_check, current_connection, current_pool
from gsocketpool import TcpConnection
from tests.support import gunicorn as gunicorn_support
from tests.support.gunicorn import Start, eventually, gunicorns, wrong
from tests.support.line_server import LineServer
from tests.support.scripted import PATIENCE, Plain

pytestmark = pytest.mark.servers

WARNING = "does not run requests in greenlets"

#: What a server adds to a request.
SERVER = {"SERVER_SOFTWARE": "a server/1.0"}


@pytest.fixture(autouse=True)
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_server_check, "is_unchecked", True)
    monkeypatch.setattr(_server_check, "_warnings", itertools.count())


@pytest.fixture
def site() -> Flask:
    site = Flask("site")
    site.config["SOCKETPOOL_FACTORY"] = Plain
    GSocketPool(site)

    @site.get("/")
    def index() -> str:
        with current_pool.connection():
            return "used"

    @site.get("/own")
    def own() -> str:
        return str(current_connection.is_open)

    @site.get("/in-a-greenlet")
    def in_a_greenlet() -> Any:
        return gevent.spawn(copy_current_request_context(index)).get()

    @site.get("/in-a-thread")
    def in_a_thread() -> str:
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(copy_current_request_context(index)).result(PATIENCE)

    @site.get("/nothing")
    def nothing() -> str:
        return f"{current_pool.size} used"

    return site


def begun(environ: dict[str, Any]) -> dict[str, Any]:
    """That of a request which begins here."""
    environ = dict(environ)
    _server_check.record_start(environ)
    return environ


def look() -> None:
    """What a request does that begins here and uses a pool."""
    _server_check.check_server(begun(SERVER))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if WARNING in record.getMessage()]


@pytest.mark.parametrize("path", ["/", "/own", "/in-a-greenlet", "/in-a-thread"])
def test_only_the_first_use_of_a_connection_logs_a_warning(
    site: Flask, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    client = site.test_client()
    for _ in range(3):
        assert client.get(path, environ_overrides=SERVER).status_code == 200
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("gsocketpool", logging.WARNING)
    said = record.getMessage()
    assert "a server/1.0" in said
    assert "each thread has its own pools" in said
    assert "gunicorn -k gevent" in said


def test_threads_that_arrive_together_log_one_warning(site: Flask, caplog: pytest.LogCaptureFixture) -> None:
    together = threading.Barrier(8)

    def look_together() -> None:
        together.wait(PATIENCE)
        look()

    with ThreadPoolExecutor(8) as threads:
        for looking in [threads.submit(look_together) for _ in range(8)]:
            looking.result(PATIENCE)
    assert len(warnings(caplog)) == 1


def test_the_warning_names_uwsgi(caplog: pytest.LogCaptureFixture) -> None:
    _server_check.check_server(begun({"uwsgi.version": b"2.0"}))
    (said,) = warnings(caplog)
    assert "under uWSGI" in said


def test_a_request_that_uses_no_connection_logs_no_warning(site: Flask, caplog: pytest.LogCaptureFixture) -> None:
    assert site.test_client().get("/nothing", environ_overrides=SERVER).status_code == 200
    assert not warnings(caplog)
    assert site.test_client().get("/", environ_overrides=SERVER).status_code == 200
    assert warnings(caplog)


def test_a_request_without_a_server_logs_no_warning_and_leaves_the_server_unchecked(
    site: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    assert site.test_client().get("/").text == "used"
    with site.app_context(), current_pool.connection():
        pass
    for environ in ({}, SERVER):
        with site.test_request_context(environ_overrides=environ), current_pool.connection():
            pass
    assert not caplog.records
    assert _server_check.is_unchecked


@pytest.mark.parametrize("path", ["/", "/in-a-greenlet", "/in-a-thread"])
def test_a_request_in_a_gevent_greenlet_logs_no_warning(
    site: Flask, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    def ask() -> str:
        return site.test_client().get(path, environ_overrides=SERVER).text

    assert gevent.spawn(ask).get(timeout=PATIENCE) == "used"
    assert not caplog.records
    assert not _server_check.is_unchecked


def test_a_request_in_a_plain_greenlet_within_a_gevent_greenlet_logs_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gevent.spawn(lambda: greenlet.greenlet(look).switch()).get(timeout=PATIENCE)
    assert not caplog.records
    greenlet.greenlet(look).switch()
    assert warnings(caplog), "one within the main greenlet"


# Servers


def test_a_request_under_pywsgi_logs_no_warning(site: Flask, caplog: pytest.LogCaptureFixture) -> None:
    server = WSGIServer(("127.0.0.1", 0), site, log=None)
    server.start()
    client = TcpConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
    client.open()
    try:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert client.recv_until(b"used").startswith(b"HTTP/1.1 200")
    finally:
        client.close()
        server.stop()
    assert not caplog.records
    assert not _server_check.is_unchecked


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with gunicorn_support.Backend() as backend, gunicorns(tmp_path, backend) as start:
        yield start


@pytest.mark.parametrize(
    ("kind", "warnings"), [("gevent", 0), ("sync", 1), ("gthread", 1)], ids=["gevent", "sync", "gthread"]
)
def test_a_gunicorn_worker_without_gevent_logs_one_warning(start: Start, kind: str, warnings: int) -> None:
    gunicorn = start("--workers", "1", "--worker-class", kind, "--threads", "3" if kind == "gthread" else "1")
    assert not wrong(gunicorn.ask_all(*(f"text-{number}" for number in range(5))))
    assert not wrong(gunicorn.ask_all("another"))
    assert gunicorn.log.count(WARNING) == warnings
    assert gunicorn.log.count("under gunicorn") == warnings


DEVELOPED = """
from flask import Flask
from flask_gsocketpool import GSocketPool, current_pool

app = Flask(__name__)
app.config.from_prefixed_env()
GSocketPool(app)


@app.get("/echo/<text>")
def echo(text):
    with current_pool.connection() as conn:
        conn.send(text.encode() + b"\\n")
        return conn.recv_until(b"\\n").decode()
"""


@contextmanager
def flask_run(directory: Path, *arguments: str, program: str = DEVELOPED) -> Iterator[tuple[int, Path]]:
    """Flask's own server with an app whose backend sends lines back. Gives its port and its log."""
    backend = LineServer()
    (directory / "developed.py").write_text(program)
    log = directory / "flask.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLASK_")}
    environment["FLASK_SOCKETPOOL_URL"] = f"tcp://127.0.0.1:{backend.port}?timeout={PATIENCE}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "flask", "--app", "developed", "run", "--port", "0", *arguments],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    found: list[str] = []

    def look() -> bool:
        found[:] = re.findall(r"Running on http://127\.0\.0\.1:(\d+)", log.read_text())
        assert found or process.poll() is None, log.read_text()
        return bool(found)

    try:
        eventually(look, "the server runs")
        yield int(found[0]), log
    finally:
        process.terminate()
        process.wait(PATIENCE)
        sys.stdout.write(log.read_text())
        backend.stop()


def ask(port: int, text: str) -> str:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        client.request("GET", f"/echo/{text}")
        return client.getresponse().read().decode()
    finally:
        client.close()


@pytest.mark.parametrize("how", ["--with-threads", "--without-threads"])
def test_a_request_under_the_server_of_flask_works_and_logs_one_warning(tmp_path: Path, how: str) -> None:
    with flask_run(tmp_path, how) as (port, log):
        texts = [f"text-{number}" for number in range(4)]
        with ThreadPoolExecutor(2) as clients:
            assert list(clients.map(ask, [port] * 4, texts)) == [f"{text}\n" for text in texts]
        assert log.read_text().count(WARNING) == 1
        assert log.read_text().count("under Werkzeug/") == 1
        assert "Traceback" not in log.read_text()


def test_the_server_of_flask_logs_no_warning_if_python_is_patched(tmp_path: Path) -> None:
    patched = "import gevent.monkey\ngevent.monkey.patch_all()\n" + DEVELOPED
    with flask_run(tmp_path, program=patched) as (port, log):
        assert [ask(port, "one"), ask(port, "two")] == ["one\n", "two\n"]
        assert WARNING not in log.read_text()
