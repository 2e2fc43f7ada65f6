"""Run contestants on one processor, and servers and their load on the others.

If the scheduler could move them, figures of the same contestant would differ by 15 %.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

#: The processors for contestants and for everything else. Both are empty if they are not divided.
_contestants: list[int] = []
_others: list[int] = []


def divide() -> None:
    """Let this process, and processes that it starts, run on all processors but one, which is for the contestants.

    Where there is only one processor, or the system can't do this, nothing changes.
    """
    global _contestants, _others
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(available) > 1:
        _contestants, _others = available[:1], available[1:]
        os.sched_setaffinity(0, _others)


@contextmanager
def for_contestant() -> Iterator[None]:
    """Let processes that are started in the block run on the processor for contestants."""
    if not _contestants:
        yield
        return
    os.sched_setaffinity(0, _contestants)
    try:
        yield
    finally:
        os.sched_setaffinity(0, _others)
