"""What the pool itself costs, against the least that a pool can be: a semaphore and a deque.

    python -m benchmarks.core [rounds]

The contenders take turns, round after round, so that a machine that gets slower or faster does so for all of them. What
is printed are medians, and the ratios of the medians.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import gevent
from gevent.hub import Waiter, get_hub
from gevent.lock import BoundedSemaphore

from gsocketpool import Connection, Pool

CALLS = 20_000
GREENLETS, EXCHANGES = 500, 40


class Nothing(Connection):
    """A connection to nowhere, so that the pool alone is measured."""

    _open = False

    def open(self) -> None:
        self._open = True

    def close(self) -> None:
        self._open = False

    def get(self) -> None:
        return None

    def is_connected(self) -> bool:
        return self._open


class Semaphore:
    """No bookkeeping, no checks, no order among those who wait."""

    def __init__(self, size: int) -> None:
        self._free = deque(Nothing() for _ in range(size))
        self._places = BoundedSemaphore(size)

    def acquire(self) -> Nothing:
        self._places.acquire()
        return self._free.pop()

    def release(self, connection: Nothing) -> None:
        self._free.append(connection)
        self._places.release()

    @contextmanager
    def connection(self) -> Iterator[Nothing]:
        connection = self.acquire()
        try:
            yield connection
        finally:
            self.release(connection)


class Queue(Semaphore):
    """First come, first served, and nothing else."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._waiters: deque[Waiter] = deque()
        self._hub = get_hub()

    def acquire(self) -> Nothing:
        if self._free:
            return self._free.pop()
        waiter = Waiter(self._hub)
        self._waiters.append(waiter)
        connection: Nothing = waiter.get()
        return connection

    def release(self, connection: Nothing) -> None:
        if self._waiters:
            self._hub.loop.run_callback(self._waiters.popleft().switch, connection)
        else:
            self._free.append(connection)


def ours(size: int) -> Pool[Nothing]:
    return Pool(Nothing, max_connections=size, max_opening=None, acquire_timeout=60)


Contender = Callable[[int], Any]
CONTENDERS: dict[str, Contender] = {"gsocketpool": ours, "semaphore + deque": Semaphore, "bare fair queue": Queue}


def seconds_per_call(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        act()
    return (time.perf_counter() - began) / CALLS


def acquire_and_release(make: Contender, in_use: int) -> float:
    pool = make(in_use + 1)
    held = [pool.acquire() for _ in range(in_use)]
    pool.release(pool.acquire())
    result = seconds_per_call(lambda: pool.release(pool.acquire()))
    for connection in held:
        pool.release(connection)
    return result


def with_statement(make: Contender, in_use: int) -> float:
    pool = make(in_use + 1)
    held = [pool.acquire() for _ in range(in_use)]

    def use() -> None:
        with pool.connection():
            pass

    use()
    result = seconds_per_call(use)
    for connection in held:
        pool.release(connection)
    return result


def crowd(make: Contender, size: int) -> float:
    """Seconds an exchange, of many greenlets over few connections."""
    pool = make(size)

    def work() -> None:
        for _ in range(EXCHANGES):
            with pool.connection():
                gevent.sleep(0)

    began = time.perf_counter()
    gevent.joinall([gevent.spawn(work) for _ in range(GREENLETS)], raise_error=True)
    return (time.perf_counter() - began) / (GREENLETS * EXCHANGES)


Measure = Callable[[Contender], float]
MEASURES: dict[str, Measure] = {
    "acquire + release": lambda make: acquire_and_release(make, 0),
    "acquire + release, 2,000 in use": lambda make: acquire_and_release(make, 2000),
    "with pool.connection()": lambda make: with_statement(make, 0),
    "with, 2,000 in use": lambda make: with_statement(make, 2000),
    f"{GREENLETS} greenlets over 10": lambda make: crowd(make, 10),
}


def run(rounds: int) -> dict[str, dict[str, float]]:
    """The median of every measure for every contender, in nanoseconds."""
    results: dict[str, dict[str, list[float]]] = {name: {rival: [] for rival in CONTENDERS} for name in MEASURES}
    for number in range(rounds):
        for name, measure in MEASURES.items():
            for rival, make in CONTENDERS.items():
                results[name][rival].append(measure(make) * 1e9)
        print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        name: {rival: statistics.median(times) for rival, times in by_rival.items()}
        for name, by_rival in results.items()
    }


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    medians = run(rounds)
    print(
        f"{platform.python_implementation()} {platform.python_version()}, gevent {version('gevent')},"
        f" {platform.machine()}; nanoseconds, medians of {rounds} rounds"
    )
    print(f"{'':32}" + "".join(f"{rival:>20}" for rival in CONTENDERS) + f"{'ours / semaphore':>20}")
    for name, by_rival in medians.items():
        ratio = by_rival["gsocketpool"] / by_rival["semaphore + deque"]
        print(f"{name:32}" + "".join(f"{by_rival[rival]:20,.0f}" for rival in CONTENDERS) + f"{ratio:20.2f}")


if __name__ == "__main__":
    main()
