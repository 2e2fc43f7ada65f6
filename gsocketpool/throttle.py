"""Keeps a repeated message from filling the log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Throttle:
    """Admits a message at most once in `interval` seconds, and counts the others.

    :param interval: seconds between two admitted messages.
    :param clock: returns the time in seconds.
    """

    def __init__(self, interval: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._passed_at = -math.inf
        self._held_back = 0

    def admit(self) -> str | None:
        """Return a suffix for the message, "" unless others were suppressed before it; None to suppress this one."""
        now = self._clock()
        elapsed = now - self._passed_at
        if elapsed < self._interval:
            self._held_back += 1
            return None
        held_back, self._held_back = self._held_back, 0
        self._passed_at = now
        return f" ({held_back} more like this in the last {elapsed:.0f} s)" if held_back else ""
