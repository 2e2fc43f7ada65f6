"""Fixtures for pytest, which finds this module by its entry point.

pytest loads this module at every start, before a program can monkey-patch. So each fixture imports what it needs.
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
    """Start a :class:`~gsocketpool.testing.FlakyServer`. An indirect parameter is a dict of its arguments."""
    from gsocketpool.testing import FlakyServer

    with FlakyServer(**getattr(request, "param", {})) as server:
        yield server


@pytest.fixture
def assert_no_leaks() -> Iterator[None]:
    """Fail a test that leaves open sockets, greenlets or connections in use behind."""
    from gsocketpool.testing import no_leaks

    with no_leaks():
        yield


@pytest.fixture
def socketpool_app(app: Flask) -> Iterator[Flask]:
    """Give the app of your fixture ``app`` new pools for this test, and close them at its end."""
    from flask_gsocketpool.testing import fresh_pools

    with fresh_pools(app):
        yield app
