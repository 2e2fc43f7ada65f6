"""The snapshot that :meth:`gsocketpool.Pool.stats` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PoolStats:
    """What a pool is doing and has done, at one moment. It never changes; ask for another one to see more.

    Counts and times grow from the pool's first use in this process.
    """

    #: The pool's name.
    name: str
    #: The limit on ``idle + in_use + opening + resetting``.
    max_connections: int
    #: Connections ready to be acquired.
    idle: int
    #: Connections that are out.
    in_use: int
    #: Connections being opened.
    opening: int
    #: Connections that are made settled, or pinged for ``keepalive_interval``, before their next use.
    resetting: int
    #: Connections being closed or cancelled. They don't count towards the limit.
    closing: int
    #: Callers in the queue.
    waiting: int
    #: Acquires served with the first idle connection that was looked at.
    acquired_at_once: int
    #: Acquires served later, by a release or an opening as a rule.
    acquired_after_wait: int
    #: Acquires that ran out of time, or had none: with ``timeout=0`` and nothing idle.
    timed_out: int
    #: Acquires turned away at once because ``max_waiting`` were in the queue.
    refused: int
    #: Whether idle connections have a socket to look at; None until one was opened.
    can_peek: bool | None
    #: Connections opened.
    opened: int
    #: Connections that could not be opened.
    open_errors: int
    #: Connections that were detached.
    detached: int
    #: Connections closed because they were unfit for another use, by reason.
    discarded: Mapping[str, int]
    #: Connections closed though they were fit, by reason.
    retired: Mapping[str, int]
    #: Seconds that acquires spent in the queue, those that failed included.
    wait_time: float
    #: Seconds that connections were in use, counted when they are given back.
    use_time: float
    #: Seconds that opening took, failures included.
    open_time: float

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers in a form that becomes JSON."""
        return {key: dict(value) if isinstance(value, Mapping) else value for key, value in vars(self).items()}
