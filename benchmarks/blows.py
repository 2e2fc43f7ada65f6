"""The blows that hit a pool of a real client: kills, Timeouts, restarts and forks.

Each blow needs its own process, because it may leave greenlets that hang.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import gevent
import gevent.os
from gevent.event import Event
from gevent.pool import Group
from gevent.pool import Pool as Crew

from benchmarks.cases.base import Figures
from benchmarks.cases.kills import FORK_REQUESTS, REQUESTS, WAITERS
from benchmarks.subjects.base import EXCHANGING, GIVING_BACK, PHASES, WAITING, RefusedError, Subject
from benchmarks.timing import now, percentile

SEED = 1
#: How long a pool lets a caller wait, in seconds, in the blows where some callers hang.
PATIENCE = 2.0

# Kills
#: The number of uses, how many run at the same time, and the time after which no new ones start, in seconds.
USES, CROWD, LIMIT = 2_400, 30, 9.0
#: The share of uses that are not hit.
BYSTANDERS = 0.4
#: The longest time from the start of a phase to the shot, in seconds.
SPREAD = {WAITING: 0.006, EXCHANGING: 0.0005, GIVING_BACK: 0.0005}
#: How long a pool may take to recover, in seconds.
MENDING = 3.0
TRIES = 4

# Restarts and forks
#: How long all requests together may take, in seconds.
REQUESTS_LIMIT = 3.0

# Waits
#: The number of rounds, how many uses are served in each, and how long a round may take, in seconds. The figures are
#: the medians of the rounds, because machines stall now and then.
ROUNDS, SERVED, SPAN = 3, 2_000, 3.0

# Abandoned exchanges
#: The number of greenlets, how often each abandons an exchange, after how many seconds, and how long the server would
#: take for it.
IMPATIENT, GIVEN_UP, AFTER, LATE = 10, 8, 0.1, 5.0
#: The pause before the sessions are counted once more, in seconds.
QUIET = 0.5

THROWN = (gevent.GreenletExit, gevent.Timeout)
KILL, TIMEOUT, CAUGHT = "kill", "Timeout", "Timeout caught in the block"


@dataclass(frozen=True)
class Shot:
    """An exception to throw into a use."""

    phase: str
    kind: str
    #: Seconds from the start of the phase. None: when another use starts to give back its connection.
    delay: float | None
    #: How many turns of the event loop later it is thrown.
    turns: int


def plan(number: int) -> Shot | None:
    """Return how a use is hit, or None if it is not. The plan is the same in each run, for each pool."""
    choose = random.Random(f"{SEED} {number}")
    if choose.random() < BYSTANDERS:
        return None
    phase = choose.choice(PHASES)
    kind = choose.choice([KILL, TIMEOUT, CAUGHT] if phase == EXCHANGING else [KILL, TIMEOUT])
    delay: float | None = choose.choice([0.0, choose.uniform(0, SPREAD[phase])])
    if phase == WAITING and choose.random() < 0.5:
        delay = None
    return Shot(phase, kind, delay, choose.choice([0, 0, 1, 2]))


class Use:
    """The state of a use that is under way."""

    def __init__(self, shot: Shot | None) -> None:
        self.shot = shot
        self.phase = WAITING
        self.timeout: gevent.Timeout | None = None


class Crowd:
    """Greenlets that use a pool, and are hit."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._under_way: dict[object, Use] = {}
        #: The greenlets to hit when another use starts to give back. The first one is the next to be served.
        self._targets: dict[Any, Use] = {}
        #: How many shots hit, by phase.
        self.hits: Counter[str] = Counter()
        self.wrong = self.failed = self.stuck = 0
        subject.mark = self._mark

    def run(self, uses: int) -> None:
        """Run this many uses, and count those that are stuck at the end."""
        crew = Crew(CROWD)
        with gevent.Timeout(LIMIT, False):
            for number in range(uses):
                crew.spawn(self._use, number)
        crew.join(timeout=self._subject.patience + 1)
        self.stuck = len(crew)

    def _use(self, number: int) -> None:
        me = gevent.getcurrent()
        shot = plan(number)
        if shot is not None and shot.phase == EXCHANGING:
            # A number with a long reply, so that the shot can hit the exchange.
            number *= 3
        use = self._under_way[me] = Use(shot)
        self._mark(WAITING)
        try:
            reply = insist(self._subject, lambda connection: self._exchange(connection, number, use))
        except THROWN:
            self.hits[use.phase] += 1
        except Exception:
            # In a use that is hit, another exception may have replaced the one that was thrown.
            self.failed += use.shot is None
        else:
            self.wrong += reply is not None and reply != self._subject.word(number)
        finally:
            if use.timeout is not None:
                use.timeout.close()
            self._targets.pop(me, None)
            del self._under_way[me]

    def _exchange(self, connection: Any, number: int, use: Use) -> str | None:
        shot = use.shot
        if shot is None or shot.kind != CAUGHT:
            return self._subject.ask(connection, number)
        timeout = gevent.Timeout(shot.delay)
        timeout.start()
        try:
            return self._subject.ask(connection, number)
        except gevent.Timeout as error:
            if error is not timeout:
                raise
            # As in a view that can go on without the answer.
            self.hits[use.phase] += 1
            return None
        finally:
            timeout.close()

    def _mark(self, phase: str) -> None:
        me: Any = gevent.getcurrent()
        use = self._under_way.get(me)
        if use is None:
            return
        if isinstance(sys.exc_info()[1], THROWN):
            # The use was hit, and is giving back its connection.
            return
        use.phase = phase
        if phase != WAITING:
            self._targets.pop(me, None)
        if phase == GIVING_BACK and self._targets:
            target, its_use = next(iter(self._targets.items()))
            del self._targets[target]
            assert its_use.shot is not None
            _throw_later(target, its_use.shot)
        shot = use.shot
        if shot is None or shot.phase != phase or shot.kind == CAUGHT:
            return
        if shot.delay is None:
            self._targets[me] = use
        elif shot.kind == TIMEOUT:
            use.timeout = gevent.Timeout(shot.delay)
            use.timeout.start()
        elif shot.delay == 0:
            _throw_later(me, shot)
        else:
            gevent.spawn_later(shot.delay, me.kill, block=False)


def _throw_later(target: Any, shot: Shot) -> None:
    """Throw the exception into a greenlet, after as many turns of the event loop as the shot says."""
    error = gevent.Timeout() if shot.kind == TIMEOUT else gevent.GreenletExit
    run_callback = gevent.get_hub().loop.run_callback

    def turn(left: int) -> None:
        if left:
            run_callback(turn, left - 1)
        else:
            target.kill(error, block=False)

    turn(shot.turns)


def insist(subject: Subject, exchange: Callable[[Any], Any]) -> Any:
    """Use the pool. If it refuses the caller, try again every millisecond, until the caller's patience ends."""
    deadline = now() + subject.patience * 1e9
    while True:
        try:
            return subject.use(exchange)
        except RefusedError:
            if now() > deadline:
                raise
            gevent.sleep(0.001)


def begin(subject: Subject) -> None:
    """Make the pool, and count the sessions beside it."""
    subject.watch()
    subject.fill()
    subject.others = subject.sessions()
    subject.open()


def count_usable(subject: Subject, limit: float) -> int:
    """Return how many working connections callers can hold at the same time."""
    usable = 0
    is_over = Event()

    def hold(number: int) -> None:
        nonlocal usable
        for _ in range(TRIES):
            try:
                with subject.lease() as connection:
                    if subject.ask_held(connection, number) != subject.word(number):
                        raise LookupError("wrong answer")
                    usable += 1
                    if usable == subject.size:
                        is_over.set()
                    is_over.wait()
                    return
            except Exception:
                if is_over.is_set():
                    return
                gevent.sleep(limit / TRIES / 2)

    holding = [gevent.spawn(hold, number) for number in range(subject.size)]
    is_over.wait(limit)
    is_over.set()
    gevent.joinall(holding, timeout=1)
    return usable


@contextmanager
def counting_sessions(subject: Subject) -> Iterator[Callable[[], int]]:
    """Count the server's sessions repeatedly. Yield a function that returns the most there were above the limit."""
    most = 0

    def look() -> int:
        nonlocal most
        with suppress(Exception):
            most = max(most, subject.sessions() - subject.others)
        return max(0, most - subject.size)

    def go_on() -> None:
        while True:
            look()
            gevent.sleep(0.01)

    looking = gevent.spawn(go_on)
    try:
        yield look
    finally:
        looking.kill()


# The blows


def kills(subject: Subject, effort: float) -> Figures:
    """Kill greenlets and let Timeouts expire, in each phase of a use."""
    begin(subject)
    crowd = Crowd(subject)
    with counting_sessions(subject) as too_many:
        crowd.run(int(USES * effort))
    return {
        "usable": count_usable(subject, MENDING),
        "wrong": crowd.wrong,
        "failed": crowd.failed,
        "stuck": crowd.stuck,
        "sessions": too_many(),
        **{f"hit {phase}": crowd.hits[phase] for phase in PHASES},
    }


def given_up(subject: Subject, effort: float) -> Figures:
    """Let Timeouts end exchanges for which the server needs seconds, and go on with short ones."""
    begin(subject)

    def use() -> None:
        for number in range(max(1, int(GIVEN_UP * effort))):
            with gevent.Timeout(AFTER, False), suppress(Exception):
                insist(subject, lambda connection: subject.ask_late(connection, LATE))
            with gevent.Timeout(AFTER, False), suppress(Exception):
                insist(subject, partial(subject.ask, number=number))

    with counting_sessions(subject) as too_many:
        gevent.joinall([gevent.spawn(use) for _ in range(IMPATIENT)], timeout=2 * LIMIT)
    most = too_many()
    gevent.sleep(QUIET)
    with counting_sessions(subject) as too_many:
        return {"sessions, late": most, "sessions, then": too_many()}


def restart(subject: Subject, effort: float) -> Figures:
    """Restart the server while all connections are idle."""
    begin(subject)
    count_usable(subject, MENDING)
    subject.restart()
    return {"restart": _count_failures(subject, 0, REQUESTS)}


def fork(subject: Subject, effort: float) -> Figures:
    """Fork while all connections are idle. Then use the pool in both processes."""
    begin(subject)
    count_usable(subject, MENDING)
    reading, writing = os.pipe()
    gevent.os.make_nonblocking(reading)
    child = os.fork()
    if not child:
        # The child must end in any case, and never run its parent's code.
        signal.alarm(int(4 * REQUESTS_LIMIT))
        try:
            subject.after_fork()
            # Use other words than the parent: memcached has a limited number.
            os.write(writing, json.dumps(_count_failures(subject, FORK_REQUESTS, FORK_REQUESTS)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        failures = _count_failures(subject, 0, FORK_REQUESTS)
        told = b""
        with gevent.Timeout(2 * REQUESTS_LIMIT, False):
            told = gevent.os.nb_read(reading, 100)
        return {"fork": failures + (json.loads(told) if told else FORK_REQUESTS)}
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _count_failures(subject: Subject, first: int, requests: int) -> int:
    """Return how many requests get an error, a wrong answer or none. Run two requests for each connection at a time."""
    right = 0

    def request(number: int) -> None:
        nonlocal right
        with suppress(Exception):
            reply = insist(subject, lambda connection: subject.ask(connection, number))
            right += reply == subject.word(number)

    crew = Crew(2 * subject.size)
    with gevent.Timeout(REQUESTS_LIMIT, False):
        for number in range(first, first + requests):
            crew.spawn(request, number)
        crew.join()
    return requests - right


def waits(subject: Subject, effort: float) -> Figures:
    """Let many greenlets share the connections, and hit none of them."""
    begin(subject)
    count_usable(subject, MENDING)
    rounds = [_wait(subject, max(1, int(SERVED * effort))) for _ in range(ROUNDS)]
    longest, median, ratio = (statistics.median(figures) for figures in zip(*rounds, strict=True))
    return {"longest": longest / 1e6, "median": median / 1e6, "ratio": ratio}


def _wait(subject: Subject, served: int) -> tuple[float, float, float]:
    """Return the longest wait of a round, the median wait, and the ratio of the two."""
    asking: dict[object, int] = {}
    found: list[int] = []
    is_over = False
    enough = Event()

    def mark(phase: str) -> None:
        asked = asking.pop(gevent.getcurrent(), None)
        if asked is not None:
            found.append(now() - asked)
            if len(found) == served:
                enough.set()

    def use(number: int) -> None:
        me = gevent.getcurrent()
        while not is_over:
            # The wait of a refused caller began with its first try.
            asking.setdefault(me, now())
            with suppress(Exception):
                insist(subject, lambda connection: subject.ask(connection, number))

    subject.mark = mark
    group = Group()
    for number in range(WAITERS):
        # Numbers whose replies are all short.
        group.spawn(use, 3 * number + 1)
    enough.wait(SPAN)
    ended = now()
    every = [*found, *(ended - asked for asked in asking.values())]
    is_over = True
    longest, median = max(every), percentile(every, 0.5)
    group.join(timeout=subject.patience)
    return longest, median, longest / max(1, median)


BLOWS: dict[str, Callable[[Subject, float], Figures]] = {
    "kills": kills,
    "given up": given_up,
    "restart": restart,
    "fork": fork,
    "waits": waits,
}
