"""What the tests of all connectors do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gsocketpool import InvalidArgumentError
from tests.support.processes import run_python


@contextmanager
def connected(connector: Any) -> Iterator[Any]:
    """A client that is closed at the end of the block."""
    client = connector.connect()
    try:
        yield client
    finally:
        connector.close(client)


def check_refused(error: InvalidArgumentError, argument: str, secret: str) -> None:
    """Check that an error names the argument, and keeps its secret."""
    assert error.argument == argument
    assert str(error).startswith(f"{argument} must be ")
    assert secret not in f"{error} {error!r}"
    assert error.__cause__ is None
    assert error.__context__ is None


def error_without(library: str, module: str) -> str:
    """Return what Python prints last when a module is imported while a library is missing."""
    run = run_python(f"import sys; sys.modules[{library!r}] = None; import {module}")
    return run.stderr.rstrip()


def is_imported_by_the_pool(library: str) -> bool:
    """Return whether importing the packages imports a library."""
    run = run_python(f"import sys, gsocketpool.connectors, flask_gsocketpool; print({library!r} in sys.modules)")
    return run.stdout.strip() != "False"
