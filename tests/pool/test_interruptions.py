"""Exceptions at every point where a greenlet waits, in a caller and in the pool's own greenlets.

The points are not listed here but found: a scenario is rehearsed, and every switch counted. Then it is run again for
each point, and for every kind of exception, which is thrown there and nowhere else.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.hub import Hub, get_hub

from gsocketpool import ConnectionNotFoundError, Pool, PoolClosedError, PoolError, PoolEvents, PoolExhaustedError
from gsocketpool.connectors import Connector
from tests.support.callers import is_closed
from tests.support.internals import FIRST_PAUSE, keepalive_of, look_once_for_dead_holders, sweep_all_the_time
from tests.support.scripted import PATIENCE, Backend, ScriptedConnection, settle
from tests.support.switches import Switches, greenlets_there_are

CALLERS = 3


class InterruptionError(Exception):
    """An ordinary exception, thrown from outside."""


def timeout() -> Any:
    return gevent.Timeout(1)


KINDS: list[Callable[[], BaseException]] = [gevent.GreenletExit, timeout, InterruptionError]


class Switching(ScriptedConnection):
    """Every step of it switches, and opening and closing it do so in either state."""

    def open(self) -> None:
        gevent.sleep(0)
        super().open()
        gevent.sleep(0)

    def close(self) -> None:
        self.closings += 1
        gevent.sleep(0)
        self.is_open = False
        gevent.sleep(0)


class SwitchingAndChecked(Switching):
    def is_usable(self) -> bool:
        gevent.sleep(0)
        return self.is_open and bool(self.backend.answer)


class Transaction(Switching):
    """Has something left open after each use, and every step of its ending switches."""

    is_begun = False

    def is_settled(self) -> bool:
        return not self.is_begun

    def complete(self) -> None:
        gevent.sleep(0)
        self.is_begun = False
        gevent.sleep(0)

    def reset(self) -> None:
        gevent.sleep(0)
        self.is_begun = False
        gevent.sleep(0)

    reset_session = complete


class Pinging(Switching):
    is_pinged = False

    def ping(self) -> None:
        self.is_pinged = True
        gevent.sleep(0)
        gevent.sleep(0)
        self.is_pinged = False


class TransactionConnector(Connector[Any]):
    """The same for clients that know nothing of pools: what makes them is called here, and not by the pool."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.connections: list[Any] = []

    def connect(self) -> Any:
        connection = self.make()
        try:
            connection.open()
        except BaseException:
            # The pool does not know it yet.
            connection.abort()
            raise
        return connection

    def is_settled(self, connection: Any) -> bool:
        return not connection.is_begun

    def is_reusable(self, connection: Any, error: BaseException | None) -> bool:
        return error is None and connection.is_open

    def complete(self, connection: Any) -> None:
        Transaction.complete(connection)

    def reset(self, connection: Any) -> None:
        Transaction.reset(connection)

    def cancel(self, connection: Any) -> None:
        gevent.sleep(0)

    def abort(self, connection: Any) -> None:
        connection.abort()


class Listening(PoolEvents):
    """Hears of everything, and never switches: what is thrown while it does is its own."""

    def opened(self, pool: Pool[Any], connection: Any) -> None:
        pass

    def acquired(self, lease: Any) -> None:
        pass

    def waiting(self, pool: Pool[Any]) -> None:
        pass

    def released(self, pool: Pool[Any], connection: Any) -> None:
        pass

    def closed(self, pool: Pool[Any], connection: Any, reason: str) -> None:
        pass


@contextmanager
def context() -> Iterator[None]:
    yield


class World:
    """One run of a scenario: a backend, a pool and its callers, and what has gone wrong."""

    def __init__(self, scenario: Scenario, size: int) -> None:
        self.scenario = scenario
        self.size = size
        self.wrongs: list[str] = []
        self.backend = Backend()
        kind = scenario.kind or (SwitchingAndChecked if scenario.is_checked else Switching)

        def make() -> Any:
            return self.backend.add(kind(self.backend, {}))

        self.pool: Pool[Any] = Pool(
            TransactionConnector(make) if scenario.has_connector else make,
            **scenario.settings,
            max_connections=size,
            min_connections=size if scenario.is_filled else 0,
        )
        self.used: dict[int, Any] = {}
        self.outcomes: list[Any] = ["not ended"] * CALLERS
        if scenario.idle:
            for connection in [self.pool.acquire() for _ in range(size)]:
                self.pool.release(connection)
            # The reaper has begun to sleep, and what it does is no part of the scenario.
            settle()

    @contextmanager
    def using(self, connection: Any) -> Iterator[None]:
        """To be around all that a caller does with its connection."""
        if connection.number in self.used:
            self.wrongs.append(f"{connection} was handed out to two at once")
        if not connection.is_open:
            self.wrongs.append(f"{connection} was handed out closed")
        self.used[connection.number] = connection
        try:
            for _ in range(2):
                if getattr(connection, "is_pinged", False):
                    self.wrongs.append(f"{connection} is pinged while it is used")
                gevent.sleep(0)
            yield
        finally:
            self.used.pop(connection.number, None)

    def call(self, number: int) -> None:
        try:
            self.outcomes[number] = self.scenario.act(self, number)
        except BaseException as error:
            self.outcomes[number] = error

    def look(self) -> None:
        """What must hold whenever any greenlet can run."""
        if self.pool.size > self.size:
            self.wrongs.append(f"there are {self.pool.size} connections")
        stats = self.pool.stats()
        if stats.idle + stats.in_use + stats.resetting + stats.opening != self.pool.size or stats.resetting < 0:
            self.wrongs.append(f"the numbers do not agree: {stats}")

    def check_whole(self) -> None:
        """When all have ended, whatever has been thrown: nothing is lost, and nothing is left."""
        pool = self.pool
        for _ in range(20):
            # What is reset at the end of the last caller's use.
            if pool.stats().resetting:
                gevent.sleep(0)
        if not is_closed(pool):
            if pool.stats().resetting or pool.stats().waiting or pool.stats().in_use:
                self.wrongs.append(f"something was left behind: {pool}")
            self.backend.answer = True
            taken: list[Any] = []
            try:
                taken = [pool.acquire() for _ in range(self.size)]
                pool.acquire(timeout=0)
                self.wrongs.append("there was one more than the limit")
            except PoolExhaustedError as error:
                if len({connection.number for connection in taken}) != self.size:
                    self.wrongs.append(f"capacity is lost, but for {taken}: {error}")
            for connection in taken:
                pool.release(connection)
        pool.close()
        if self.backend.open:
            self.wrongs.append(f"open after the end: {self.backend.open}")
        if pool.size or pool.stats().closing:
            self.wrongs.append(f"not empty after the end: {pool}")


@dataclass
class Scenario:
    #: What each of the callers does.
    act: Callable[[World, int], object]
    #: The pool's own greenlets that are to be found in it.
    helpers: set[str]
    #: Whether connections lie idle at the beginning.
    idle: bool = False
    #: Whether their check is the user's, and runs aside.
    is_checked: bool = False
    #: Whether all connections are opened in the background.
    is_filled: bool = False
    #: What may come out of a caller without having been thrown at it.
    allowed: type[BaseException] | tuple[()] = ()
    #: What connections are, if it is not one of the usual two.
    kind: type[Switching] | None = None
    #: Whether a connector handles them.
    has_connector: bool = False
    #: What the pool is told besides.
    settings: dict[str, Any] = field(default_factory=dict)
    #: What to do before the callers come.
    prepare: Callable[[World], object] = lambda world: None


def use_and_release(world: World, number: int) -> None:
    connection = world.pool.acquire()
    try:
        with world.using(connection):
            pass
    finally:
        world.pool.release(connection)


def use_in_a_block(world: World, number: int) -> None:
    with world.pool.connection() as connection, world.using(connection):
        pass


def begin_in_a_block(world: World, number: int) -> None:
    """A transaction, which is completed."""
    with world.pool.connection() as connection, world.using(connection):
        if connection.is_begun:
            world.wrongs.append(f"{connection} was handed out with something left open")
        connection.is_begun = True


def begin_and_release(world: World, number: int) -> None:
    """A transaction, which is reset."""
    connection = world.pool.acquire()
    try:
        with world.using(connection):
            if connection.is_begun:
                world.wrongs.append(f"{connection} was handed out with something left open")
            connection.is_begun = True
    finally:
        world.pool.release(connection)


def close_or_begin(world: World, number: int) -> None:
    if number == 0:
        for _ in range(4):
            gevent.sleep(0)
        world.pool.close(timeout=PATIENCE)
    else:
        begin_and_release(world, number)


def begin_and_drain(world: World, number: int) -> None:
    begin_and_release(world, number)
    if number == 0:
        world.pool.drain()
        begin_and_release(world, number)


def use_and_discard(world: World, number: int) -> None:
    connection = world.pool.acquire()
    try:
        with world.using(connection):
            pass
    finally:
        world.pool.discard(connection)


def fail_in_a_block(world: World, number: int) -> None:
    try:
        with world.pool.connection() as connection, world.using(connection):
            raise LookupError
    except LookupError:
        pass


def use_and_detach(world: World, number: int) -> None:
    connection = world.pool.acquire()
    try:
        with world.using(connection):
            pass
    finally:
        # Its own from now on.
        world.pool.detach(connection).is_open = False


def first_do(act: Callable[[World], object]) -> Callable[[World, int], None]:
    """The first caller does something else between two uses, the others only use their connections."""

    def act_by_number(world: World, number: int) -> None:
        use_in_a_block(world, number)
        if number == 0:
            act(world)
            gevent.sleep(0)
            use_in_a_block(world, number)

    return act_by_number


def drop_or_use(world: World, number: int) -> None:
    if number == 0:
        for connection in world.backend.connections:
            with contextlib.suppress(ConnectionNotFoundError):
                world.pool.drop(connection)
    use_in_a_block(world, number)


def close_or_use(world: World, number: int) -> None:
    if number == 0:
        # Until the others have come, and what they need is under way.
        gevent.sleep(0)
        gevent.sleep(0)
        world.pool.close(timeout=PATIENCE)
    else:
        use_in_a_block(world, number)


def turn_unusable(world: World) -> None:
    world.backend.answer = False


def fail_once(world: World) -> None:
    world.backend.failures.append(ConnectionRefusedError("once"))


def be_swept(world: World) -> None:
    sweep_all_the_time(world.pool)
    for connection in world.backend.connections:
        connection.says_expired = True
    # It is in the middle of a sweep when the callers come.
    gevent.sleep(0)
    gevent.sleep(0)


def ping_all_the_time(world: World) -> None:
    # As its timer does.
    get_hub().loop.run_callback(keepalive_of(world.pool).ping_due)
    gevent.sleep(0)


def use_while_pinging(world: World, number: int) -> None:
    for _ in range(2):
        use_in_a_block(world, number)
        if number == 0:
            ping_all_the_time(world)


#: By this clock everything is due whenever it is looked at, and the timer, which goes by real time, never fires.
KEEPALIVE = {"keepalive_interval": 500.0, "clock": partial(next, itertools.count(0.0, 1000.0)), "acquire_timeout": None}


def fill_and_use(world: World, number: int) -> None:
    if number == 0:
        world.pool.wait_ready()
    use_in_a_block(world, number)


SCENARIOS = {
    "acquire and release": Scenario(use_and_release, {"_open", "_sweep_forever"}),
    "blocks": Scenario(use_in_a_block, set(), idle=True),
    "blocks that fail": Scenario(fail_in_a_block, {"_open", "_close"}),
    "acquire and discard": Scenario(use_and_discard, {"_open", "_close"}),
    "acquire and detach": Scenario(use_and_detach, {"_open"}),
    "opening fails": Scenario(use_in_a_block, {"_open"}, prepare=fail_once, allowed=ConnectionRefusedError),
    "checks": Scenario(use_in_a_block, {"_check"}, idle=True, is_checked=True),
    "checks fail": Scenario(
        use_in_a_block, {"_check", "_close", "_open"}, idle=True, is_checked=True, prepare=turn_unusable
    ),
    "drain": Scenario(first_do(lambda world: world.pool.drain()), {"_open", "_close"}, idle=True),
    "drain while checking": Scenario(
        first_do(lambda world: world.pool.drain()), {"_open", "_close", "_check"}, idle=True, is_checked=True
    ),
    "drop": Scenario(drop_or_use, {"_open", "_close"}, idle=True, allowed=PoolError),
    "sweeps": Scenario(use_in_a_block, {"_sweep_forever", "_close", "_open"}, idle=True, prepare=be_swept),
    "wait until ready": Scenario(fill_and_use, {"_open"}, is_filled=True),
    "complete": Scenario(begin_in_a_block, set(), idle=True, kind=Transaction),
    "complete, with a connector": Scenario(begin_in_a_block, set(), idle=True, kind=Transaction, has_connector=True),
    "complete, with a connector, a context and events": Scenario(
        begin_in_a_block,
        {"_open"},
        kind=Transaction,
        has_connector=True,
        settings={"context": context, "events": Listening()},
    ),
    "reset": Scenario(begin_and_release, {"_work"}, idle=True, kind=Transaction),
    "reset, with a connector": Scenario(
        begin_and_release, {"_work"}, idle=True, kind=Transaction, has_connector=True, settings={"clock": monotonic}
    ),
    "reset always, with a connector, a context and events": Scenario(
        begin_in_a_block,
        {"_work"},
        idle=True,
        kind=Transaction,
        has_connector=True,
        settings={"reset": "always", "context": context, "events": Listening()},
    ),
    "drain while resetting": Scenario(
        begin_and_drain, {"_work", "_close", "_open"}, idle=True, kind=Transaction, has_connector=True
    ),
    "close while resetting": Scenario(
        close_or_begin, {"_close"}, idle=True, kind=Transaction, has_connector=True, allowed=PoolClosedError
    ),
    "ping": Scenario(
        use_while_pinging, {"_work"}, idle=True, kind=Pinging, prepare=ping_all_the_time, settings=KEEPALIVE
    ),
    "close while pinging": Scenario(
        close_or_use,
        {"_close"},
        idle=True,
        kind=Pinging,
        prepare=ping_all_the_time,
        settings=KEEPALIVE,
        allowed=PoolClosedError,
    ),
    "close": Scenario(close_or_use, {"_close"}, idle=True, allowed=PoolClosedError),
    "close while opening": Scenario(close_or_use, {"_open", "_close"}, allowed=PoolClosedError),
}


def throw_after(turns: int, victim: Any, error: BaseException, thrown: list[Any]) -> None:
    """Throw `error` at `victim` as kill() does, but in this turn of the event loop or so many turns later."""
    if turns:
        get_hub().loop.run_callback(throw_after, turns - 1, victim, error, thrown)
    elif not victim.ready():
        thrown.append(victim)
        victim.throw(error)


@dataclass
class Interruption:
    """What is to be thrown, and where."""

    #: The number of a slice: what is thrown is under way before that begins, and arrives when it has ended.
    at: int
    #: What that slice must belong to.
    what: str
    #: Whom it is thrown at: a greenlet by its place, or that of the slice.
    victim: int | None
    delay: int
    kind: Callable[[], BaseException]


def run(scenario: Scenario, size: int, strangers: Any, interruption: Interruption | None) -> tuple[Switches, list[str]]:
    """Play a scenario to its end. Return its switches, and what has gone wrong."""
    error = interruption.kind() if interruption is not None else None
    thrown: list[Any] = []
    world = World(scenario, size)

    def before_slice(number: int, runs: Any) -> None:
        if interruption is not None and error is not None and number == interruption.at:
            if runs.name != interruption.what:
                world.wrongs.append(f"it has not gone as rehearsed: slice {number} is of {runs.name}")
            victim = runs if interruption.victim is None else switches.greenlets[interruption.victim]
            get_hub().loop.run_callback(throw_after, interruption.delay, victim, error, thrown)

    switches = Switches(strangers, before_slice, world.look)
    with switches.following():
        scenario.prepare(world)
        callers = [gevent.spawn(world.call, number) for number in range(CALLERS)]
        for _ in range(100):
            gevent.sleep(0)
            if all(caller.ready() for caller in callers):
                break
        else:
            # There are times to wait for, such as the pause after an opening that has failed.
            gevent.joinall(callers, timeout=PATIENCE)
    allowed: tuple[Any, ...] = (scenario.allowed,) if scenario.allowed else ()
    if thrown and thrown[0].name == "_open":
        # It stands for an opening that has failed, so a caller is told.
        allowed = (*allowed, PoolError if isinstance(error, gevent.GreenletExit) else type(error))
    for caller, outcome in zip(callers, world.outcomes, strict=True):
        if thrown and caller is thrown[0]:
            if outcome is not error:
                world.wrongs.append(f"what was thrown at a caller was swallowed, and it got {outcome!r}")
        elif outcome is not None and not isinstance(outcome, allowed):
            world.wrongs.append(f"a caller that was left alone got {outcome!r}")
    world.check_whole()
    if interruption is None and any(world.outcomes) and not allowed:
        world.wrongs.append(f"the rehearsal has failed: {world.outcomes}")
    return switches, world.wrongs


def interruptions(rehearsal: Switches) -> Iterator[Interruption]:
    for number, one in enumerate(rehearsal.slices):
        if one.waits:
            for delay in range(3):
                for kind in KINDS:
                    yield Interruption(number, one.what, None, delay, kind)
        # What is thrown at a waiter meanwhile arrives after this slice has given it something, and before
        # they get to run.
        for other in one.others:
            for kind in KINDS:
                yield Interruption(number, one.what, other, 0, kind)


@pytest.fixture(autouse=True)
def no_look_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine the look for dead holders that a caller has asked for comes in the middle of a rehearsal."""
    look_once_for_dead_holders(monkeypatch)


@pytest.fixture(scope="module")
def old_greenlets() -> weakref.WeakSet[Any]:
    """The greenlets of the tests before these."""
    gc.collect()
    settle()
    return greenlets_there_are()


#: Of the scenarios with something left open, those of the suite: what calls a class calls a connector in the same way.
OFTEN = {
    ("complete, with a connector", 2),
    ("complete, with a connector, a context and events", 1),
    ("reset", 2),
    ("reset always, with a connector, a context and events", 1),
    ("drain while resetting", 1),
    ("close while resetting", 1),
    ("ping", 1),
}


def cases() -> Iterator[Any]:
    for name, scenario in SCENARIOS.items():
        for size in (1, 2):
            is_rare = scenario.kind in (Transaction, Pinging) and (name, size) not in OFTEN
            yield pytest.param(name, size, marks=[pytest.mark.torture] if is_rare else [])


@pytest.mark.parametrize(("name", "size"), list(cases()))
def test_an_exception_thrown_at_any_wait_of_a_greenlet_loses_nothing(
    name: str,
    size: int,
    stride: int,
    old_greenlets: weakref.WeakSet[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    in_the_background: list[Any] = []
    monkeypatch.setattr(Hub, "print_exception", lambda *arguments: in_the_background.append(arguments[1:4]))
    monkeypatch.setattr(FIRST_PAUSE, 0.0001)
    caplog.set_level(logging.CRITICAL, "gsocketpool")
    scenario = SCENARIOS[name]
    # Pools that other tests have left to the garbage collector would be buried in the middle of this one.
    gc.collect()
    settle()
    strangers = old_greenlets | greenlets_there_are()
    rehearsal, wrongs = run(scenario, size, strangers, None)
    assert not wrongs
    points = [one for one in rehearsal.slices if one.waits]
    assert len(points) >= 7, "the switches were not found"
    assert {one.what for one in points} >= {"call", *scenario.helpers}
    for interruption in itertools.islice(interruptions(rehearsal), 0, None, stride):
        _, wrongs = run(scenario, size, strangers, interruption)
        assert not wrongs + in_the_background, interruption
