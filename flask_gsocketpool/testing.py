"""Helpers to test apps with pools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from flask import Flask

from flask_gsocketpool._registry import EXTENSION, pools_of

__all__ = ["fresh_pools", "override_pool"]


@contextmanager
def fresh_pools(app: Flask) -> Iterator[None]:
    """Give `app` new pools for a block, with the same overrides. Close them at its end, including connections in use.

    :raises RuntimeError: if the extension is not registered on the app.
    """
    usual = pools_of(app)
    fresh = app.extensions[EXTENSION] = usual.clone()
    try:
        yield
    finally:
        app.extensions[EXTENSION] = usual
        fresh.close()


def override_pool(app: Flask, name: str, pool: Any) -> AbstractContextManager[object]:
    """Put `pool` in the place of the app's pool called `name`, immediately.

    :param name: the pool's name in ``SOCKETPOOL_POOLS``, or ``"default"``.
    :param pool: a :class:`~gsocketpool.Pool`, a :class:`~gsocketpool.testing.FakePool`, or any object with the methods
        that the app uses. The app does not close it.
    :returns: a context manager that undoes this at the end of its block. The end of :func:`fresh_pools`, and of a test
        with the ``socketpool_app`` fixture, undo it, too.
    :raises RuntimeError: if the extension is not registered on the app.
    :raises UnknownPoolError: if the app has no pool called `name`.
    """
    undo = ExitStack()
    undo.callback(pools_of(app).override(name, pool))
    return undo
