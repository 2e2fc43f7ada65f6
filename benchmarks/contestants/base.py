"""What the cases know about a pool, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

#: Seconds that a pool lets a caller wait, where it can be told so.
PATIENCE = 60


def _itself(connection: Any) -> Any:
    return connection


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class OpenPool:
    """A pool with its own methods under common names. They are called without anything in between."""

    acquire: Callable[[], Any]
    release: Callable[[Any], object]
    close: Callable[[], object] = _nothing
    #: Its own context manager, if it has one.
    block: Callable[[], AbstractContextManager[Any]] | None = None
    #: From what acquire() returns to the connection itself, for pools that hand out proxies.
    raw: Callable[[Any], Any] = _itself
