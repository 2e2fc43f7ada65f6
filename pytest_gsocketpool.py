"""Fixtures for pytest, which finds this module by its entry point.

Nothing is imported before it is used: this is loaded whenever pytest runs, and before a program can patch anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flask import Flask

    from gsocketpool.testing import FlakyServer


@pytest.fixture
def flaky_server(request: pytest.FixtureRequest) -> Iterator[FlakyServer]:
    """A :class:`~gsocketpool.testing.FlakyServer`. An indirect parameter is a dict of arguments for it."""
    from gsocketpool.testing import FlakyServer

    with FlakyServer(**getattr(request, "param", {})) as server:
        yield server


@pytest.fixture
def assert_no_leaks() -> Iterator[None]:
    """Fails a test that leaves open sockets, greenlets or connections in use behind."""
    from gsocketpool.testing import no_leaks

    with no_leaks():
        yield


@pytest.fixture
def socketpool_app(app: Flask) -> Iterator[Flask]:
    """The app of your fixture ``app`` with pools that are made for this test, and closed at its end."""
    from flask_gsocketpool.testing import fresh_pools

    with fresh_pools(app):
        yield app
