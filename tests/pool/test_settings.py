"""Every argument is checked, and an error names the argument, what was given and what is allowed."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from typing import Any

import pytest

from gsocketpool import InvalidArgumentError, Pool, PoolError
from gsocketpool.settings import Settings
from tests.support.scripted import Backend

#: The settings by the name of their type.
KINDS = {field.name: str(field.type) for field in fields(Settings)}
NUMBERS = [name for name, kind in KINDS.items() if kind.startswith(("int", "float"))]
OPTIONAL = [name for name, kind in KINDS.items() if kind.endswith("None")]


def test_a_pool_takes_every_setting_by_its_name_with_its_default() -> None:
    parameters = inspect.signature(Pool).parameters
    for field in fields(Settings):
        assert (field.name, parameters[field.name].default) == (field.name, field.default)
        assert parameters[field.name].annotation == field.type


def test_a_pool_describes_every_argument() -> None:
    assert re.findall(r"^ *:param (\w+):", Pool.__doc__ or "", re.MULTILINE) == [*inspect.signature(Pool).parameters]


def test_a_pool_keeps_every_setting_it_is_given(backend: Backend) -> None:
    others: dict[str, Any] = {"bool": False, "int": 3, "int | None": 3, "float": 2.5, "float | None": 2.5}
    given = {name: others[kind] for name, kind in KINDS.items() if kind in others}
    given |= {"name": "cache", "reset": "always"}
    assert given.keys() == KINDS.keys(), "give a value for the new setting"
    with Pool(backend.connect, **given) as pool:
        assert vars(pool.settings) == given
        assert not any(given[name] == field.default for name, field in Settings.__dataclass_fields__.items())


@pytest.mark.parametrize("argument", NUMBERS)
@pytest.mark.parametrize("given", [-1, "5", True, [], object(), float("nan"), float("inf"), None])
def test_a_bad_number_is_refused_with_the_name_of_its_argument(argument: str, given: Any) -> None:
    if given is None and argument in OPTIONAL:
        Pool(dict, **{argument: given})
        return
    with pytest.raises(InvalidArgumentError) as caught:
        Pool(dict, **{argument: given})
    assert caught.value.argument == argument
    assert caught.value.given is given
    assert str(caught.value).startswith(f"{argument} must be {caught.value.allowed}, not {given!r}")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PoolError)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"max_connections": 0}, "max_connections must be a whole number of at least 1, not 0"),
        ({"max_connections": 1.5}, "max_connections must be a whole number of at least 1, not 1.5"),
        ({"max_opening": 0}, "max_opening must be a whole number of at least 1, or None for no limit, not 0"),
        (
            {"initial_connections": 3, "max_connections": 2},
            r"initial_connections must be at most max_connections \(2\), not 3",
        ),
        ({"min_connections": 3, "max_connections": 2}, r"min_connections must be at most max_connections \(2\), not 3"),
        ({"reap_interval": 0}, "reap_interval must be a number of seconds above 0, not 0"),
        ({"close_timeout": 0}, "close_timeout must be a number of seconds above 0, not 0"),
        ({"reap_expired_connections": 1}, "reap_expired_connections must be True or False, not 1"),
        ({"name": 7}, "name must be a str or None, not 7"),
        ({"options": [1]}, r"options must be a mapping .* or a callable .*, not <class .list.>"),
    ],
)
def test_an_invalid_setting_is_refused_with_its_name(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{complaint}$"):
        Pool(dict, **arguments)


def test_a_factory_that_can_not_be_called_is_refused() -> None:
    with pytest.raises(
        InvalidArgumentError, match="factory must be a Connection class, a callable or a Connector, not 'x'"
    ):
        Pool("x")  # type: ignore[arg-type]


def test_a_refused_pool_leaves_nothing_behind(backend: Backend) -> None:
    with pytest.raises(InvalidArgumentError):
        Pool(backend.connect, initial_connections=1, idle_timeout=-1)
    assert not backend.connections


def test_a_callable_of_options_is_called_for_every_opening(backend: Backend) -> None:
    passwords = iter(["first", "second"])
    pool = Pool(backend.connect, lambda: {"password": next(passwords)})
    assert [pool.acquire().options["password"] for _ in range(2)] == ["first", "second"]


@pytest.mark.parametrize("options", [None, 5, ["x"]])
def test_a_callable_of_options_that_returns_no_mapping_is_refused(backend: Backend, options: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="options must be a callable that returns a mapping"):
        Pool(backend.connect, lambda: options).acquire()


def test_an_error_of_a_callable_of_options_reaches_the_caller(backend: Backend) -> None:
    def options() -> dict[str, Any]:
        raise PermissionError("no token")

    pool = Pool(backend.connect, options)
    with pytest.raises(PermissionError, match="no token"):
        pool.acquire()
    assert pool.size == 0
