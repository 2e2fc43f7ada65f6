"""Many greenlets share few connections: uses per second, waits, refusals and lost connections."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import gevent

from benchmarks.cases.base import Case, Figure, Figures, Table, is_wanted
from benchmarks.connections import Nothing
from benchmarks.contestants import ALL, FLOORS, OURS, RIVALS
from benchmarks.contestants.base import PATIENCE, OpenPool
from benchmarks.timing import now, percentile, tidy_up

CONNECTIONS = 10
CROWDS = [500, 10_000]
#: How many uses of a connection to measure, and the time after which fewer must do, in seconds.
USES, LIMIT = 20_000, 1.5
#: How many greenlets wait when half of them are killed.
VICTIMS = 100


class Crowd:
    """Greenlets that repeat the same: acquire, hold for one turn of the event loop, release.

    They go on until the end, so that all of them compete during the whole measurement.
    """

    def __init__(self, pool: OpenPool, size: int) -> None:
        self._pool = pool
        self._is_over = False
        self.size = size
        self.served = 0
        self.refused = 0

    def measure(self, uses: int, limit: float) -> float:
        """Return the uses per second. The first uses, two for each greenlet, do not count."""
        greenlets = [gevent.spawn(self._use) for _ in range(self.size)]
        gevent.sleep(0)
        tidy_up()
        try:
            self._wait_for(2 * self.size, limit)
            self._begin()
            began, before = now(), self.served
            self._wait_for(before + uses, limit)
            rate = (self.served - before) / (now() - began) * 1e9
            self._end()
        finally:
            self._is_over = True
            # Every greenlet gets one more connection. Killing slow ones now could lose connections.
            gevent.joinall(greenlets, timeout=PATIENCE)
            gevent.killall(greenlets, block=False)
        return rate

    def _wait_for(self, served: int, limit: float) -> None:
        deadline = now() + limit * 1e9
        while self.served < served and now() < deadline:
            gevent.sleep(0.001)

    def _begin(self) -> None:
        pass

    def _end(self) -> None:
        pass

    def _use(self) -> None:
        pool, sleep = self._pool, gevent.sleep
        while not self._is_over:
            try:
                if pool.block is not None:
                    with pool.block():
                        sleep(0)
                else:
                    connection = pool.acquire()
                    try:
                        sleep(0)
                    finally:
                        pool.release(connection)
            except Exception:
                # A refused caller tries again in the next turn.
                self.refused += 1
                sleep(0)
            else:
                self.served += 1


class TimedCrowd(Crowd):
    """A crowd that takes its times, which itself takes time."""

    def __init__(self, pool: OpenPool, size: int) -> None:
        super().__init__(pool, size)
        #: The waits, from the call of acquire() to its return, in nanoseconds.
        self.waits: list[int] = []
        #: The delays, from a release to the moment when the next holder runs, in nanoseconds.
        self.delays: list[int] = []
        self._asking: dict[object, int] = {}

    def _begin(self) -> None:
        self.waits.clear()
        self.delays.clear()
        self.refused = 0

    def _end(self) -> None:
        # Count the waits that have not ended, too. The greenlets go on with the old lists.
        ended = now()
        self.waits = [*self.waits, *(ended - asked for asked in self._asking.values())]
        self.delays = list(self.delays)

    def _use(self) -> None:
        acquire, release, raw, sleep = self._pool.acquire, self._pool.release, self._pool.raw, gevent.sleep
        waits, delays, asking, me = self.waits, self.delays, self._asking, object()
        while not self._is_over:
            # The wait of a refused caller began with its first try.
            asked = asking.setdefault(me, now())
            try:
                connection = acquire()
            except Exception:
                self.refused += 1
                sleep(0)
                continue
            holding = now()
            del asking[me]
            waits.append(holding - asked)
            used = raw(connection)
            if used.released_at > asked:
                delays.append(holding - used.released_at)
            sleep(0)
            used.released_at = now()
            release(connection)
            self.served += 1
        asking.pop(me, None)


class Stamped(Nothing):
    """A connection to nowhere that records when it was released."""

    released_at = 0


def measure(name: str, effort: float, arguments: Mapping[str, Any]) -> Figures:
    figures: Figures = {}
    for size in CROWDS:
        if is_wanted(arguments, f"rate, {size}", f"open, {size}"):
            figures.update(_rate(name, effort, size))
        if is_wanted(arguments, f"longest, {size}", f"median, {size}", f"refused, {size}", f"lost, {size}"):
            figures.update(_waits(name, effort, size))
    if is_wanted(arguments, "lost to kills"):
        figures["lost to kills"] = _kill_waiters(name)
    return figures


def _rate(name: str, effort: float, size: int) -> Figures:
    Nothing.forget()
    with _open(name) as pool:
        rate = Crowd(pool, size).measure(int(USES * effort), LIMIT * effort)
        return {f"rate, {size}": rate, f"open, {size}": Nothing.most_open}


def _waits(name: str, effort: float, size: int) -> Figures:
    figures: Figures = {}
    with _open(name) as pool:
        crowd = TimedCrowd(pool, size)
        crowd.measure(int(USES * effort), LIMIT * effort)
        figures[f"refused, {size}"] = 100 * crowd.refused / max(1, crowd.refused + len(crowd.waits))
        figures[f"lost, {size}"] = _count_lost(pool)
    for heading, values, share in [
        ("median", crowd.waits, 0.5),
        ("p99", crowd.waits, 0.99),
        ("longest", crowd.waits, 1.0),
        ("wake-up", crowd.delays, 0.5),
    ]:
        if values:
            figures[f"{heading}, {size}"] = percentile(values, share) / 1e6
    return figures


@contextlib.contextmanager
def _open(name: str) -> Any:
    pool = ALL[name].open_pool(CONNECTIONS, Stamped)
    try:
        yield pool
    finally:
        with gevent.Timeout(2, False):
            pool.close()


def _count_lost(pool: OpenPool) -> int:
    """Return how many connections can't be acquired any more, although all were given back."""
    held: list[Any] = []

    def acquire() -> None:
        with contextlib.suppress(Exception):
            held.append(pool.acquire())

    greenlets = [gevent.spawn(acquire) for _ in range(CONNECTIONS)]
    gevent.joinall(greenlets, timeout=0.5)
    gevent.killall(greenlets, block=False)
    for connection in held:
        pool.release(connection)
    return CONNECTIONS - len(held)


def _kill_waiters(name: str) -> int:
    """Return how many connections are lost when half of the waiters are killed, some while they get a connection."""

    def wait() -> None:
        try:
            connection = pool.acquire()
        except Exception:
            return
        try:
            gevent.sleep(0)
        finally:
            pool.release(connection)

    with _open(name) as pool:
        held = [pool.acquire() for _ in range(CONNECTIONS)]
        waiting = [gevent.spawn(wait) for _ in range(VICTIMS)]
        gevent.sleep(0)
        # A kill may come before a connection is handed over, or after.
        for number, (connection, victim) in enumerate(zip(held, waiting, strict=False)):
            if number % 2:
                victim.kill(block=False)
            pool.release(connection)
            victim.kill(block=False)
        for victim in waiting[CONNECTIONS : VICTIMS // 2]:
            gevent.sleep(0)
            victim.kill(block=False)
        gevent.joinall(waiting, timeout=0.5)
        gevent.killall(waiting, block=False)
        gevent.sleep(0)
        return _count_lost(pool)


def _table(size: int) -> Table:
    return Table(
        f"{size:,} greenlets over {CONNECTIONS} connections",
        [
            Figure(f"rate, {size}", "uses a second", "/s", is_more_better=True),
            Figure(f"median, {size}", "median wait", "ms"),
            Figure(f"p99, {size}", "99 % wait up to", "ms"),
            Figure(f"longest, {size}", "longest wait", "ms"),
            Figure(f"wake-up, {size}", "wake-up delay", "ms"),
            Figure(f"refused, {size}", "refused", "%"),
            Figure(f"open, {size}", "most open", "count"),
            Figure(f"lost, {size}", "lost", "count"),
        ],
    )


CASE = Case(
    name="contended",
    method="Greenlets acquire one of ten connections to nowhere, hold it for a turn of the event loop, release it, and"
    " start again. A wait lasts from the call of acquire() to its return. The wake-up delay lasts from a release to the"
    " moment when the woken greenlet runs. Both are measured separately from the rate, because reading the clock takes"
    " time. A refused caller tries again in the next turn.",
    tables=[
        *map(_table, CROWDS),
        Table(
            "Half of 100 waiting greenlets are killed",
            [Figure("lost to kills", f"of {CONNECTIONS} connections lost", "count")],
        ),
    ],
    contestants=[each.name for each in [OURS, *RIVALS, *FLOORS]],
    measure=measure,
)
