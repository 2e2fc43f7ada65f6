"""The examples in README and docs run, and the lists in them are complete."""

from __future__ import annotations

import http.client
import os
import re
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_gsocketpool import current_pool
from flask_gsocketpool.config import APP_WIDE, DEFAULT_SETTINGS, SETTINGS, TARGETS
from gsocketpool import Pool
from gsocketpool.settings import Settings
from gsocketpool.testing import FlakyServer, torture
from tests.support.documents import (
    DOCS,
    DOCUMENTS,
    FLASK,
    POSTGRESQL,
    REDIS,
    ROOT,
    VALKEY,
    blocks,
    examples,
    examples_of_tests,
    joined,
    module_of_the_guide,
    name_of,
    needs_a_database,
)
from tests.support.line_server import LineServer
from tests.support.line_server import server as server
from tests.support.scripted import PATIENCE

#: Run by the tests of the connectors and recipes, which look at what the examples have left in the database.
ELSEWHERE = {DOCS / "clients" / name for name in ("memcached.rst", "mysql.rst", "psycopg.rst", "recipes.rst")}


APP = """
import pytest
from flask import Flask
from flask_gsocketpool import GSocketPool, current_pool
from gsocketpool.testing import torture

# In which every fault happens once.
torture.__kwdefaults__["rounds"] = 300

@pytest.fixture
def app():
    app = Flask(__name__)
    app.config["SOCKETPOOL_URL"] = "tcp://localhost:1"
    GSocketPool(app)

    @app.get("/ask/<line>")
    def ask(line):
        with current_pool.connection() as conn:
            return conn.ask(line.encode())

    return app
"""


#: What each guide to a client tells, under the same headings.
QUESTIONS = {
    "Quick start",
    "The setting to know",
    "What the next user finds",
    "What an error means",
    "What it costs",
    "What to turn off",
}


@pytest.mark.parametrize("client", ["psycopg", "valkey", "mysql", "memcached", "sqlalchemy"])
def test_each_guide_to_a_client_answers_the_same_questions(client: str) -> None:
    lines = (DOCS / "clients" / f"{client}.rst").read_text().splitlines()
    assert {line for line, under in pairwise(lines) if line and under == "-" * len(line)} >= QUESTIONS


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if examples(path) and path not in ELSEWHERE],
    ids=name_of,
)
def test_the_examples_of_a_document_run(
    document: Path, echo_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = examples(document).replace("2000", str(echo_port))
    # The engines' examples need no server.
    source = source.replace("postgresql+psycopg://localhost/app", f"sqlite:///{tmp_path}/app")
    names: dict[str, Any] = {"__name__": "example"}
    if document.parent == FLASK.parent and document != FLASK:
        exec(compile(examples(FLASK).replace("2000", str(echo_port)), FLASK.name, "exec"), names)
    exec(compile(source, document.name, "exec"), names)
    if "app" in names:
        client = names["app"].test_client()
        if document.parent == FLASK.parent:
            assert client.get("/").text == "one\ntwo\n"
            if document.name in CHECKS:
                CHECKS[document.name](names)
        elif document.name != "configuration.rst":
            assert client.get("/").text == "hello\n"
        for pool in names["app"].extensions["gsocketpool"].values():
            pool.close()
    if isinstance(names.get("pool"), Pool):
        names["pool"].close()
    if document.name == "README.rst":
        assert "100 answers over 10 connections" in capsys.readouterr().out


def test_the_careful_connector_of_the_guide_passes_the_torture() -> None:
    def ask(client: Any, message: bytes) -> bytes:
        reply: str = client.ask(message.decode())
        return reply.encode()

    with FlakyServer() as server:
        names: dict[str, Any] = {"__name__": "example"}
        source = examples(DOCS / "clients" / "connectors.rst").replace("2000", str(server.port))
        exec(compile(source, "connectors.rst", "exec"), names)
        names["pool"].close()
        torture(names["CarefulConnector"](), exchange=ask, server=server, rounds=200, forks=1)


@pytest.mark.patched
@pytest.mark.servers
@pytest.mark.parametrize(
    "document",
    [name_of(path) for path in DOCUMENTS if path not in ELSEWHERE and any(map(needs_a_database, blocks(path)))],
)
def test_the_examples_with_a_database_run(document: str, conninfo: str, valkey_url: str) -> None:
    (path,) = [path for path in DOCUMENTS if name_of(path) == document]
    source = joined(filter(needs_a_database, blocks(path)))
    names: dict[str, Any] = {"__name__": "example"}
    for shown, url in ((POSTGRESQL, conninfo), (VALKEY, valkey_url), (REDIS, valkey_url)):
        source = source.replace(shown, url)
    exec(compile(source, document, "exec"), names)
    pools = [value for value in names.values() if isinstance(value, Pool)]
    assert pools
    for pool in pools:
        assert pool.stats().idle == pool.stats().opened == 1
        pool.close()


def check_the_guides_requests(names: dict[str, Any]) -> None:
    client = names["app"].test_client()
    assert client.get("/both").text == "first\nsecond\n"
    assert client.get("/parallel").text == "first\nsecond\n"
    check_the_guides_deadlines(names["app_with_deadlines"])


def check_the_guides_events(names: dict[str, Any]) -> None:
    names["PAUSE"] = 0
    app: Flask = names["app"]
    with app.test_client().get("/events", buffered=False) as response, app.app_context():
        body = response.iter_encoded()
        for event in (b"data: news\n\n", b": nothing new\n\n", b": nothing new\n\n"):
            assert next(body) == event
            assert current_pool.stats().in_use == 0
        assert response.mimetype == "text/event-stream"


def check_the_guides_deadlines(app: Flask) -> None:
    client = app.test_client()
    # There is none yet, and no time to open one.
    assert client.get("/", headers={"X-Request-Timeout": "0"}).status_code == 503
    assert client.get("/", headers={"X-Request-Timeout": "soon"}).status_code == 200
    for pool in app.extensions["gsocketpool"].values():
        pool.close()


def check_the_guides_health(names: dict[str, Any]) -> None:
    assert names["app"].test_client().get("/health/ready").status_code == 200


#: What the app of a page on Flask must do, beside what the first page's does.
CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "requests.rst": check_the_guides_requests,
    "streaming.rst": check_the_guides_events,
    "operating.rst": check_the_guides_health,
}


@pytest.mark.parametrize("document", ["testing.rst", "flask/testing.rst"])
def test_the_examples_of_tests_pass(pytester: pytest.Pytester, document: str) -> None:
    path = DOCS / document
    pytester.makeconftest(APP)
    pytester.makepyfile(module=module_of_the_guide())
    pytester.makepyfile(examples_of_tests(path))
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=4)


@pytest.mark.servers
def test_the_pywsgi_script_of_the_guide_serves_and_ends(server: LineServer, tmp_path: Path) -> None:
    (script,) = [block for block in blocks(DOCS / "flask" / "servers.rst") if "pywsgi" in block]
    (tmp_path / "module.py").write_text(module_of_the_guide().replace("2000", str(server.port)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = '("127.0.0.1", 8000)'
        assert address in script
        inherited = f'__import__("socket").socket(fileno={listener.fileno()})'
        (tmp_path / "serve.py").write_text(script.replace(address, inherited))
        log = tmp_path / "log"
        client = http.client.HTTPConnection(*listener.getsockname(), timeout=PATIENCE)
        with (
            log.open("wb") as output,
            closing(client),
            subprocess.Popen(
                [sys.executable, "-W", "error", "serve.py"],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                pass_fds=[listener.fileno()],
                stderr=output,
            ) as process,
        ):
            try:
                # It listens already, so the request waits until the app is there.
                client.request("GET", "/", headers={"Connection": "close"})
                assert client.getresponse().read() == b"one\ntwo\n"
                process.terminate()
                assert process.wait(PATIENCE) == 0, log.read_text()
            finally:
                process.kill()
    assert "Traceback" not in log.read_text()


def test_the_documents_have_examples() -> None:
    assert {name_of(path) for path in DOCUMENTS if examples(path)} >= {
        "README.rst",
        "start.rst",
        "watching.rst",
        "moving.rst",
        "clients/connectors.rst",
        "clients/protocol.rst",
        "flask/start.rst",
        *(f"flask/{name}" for name in CHECKS),
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_example_compiles(document: Path) -> None:
    for block in blocks(document):
        compile(block, document.name, "exec")


def test_the_troubleshooting_guide_quotes_messages_exactly() -> None:
    quoted = re.findall(r'"([^"\n]+)"', (DOCS / "flask" / "troubleshooting.rst").read_text())
    said = "".join(
        path.read_text() for package in ("gsocketpool", "flask_gsocketpool") for path in (ROOT / package).glob("*.py")
    )
    # Without how Python breaks and fills in a message.
    said = re.sub(r'"\s*f?"', "", said)
    pieces = [piece.strip(" ,'") for quote in quoted for piece in re.split(r"…|\b1\b", quote)]
    assert len(quoted) >= 8
    assert [piece for piece in pieces if piece not in said] == []


def test_the_reference_of_the_configuration_lists_every_key() -> None:
    found = runpy.run_path(str(DOCS / "_configuration.py"))
    reference = found["reference"]()
    listed = re.findall(r"^   \* - ``SOCKETPOOL_([A-Z_]+)``", reference, re.MULTILINE)
    assert sorted(listed) == sorted(name.upper() for name in [*TARGETS, *SETTINGS, *APP_WIDE])
    assert (
        "     - 10\n     - The limit on connections that are idle, in use, being opened, reset or pinged.\n"
        in reference
    )


def test_the_reference_of_the_configuration_shows_the_defaults() -> None:
    found = runpy.run_path(str(DOCS / "_configuration.py"))
    reference = found["reference"]()
    assert DEFAULT_SETTINGS.keys() <= Settings.__dataclass_fields__.keys()
    for name, field in Settings.__dataclass_fields__.items():
        default = DEFAULT_SETTINGS.get(name, field.default)
        (shown,) = re.findall(rf"^   \* - ``SOCKETPOOL_{name.upper()}``\n     - (.*)$", reference, re.MULTILINE)
        if default is None:
            assert shown in ("no limit", "off", "``default``")
        elif isinstance(default, bool | str):
            assert shown == f"``{default}``"
        else:
            assert float(shown.removesuffix(" s")) == default


def test_every_document_that_the_readme_names_exists() -> None:
    named = re.findall(r"<([\w/.]+)>`__", (ROOT / "README.rst").read_text())
    assert len(named) >= 10
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_the_landing_page_begins_with_the_examples_of_the_readme() -> None:
    first, second = (blocks(path)[:2] for path in (ROOT / "README.rst", DOCS / "index.rst"))
    assert [block.strip() for block in first] == [block.strip() for block in second]


def test_the_gunicorn_configuration_of_the_readme_is_part_of_a_guide() -> None:
    _, configuration, *_ = blocks(ROOT / "README.rst")
    lines = configuration.split("\n")
    assert "worker_class" in configuration
    assert any(set(lines) < set(block.split("\n")) for path in DOCUMENTS[1:] for block in blocks(path))


def test_the_readme_has_the_two_commands() -> None:
    text = (ROOT / "README.rst").read_text()
    assert 'python3 -m venv .venv && .venv/bin/pip install -q ".[demo]" && .venv/bin/python -m example_app\n' in text
    assert 'python3 -m venv .venv && .venv/bin/pip install -q -e ".[test]" && .venv/bin/python -m pytest\n' in text
