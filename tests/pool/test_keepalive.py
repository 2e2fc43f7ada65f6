"""Idle connections are pinged before they have been silent for too long."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import gevent
import pytest
import valkey
from gevent.event import Event

from gsocketpool import (
    ConnectionNotFoundError,
    InvalidArgumentError,
    Pool,
    PoolClosedError,
    PoolEvents,
    PoolExhaustedError,
)
from gsocketpool.connectors.valkey import ValkeyConnector
from tests.support.connections import no_hanging as no_hanging
from tests.support.internals import (
    discard_late,
    has_timer,
    idle_upkeep_of,
    keepalive_of,
    reaper_of,
    state_of,
    sweep,
    upkeep_of,
)
from tests.support.processes import in_gevents_child
from tests.support.scripted import (
    PATIENCE,
    Backend,
    Client,
    Clock,
    Foreign,
    Plain,
    ScriptedConnection,
    ScriptedConnector,
    Untold,
    end_event_loop,
    eventually,
    numbers,
    raising,
    settle,
    spawn_acquire,
)
from tests.support.upkeep import check_whole, discarded, errors, swallow

INTERVAL = 60


def look(pool: Pool[Any]) -> None:
    """Begin the pings that are due, as the timer does, and let them go on until they wait."""
    keepalive = keepalive_of(pool)
    gevent.get_hub().loop.run_callback(keepalive.ping_due)
    settle()


def pings(connector: ScriptedConnector) -> int:
    return connector.steps.count("ping")


class Keeping:
    """A pool that pings after a minute by its clock, and whose pings end when they are let."""

    def __init__(self, clock: Clock, **settings: Any) -> None:
        self.clock = clock
        self.lets = Event()
        #: The numbers of the clients that were pinged.
        self.pinged: list[int] = []
        self.connector = ScriptedConnector(ping=self._ping)
        usual = {"max_connections": 1, "keepalive_interval": INTERVAL, "reap_expired_connections": False}
        self.pool: Pool[Client] = Pool(self.connector, clock=clock, **{**usual, **settings})

    def _ping(self, client: Client) -> None:
        self.pinged.append(client.number)
        self.lets.wait()

    def fill(self, count: int) -> list[Client]:
        """Have `count` connections idle, each for a second less than the one before."""
        clients = [self.pool.acquire() for _ in range(count)]
        for client in clients:
            self.clock.advance(1)
            self.pool.release(client)
        return clients

    def begin_ping(self) -> Client:
        """Have the only connection pinged, which has begun when this returns."""
        (client,) = self.fill(1)
        self.clock.advance(INTERVAL)
        look(self.pool)
        assert self.pinged[-1] == client.number
        return client


@pytest.fixture
def keeping(clock: Clock) -> Keeping:
    return Keeping(clock)


def keeping_all(clock: Clock, **settings: Any) -> Keeping:
    """One whose pings end at once."""
    keeping = Keeping(clock, **settings)
    keeping.lets.set()
    return keeping


# When


def test_an_idle_connection_is_pinged_when_its_interval_is_over(clock: Clock) -> None:
    keeping = keeping_all(clock)
    (client,) = keeping.fill(1)
    clock.advance(INTERVAL - 1)
    look(keeping.pool)
    assert keeping.pinged == []
    clock.advance(1)
    look(keeping.pool)
    assert keeping.pinged == [0]
    assert numbers(keeping.pool) == (0, 1, 0, 0)
    assert keeping.pool.acquire() is client
    assert client.is_open


def test_a_ping_restarts_the_interval_as_a_use_does(clock: Clock) -> None:
    keeping = keeping_all(clock)
    keeping.fill(1)
    clock.advance(INTERVAL)
    look(keeping.pool)
    clock.advance(INTERVAL - 1)
    look(keeping.pool)
    assert len(keeping.pinged) == 1
    keeping.pool.release(keeping.pool.acquire())
    clock.advance(INTERVAL - 1)
    look(keeping.pool)
    assert len(keeping.pinged) == 1
    clock.advance(1)
    look(keeping.pool)
    assert len(keeping.pinged) == 2


def test_a_connection_in_use_is_not_pinged(clock: Clock) -> None:
    keeping = keeping_all(clock)
    client = keeping.pool.acquire()
    clock.advance(10 * INTERVAL)
    look(keeping.pool)
    keeping.pool.release(client)
    look(keeping.pool)
    assert keeping.pinged == []


def test_a_connection_used_before_its_turn_is_not_pinged(clock: Clock) -> None:
    keeping = Keeping(clock, max_connections=2)
    _, second = keeping.fill(2)
    clock.advance(INTERVAL)
    look(keeping.pool)
    assert keeping.pool.acquire() is second
    keeping.pool.release(second)
    keeping.lets.set()
    settle()
    assert keeping.pinged == [0]


def test_connections_are_pinged_one_at_a_time_the_longest_silent_first(clock: Clock) -> None:
    keeping = Keeping(clock, max_connections=4)
    keeping.fill(4)
    clock.advance(INTERVAL)
    for count in range(1, 5):
        look(keeping.pool)
        assert keeping.pinged == list(range(count))
        assert keeping.pool.stats().resetting == 1
        keeping.lets.set()
        keeping.lets.clear()
        eventually(lambda count=count: len(keeping.pinged) > count or count == 4)  # type: ignore[misc]
    settle()
    assert numbers(keeping.pool) == (0, 4, 0, 0)


def test_a_timer_pings_without_sweeps_and_not_too_early() -> None:
    """Also without sweeps."""
    released_at, pinged_at = [], []
    connector = ScriptedConnector(ping=lambda client: pinged_at.append(time.monotonic()))
    with Pool(connector, keepalive_interval=0.05, reap_expired_connections=False) as pool:
        client = pool.acquire()
        gevent.sleep(0.02)
        released_at.append(time.monotonic())
        pool.release(client)
        eventually(lambda: len(pinged_at) == 3)
    times = released_at + pinged_at
    assert all(later - earlier >= 0.05 for earlier, later in pairwise(times))


def test_the_timer_is_set_for_the_first_ping_that_is_due(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = keeping_all(clock, max_connections=3, idle_timeout=3 * INTERVAL)
    waits: list[float] = []
    loop = gevent.get_hub().loop
    timer = loop.timer

    class Noting:
        run_callback = loop.run_callback

        def timer(self, seconds: float) -> Any:
            waits.append(seconds)
            return timer(seconds)

    keeping.fill(3)
    keepalive = keepalive_of(keeping.pool)
    monkeypatch.setattr(keepalive, "_loop", Noting())
    clock.advance(10)
    look(keeping.pool)
    clock.advance(INTERVAL - 12)
    look(keeping.pool)
    # The first was pinged just now.
    assert waits == [INTERVAL - 12, 1]
    clock.advance(10 * INTERVAL)
    look(keeping.pool)
    assert waits[-1] == INTERVAL, "what is to be retired is passed over"
    assert keeping.pinged == [0]


def test_pings_continue_after_a_program_has_killed_every_greenlet() -> None:
    connector = ScriptedConnector()
    with Pool(connector, keepalive_interval=0.01) as pool:
        pool.release(pool.acquire())
        eventually(lambda: pings(connector) > 1)
        gevent.killall([*upkeep_of(pool), *idle_upkeep_of(pool), reaper_of(pool)])
        count = pings(connector)
        eventually(lambda: pings(connector) > count)


def test_a_pool_without_an_interval_pings_nothing() -> None:
    pool = Pool(ScriptedConnector())
    pool.release(pool.acquire())
    assert keepalive_of(pool) is None


# Meanwhile


def test_a_connection_being_pinged_counts_as_resetting(keeping: Keeping) -> None:
    client = keeping.begin_ping()
    stats = keeping.pool.stats()
    assert (stats.idle, stats.in_use, stats.opening, stats.resetting) == (0, 0, 0, 1)
    assert keeping.pool.size == 1
    assert "0 in use, 0 idle, 0 opening, 1 resetting, at most 1" in repr(keeping.pool)
    with pytest.raises(PoolExhaustedError, match="1 resetting"):
        keeping.pool.acquire(timeout=0)
    keeping.lets.set()
    assert keeping.pool.acquire() is client
    assert keeping.pool.stats().resetting == 0
    assert keeping.pool.stats().use_time == 1


@pytest.mark.parametrize("name", ["release", "detach"])
def test_a_connection_being_pinged_can_not_be_released_or_detached(keeping: Keeping, name: str) -> None:
    client = keeping.begin_ping()
    before = keeping.pool.stats()
    with pytest.raises(ConnectionNotFoundError):
        getattr(keeping.pool, name)(client)
    assert keeping.pool.stats() == before
    keeping.lets.set()
    assert keeping.pool.acquire() is client


@pytest.mark.parametrize("how", ["discard", "drop"])
def test_a_connection_being_pinged_can_be_discarded_or_dropped_like_an_idle_one(keeping: Keeping, how: str) -> None:
    client = keeping.begin_ping()
    getattr(keeping.pool, how)(client)
    keeping.lets.set()
    eventually(lambda: not client.is_open)
    assert keeping.pool.size == 0
    assert keeping.pool.stats().resetting == 0


def test_a_connection_being_pinged_has_no_holder_that_can_die(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    keeping = Keeping(clock, leak_threshold=10)
    gevent.spawn(lambda: keeping.pool.release(keeping.pool.acquire())).join()
    gc.collect()
    clock.advance(INTERVAL)
    look(keeping.pool)
    clock.advance(100)
    sweep(keeping.pool)
    assert keeping.pool.stats().resetting == 1
    assert discarded(keeping.pool) == {}
    assert not caplog.records


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_deferred_discard_closes_a_connection_due_for_a_ping_and_others_are_still_pinged(
    clock: Clock, has_begun: bool
) -> None:
    keeping = Keeping(clock, max_connections=2)
    first, _ = keeping.fill(2)
    clock.advance(INTERVAL)
    entry = state_of(keeping.pool).idle[0]
    keepalive = keepalive_of(keeping.pool)
    keepalive.ping_due()
    if has_begun:
        settle()
    discard_late(keeping.pool, entry, entry.generation)
    keeping.lets.set()
    eventually(lambda: not first.is_open)
    settle()
    assert keeping.pinged == [0, 1][not has_begun :]
    assert numbers(keeping.pool) == (0, 1, 0, 0)
    clock.advance(INTERVAL)
    look(keeping.pool)
    assert keeping.pinged[-2:] == [1, 1]


# Callers


def test_a_caller_without_another_connection_waits_for_the_ping(keeping: Keeping) -> None:
    client = keeping.begin_ping()
    waiting = spawn_acquire(keeping.pool)
    assert numbers(keeping.pool) == (0, 0, 0, 1)
    keeping.lets.set()
    assert waiting.get(timeout=PATIENCE) is client
    assert len(keeping.connector.clients) == 1


def test_a_caller_does_not_wait_for_a_ping_if_it_can_get_another_connection(clock: Clock) -> None:
    keeping = Keeping(clock, max_connections=3)
    _, second = keeping.fill(2)
    clock.advance(INTERVAL)
    look(keeping.pool)
    assert keeping.pool.acquire(timeout=0) is second
    assert keeping.pool.acquire() is keeping.connector.clients[2], "another is opened"
    assert keeping.pinged == [0]


@pytest.mark.parametrize("ping", [lambda client: gevent.sleep(100), swallow], ids=["hangs", "swallows"])
def test_a_caller_waits_for_one_ping_at_most_and_no_longer_than_ping_timeout(
    clock: Clock, ping: Callable[[Client], None], caplog: pytest.LogCaptureFixture
) -> None:
    keeping = Keeping(clock, ping_timeout=0.01, acquire_timeout=None, close_timeout=0.01)
    keeping.connector.acts["ping"] = ping
    (client,) = keeping.fill(1)
    clock.advance(INTERVAL)
    look(keeping.pool)
    waiting = spawn_acquire(keeping.pool)
    other = waiting.get(timeout=PATIENCE)
    assert other is not client
    assert pings(keeping.connector) == 1
    eventually(lambda: not client.is_open)
    assert discarded(keeping.pool) == {"not_pinged": 1}
    assert f"pinging {client!r} took longer than 0.01 s" in caplog.text
    keeping.pool.release(other)
    check_whole(keeping.pool, keeping.connector)


def test_waiters_for_a_ping_are_served_in_order_before_a_newcomer(keeping: Keeping) -> None:
    keeping.begin_ping()
    served: list[str] = []

    def use(name: str) -> None:
        with keeping.pool.connection():
            served.append(name)
            gevent.sleep(0)

    waiting = [gevent.spawn(use, name) for name in ("first", "second")]
    settle()
    keeping.lets.set()
    # It comes in the very turn in which the ping ends.
    eventually(lambda: keeping.pool.stats().resetting == 0)
    newcomer = gevent.spawn(use, "newcomer")
    gevent.joinall([*waiting, newcomer], raise_error=True)
    assert served == ["first", "second", "newcomer"]


@pytest.mark.parametrize("how", ["kill", "timeout", "acquire_timeout"])
def test_a_waiter_that_gives_up_during_a_ping_leaves_the_connection_idle(keeping: Keeping, how: str) -> None:
    client = keeping.begin_ping()
    if how == "kill":
        spawn_acquire(keeping.pool).kill()
    elif how == "timeout":
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
            keeping.pool.acquire()
    else:
        # By the pool's clock, which stands still.
        waiting = spawn_acquire(keeping.pool, timeout=0.01)
        keeping.clock.advance(1)
        with pytest.raises(PoolExhaustedError, match="1 resetting"):
            waiting.get(timeout=PATIENCE)
    keeping.lets.set()
    eventually(lambda: numbers(keeping.pool) == (0, 1, 0, 0))
    assert keeping.pool.acquire() is client


# What a ping comes to


@pytest.mark.parametrize("kind", errors())
@pytest.mark.parametrize("waiters", [0, 1])
def test_a_connection_whose_ping_raises_is_discarded(
    clock: Clock, kind: Callable[[], BaseException], waiters: int, caplog: pytest.LogCaptureFixture
) -> None:
    error = kind()
    keeping = Keeping(clock)

    def fail(client: Client) -> None:
        keeping.lets.wait()
        raise error

    keeping.connector.acts["ping"] = fail
    (client,) = keeping.fill(1)
    clock.advance(INTERVAL)
    look(keeping.pool)
    waiting = [spawn_acquire(keeping.pool) for _ in range(waiters)]
    keeping.lets.set()
    for greenlet in waiting:
        other = greenlet.get(timeout=PATIENCE)
        assert other is not client
        keeping.pool.release(other)
    eventually(lambda: not client.is_open)
    assert discarded(keeping.pool) == {"not_pinged": 1}
    assert (f"pinging {client!r} failed" in caplog.text) is not isinstance(error, gevent.GreenletExit)
    assert keeping.connector.steps == ["ping", "close"], "there is nothing to cancel"
    check_whole(keeping.pool, keeping.connector)


@pytest.mark.parametrize("kind", errors())
@pytest.mark.parametrize("untold", [False, True])
@pytest.mark.parametrize("step", ["is_settled", "is_reusable", "complete"])
def test_a_connection_that_fails_a_step_after_its_ping_is_discarded(
    clock: Clock, kind: Callable[[], BaseException], step: str, untold: bool
) -> None:
    keeping = Keeping(clock)
    act = (lambda client: Untold(kind())) if untold and step != "complete" else raising(kind())
    keeping.connector.acts["ping"] = lambda client: keeping.connector.acts.update({step: act})
    (client,) = keeping.fill(1)
    clock.advance(INTERVAL)
    look(keeping.pool)
    eventually(lambda: not client.is_open)
    assert discarded(keeping.pool) == {"not_pinged": 1}
    check_whole(keeping.pool, keeping.connector)


def test_a_backend_that_fails_many_pings_is_logged_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    keeping = Keeping(clock, max_connections=5)
    keeping.connector.acts["ping"] = raising(ConnectionError("dropped"))
    keeping.fill(5)
    clock.advance(INTERVAL)
    look(keeping.pool)
    assert discarded(keeping.pool) == {"not_pinged": 5}
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


@pytest.mark.parametrize("turns", [0, 1, 2], ids=["before it begins", "as it begins", "under way"])
def test_a_killed_ping_discards_its_connection_and_the_next_connection_is_pinged(clock: Clock, turns: int) -> None:
    keeping = Keeping(clock, max_connections=2)
    first, _ = keeping.fill(2)
    clock.advance(INTERVAL)
    killed = []

    def kill() -> None:
        for greenlet in upkeep_of(keeping.pool):
            greenlet.kill(block=False)
            killed.append(greenlet)

    keepalive = keepalive_of(keeping.pool)
    keepalive.ping_due()
    gevent.get_hub().loop.run_callback(kill)
    for _ in range(turns):
        gevent.sleep(0)
    if not killed:
        kill()
    eventually(lambda: not first.is_open)
    assert discarded(keeping.pool) == {"not_pinged": 1}
    eventually(lambda: keeping.pinged == [0, 1])
    keeping.lets.set()
    settle()
    check_whole(keeping.pool, keeping.connector)


def test_a_connection_whose_ping_fails_is_replaced_to_keep_min_connections(clock: Clock) -> None:
    keeping = Keeping(clock, min_connections=1)
    keeping.pool.wait_ready(timeout=PATIENCE)
    keeping.connector.acts["ping"] = raising(ConnectionError("dropped"))
    clock.advance(INTERVAL)
    look(keeping.pool)
    eventually(lambda: numbers(keeping.pool) == (0, 1, 0, 0) and not keeping.connector.clients[0].is_open)


@pytest.mark.parametrize("what", ["is closed", "has something to read"])
def test_a_dead_connection_or_one_with_a_stray_reply_is_not_pinged(
    clock: Clock, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The reply would be taken for that of the ping, and that one for the next caller's."""
    keeping = keeping_all(clock)
    (client,) = keeping.fill(1)
    clock.advance(INTERVAL)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"stray")
        keeping.connector.acts["peek_target"] = lambda client: -1 if what == "is closed" else ours
        look(keeping.pool)
    assert keeping.pinged == []
    eventually(lambda: not client.is_open)
    assert discarded(keeping.pool) == {"unusable": 1}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("reset", ["unsettled", "always", "never"])
def test_work_left_open_by_a_ping_is_completed(clock: Clock, reset: str) -> None:
    keeping = Keeping(clock, reset=reset)
    (client,) = keeping.fill(1)
    settle()
    keeping.connector.steps.clear()
    keeping.connector.acts["ping"] = Client.begin
    clock.advance(INTERVAL)
    look(keeping.pool)
    assert keeping.connector.steps == ["ping", "complete"]
    assert not client.is_begun
    assert numbers(keeping.pool) == (0, 1, 0, 0)


@pytest.mark.parametrize("reset", ["unsettled", "never"])
def test_a_connection_that_stays_unsettled_after_a_ping_is_discarded_unless_reset_is_never(
    clock: Clock, reset: str, caplog: pytest.LogCaptureFixture
) -> None:
    keeping = Keeping(clock, reset=reset)
    keeping.connector.acts.update(ping=Client.begin, complete=lambda client: None)
    (client,) = keeping.fill(1)
    clock.advance(INTERVAL)
    look(keeping.pool)
    assert discarded(keeping.pool) == ({} if reset == "never" else {"not_pinged": 1})
    assert (f"{client!r} was pinged, and still can't be used again" in caplog.text) is (reset != "never")


def test_listeners_hear_of_a_discarded_connection_but_not_of_pings(clock: Clock) -> None:
    heard: list[str] = []

    class Listening(PoolEvents):
        def acquired(self, lease: Any) -> None:
            heard.append("acquired")

        def released(self, pool: Pool[Any], connection: Any) -> None:
            heard.append("released")

        def closed(self, pool: Pool[Any], connection: Any, reason: str) -> None:
            heard.append(f"closed: {reason}")

    keeping = keeping_all(clock, events=Listening())
    keeping.fill(1)
    clock.advance(INTERVAL)
    look(keeping.pool)
    assert keeping.pinged == [0]
    assert heard == ["acquired", "released"]
    keeping.connector.acts["ping"] = raising(ValueError("boom"))
    clock.advance(INTERVAL)
    look(keeping.pool)
    assert heard == ["acquired", "released", "closed: not_pinged"]


# A ping is no use


def test_a_ping_does_not_extend_idle_timeout(clock: Clock) -> None:
    keeping = keeping_all(clock, idle_timeout=100)
    (client,) = keeping.fill(1)
    clock.advance(99)
    look(keeping.pool)
    sweep(keeping.pool)
    assert client.is_open
    clock.advance(1)
    look(keeping.pool)
    assert keeping.pinged == [0], "it is not pinged once its time is up"
    sweep(keeping.pool)
    eventually(lambda: not client.is_open)
    assert keeping.pool.stats().retired == {"idle": 1}


def test_a_pinged_connection_keeps_its_place_among_idle_connections(clock: Clock) -> None:
    keeping = keeping_all(clock, max_connections=3)
    clients = keeping.fill(3)
    # The first two of them.
    clock.advance(INTERVAL - 1)
    look(keeping.pool)
    assert keeping.pinged == [0, 1]
    assert [keeping.pool.acquire() for _ in range(3)] == clients[::-1]


def test_the_connection_used_last_is_acquired_first_even_after_a_ping_of_another(clock: Clock) -> None:
    keeping = Keeping(clock, max_connections=3)
    first, second, third = keeping.fill(3)
    clock.advance(INTERVAL - 2)
    look(keeping.pool)
    assert keeping.pool.acquire() is third
    assert keeping.pool.acquire() is second
    keeping.pool.release(second)
    keeping.pool.release(third)
    keeping.lets.set()
    settle()
    taken = [keeping.pool.acquire() for _ in range(3)]
    assert [client.number for client in taken] == [third.number, second.number, first.number]


# What comes at its end


def test_a_connection_whose_lifetime_ends_during_its_ping_is_retired(clock: Clock) -> None:
    keeping = Keeping(clock, max_lifetime=100)
    client = keeping.begin_ping()
    clock.advance(100)
    sweep(keeping.pool)
    assert keeping.pool.stats().resetting == 1
    keeping.lets.set()
    eventually(lambda: not client.is_open)
    assert keeping.pool.stats().retired == {"lifetime": 1}


@pytest.mark.parametrize("waits", [False, True])
def test_a_connection_drained_during_its_ping_is_retired(keeping: Keeping, waits: bool) -> None:
    client = keeping.begin_ping()
    waiting = [spawn_acquire(keeping.pool) for _ in range(waits)]
    keeping.pool.drain()
    assert client.is_open
    keeping.lets.set()
    for greenlet in waiting:
        assert greenlet.get(timeout=PATIENCE) is not client
    eventually(lambda: not client.is_open)
    assert keeping.pool.stats().retired == {"drain": 1}


def test_a_connection_above_a_lowered_limit_is_retired_after_its_ping(clock: Clock) -> None:
    keeping = Keeping(clock, max_connections=2)
    client, _ = keeping.fill(2)
    held = keeping.pool.acquire()
    clock.advance(INTERVAL)
    look(keeping.pool)
    keeping.pool.resize(1)
    assert client.is_open
    keeping.lets.set()
    eventually(lambda: not client.is_open)
    assert keeping.pool.stats().retired == {"surplus": 1}
    keeping.pool.release(held)
    assert keeping.pool.size == 1


# The end of the pool


@pytest.mark.parametrize("has_begun", [False, True])
@pytest.mark.parametrize("timeout", [0, PATIENCE])
def test_closing_the_pool_cuts_a_ping_short(clock: Clock, timeout: float, has_begun: bool) -> None:
    keeping = Keeping(clock, max_connections=2)
    clients = keeping.fill(2)
    clock.advance(INTERVAL)
    keepalive = keepalive_of(keeping.pool)
    keepalive.ping_due()
    if has_begun:
        settle()
    keeping.pool.close(timeout=timeout)
    assert not any(client.is_open for client in clients)
    assert keeping.pool.size == 0
    assert keeping.pool.stats().resetting == 0
    assert discarded(keeping.pool) == {"not_pinged": 1}
    assert keeping.pool.stats().retired == {"closed": 1}
    keeping.lets.set()
    settle()
    assert numbers(keeping.pool) == (0, 0, 0, 0)
    assert keeping.pinged == [0] * has_begun
    assert not has_timer(keepalive)
    with pytest.raises(PoolClosedError):
        keeping.pool.acquire()


def test_closing_the_pool_does_not_wait_for_a_ping_that_ignores_interruptions(clock: Clock) -> None:
    over = Event()

    def ping(client: Client) -> None:
        while not over.is_set():
            with contextlib.suppress(BaseException):
                over.wait()

    keeping = Keeping(clock)
    keeping.connector.acts["ping"] = ping
    (client,) = keeping.fill(1)
    clock.advance(INTERVAL)
    look(keeping.pool)
    keeping.pool.close()
    assert not client.is_open
    assert keeping.pool.size == 0
    over.set()
    settle()
    assert keeping.connector.steps.count("close") == 1


def test_closing_the_pool_in_the_event_loop_closes_a_connection_being_pinged(keeping: Keeping) -> None:
    client = keeping.begin_ping()
    gevent.get_hub().loop.run_callback(keeping.pool.close)
    eventually(lambda: not client.is_open)
    assert keeping.pool.size == 0


def test_a_fork_ends_a_ping_in_the_child_and_the_parent_notices_nothing(
    keeping: Keeping, caplog: pytest.LogCaptureFixture
) -> None:
    client = keeping.begin_ping()
    waiting = spawn_acquire(keeping.pool)
    before = repr(keeping.pool)

    def child() -> None:
        caplog.clear()
        assert keeping.pool.stats().resetting == 0
        assert not client.is_open
        other = waiting.get(timeout=PATIENCE)
        assert other is not client
        keeping.lets.set()
        settle()
        assert numbers(keeping.pool) == (1, 0, 0, 0)
        assert "close" not in keeping.connector.steps
        keeping.pool.release(other)
        keeping.clock.advance(INTERVAL)
        look(keeping.pool)
        assert keeping.pinged == [client.number, other.number]
        assert not caplog.records
        keeping.pool.close()

    in_gevents_child(child)
    assert repr(keeping.pool) == before
    keeping.lets.set()
    assert waiting.get(timeout=PATIENCE) is client
    assert discarded(keeping.pool) == {}


def test_a_child_pings_no_connection_that_its_parent_was_about_to_ping(keeping: Keeping) -> None:
    keeping.lets.set()
    (client,) = keeping.fill(1)
    keeping.clock.advance(INTERVAL)
    keepalive = keepalive_of(keeping.pool)
    keepalive.ping_due()

    def child() -> None:
        settle()
        assert keeping.pinged == []
        assert keeping.connector.steps == ["abort"]
        assert keeping.pool.acquire() is not client

    in_gevents_child(child)
    settle()
    assert keeping.pinged == [0]
    assert keeping.pool.acquire() is client


def test_a_child_has_a_timer_of_its_own() -> None:
    connector = ScriptedConnector()
    pool = Pool(connector, keepalive_interval=0.02)
    client = pool.acquire()
    pool.release(client)
    keepalive = keepalive_of(pool)

    def child() -> None:
        assert not has_timer(keepalive)
        # The copy of the parent's would have come by then.
        gevent.sleep(0.05)
        assert connector.steps == ["abort"]
        pool.release(pool.acquire())
        eventually(lambda: pings(connector) > 1)

    in_gevents_child(child)
    eventually(lambda: pings(connector) > 1)
    assert client.is_open
    pool.close()


@pytest.mark.parametrize("when", ["idle", "due", "under way"])
def test_a_collected_pool_leaves_no_connection_open(clock: Clock, when: str) -> None:
    """However long the ping would take."""
    connector = ScriptedConnector(ping=lambda client: gevent.sleep(100))
    pool = Pool(connector, clock=clock, keepalive_interval=0.01 if when == "idle" else INTERVAL, ping_timeout=100)
    reference = weakref.ref(pool)
    client = pool.acquire()
    pool.release(client)
    keepalive = keepalive_of(pool)
    if when != "idle":
        clock.advance(INTERVAL)
        keepalive.ping_due()
    if when == "under way":
        settle()
        assert connector.steps == ["ping"]
    del pool
    gc.collect()
    assert reference() is None
    eventually(lambda: not client.is_open)
    assert connector.steps == ["ping"] * (when == "under way") + ["close"]
    assert not has_timer(keepalive)


@pytest.mark.parametrize("is_under_way", [False, True])
def test_a_thread_that_ends_leaves_no_connection_open(is_under_way: bool) -> None:
    connector = ScriptedConnector(ping=lambda client: gevent.sleep(100))
    pools: list[Pool[Client]] = []

    def own() -> None:
        interval = 0.001 if is_under_way else INTERVAL
        pool = Pool(connector, reap_expired_connections=False, keepalive_interval=interval)
        pools.append(pool)
        pool.release(pool.acquire())
        if is_under_way:
            eventually(lambda: connector.steps == ["ping"])
        del pool
        end_event_loop()

    thread = threading.Thread(target=own)
    thread.start()
    thread.join(PATIENCE)
    gc.collect()
    assert connector.clients
    assert not connector.open
    pools.clear()
    gc.collect()
    assert pings(connector) == is_under_way


# What can be pinged


class Pinging(ScriptedConnection):
    def ping(self) -> None:
        self.backend.checks.wait()
        if self.backend.answer is not True:
            raise self.backend.answer
        self.pings = self.__dict__.get("pings", 0) + 1


def make_pinging(backend: Backend) -> Callable[[], Pinging]:
    def make() -> Pinging:
        connection = Pinging(backend, {})
        backend.connections.append(connection)
        return connection

    return make


def test_a_connection_is_pinged_inside_the_context_of_the_pool(backend: Backend, clock: Clock) -> None:
    entered: list[str] = []

    @contextmanager
    def context() -> Iterator[None]:
        entered.append("context")
        yield

    pool = Pool(make_pinging(backend), clock=clock, keepalive_interval=INTERVAL, context=context)
    connection = pool.acquire()
    pool.release(connection)
    clock.advance(INTERVAL)
    entered.clear()
    look(pool)
    assert connection.pings == 1
    assert entered == ["context"]
    backend.answer = ConnectionError("dropped")
    clock.advance(INTERVAL)
    look(pool)
    assert pool.stats().discarded == {"not_pinged": 1}


def test_a_connection_whose_ping_raises_is_discarded_even_if_the_context_suppresses_the_error(clock: Clock) -> None:
    connector = ScriptedConnector(ping=raising(LookupError("boom")))
    context = lambda: contextlib.suppress(LookupError)  # noqa: E731
    pool = Pool(connector, clock=clock, keepalive_interval=INTERVAL, context=context)
    pool.release(pool.acquire())
    clock.advance(INTERVAL)
    look(pool)
    assert discarded(pool) == {"not_pinged": 1}


class Old(Foreign):
    """A connection of gsocketpool 0.1.6, whose ping() may mean anything."""

    def ping(self) -> None:
        raise AssertionError("it was asked for something that is not the pool's to ask for")


@pytest.mark.parametrize("kind", [Plain, Old])
def test_a_class_without_a_ping_is_logged_once(
    kind: Callable[[], Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(kind, clock=clock, keepalive_interval=INTERVAL, name="old")
    connections = [pool.acquire() for _ in range(3)]
    for connection in connections:
        pool.release(connection)
    (record,) = [record for record in caplog.records if "keepalive_interval" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert "of pool 'old': its class has no ping()" in record.getMessage()
    clock.advance(INTERVAL)
    keepalive = keepalive_of(pool)
    keepalive.ping_due()
    assert numbers(pool) == (0, 3, 0, 0)


def test_a_class_with_a_ping_and_a_pool_without_an_interval_log_nothing(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    Pool(make_pinging(backend), keepalive_interval=INTERVAL).acquire()
    Pool(Plain).acquire()
    settle()
    assert not caplog.records


def test_a_connector_without_a_ping_is_refused() -> None:
    class Silent(ScriptedConnector):
        ping = ScriptedConnector.__mro__[1].ping  # type: ignore[attr-defined]

    with pytest.raises(InvalidArgumentError, match=r"keepalive_interval must be None for a connector without a ping"):
        Pool(Silent(), keepalive_interval=INTERVAL)
    Pool(Silent())


@pytest.mark.parametrize("given", [0, -1, "1", True, float("inf"), float("nan")])
def test_a_wrong_interval_is_refused(given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="keepalive_interval must be a number of seconds above 0, or None"):
        Pool(Plain, keepalive_interval=given)


def test_a_connection_that_a_factory_returns_twice_can_be_pinged(clock: Clock) -> None:
    """A factory may return one twice."""
    client = Client(0)

    class Same(ScriptedConnector):
        def connect(self) -> Client:
            return client

    connector = Same()
    pool = Pool(connector, clock=clock, max_connections=2, keepalive_interval=INTERVAL)
    for taken in [pool.acquire(), pool.acquire()]:
        pool.release(taken)
    clock.advance(INTERVAL)
    look(pool)
    assert connector.steps == ["ping", "complete"] * 2
    assert numbers(pool) == (0, 2, 0, 0)


# A real server


def of_this_client(server: Any, name: str) -> dict[str, str] | None:
    """Return what the server says of the client with a name."""
    for line in server.execute_command("CLIENT LIST"):
        if line["name"] == name:
            return dict(line)
    return None


@pytest.mark.patched
def test_an_idle_connection_to_valkey_is_pinged(valkey_url: str) -> None:
    with (
        valkey.Valkey.from_url(valkey_url) as server,
        Pool(ValkeyConnector(valkey_url, client_name="kept"), keepalive_interval=0.05) as pool,
    ):
        with pool.connection() as client:
            client.set("kept", 1)
            number = client.client_id()
        eventually(lambda: (of_this_client(server, "kept") or {}).get("cmd") == "ping")
        with pool.connection() as client:
            assert client.client_id() == number
        assert pool.stats().discarded == {}


@pytest.mark.torture
@pytest.mark.patched
def test_valkey_drops_a_silent_connection_and_keeps_a_pinged_one(valkey_url: str) -> None:
    with (
        valkey.Valkey.from_url(valkey_url) as server,
        Pool(ValkeyConnector(valkey_url, client_name="kept"), keepalive_interval=0.3) as kept,
        Pool(ValkeyConnector(valkey_url, client_name="dropped")) as dropped,
    ):
        server.config_set("timeout", 1)
        try:
            numbers_before = []
            for pool in (kept, dropped):
                with pool.connection() as client:
                    numbers_before.append(client.client_id())
            eventually(lambda: of_this_client(server, "dropped") is None)
            # As long again.
            gevent.sleep(2)
            for pool, number, is_kept in zip((kept, dropped), numbers_before, (True, False), strict=True):
                with pool.connection() as client:
                    assert (client.client_id() == number) is is_kept
        finally:
            server.config_set("timeout", 0)
