"""``CONTRIBUTING.rst`` names every module, and nothing that does not exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.documents import ROOT

TEXT = (ROOT / "CONTRIBUTING.rst").read_text()

#: What it shows as code in the text, without placeholders such as ``<library>``.
LITERALS = {literal for literal in re.findall(r"(?<!`)``([^`\n]+)``(?!`)", TEXT) if not set(literal) & set("<>…")}

FILES = [
    path.relative_to(ROOT).as_posix() + "/" * path.is_dir()
    for top in ROOT.iterdir()
    if top.name in (".ci", ".github") or top.name[0] != "."
    for path in [top, *top.rglob("*")]
    if "__pycache__" not in path.parts
]

MODULES = [
    ast.parse(path.read_text())
    for top in ("gsocketpool", "flask_gsocketpool", "tests")
    for path in (ROOT / top).rglob("*.py")
]
CLASSES = [node for module in MODULES for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
METHODS = {(kind.name, method.name) for kind in CLASSES for method in kind.body if isinstance(method, ast.FunctionDef)}
FUNCTIONS = {node.name for module in MODULES for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}


def test_every_file_named_in_contributing_exists() -> None:
    named = {literal for literal in LITERALS if re.fullmatch(r"\.?[\w/.]+(/|\.(py|rst|txt|cfg|toml|yml))", literal)}
    assert len(named) > 50
    assert not {name for name in named if not any(file == name or file.endswith(f"/{name}") for file in FILES)}


def test_every_class_and_function_named_in_contributing_exists() -> None:
    called = {
        literal.removesuffix("()").rpartition(".") for literal in LITERALS if re.fullmatch(r"[\w.]+\(\)", literal)
    }
    assert len(called) > 20
    assert not {
        name
        for owner, _, name in called
        if not ((owner, name) in METHODS if owner[:1].isupper() else name in FUNCTIONS)
    }


@pytest.mark.parametrize("package", ["gsocketpool", "flask_gsocketpool"])
def test_contributing_names_every_module(package: str) -> None:
    section = TEXT[TEXT.index(f"in ``{package}/``:") :]
    modules = [
        path.name + "/" * path.is_dir()
        for path in (ROOT / package).iterdir()
        if not path.name.startswith("__") and (path.is_dir() or path.suffix == ".py")
    ]
    assert not [module for module in modules if f"``{module}``" not in section]
