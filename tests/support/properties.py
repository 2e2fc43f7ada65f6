"""Properties that hypothesis tries to refute, with ten times as many examples in the torture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings


def fuzzed(*strategies: Any, examples: int = 100) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """Make a test of a check that takes what the strategies make up.

    :param examples: how many the suite tries.
    """

    def decorate(check: Callable[..., None]) -> Callable[[int], None]:
        # Without the check's signature, in which pytest would see fixtures.
        def test(examples: int) -> None:
            settings(deadline=None, max_examples=examples, database=None)(given(*strategies)(check))()

        test.__name__, test.__qualname__, test.__module__ = check.__name__, check.__qualname__, check.__module__
        test.__doc__ = check.__doc__
        numbers = [examples, pytest.param(10 * examples, marks=pytest.mark.torture)]
        marked: Callable[[int], None] = pytest.mark.parametrize("examples", numbers)(test)
        return marked

    return decorate
