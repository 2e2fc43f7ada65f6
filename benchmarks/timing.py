"""Take times."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence

now = time.perf_counter_ns

#: How long one repetition of a loop lasts, in seconds, and how many repetitions there are.
REPETITION, REPETITIONS = 0.02, 3


def tidy_up() -> None:
    """Hide existing objects from the garbage collector. It stays on: its work for a pool is a cost of the pool."""
    gc.collect()
    gc.freeze()


def per_call(loop: Callable[[int], None], effort: float) -> float:
    """Return the nanoseconds per call of `loop`, which makes as many calls as its argument says.

    Find that number by doubling it, so that a repetition lasts long enough. Return the median of the repetitions.
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
    """Return the smallest value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]
