"""Measure how often several greenlets do something."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import gevent

from benchmarks.timing import now, tidy_up

#: How long the greenlets may take to begin, in seconds.
LIMIT = 10.0

#: Returns, for one greenlet, the action that it repeats.
Prepare: TypeAlias = Callable[[], Callable[[], object]]


def rate(prepare: Prepare, greenlets: int, seconds: float) -> float:
    """Return how often per second all greenlets together do the action."""
    is_over = False
    done = 0
    missing = greenlets

    def work() -> None:
        nonlocal done, missing
        act = prepare()
        # The first action may open a connection. It does not count.
        act()
        missing -= 1
        while not is_over:
            act()
            done += 1

    working = [gevent.spawn(work) for _ in range(greenlets)]
    deadline = now() + LIMIT * 1e9
    while missing and now() < deadline:
        gevent.sleep(0.001)
    tidy_up()
    began, before = now(), done
    gevent.sleep(seconds)
    result = (done - before) / (now() - began) * 1e9
    is_over = True
    gevent.joinall(working, raise_error=True, timeout=10)
    return result
