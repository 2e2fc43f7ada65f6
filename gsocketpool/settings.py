"""The settings of a pool, and the checks of their values."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from gsocketpool.exceptions import InvalidArgumentError

NO_LIMIT = ", or None for no limit"

#: When to reset a connection that comes back: if it is unsettled, after each use, or never.
RESETS = ("unsettled", "always", "never")

#: The longest wait in seconds, about 30 years. Some event loops' timers can't count further.
LONGEST_WAIT = 1e9


@dataclass(frozen=True)
class Settings:
    """The arguments of a :class:`~gsocketpool.Pool` that are plain values: numbers, names and switches.

    :raises InvalidArgumentError: for a value of the wrong type or out of its range.
    """

    initial_connections: int = 0
    max_connections: int = 200
    reap_expired_connections: bool = True
    reap_interval: float = 180
    name: str | None = None
    min_connections: int = 0
    max_waiting: int | None = None
    acquire_timeout: float | None = 5.0
    open_timeout: float | None = 10.0
    close_timeout: float = 5.0
    max_opening: int | None = 10
    max_lifetime: float | None = None
    idle_timeout: float | None = None
    leak_threshold: float | None = None
    reset: str = "unsettled"
    reset_timeout: float = 5.0
    ping_timeout: float = 5.0
    keepalive_interval: float | None = None

    def __post_init__(self) -> None:
        check_count("max_connections", self.max_connections, least=1)
        for name in ("initial_connections", "min_connections"):
            count = check_count(name, getattr(self, name))
            if count > self.max_connections:
                raise InvalidArgumentError(name, count, f"at most max_connections ({self.max_connections})")
        if self.max_waiting is not None:
            check_count("max_waiting", self.max_waiting, otherwise=NO_LIMIT)
        if self.max_opening is not None:
            check_count("max_opening", self.max_opening, least=1, otherwise=NO_LIMIT)
        if not isinstance(self.reap_expired_connections, bool):
            raise InvalidArgumentError("reap_expired_connections", self.reap_expired_connections, "True or False")
        if self.name is not None and not isinstance(self.name, str):
            raise InvalidArgumentError("name", self.name, "a str or None")
        if self.reset not in RESETS:
            raise InvalidArgumentError("reset", self.reset, " or ".join(repr(one) for one in RESETS))
        for name in ("reap_interval", "close_timeout", "reset_timeout", "ping_timeout"):
            self._cap(name, check_seconds(name, getattr(self, name)))
        optional = ("acquire_timeout", "open_timeout", "max_lifetime", "idle_timeout", "leak_threshold")
        for name in (*optional, "keepalive_interval"):
            seconds = getattr(self, name)
            if seconds is not None:
                self._cap(name, check_seconds(name, seconds, zero=name == "acquire_timeout", otherwise=NO_LIMIT))

    def _cap(self, name: str, seconds: float) -> None:
        # The dataclass is frozen.
        object.__setattr__(self, name, seconds)

    @property
    def sweep_interval(self) -> float:
        """Seconds between two sweeps: ``reap_interval``, or the shortest of the settings that a sweep enforces."""
        others = (self.max_lifetime, self.idle_timeout, self.leak_threshold)
        return timer_seconds(min([self.reap_interval, *(seconds for seconds in others if seconds is not None)]))


def timer_seconds(seconds: float) -> float:
    """Return `seconds` rounded up to whole milliseconds, at least one: libuv rounds down, and warns of 0."""
    return max(1, math.ceil(seconds * 1000)) / 1000


def check_count(argument: str, value: object, *, least: int = 0, otherwise: str = "") -> int:
    """Return `value` if it is a whole number of at least `least`.

    :param otherwise: what else the error should say is allowed.
    :raises InvalidArgumentError: naming `argument`, if it is not.
    """
    # No list can be longer than sys.maxsize.
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= sys.maxsize:
        return value
    raise InvalidArgumentError(argument, value, f"a whole number of at least {least}{otherwise}")


def check_seconds(
    argument: str, value: object, *, zero: bool = False, endless: bool = False, otherwise: str = ""
) -> float:
    """Return `value` if it is a number of seconds, and at most :data:`LONGEST_WAIT` of them.

    :param zero: whether 0 is allowed.
    :param endless: whether infinity is allowed; it is returned unchanged.
    :param otherwise: what else the error should say is allowed.
    :raises InvalidArgumentError: naming `argument`, if it is not.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        is_positive = value > 0 or (zero and value == 0)
        # An integer may be too large to be converted to a float.
        if is_positive and value <= sys.float_info.max:
            return min(value, LONGEST_WAIT)
        if endless and value == math.inf:
            return value
    above = "of at least" if zero else "above"
    raise InvalidArgumentError(argument, value, f"a number of seconds {above} 0{otherwise}")
