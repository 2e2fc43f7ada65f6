"""One timer for all who wait: setting up one for each would cost as much as the rest of their waiting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gsocketpool.settings import timer_seconds


class Alarm:
    """Rings once, at the time that it was last set to."""

    def __init__(self) -> None:
        #: When it is to ring; never, as long as it is not set.
        self.at = math.inf
        self._timer: Any = None

    def set(self, at: float, now: float, loop: Any, ring: Callable[[], object]) -> None:
        """Has `ring` called, by the event loop itself, at the time `at`."""
        self.stop()
        self._timer = loop.timer(timer_seconds(at - now))
        # The event loop's idea of the time is as old as its present turn, which may have been a long one.
        self._timer.start(ring, update=True)
        self.at = at

    def stop(self) -> None:
        """Keeps it from ringing."""
        self.at = math.inf
        if self._timer is not None:
            self._timer.close()
            self._timer = None
