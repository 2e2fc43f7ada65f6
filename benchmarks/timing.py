"""How time is taken."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence

now = time.perf_counter_ns

#: Seconds that one repetition of a loop lasts, and how many there are.
REPETITION, REPETITIONS = 0.02, 3


def tidy_up() -> None:
    """Makes what there is no business of the garbage collector, which stays on: its work for a pool is a cost of it."""
    gc.collect()
    gc.freeze()


def per_call(loop: Callable[[int], None], effort: float) -> float:
    """Nanoseconds a call, of a loop that makes as many calls as it is told.

    The number is found by doubling, so that a repetition lasts long enough whatever a call takes. Of the repetitions it
    is the median.
    """
    tidy_up()
    wanted = REPETITION * effort * 1e9
    count = 1
    while (took := _time(loop, count)) < wanted / 8:
        count *= 2
    count = max(1, math.ceil(count * wanted / max(took, 1)))
    return statistics.median(_time(loop, count) / count for _ in range(REPETITIONS))


def _time(loop: Callable[[int], None], count: int) -> int:
    began = now()
    loop(count)
    return now() - began


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]
