"""Modules import each other only as the layers allow."""

from __future__ import annotations

import ast
import configparser
import sys
from collections import deque
from pathlib import Path
from types import MappingProxyType

import pytest

from flask_gsocketpool._app_pool import AppEvents, AppPool, Block, QuietEvents
from tests.support.documents import ROOT

#: Who is on which floor. A module imports from floors below its own only.
FLOORS = [
    {
        "gsocketpool.exceptions",
        "gsocketpool.stats",
        "gsocketpool._callsite",
        "gsocketpool._records",
        "gsocketpool._threads",
        "gsocketpool.connection._sockets",
    },
    {
        "gsocketpool.settings",
        "gsocketpool.throttle",
        "gsocketpool.events",
        "gsocketpool._fork",
        "gsocketpool._lease",
        "gsocketpool.connection.base",
    },
    {"gsocketpool._state", "gsocketpool.connection.stream"},
    {"gsocketpool._report", "gsocketpool._waiters", "gsocketpool.connection.tcp", "gsocketpool.connection.unix"},
    {"gsocketpool.connection.tls"},
    {
        "gsocketpool.connection",
        "gsocketpool.connectors._base",
        "gsocketpool.connectors._resp_client",
        "gsocketpool.connectors._urls",
    },
    {"gsocketpool.connectors", "gsocketpool.connectors._resp"},
    {
        "gsocketpool._steps",
        "gsocketpool.connectors.psycopg",
        "gsocketpool.connectors.pymemcache",
        "gsocketpool.connectors.pymysql",
        "gsocketpool.connectors.redis",
        "gsocketpool.connectors.valkey",
        "gsocketpool.url",
    },
    {"gsocketpool._adapter"},
    {"gsocketpool._closer", "gsocketpool._upkeep"},
    {"gsocketpool._keepalive"},
    {"gsocketpool._lifecycle"},
    {"gsocketpool._reaper"},
    {"gsocketpool._core"},
    {"gsocketpool.pool"},
    {"gsocketpool", "gsocketpool.sqlalchemy"},
    {
        "gsocketpool.testing._fake",
        "gsocketpool.testing._faults",
        "gsocketpool.testing._forking",
        "gsocketpool.testing._listening",
        "gsocketpool.testing._peers",
        "gsocketpool.testing._report",
        "gsocketpool.testing._sockets",
    },
    {"gsocketpool.testing._served"},
    {"gsocketpool.testing._serving"},
    {"gsocketpool.testing._server"},
    {"gsocketpool.testing._checks", "gsocketpool.testing._leaks"},
    {"gsocketpool.testing._worker"},
    {"gsocketpool.testing._sabotage"},
    {"gsocketpool.testing._run"},
    {"gsocketpool.testing._torture"},
    {"gsocketpool.testing"},
    {"flask_gsocketpool._redaction"},
    {"flask_gsocketpool.exceptions"},
    {"flask_gsocketpool._target"},
    {
        "flask_gsocketpool._logging",
        "flask_gsocketpool._place",
        "flask_gsocketpool.config",
        "flask_gsocketpool.signals",
        "flask_gsocketpool._server_check",
        "flask_gsocketpool._sigterm",
        "flask_gsocketpool._streaming",
    },
    {"flask_gsocketpool._request_scope"},
    {"flask_gsocketpool._app_pool"},
    {"flask_gsocketpool._registry"},
    {"flask_gsocketpool.globals", "flask_gsocketpool.cli.common", "flask_gsocketpool.health"},
    {
        "flask_gsocketpool.cli.bench",
        "flask_gsocketpool.cli.check",
        "flask_gsocketpool.cli.config",
    },
    {"flask_gsocketpool.cli"},
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


def imports(path: Path, *, type_checker: bool = False) -> set[str]:
    """The modules that are imported when this one is. Those for a type checker alone don't count, unless asked for."""
    tree = ast.parse(path.read_text())
    for node in [] if type_checker else list(ast.walk(tree)):
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


def test_every_module_belongs_to_a_layer() -> None:
    assert set().union(*FLOORS) == set(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_layers_below_its_own(module: str) -> None:
    floor = next(number for number, modules in enumerate(FLOORS) if module in modules)
    below = set().union(*FLOORS[:floor])
    assert {name for name in imports(MODULES[module]) if name in MODULES} <= below


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("gsocketpool.testing")))
def test_the_kit_has_no_cycle_of_imports_for_a_type_checker_either(module: str) -> None:
    floor = next(number for number, modules in enumerate(FLOORS) if module in modules)
    below = set().union(*FLOORS[:floor])
    assert {name for name in imports(MODULES[module], type_checker=True) if name in MODULES} <= below


#: Modules of the standard library that do nothing but compute.
PURE = {
    *("__future__", "bisect", "collections", "collections.abc", "functools", "itertools", "math", "operator"),
    "typing",
}


def test_the_state_imports_only_pure_modules() -> None:
    assert imports(MODULES["gsocketpool._records"]) <= PURE
    assert imports(MODULES["gsocketpool._state"]) <= PURE | {"gsocketpool._records", "gsocketpool.settings"}
    assert imports(MODULES["gsocketpool.settings"]) <= PURE | {"dataclasses", "sys", "gsocketpool.exceptions"}


# The state is the only writer of state

RECORDS = ast.parse(MODULES["gsocketpool._records"].read_text())
STATE = ast.parse(MODULES["gsocketpool._state"].read_text())

#: What changes a list, a deque or a dict.
MUTATORS = {name for kind in (list, deque, dict) for name in dir(kind) if not name.startswith("_")} - {
    name for kind in (tuple, MappingProxyType) for name in dir(kind)
}


def classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def methods(tree: ast.Module, name: str) -> list[ast.FunctionDef]:
    return [node for node in classes(tree)[name].body if isinstance(node, ast.FunctionDef)]


def written(tree: ast.AST) -> list[ast.Attribute]:
    """The attributes that code writes: those it sets or deletes, and those whose contents it changes."""
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            found.append(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            found.append(node.func.value)
    # What is changed by its index belongs to what it is in.
    found = [node.value if isinstance(node, ast.Subscript) else node for node in found]
    return [node for node in found if isinstance(node, ast.Attribute)]


def is_of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"


#: The attributes of a State, an Entry and a Waiter.
STATE_ATTRIBUTES = {
    node.attr
    for tree, name in ((STATE, "State"), (RECORDS, "Entry"), (RECORDS, "Waiter"))
    for function in methods(tree, name)
    for node in written(function)
    if is_of_self(node)
}


def state_written_by(tree: ast.AST) -> list[str]:
    """Return where code outside of their classes writes an attribute of a State, an Entry or a Waiter."""
    by_name = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("setattr", "delattr", "__setattr__", "__delattr__")
        and not (node.args and ast.unparse(node.args[0]) == "self")
    ]
    return by_name + [
        ast.unparse(node) for node in written(tree) if node.attr in STATE_ATTRIBUTES and not is_of_self(node)
    ]


#: A call costs a twentieth of an acquire.
THE_EXCEPTION = {"gsocketpool._core": ["state.acquired_at_once"]}

#: The others, the kit, the clients' connectors and the extension, have attributes of the same names.
CORE = {
    name
    for name in MODULES
    if name.startswith("gsocketpool") and not name.startswith(("gsocketpool.testing", "gsocketpool.connectors."))
} | {"gsocketpool.connectors._base"}


@pytest.mark.parametrize("module", sorted(CORE - {"gsocketpool._state"}))
def test_only_the_state_writes_state(module: str) -> None:
    assert state_written_by(ast.parse(MODULES[module].read_text())) == THE_EXCEPTION.get(module, [])


@pytest.mark.parametrize("module", sorted(set(MODULES) - CORE))
def test_the_kit_the_connectors_and_the_extension_write_no_state(module: str) -> None:
    assert not imports(MODULES[module]) & {"gsocketpool._state", "gsocketpool._records"}
    written_by = state_written_by(ast.parse(MODULES[module].read_text()))
    assert not [text for text in written_by if "._state." in text or "entry." in text]


def test_the_core_writes_only_one_counter() -> None:
    core = ast.parse(MODULES["gsocketpool._core"].read_text())
    assert [ast.unparse(node) for node in ast.walk(core) if isinstance(node, ast.AugAssign)].count(
        "state.acquired_at_once += 1"
    ) == 1


@pytest.mark.parametrize("name", ["Entry", "Waiter"])
def test_a_record_writes_itself_only_when_it_is_made(name: str) -> None:
    assert [function.name for function in methods(RECORDS, name) if written(function)] == ["__init__"]
    assert set(classes(RECORDS)) == {"Entry", "Waiter"}


@pytest.mark.parametrize(
    "code",
    [
        "entry.status = 1",
        "self._state.size += 1",
        "del entry.holder",
        "state.idle[0] = entry",
        "del state.opening[opener]",
        "state.idle[:] = []",
        "state.waiters.clear()",
        "self._state.idle.append(entry)",
        "first, waiter.error = 1, 2",
        "for entry.generation in range(2): pass",
        "entry.retire_at: float = 0.0",
        "setattr(entry, name, 1)",
        "object.__setattr__(state, name, 1)",
    ],
)
def test_code_outside_the_state_that_writes_it_is_found(code: str) -> None:
    assert state_written_by(ast.parse(code))


@pytest.mark.parametrize(
    "code", ["state.remove(entry, now, cause)", "self.size = 1", "list(state.idle)", "entry.other = 1"]
)
def test_code_that_writes_no_state_passes(code: str) -> None:
    assert not state_written_by(ast.parse(code))


def test_every_step_that_changes_the_state_is_marked() -> None:
    """What gives back in the middle of it is then put off. To take out the last idle entry is the one exception."""
    silent = set()
    for function in methods(STATE, "State"):
        is_marked = any(ast.unparse(decorator) == "_changes" for decorator in function.decorator_list)
        marks_itself = any(node.attr == "changing" for node in written(function))
        # A private one is part of a public one.
        if written(function) and not is_marked and not marks_itself and not function.name.startswith("_"):
            silent.add(function.name)
    assert silent == {"pop_idle", "served"}


def test_the_core_needs_only_gevent() -> None:
    own = {"gsocketpool"}
    for module, path in MODULES.items():
        if module.startswith("gsocketpool"):
            roots = {name.split(".")[0] for name in imports(path)}
            # A connector is named after its library, and nothing imports it.
            is_for_one = module.startswith("gsocketpool.connectors.") or module == "gsocketpool.sqlalchemy"
            library = {module.rpartition(".")[2]} if is_for_one else set()
            assert roots <= set(sys.stdlib_module_names) | own | {"gevent"} | library


def test_only_the_sqlalchemy_module_imports_a_connector_for_a_library() -> None:
    connectors = {name for name in MODULES if name.startswith("gsocketpool.connectors.") and "._" not in name}
    importing = {name for name, path in MODULES.items() if imports(path) & connectors}
    # Its connections may be psycopg's; then it asks the connector.
    assert importing == {"gsocketpool.sqlalchemy"}
    assert not [name for name, path in MODULES.items() if "gsocketpool.sqlalchemy" in imports(path)]


@pytest.mark.parametrize("module", ["config", "_target", "exceptions"])
def test_the_configuration_needs_no_flask(module: str) -> None:
    assert not any(name.startswith(("flask.", "werkzeug")) for name in imports(MODULES[f"flask_gsocketpool.{module}"]))


def test_every_package_is_shipped() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(setup["options"]["packages"].split()) == packages


@pytest.mark.parametrize("package", ["gsocketpool", "flask_gsocketpool"])
def test_types_are_shipped(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


# The extension uses the core as any program does

EXTENSION = sorted(module for module in MODULES if module.startswith("flask_gsocketpool"))

#: What begins with an underscore and is documented all the same, or is the only way.
ALLOWED = {
    # Werkzeug documents it as the way to what a proxy stands for.
    "_get_current_object",
    # A method of named tuples.
    "_replace",
    # Walking up from the frame of the caller without it takes ten times as long.
    "_getframe",
    # Flask has no public way to a handler that works in all of its versions.
    "_find_error_handler",
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("module", EXTENSION)
def test_the_extension_uses_only_public_names(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    touched = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and is_private(node.attr)
        and node.attr not in ALLOWED
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    assert not touched
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gsocketpool"
        for alias in node.names
    }
    assert not {name for name in imported if any(is_private(part) for part in name.split("."))}


@pytest.mark.parametrize("kind", [AppPool, AppEvents, QuietEvents, Block])
def test_the_extension_overrides_only_public_methods(kind: type) -> None:
    inherited = {name for base in kind.__mro__ if base.__module__.split(".")[0] == "gsocketpool" for name in vars(base)}
    assert inherited
    assert not {name for name in vars(kind) if is_private(name)} & inherited
