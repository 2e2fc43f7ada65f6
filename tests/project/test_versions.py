"""``docs/versions.rst`` holds: which versions of Python are supported, and what is public."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import tomllib
from itertools import pairwise
from types import ModuleType

import pytest

import flask_gsocketpool
import flask_gsocketpool.gunicorn
import flask_gsocketpool.health
import flask_gsocketpool.testing
import gsocketpool
import gsocketpool.connectors
import gsocketpool.testing
from tests.support.documents import ROOT

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")

#: The one place where the supported versions of Python are written down.
PYTHONS = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", SETUP["metadata"]["classifiers"], re.MULTILINE)

REFERENCE = "\n".join(path.read_text() for path in (ROOT / "docs").rglob("*.rst"))


def test_the_supported_pythons_have_no_gap() -> None:
    minors = [int(version.removeprefix("3.")) for version in PYTHONS]
    assert len(minors) > 1
    assert all(newer == older + 1 for older, newer in pairwise(minors))


def test_the_oldest_python_is_the_one_required() -> None:
    oldest = PYTHONS[0]
    assert SETUP["options"]["python_requires"] == f">={oldest}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"


def test_every_supported_python_is_tested() -> None:
    assert subprocess.check_output([ROOT / ".ci" / "pythons"], text=True).split() == PYTHONS
    for script in (".ci/run", ".ci/sid", ".github/workflows/ci.yml"):
        assert not re.findall(r"3\.\d\d", (ROOT / script).read_text()), "read them from .ci/pythons"


@pytest.mark.parametrize(
    "module",
    [
        gsocketpool,
        gsocketpool.connectors,
        gsocketpool.testing,
        flask_gsocketpool,
        flask_gsocketpool.gunicorn,
        flask_gsocketpool.health,
        flask_gsocketpool.testing,
    ],
    ids=lambda module: module.__name__,
)
def test_every_public_name_is_in_the_reference(module: ModuleType) -> None:
    directives = (
        r"^\.\. (?:auto(?:class|data|exception|function|method)|data|class|function):: (.*(?:\n {3,}[a-z_]+$)*)"
    )
    documented = {
        name.strip().rpartition(".")[2].partition("(")[0]
        for found in re.findall(directives, REFERENCE, re.MULTILINE)
        for name in found.splitlines()
    }
    assert set(module.__all__) <= documented


#: Calls that get a reason, and a function that returns one.
GET_A_REASON = {
    "remove",
    "close_removed",
    "discard",
    "pop_all_idle",
    "pop_unchanged",
    "_discard",
    "_pop",
    "_pop_busy",
    "_remove_leased",
}
RETURNS_A_REASON = "reason_to_retire"


def reasons() -> set[str]:
    """Return the reasons that the code gives for closing a connection."""
    found = set()
    for package in ("gsocketpool", "flask_gsocketpool"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                given: list[ast.AST] = []
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    given = [*node.args, *node.keywords] if node.func.attr in GET_A_REASON else []
                elif isinstance(node, ast.FunctionDef) and node.name == RETURNS_A_REASON:
                    given = [child for child in ast.walk(node) if isinstance(child, ast.Return)]
                constants = (child for argument in given for child in ast.walk(argument))
                found |= {
                    one.value for one in constants if isinstance(one, ast.Constant) and isinstance(one.value, str)
                }
    return found


def test_every_reason_is_documented() -> None:
    # A pool that was collected has no statistics.
    found = reasons() - {"collected"}
    assert found >= {"lifetime", "idle", "unusable", "holder_dead", "not_released"}
    assert not {reason for reason in found if f"``{reason}``" not in REFERENCE and f'["{reason}"]``' not in REFERENCE}
