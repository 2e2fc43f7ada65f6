"""A log handler that is busy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from gevent.lock import RLock


class LockedHandler(logging.Handler):
    """Has a lock that waits cooperatively, as handlers have where gevent has patched."""

    def createLock(self) -> None:  # noqa: N802
        self.lock: Any = RLock()

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def handler() -> Iterator[LockedHandler]:
    handler = LockedHandler()
    logger = logging.getLogger("gsocketpool")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
