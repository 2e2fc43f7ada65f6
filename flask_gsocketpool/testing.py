"""What it takes to test apps with pools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from flask import Flask

from flask_gsocketpool._registry import EXTENSION, pools_of

__all__ = ["fresh_pools", "override_pool"]


@contextmanager
def fresh_pools(app: Flask) -> Iterator[None]:
    """Give `app` pools of its own for the length of a block, and close them at its end, under any users they have.

    :raises RuntimeError: if the app has no pools to begin with.
    """
    usual = pools_of(app)
    fresh = app.extensions[EXTENSION] = usual.clone()
    try:
        yield
    finally:
        app.extensions[EXTENSION] = usual
        fresh.close()


def override_pool(app: Flask, name: str, pool: Any) -> AbstractContextManager[object]:
    """Put `pool` in the place of the app's pool called `name`, or ``"default"``, at once.

    :param pool: a :class:`~gsocketpool.Pool`, a :class:`~gsocketpool.testing.FakePool`, or anything that does for one.
        It is not closed by the app.
    :returns: a context manager that puts things back at the end of its block; so does the end of
        :func:`fresh_pools`, and of a test with the fixture ``socketpool_app``.
    :raises RuntimeError: if the app has no pools to begin with.
    :raises UnknownPoolError: if none of them is called `name`.
    """
    undo = ExitStack()
    undo.callback(pools_of(app).override(name, pool))
    return undo
