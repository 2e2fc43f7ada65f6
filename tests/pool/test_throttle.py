"""A complaint that repeats is logged now and then, with a count."""

from __future__ import annotations

import pytest

from gsocketpool.throttle import Throttle
from tests.support.scripted import Backend, Clock, eventually


def test_a_throttle_passes_the_first_message_and_counts_the_next(clock: Clock) -> None:
    throttle = Throttle(10, clock)
    assert throttle.admit() == ""
    clock.advance(9.9)
    assert throttle.admit() is None
    assert throttle.admit() is None
    clock.advance(2.1)
    assert throttle.admit() == " (2 more like this in the last 12 s)"
    assert throttle.admit() is None


def test_a_throttle_never_holds_back_a_rare_message(clock: Clock) -> None:
    throttle = Throttle(10, clock)
    for _ in range(3):
        assert throttle.admit() == ""
        clock.advance(10)


def test_failed_attempts_to_fill_a_pool_are_counted_in_one_line(
    backend: Backend, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    backend.failures += [OSError("down") for _ in range(100)]
    with clock.pool(backend.connect, min_connections=1) as pool:
        eventually(lambda: pool.stats().open_errors >= 3)
        (first,) = caplog.records
        held_back = pool.stats().open_errors - 1
        clock.advance(11)
        eventually(lambda: len(caplog.records) > 1)
    assert first.getMessage().endswith("tries again in 0.1 s: OSError: down")
    assert caplog.records[1].getMessage().endswith(f"OSError: down ({held_back} more like this in the last 11 s)")
