"""Real databases, for tests of what talks to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import servers


@pytest.fixture(scope="session")
def conninfo() -> Iterator[str]:
    """Where a PostgreSQL server listens: at a Unix socket of its own, so that it takes no port."""
    with servers.postgres() as server:
        yield server["conninfo"]
