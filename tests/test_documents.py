"""The examples in README and docs are run, and what the documents list is what there is."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from flask_gsocketpool.config import APP_WIDE, SETTINGS, TARGETS
from gsocketpool import Pool
from gsocketpool.settings import Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]


def examples(document: Path) -> str:
    """The Python of a document, each line where it stands in it."""
    lines: list[str] = []
    indent = None
    for line in document.read_text().splitlines():
        if line.strip() == ".. code-block:: python":
            indent = len(line) - len(line.lstrip()) + 4
        elif indent is not None and line.strip() and len(line) - len(line.lstrip()) < indent:
            indent = None
        lines.append(line[indent:] if indent is not None and not line.strip().startswith(".. ") else "")
    return "\n".join(lines)


#: Its examples are tests.
ABOUT_TESTS = ROOT / "docs" / "failures.rst"

APP = """
import pytest
from flask import Flask
from flask_gsocketpool import GSocketPool, current_pool

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


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if examples(path).strip() and path != ABOUT_TESTS],
    ids=lambda path: path.name,
)
def test_the_examples_run(document: Path, echo_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    program = examples(document).replace("2000", str(echo_port))
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(program, document.name, "exec"), names)
    if "app" in names:
        client = names["app"].test_client()
        if document.name == "README.rst":
            assert client.get("/echo/hello%0Aagain").text == "hello again\n"
        elif document.name == "flask.rst":
            assert client.get("/").text == "one\ntwo\n"
            assert client.get("/both").text == "first\nsecond\n"
        else:
            assert client.get("/").text == "hello\n"
        for pool in names["app"].extensions["gsocketpool"].values():
            pool.close()
    if isinstance(names.get("pool"), Pool):
        names["pool"].close()
    if document.name == "README.rst":
        assert "100 answers over 10 connections" in capsys.readouterr().out


def test_the_examples_of_tests_pass(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(APP)
    pytester.makepyfile(examples(ABOUT_TESTS))
    pytester.runpytest_subprocess().assert_outcomes(passed=4)


def test_there_are_examples() -> None:
    assert {path.name for path in DOCUMENTS if examples(path).strip()} >= {"README.rst", "start.rst", "moving.rst"}


def test_the_reference_of_the_configuration_is_made_of_the_code() -> None:
    found = runpy.run_path(str(ROOT / "docs" / "_configuration.py"))
    reference = found["reference"]()
    listed = re.findall(r"^   \* - ``SOCKETPOOL_([A-Z_]+)``", reference, re.MULTILINE)
    assert sorted(listed) == sorted(name.upper() for name in [*TARGETS, *SETTINGS, *APP_WIDE])
    assert "     - 200\n     - The limit on connections that are idle, in use or being opened.\n" in reference


def test_the_readme_lists_every_key() -> None:
    listed = re.findall(r"^``SOCKETPOOL_([A-Z_]+)``", (ROOT / "README.rst").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(name.upper() for name in [*TARGETS, *SETTINGS, *APP_WIDE])


def test_the_readme_knows_the_defaults() -> None:
    text = (ROOT / "README.rst").read_text()
    for name, field in Settings.__dataclass_fields__.items():
        (shown,) = re.findall(rf"^``SOCKETPOOL_{name.upper()}`` +(.*?)  ", text, re.MULTILINE)
        if isinstance(field.default, bool):
            assert shown == str(field.default).lower()
        elif field.default is None:
            assert shown in ("no limit", "off", "``default``")
        else:
            assert float(shown.removesuffix(" s")) == field.default


def test_the_readme_has_the_two_commands() -> None:
    text = (ROOT / "README.rst").read_text()
    assert 'python3 -m venv .venv && .venv/bin/pip install -q ".[demo]" && .venv/bin/python -m example_app\n' in text
    assert 'python3 -m venv .venv && .venv/bin/pip install -q -e ".[test]" && .venv/bin/python -m pytest\n' in text
