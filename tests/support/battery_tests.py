"""Make the tests of the battery, :mod:`tests.connectors.test_battery`, for other subjects."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pytest

from tests.connectors import test_battery as battery


def blows(
    subjects: Collection[str],
    *,
    left_open: Collection[str],
    in_the_suite: Mapping[str, Collection[str]],
    without: Collection[str] = (),
) -> Iterator[tuple[str, Any]]:
    """Make the tests of the battery for `subjects`, with their names.

    :param left_open: what a user of theirs can leave open.
    :param in_the_suite: the subjects that the suite strikes, by the names of the tests; all else is for the torture.
    :param without: the names of the tests that make no sense for them.
    """
    found = {
        name: blow
        for name, blow in vars(battery).items()
        if name.startswith("test_") and "subject" in inspect.signature(blow).parameters
    }
    # A name that has changed must not go unnoticed.
    assert found.keys() >= {*in_the_suite, *without}
    for name, blow in found.items():
        if name not in without:
            yield name, _struck(blow, subjects, left_open, in_the_suite.get(name, ()))


def _struck(blow: Any, subjects: Collection[str], left_open: Collection[str], in_the_suite: Collection[str]) -> Any:
    @functools.wraps(blow)
    def strike(**arguments: Any) -> None:
        blow(**arguments)

    of_subjects = [mark for mark in blow.pytestmark if mark.name == "parametrize" and "subject" in str(mark.args[0])]
    strike.pytestmark = [mark for mark in blow.pytestmark if mark not in of_subjects]  # type: ignore[attr-defined]
    marked = [pytest.param(name, marks=() if name in in_the_suite else pytest.mark.torture) for name in subjects]
    if "what" in inspect.signature(blow).parameters:
        strike = pytest.mark.parametrize("what", left_open)(strike)
    return pytest.mark.parametrize("subject", marked)(strike)
