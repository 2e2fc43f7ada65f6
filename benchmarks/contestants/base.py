"""The interface between the cases and the pools."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

#: How long a pool lets a caller wait, in seconds, if the pool has such a setting.
PATIENCE = 60


def _itself(connection: Any) -> Any:
    return connection


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class OpenPool:
    """The methods of a pool under common names. The cases call them directly, so that nothing else is measured."""

    acquire: Callable[[], Any]
    release: Callable[[Any], object]
    close: Callable[[], object] = _nothing
    #: The pool's own context manager, if it has one.
    block: Callable[[], AbstractContextManager[Any]] | None = None
    #: Returns the connection behind the result of acquire(), for pools that hand out proxies.
    raw: Callable[[Any], Any] = _itself
