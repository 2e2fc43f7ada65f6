"""The house: what may import what."""

from __future__ import annotations

import ast
import configparser
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Who is on which floor. A module imports from floors below its own only.
FLOORS = [
    {
        "gsocketpool.exceptions",
        "gsocketpool.stats",
        "gsocketpool._entry",
        "gsocketpool._forking",
        "gsocketpool._where",
    },
    {"gsocketpool._state"},
    {
        "gsocketpool.settings",
        "gsocketpool.reaper",
        "gsocketpool._report",
        "gsocketpool._descriptors",
        "gsocketpool._block",
    },
    {"gsocketpool._base", "gsocketpool._alarm"},
    {"gsocketpool._stream"},
    {"gsocketpool.connection", "gsocketpool._steps"},
    {"gsocketpool._aside"},
    {"gsocketpool._keeper"},
    {"gsocketpool._driver"},
    {"gsocketpool.pool"},
    {"gsocketpool"},
    {"gsocketpool.testing._peers", "gsocketpool.testing._sockets", "gsocketpool.testing._outcome"},
    {"gsocketpool.testing._server", "gsocketpool.testing._victim"},
    {"gsocketpool.testing._leaks", "gsocketpool.testing._ordeal"},
    {"gsocketpool.testing._torture"},
    {"gsocketpool.testing"},
    {
        "flask_gsocketpool.config",
        "flask_gsocketpool.cooperation",
        "flask_gsocketpool.drain",
        "flask_gsocketpool.masking",
        "flask_gsocketpool.signals",
    },
    {"flask_gsocketpool.scope"},
    {"flask_gsocketpool.pool"},
    {"flask_gsocketpool.pools"},
    {"flask_gsocketpool.globals", "flask_gsocketpool.commands.common", "flask_gsocketpool.health"},
    {
        "flask_gsocketpool.commands.bench",
        "flask_gsocketpool.commands.check",
        "flask_gsocketpool.commands.config",
    },
    {"flask_gsocketpool.commands"},
    {"flask_gsocketpool.extension"},
    {"flask_gsocketpool.gunicorn"},
    {"flask_gsocketpool"},
    {"flask_gsocketpool.testing"},
]

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("gsocketpool", "flask_gsocketpool")
    for path in (ROOT / package).rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """The modules that are imported when this one is, as far as a type checker's don't count."""
    tree = ast.parse(path.read_text())
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body.clear()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            found.update(
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module
                for alias in node.names
            )
    return found


def test_every_module_has_its_floor() -> None:
    assert set().union(*FLOORS) == set(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_one_way(module: str) -> None:
    floor = next(number for number, modules in enumerate(FLOORS) if module in modules)
    below = set().union(*FLOORS[:floor])
    assert {name for name in imports(MODULES[module]) if name in MODULES} <= below


def test_the_state_is_pure() -> None:
    pure = {"__future__", "collections", "contextlib", "collections.abc", "itertools", "math", "typing"}
    assert imports(MODULES["gsocketpool._entry"]) <= pure
    assert imports(MODULES["gsocketpool._state"]) <= pure | {"gsocketpool._entry"}


def test_the_core_needs_gevent_alone() -> None:
    own = {"gsocketpool"}
    for module, path in MODULES.items():
        if module.startswith("gsocketpool"):
            roots = {name.split(".")[0] for name in imports(path)}
            assert roots <= set(sys.stdlib_module_names) | own | {"gevent"}


def test_the_configuration_needs_no_flask() -> None:
    assert not any(name.startswith(("flask.", "werkzeug")) for name in imports(MODULES["flask_gsocketpool.config"]))


def test_every_package_is_shipped() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(setup["options"]["packages"].split()) == packages


@pytest.mark.parametrize("package", ["gsocketpool", "flask_gsocketpool"])
def test_types_are_shipped(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
