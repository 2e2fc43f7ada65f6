"""The snapshot that :meth:`gsocketpool.Pool.stats` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PoolStats:
    """A pool's sizes and counters at one moment. A snapshot never changes.

    Counters and times start at 0 when the pool is first used in this process.
    """

    #: The pool's name.
    name: str
    #: The limit on ``idle + in_use + opening + resetting``.
    max_connections: int
    #: Connections ready to be acquired.
    idle: int
    #: Connections that callers hold.
    in_use: int
    #: Connections being opened.
    opening: int
    #: Connections being reset, or pinged for ``keepalive_interval``.
    resetting: int
    #: Connections being closed or cancelled. They don't count towards the limit.
    closing: int
    #: Callers in the queue.
    waiting: int
    #: Acquires served at once, by the first idle connection that was checked.
    acquired_at_once: int
    #: Acquires served later, usually by a release or an opening.
    acquired_after_wait: int
    #: Acquires that ran out of time; also those with ``timeout=0`` that found nothing idle.
    timed_out: int
    #: Acquires refused because ``max_waiting`` callers were in the queue.
    refused: int
    #: Whether idle connections have a socket to peek at; None before the first was opened.
    can_peek: bool | None
    #: Connections opened.
    opened: int
    #: Connections that could not be opened.
    open_errors: int
    #: Connections detached from the pool.
    detached: int
    #: Connections closed because they must not be used again, by reason.
    discarded: Mapping[str, int]
    #: Connections closed although they were good, by reason.
    retired: Mapping[str, int]
    #: Seconds that acquires spent waiting, including those that failed.
    wait_time: float
    #: Seconds that connections were in use, added when they come back.
    use_time: float
    #: Seconds that openings took, including failed ones.
    open_time: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that can be serialized to JSON."""
        return {key: dict(value) if isinstance(value, Mapping) else value for key, value in vars(self).items()}
