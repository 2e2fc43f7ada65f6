"""The supported versions of Python are written down once."""

from __future__ import annotations

import configparser
import re
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")

#: The one place where the supported versions of Python are written down.
PYTHONS = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", SETUP["metadata"]["classifiers"], re.MULTILINE)


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
    for script in (ROOT / ".ci").iterdir():
        assert not re.findall(r"3\.\d\d", script.read_text()), "read them from .ci/pythons"
