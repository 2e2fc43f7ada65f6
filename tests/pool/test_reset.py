"""A connection that comes back unsettled is reset before its next use, or discarded."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import ConnectionNotFoundError, Pool, PoolClosedError, PoolEvents, PoolExhaustedError
from tests.support.connections import no_hanging as no_hanging
from tests.support.connections import without_switching
from tests.support.garbage import at_line, only_new_garbage
from tests.support.garbage import errors_behind as errors_behind
from tests.support.internals import discard_late, is_changing, lease_record, state_of, sweep, upkeep_of
from tests.support.processes import in_gevents_child
from tests.support.scripted import (
    PATIENCE,
    Client,
    Clock,
    Plain,
    ScriptedConnector,
    Untold,
    end_event_loop,
    eventually,
    numbers,
    raising,
    settle,
    spawn_acquire,
)
from tests.support.threads import in_thread
from tests.support.upkeep import BoomError, check_whole, discarded, errors, swallow


class Stalling:
    """A pool whose resets end when they are let."""

    def __init__(self, **settings: Any) -> None:
        self.lets = Event()
        self.connector = ScriptedConnector(reset=self.reset)
        clock = settings.pop("clock", None)
        self.pool: Pool[Client] = Pool(self.connector, clock=clock, **{"max_connections": 1, **settings})

    def reset(self, client: Client) -> None:
        self.lets.wait()
        client.is_begun = False

    def begin_reset(self) -> Client:
        """Have a connection reset, which has begun when this returns."""
        client = self.pool.acquire()
        client.begin()
        self.pool.release(client)
        settle()
        assert self.connector.steps[-1] == "reset"
        assert self.pool.stats().resetting == 1
        return client


@pytest.fixture
def stalling() -> Stalling:
    return Stalling()


def begun(pool: Pool[Client]) -> Client:
    client = pool.acquire()
    client.begin()
    return client


# A state of its own


def test_an_unsettled_connection_is_reset_before_its_next_use(stalling: Stalling) -> None:
    client = stalling.begin_reset()
    stats = stalling.pool.stats()
    assert (stats.idle, stats.in_use, stats.opening, stats.resetting) == (0, 0, 0, 1)
    assert stalling.pool.size == 1
    assert "0 in use, 0 idle, 0 opening, 1 resetting, at most 1" in repr(stalling.pool)
    assert stats.as_dict()["resetting"] == 1
    with pytest.raises(PoolExhaustedError, match="1 resetting"):
        stalling.pool.acquire(timeout=0)
    stalling.lets.set()
    assert stalling.pool.acquire() is client
    assert not client.is_begun
    assert stalling.pool.stats().resetting == 0
    assert len(stalling.connector.clients) == 1


def test_a_settled_connection_is_not_reset() -> None:
    connector = ScriptedConnector()
    pool = Pool(connector)
    pool.release(pool.acquire())
    with pool.connection() as client:
        client.begin()
    assert numbers(pool) == (0, 1, 0, 0)
    assert connector.steps == ["complete"]


def test_a_connection_being_reset_counts_towards_the_limit() -> None:
    stalling = Stalling(max_connections=2)
    stalling.begin_reset()
    other = stalling.pool.acquire()
    waiting = spawn_acquire(stalling.pool)
    assert numbers(stalling.pool) == (1, 0, 0, 1)
    assert len(stalling.connector.clients) == 2
    stalling.pool.release(other)
    assert waiting.get() is other


@pytest.mark.parametrize("name", ["release", "discard", "detach", "drop"])
def test_a_connection_being_reset_can_not_be_given_back(stalling: Stalling, name: str) -> None:
    client = stalling.begin_reset()
    before = stalling.pool.stats()
    with pytest.raises(ConnectionNotFoundError):
        getattr(stalling.pool, name)(client)
    assert stalling.pool.stats() == before
    stalling.lets.set()
    assert stalling.pool.acquire() is client


@pytest.mark.parametrize("act", ["release", "discard", "transfer", "connection", "is_settled"])
def test_the_lease_of_a_connection_being_reset_is_over(stalling: Stalling, act: str) -> None:
    lease = stalling.pool.lease()
    client = lease.connection
    client.begin()
    lease.release()
    settle()
    assert not lease.is_active
    with pytest.raises(ConnectionNotFoundError):
        # Two of them are properties.
        getattr(lease, act)()
    stalling.lets.set()
    assert stalling.pool.acquire() is client
    assert not lease.is_active


def test_a_deferred_discard_does_not_affect_a_connection_being_reset(stalling: Stalling) -> None:
    lease = stalling.pool.lease()
    lease.connection.begin()
    leased = lease_record(lease)
    lease.release()
    discard_late(stalling.pool, *leased)
    settle()
    assert stalling.pool.stats().resetting == 1


def test_a_connection_being_reset_has_no_holder_that_can_die(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    stalling = Stalling(clock=clock, leak_threshold=10, reap_expired_connections=False)

    def use() -> None:
        lease = stalling.pool.lease()
        lease.connection.begin()
        lease.release(warn=False)

    gevent.spawn(use).join()
    settle()
    gc.collect()
    clock.advance(100)
    sweep(stalling.pool)
    sweep(stalling.pool)
    assert stalling.pool.stats().resetting == 1
    assert stalling.pool.stats().discarded == {}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_use_time_ends_when_the_reset_begins(clock: Clock) -> None:
    stalling = Stalling(clock=clock)
    client = begun(stalling.pool)
    clock.advance(3)
    stalling.pool.release(client)
    settle()
    clock.advance(5)
    stalling.lets.set()
    settle()
    assert stalling.pool.stats().use_time == 3


# The order


def test_waiters_for_a_reset_are_served_in_order_before_a_newcomer(stalling: Stalling) -> None:
    stalling.begin_reset()
    served: list[str] = []

    def use(name: str) -> None:
        with stalling.pool.connection():
            served.append(name)
            gevent.sleep(0)

    waiting = [gevent.spawn(use, name) for name in ("first", "second")]
    settle()
    stalling.lets.set()
    # It comes in the very turn in which the reset ends.
    eventually(lambda: stalling.pool.stats().resetting == 0)
    newcomer = gevent.spawn(use, "newcomer")
    gevent.joinall([*waiting, newcomer], raise_error=True)
    assert served == ["first", "second", "newcomer"]


def test_a_connection_is_handed_over_in_the_turn_in_which_its_reset_ends(stalling: Stalling) -> None:
    client = stalling.begin_reset()
    waiting = spawn_acquire(stalling.pool)
    stalling.lets.set()
    eventually(lambda: stalling.pool.stats().resetting == 0)
    assert numbers(stalling.pool) == (1, 0, 0, 0)
    with pytest.raises(PoolExhaustedError):
        stalling.pool.acquire(timeout=0)
    assert waiting.get() is client


def test_a_waiter_killed_during_a_reset_leaves_the_connection_idle(stalling: Stalling) -> None:
    stalling.begin_reset()
    waiting = spawn_acquire(stalling.pool)
    waiting.kill()
    stalling.lets.set()
    eventually(lambda: numbers(stalling.pool) == (0, 1, 0, 0))


# What a reset comes to


@pytest.mark.parametrize("kind", errors())
@pytest.mark.parametrize("waiters", [0, 1])
def test_a_connection_whose_reset_raises_is_discarded(
    kind: Callable[[], BaseException], waiters: int, caplog: pytest.LogCaptureFixture
) -> None:
    error = kind()
    connector = ScriptedConnector(reset=raising(error))
    pool = Pool(connector, max_connections=1)
    client = begun(pool)
    waiting = [spawn_acquire(pool) for _ in range(waiters)]
    pool.release(client)
    for greenlet in waiting:
        other = greenlet.get()
        assert other is not client
        pool.release(other)
    eventually(lambda: not client.is_open)
    assert discarded(pool) == {"not_reset": 1}
    said = f"resetting {client!r} failed" in caplog.text
    assert said is not isinstance(error, gevent.GreenletExit)
    check_whole(pool, connector)


@pytest.mark.parametrize("kind", errors())
@pytest.mark.parametrize("untold", [False, True])
@pytest.mark.parametrize("step", ["is_settled", "is_reusable"])
def test_a_connection_that_fails_a_check_after_its_reset_is_discarded(
    kind: Callable[[], BaseException], step: str, untold: bool
) -> None:
    error = kind()
    connector = ScriptedConnector()
    pool = Pool(connector, max_connections=1)

    def reset(client: Client) -> None:
        client.is_begun = False
        connector.acts[step] = (lambda client: Untold(error)) if untold else raising(error)

    connector.acts["reset"] = reset
    client = begun(pool)
    pool.release(client)
    eventually(lambda: not client.is_open)
    assert discarded(pool) == {"not_reset": 1}
    check_whole(pool, connector)


def test_a_connection_that_is_unsettled_after_its_reset_is_discarded_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connector = ScriptedConnector(reset=lambda client: None)
    pool = Pool(connector, max_connections=1)
    client = begun(pool)
    pool.release(client)
    eventually(lambda: not client.is_open)
    assert discarded(pool) == {"not_reset": 1}
    assert f"{client!r} was reset, and still can't be used again" in caplog.text
    check_whole(pool, connector)


@pytest.mark.parametrize("reset", [lambda client: gevent.sleep(100), swallow], ids=["hangs", "swallows"])
def test_a_connection_whose_reset_takes_too_long_is_discarded(
    reset: Callable[[Client], None], caplog: pytest.LogCaptureFixture
) -> None:
    connector = ScriptedConnector(reset=reset)
    pool = Pool(connector, max_connections=1, reset_timeout=0.01)
    client = begun(pool)
    pool.release(client)
    eventually(lambda: not client.is_open)
    assert discarded(pool) == {"not_reset": 1}
    assert "took longer than 0.01 s" in caplog.text
    check_whole(pool, connector)


class BlockingHandler(logging.Handler):
    """Blocks in the greenlet that logs, until that is let or killed."""

    def __init__(self) -> None:
        super().__init__()
        self.lets = Event()
        self.greenlets: list[gevent.Greenlet] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.greenlets.append(gevent.getcurrent())
        self.lets.wait()


@pytest.mark.parametrize("end", ["let", "killed"])
def test_a_failed_reset_makes_room_before_it_is_logged(end: str, caplog: pytest.LogCaptureFixture) -> None:
    connector = ScriptedConnector(reset=raising(OSError("gone")))
    pool = Pool(connector, max_connections=1)
    handler = BlockingHandler()
    logger = logging.getLogger("gsocketpool")
    logger.addHandler(handler)
    try:
        pool.release(begun(pool))
        eventually(lambda: handler.greenlets)
        assert discarded(pool) == {"not_reset": 1}
        # With the log still blocked.
        check_whole(pool, connector)
        if end == "killed":
            handler.greenlets[0].kill(timeout=PATIENCE)
        handler.lets.set()
        settle()
    finally:
        logger.removeHandler(handler)
    assert discarded(pool) == {"not_reset": 1}
    check_whole(pool, connector)


@pytest.mark.parametrize("turns", [0, 1, 2], ids=["before it begins", "as it begins", "under way"])
def test_a_connection_whose_reset_is_killed_is_discarded(stalling: Stalling, turns: int) -> None:
    client = begun(stalling.pool)
    stalling.pool.release(client)
    killed = []

    def kill() -> None:
        for greenlet in upkeep_of(stalling.pool):
            greenlet.kill(block=False)
            killed.append(greenlet)

    gevent.get_hub().loop.run_callback(kill)
    for _ in range(turns):
        gevent.sleep(0)
    kill()
    eventually(lambda: killed and not client.is_open)
    assert discarded(stalling.pool) == {"not_reset": 1}
    stalling.lets.set()
    check_whole(stalling.pool, stalling.connector)


@pytest.mark.parametrize("has_begun", [False, True])
@pytest.mark.parametrize("timeout", [0, PATIENCE])
def test_closing_the_pool_discards_a_connection_being_reset(
    stalling: Stalling, timeout: float, has_begun: bool
) -> None:
    client = begun(stalling.pool)
    stalling.pool.release(client)
    if has_begun:
        settle()
    stalling.pool.close(timeout=timeout)
    assert not client.is_open
    assert stalling.pool.size == 0
    assert stalling.pool.stats().resetting == 0
    assert discarded(stalling.pool) == {"not_reset": 1}
    settle()
    assert numbers(stalling.pool) == (0, 0, 0, 0)
    if not has_begun:
        assert "reset" not in stalling.connector.steps
    with pytest.raises(PoolClosedError):
        stalling.pool.acquire()


def test_closing_the_pool_does_not_wait_for_a_reset_that_ignores_interruptions() -> None:
    over = Event()

    def reset(client: Client) -> None:
        while not over.is_set():
            with contextlib.suppress(BaseException):
                over.wait()

    connector = ScriptedConnector(reset=reset)
    pool = Pool(connector)
    client = begun(pool)
    pool.release(client)
    settle()
    pool.close()
    assert not client.is_open
    assert pool.size == 0
    over.set()
    settle()
    assert connector.steps.count("close") == 1


def test_closing_the_pool_in_the_event_loop_closes_a_connection_being_reset(stalling: Stalling) -> None:
    client = stalling.begin_reset()
    gevent.get_hub().loop.run_callback(stalling.pool.close)
    eventually(lambda: not client.is_open)
    assert stalling.pool.size == 0


def test_a_fork_aborts_a_connection_being_reset_in_the_child_and_the_parent_notices_nothing(
    stalling: Stalling, caplog: pytest.LogCaptureFixture
) -> None:
    client = stalling.begin_reset()
    waiting = spawn_acquire(stalling.pool)
    before = repr(stalling.pool)

    def child() -> None:
        caplog.clear()
        assert stalling.pool.stats().resetting == 0
        assert not client.is_open
        assert stalling.connector.steps[-1] == "abort"
        other = waiting.get(timeout=PATIENCE)
        assert other is not client
        stalling.lets.set()
        settle()
        assert numbers(stalling.pool) == (1, 0, 0, 0)
        assert "close" not in stalling.connector.steps
        assert not caplog.records
        stalling.pool.release(other)
        stalling.pool.close()

    in_gevents_child(child)
    assert repr(stalling.pool) == before
    stalling.lets.set()
    assert waiting.get(timeout=PATIENCE) is client
    assert stalling.pool.stats().discarded == {}


def test_a_reset_that_has_not_begun_at_the_fork_runs_in_the_parent_only(stalling: Stalling) -> None:
    client = begun(stalling.pool)
    stalling.pool.release(client)

    def child() -> None:
        settle()
        assert "reset" not in stalling.connector.steps
        assert stalling.pool.acquire() is not client

    in_gevents_child(child)
    stalling.lets.set()
    assert stalling.pool.acquire() is client


def test_a_child_forked_during_a_reset_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Its descriptor was replaced under it, so that it may fail before it is ended."""
    failed = Event()

    def reset(client: Client) -> None:
        failed.wait()
        raise OSError("bad descriptor")

    connector = ScriptedConnector(reset=reset)
    pool = Pool(connector)
    client = begun(pool)
    pool.release(client)
    settle()

    def child() -> None:
        caplog.clear()
        settle()
        assert not caplog.records

    # It is woken in the turn of the fork.
    failed.set()
    in_gevents_child(child)
    eventually(lambda: not client.is_open)


def test_a_block_being_completed_at_the_fork_gives_nothing_back_in_the_child() -> None:
    lets = Event()
    connector = ScriptedConnector(complete=lambda client: lets.wait())
    pool = Pool(connector, max_connections=1)

    def use() -> Client:
        with pool.connection() as client:
            pass
        return client

    using = gevent.spawn(use)
    settle()
    (client,) = connector.clients

    def child() -> None:
        assert not client.is_open
        lets.set()
        assert using.get(timeout=PATIENCE) is client, "its block is over, and has nothing to give back"
        assert numbers(pool) == (0, 0, 0, 0)
        assert pool.acquire() is not client

    in_gevents_child(child)
    lets.set()
    assert using.get(timeout=PATIENCE) is client
    assert numbers(pool) == (0, 1, 0, 0)


def test_a_connection_being_cancelled_at_the_fork_is_closed_by_the_parent_only() -> None:
    lets = Event()
    connector = ScriptedConnector(cancel=lambda client: lets.wait())
    pool = Pool(connector)
    client = pool.acquire()
    pool.discard(client)
    settle()

    def child() -> None:
        assert not client.is_open
        assert pool.stats().closing == 0
        lets.set()
        settle()
        assert connector.steps == ["cancel", "abort"]

    in_gevents_child(child)
    assert pool.stats().closing == 1
    lets.set()
    eventually(lambda: connector.steps == ["cancel", "close"])


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_pool_collected_during_a_reset_leaves_no_connection_open(has_begun: bool) -> None:
    """However long the reset would take."""
    connector = ScriptedConnector(reset=lambda client: gevent.sleep(100))
    pool = Pool(connector, reset_timeout=100)
    reference = weakref.ref(pool)
    client = begun(pool)
    pool.release(client)
    if has_begun:
        settle()
        assert connector.steps == ["reset"]
    del pool
    gc.collect()
    assert reference() is None
    eventually(lambda: not client.is_open)
    assert connector.steps == ["reset"] * has_begun + ["cancel", "close"]


def test_a_pool_collected_in_a_thread_that_ends_leaves_no_connection_open() -> None:
    connector = ScriptedConnector(reset=lambda client: gevent.sleep(100))

    def own() -> None:
        pool = Pool(connector, reap_expired_connections=False)
        pool.release(begun(pool))
        settle()
        assert connector.steps == ["reset"]
        del pool
        end_event_loop()

    thread = threading.Thread(target=own)
    thread.start()
    thread.join(PATIENCE)
    gc.collect()
    assert connector.clients
    assert not connector.open


# What comes at its end


def test_a_connection_whose_lifetime_ends_during_its_reset_is_retired(clock: Clock) -> None:
    stalling = Stalling(clock=clock, max_lifetime=10, reap_expired_connections=False)
    stalling.pool.release(stalling.pool.acquire())
    client = stalling.begin_reset()
    clock.advance(20)
    sweep(stalling.pool)
    assert stalling.pool.stats().resetting == 1
    stalling.lets.set()
    eventually(lambda: not client.is_open)
    assert stalling.pool.stats().retired == {"lifetime": 1}
    assert "cancel" not in stalling.connector.steps


def test_a_connection_drained_during_its_reset_is_retired(stalling: Stalling) -> None:
    client = stalling.begin_reset()
    waiting = spawn_acquire(stalling.pool)
    stalling.pool.drain()
    assert client.is_open
    stalling.lets.set()
    assert waiting.get() is not client
    eventually(lambda: not client.is_open)
    assert stalling.pool.stats().retired == {"drain": 1}


@pytest.mark.parametrize("end", ["drain", "closed"])
def test_a_connection_that_must_be_retired_is_not_reset(end: str) -> None:
    stalling = Stalling()
    client = begun(stalling.pool)
    if end == "drain":
        stalling.pool.drain()
    else:
        closing = gevent.spawn(stalling.pool.close)
        settle()
    stalling.pool.release(client)
    if end == "drain":
        assert stalling.pool.acquire() is not client
    else:
        # The reset, which nothing lets end, would have been waited for.
        closing.get(timeout=PATIENCE)
    eventually(lambda: not client.is_open)
    assert "reset" not in stalling.connector.steps
    assert stalling.pool.stats().retired == {end: 1}


def test_releasing_a_lost_connection_logs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    connector = ScriptedConnector()
    pool = Pool(connector)
    client = begun(pool)
    connector.acts["is_reusable"] = lambda client: False
    pool.release(client)
    assert not warnings(caplog)
    assert pool.stats().discarded == {"not_reusable": 1}


def test_a_connection_above_a_lowered_limit_is_retired_after_its_reset() -> None:
    stalling = Stalling(max_connections=2)
    held = stalling.pool.acquire()
    client = stalling.begin_reset()
    stalling.pool.resize(1)
    assert client.is_open
    stalling.lets.set()
    eventually(lambda: not client.is_open)
    assert stalling.pool.stats().retired == {"surplus": 1}
    stalling.pool.release(held)
    assert stalling.pool.size == 1


def test_a_connection_whose_reset_fails_is_replaced_to_keep_min_connections() -> None:
    connector = ScriptedConnector(reset=raising(ValueError("boom")))
    pool = Pool(connector, min_connections=1)
    client = begun(pool)
    pool.release(client)
    eventually(lambda: numbers(pool) == (0, 1, 0, 0) and not client.is_open)


def test_a_connection_that_died_during_its_reset_is_not_handed_out() -> None:
    connector = ScriptedConnector(peek_target=lambda client: None if client.is_open else -1)
    pool = Pool(connector)

    def reset(client: Client) -> None:
        client.is_begun = client.is_open = False

    connector.acts["reset"] = reset
    client = begun(pool)
    pool.release(client)
    settle()
    assert pool.acquire() is not client


# When it is done


@pytest.mark.parametrize(
    ("reset", "begin", "steps"),
    [
        ("unsettled", False, []),
        ("unsettled", True, ["reset"]),
        ("always", False, ["reset_session"]),
        ("always", True, ["reset", "reset_session"]),
        ("never", False, []),
        ("never", True, []),
    ],
)
def test_the_reset_argument_decides_when_a_connection_is_reset(reset: str, begin: bool, steps: list[str]) -> None:
    connector = ScriptedConnector()
    pool = Pool(connector, reset=reset)
    client = pool.acquire()
    if begin:
        client.begin()
    pool.release(client)
    eventually(lambda: numbers(pool) == (0, 1, 0, 0))
    assert connector.steps == steps
    assert client.is_begun is (begin and reset == "never")


def test_a_connector_may_have_reset_session_without_reset() -> None:
    class SessionOnly(ScriptedConnector):
        reset = ScriptedConnector.__mro__[1].reset  # type: ignore[attr-defined]

    connector = SessionOnly()
    pool = Pool(connector, reset="always")
    pool.release(pool.acquire())
    eventually(lambda: numbers(pool) == (0, 1, 0, 0))
    assert connector.steps == ["reset_session"]
    client = begun(pool)
    pool.release(client)
    eventually(lambda: not client.is_open)
    assert connector.steps == ["reset_session", "cancel", "close"]


@pytest.mark.parametrize("kind", errors())
def test_a_connection_whose_session_can_not_be_reset_is_discarded(kind: Callable[[], BaseException]) -> None:
    connector = ScriptedConnector(reset_session=raising(kind()))
    pool = Pool(connector, max_connections=1, reset="always")
    client = pool.acquire()
    pool.release(client)
    eventually(lambda: not client.is_open)
    assert discarded(pool) == {"not_reset": 1}
    check_whole(pool, connector)


def test_a_connection_is_discarded_after_an_error_without_a_reset() -> None:
    connector = ScriptedConnector()
    pool = Pool(connector)
    with contextlib.suppress(LookupError), pool.connection() as client:
        client.begin()
        raise LookupError
    eventually(lambda: not client.is_open)
    assert connector.steps == ["cancel", "close"]


def test_a_connection_that_is_reusable_after_an_error_is_reset() -> None:
    """A connector that keeps what an error has left, as its own exchanges tell it."""
    connector = ScriptedConnector(is_reusable=lambda client: True, complete=lambda client: None)
    pool = Pool(connector, max_connections=1)
    with contextlib.suppress(LookupError), pool.connection() as client:
        client.begin()
        raise LookupError
    assert pool.acquire() is client
    assert not client.is_begun
    assert connector.steps == ["reset"]


class Talkative(Plain):
    """Its answer is a word."""

    def is_connected(self) -> Any:
        return "reset" if self.is_open else ""


def test_a_connection_whose_is_connected_returns_a_word_is_not_reset() -> None:
    pool = Pool(Talkative)
    pool.release(pool.acquire())
    assert numbers(pool) == (0, 1, 0, 0)


# Events


class Listening(PoolEvents):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def acquired(self, lease: Any) -> None:
        self.heard.append("acquired")

    def released(self, pool: Pool[Any], connection: Any) -> None:
        self.heard.append("released")

    def closed(self, pool: Pool[Any], connection: Any, reason: str) -> None:
        self.heard.append(f"closed: {reason}")

    def leaked(self, pool: Pool[Any], connection: Any) -> None:
        self.heard.append("leaked")


def test_listeners_hear_released_once_the_reset_has_ended() -> None:
    events = Listening()
    stalling = Stalling(events=events)
    client = stalling.begin_reset()
    assert events.heard == ["acquired"]
    stalling.lets.set()
    settle()
    assert events.heard == ["acquired", "released"]
    stalling.connector.acts["reset"] = raising(ValueError("boom"))
    stalling.pool.acquire()
    client.begin()
    stalling.pool.release(client)
    settle()
    assert events.heard == ["acquired", "released", "acquired", "closed: not_reset"]


# Releasing by hand


def release_by_pool(pool: Pool[Client], *, begin: bool = True) -> None:
    client = pool.acquire()
    client.is_begun = begin
    pool.release(client)


def release_by_lease(pool: Pool[Client], *, begin: bool = True, **arguments: Any) -> None:
    lease = pool.lease()
    lease.connection.is_begun = begin
    lease.release(**arguments)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    settle()
    return [record.getMessage() for record in caplog.records if "unfinished work" in record.getMessage()]


RELEASES = [release_by_pool, release_by_lease]


@pytest.mark.parametrize("release", RELEASES)
def test_releasing_unfinished_work_is_logged_once_with_its_place(
    release: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    connector = ScriptedConnector()
    pool = Pool(connector, name="db")
    for _ in range(3):
        release(pool)
    (warning,) = warnings(caplog)
    assert "pool 'db'" in warning
    assert "test_reset.py" in warning
    assert release.__name__ in warning
    assert "complete" not in connector.steps
    eventually(lambda: pool.stats().idle == 3 or connector.steps.count("reset") == 3)


@pytest.mark.parametrize("release", RELEASES)
def test_releasing_a_settled_connection_logs_no_warning(
    release: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    release(Pool(ScriptedConnector()), begin=False)
    release(Pool(ScriptedConnector(), reset="never"), begin=True)
    assert not warnings(caplog)


def test_a_release_with_warn_false_logs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(ScriptedConnector())
    release_by_lease(pool, warn=False)
    assert not warnings(caplog)
    eventually(lambda: numbers(pool) == (0, 1, 0, 0))


def test_a_connector_without_complete_logs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Incomplete(ScriptedConnector):
        complete = ScriptedConnector.__mro__[1].complete  # type: ignore[attr-defined]

    pool = Pool(Incomplete())
    release_by_pool(pool)
    assert not warnings(caplog)
    eventually(lambda: numbers(pool) == (0, 1, 0, 0))


def test_a_lease_reports_whether_its_connection_is_settled() -> None:
    connector = ScriptedConnector()
    pool = Pool(connector, context=lambda: contextlib.suppress(LookupError))
    lease = pool.lease()
    assert lease.is_settled is True
    lease.connection.begin()
    assert lease.is_settled is False
    connector.acts["is_settled"] = raising(LookupError())
    assert lease.is_settled is False
    connector.acts["is_settled"] = raising(ValueError())
    assert lease.is_settled is False
    lease.discard()
    with pytest.raises(ConnectionNotFoundError):
        _ = lease.is_settled


# Giving back never switches


class SwitchingHandler(logging.Handler):
    """As a patched handler's lock does."""

    def emit(self, record: logging.LogRecord) -> None:
        gevent.sleep(0)


@pytest.fixture
def switching_log() -> Iterator[None]:
    logger, handler = logging.getLogger("gsocketpool"), SwitchingHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield
    settle()
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize("answer", [None, raising(ValueError("boom"))], ids=["unsettled", "can't say"])
@pytest.mark.parametrize("waiters", [0, 1])
def test_giving_back_an_unsettled_connection_does_not_switch(
    switching_log: None, waiters: int, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    connector = ScriptedConnector()
    pool = Pool(connector, max_connections=1)
    client = begun(pool)
    waiting = [spawn_acquire(pool) for _ in range(waiters)]
    if answer is not None:
        connector.acts["is_settled"] = answer
    without_switching(lambda: pool.release(client))
    # What can't say is discarded, and there is a line for that.
    assert len(warnings(caplog)) == (answer is None)
    connector.acts.clear()
    for greenlet in waiting:
        pool.release(greenlet.get(timeout=PATIENCE))
    check_whole(pool, connector)


@pytest.mark.parametrize("act", RELEASES)
def test_an_unsettled_connection_given_back_in_the_event_loop_is_reset_and_logged(
    switching_log: None, act: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    connector = ScriptedConnector()
    pool = Pool(connector, max_connections=1)
    pool.release(pool.acquire())
    gevent.get_hub().loop.run_callback(act, pool)
    eventually(lambda: connector.steps == ["reset"])
    assert len(warnings(caplog)) == 1
    check_whole(pool, connector)


def test_a_block_in_the_event_loop_is_completed_if_completing_does_not_wait() -> None:
    """It could not wait there, and then its error leaves the block as any does."""
    connector = ScriptedConnector()
    pool = Pool(connector, max_connections=1)
    pool.release(pool.acquire())
    left_by: list[BaseException | None] = []

    def use() -> None:
        try:
            with pool.connection() as client:
                client.begin()
            left_by.append(None)
        except BaseException as error:
            left_by.append(error)

    gevent.get_hub().loop.run_callback(use)
    eventually(lambda: left_by == [None])
    assert connector.steps == ["complete"]
    connector.acts["complete"] = lambda client: gevent.sleep(0)
    gevent.get_hub().loop.run_callback(use)
    eventually(lambda: len(left_by) == 2)
    assert left_by[1] is not None
    assert discarded(pool) == {"error": 1}
    check_whole(pool, connector)


def in_block(pool: Pool[Client]) -> Callable[[], None]:
    lease = pool.lease()
    lease.__enter__().begin()
    # No lambda: its frame would be the one that is reported.
    return partial(lease.__exit__, None, None, None)


def by_lease(pool: Pool[Client]) -> Callable[[], None]:
    lease = pool.lease()
    lease.connection.begin()
    return lease.release


@pytest.mark.parametrize("prepare", [in_block, by_lease])
def test_a_connection_given_back_in_another_thread_is_reset_in_the_thread_of_the_pool(
    prepare: Callable[[Pool[Client]], Callable[[], None]], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing can be completed there, and that is told."""
    threads: set[int] = set()
    connector = ScriptedConnector()

    def is_settled(client: Client) -> bool:
        threads.add(threading.get_ident())
        return not client.is_begun

    connector.acts["is_settled"] = is_settled
    pool = Pool(connector, max_connections=1)
    give_back = prepare(pool)
    in_thread(give_back)
    eventually(lambda: numbers(pool) == (0, 1, 0, 0))
    assert connector.steps == ["reset"]
    assert threads == {threading.get_ident()}
    (warning,) = warnings(caplog)
    assert "tests/support/threads.py" in warning


def test_a_connection_released_after_its_thread_has_ended_is_aborted_without_a_reset() -> None:
    connector = ScriptedConnector()
    leases: list[Any] = []

    def own() -> None:
        pool = Pool(connector, reap_expired_connections=False)
        lease = pool.lease()
        lease.connection.begin()
        leases.append(lease)
        end_event_loop()

    thread = threading.Thread(target=own)
    thread.start()
    thread.join(PATIENCE)
    gc.collect()
    leases.pop().release()
    assert not connector.open
    assert set(connector.steps) == {"abort"}


# Garbage


def read_and_release(pool: Pool[Client]) -> Iterator[None]:
    client = begun(pool)
    try:
        yield
    finally:
        pool.release(client)


def read_in_a_block(pool: Pool[Client]) -> Iterator[None]:
    with pool.connection() as client:
        client.begin()
        yield


def read_in_a_block_that_ends_well(pool: Pool[Client]) -> Iterator[None]:
    with pool.connection() as client, contextlib.suppress(GeneratorExit):
        client.begin()
        yield


def release(pool: Pool[Client]) -> None:
    client = begun(pool)
    gevent.sleep(0)
    pool.release(client)


def complete(pool: Pool[Client]) -> None:
    with pool.connection() as client:
        client.begin()
        gevent.sleep(0)


Reads = Callable[[Pool[Client]], Iterator[None]]


def run_dropping_at(line: int, act: Callable[[Pool[Client]], None], read: Reads) -> tuple[bool, list[str]]:
    """Drop a suspended generator at one of the lines that the package runs. Return whether it came to that line."""
    connector = ScriptedConnector()
    pool = Pool(connector, max_connections=2, reap_expired_connections=False)
    garbage = [read(pool)]
    next(garbage[0])
    wrongs: list[str] = []

    def is_settled(client: Client) -> bool:
        if is_changing(pool):
            wrongs.append("user code ran in the middle of a change")
        return not client.is_begun

    connector.acts["is_settled"] = is_settled

    with at_line(line, garbage.clear):
        greenlets = [gevent.spawn(act, pool) for _ in range(3)]
        for _ in range(30):
            gevent.sleep(0)
            if pool.size > 2 or pool.stats().resetting < 0:
                wrongs.append(f"wrong numbers: {pool!r}")
    has_fired = not garbage
    garbage.clear()
    gevent.joinall(greenlets, timeout=1)
    settle()
    if not all(greenlet.successful() for greenlet in greenlets):
        wrongs.append(f"stranded: {pool!r}")
    if pool.stats().resetting or sum(numbers(pool)) != numbers(pool)[1]:
        wrongs.append(f"lost: {pool!r}")
    taken = []
    with contextlib.suppress(PoolExhaustedError):
        taken = [pool.acquire(timeout=1) for _ in range(2)]
    if len(set(map(id, taken))) != 2 or any(client.is_begun or not client.is_open for client in taken):
        wrongs.append(f"handed out {taken}")
    for client in taken:
        pool.release(client)
    pool.close()
    if connector.open:
        wrongs.append(f"left open: {connector.open}")
    return has_fired, wrongs


@pytest.mark.parametrize(
    ("act", "read"),
    [
        (release, read_and_release),
        (complete, read_in_a_block),
        (complete, read_in_a_block_that_ends_well),
        pytest.param(release, read_in_a_block, marks=pytest.mark.torture),
        pytest.param(release, read_in_a_block_that_ends_well, marks=pytest.mark.torture),
        pytest.param(complete, read_and_release, marks=pytest.mark.torture),
    ],
)
def test_garbage_collection_at_any_line_loses_nothing(
    act: Callable[[Pool[Client]], None],
    read: Reads,
    stride: int,
    monkeypatch: pytest.MonkeyPatch,
    errors_behind: list[str],
) -> None:
    unraised: list[str] = []
    if read is read_in_a_block_that_ends_well:
        # Where it can't be completed, it says so.
        def note(unraisable: Any) -> None:
            (unraised if "garbage collector ends it" in str(unraisable.exc_value) else errors_behind).append(
                str(unraisable)
            )

        monkeypatch.setattr(sys, "unraisablehook", note)
    fired = 0
    with only_new_garbage():
        for line in itertools.count(1, stride):
            has_fired, wrongs = run_dropping_at(line, act, read)
            gc.collect()
            assert not wrongs + errors_behind, f"at line {line}"
            if not has_fired:
                break
            fired += 1
    assert fired * stride > 100
    assert bool(unraised) is (read is read_in_a_block_that_ends_well)


def test_a_second_release_at_the_end_of_a_reset_gives_nothing_back_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is released a second time, which is a mistake, at the worst moment."""
    stalling = Stalling()
    client = stalling.begin_reset()
    state = state_of(stalling.pool)
    give_back = type(state).give_back
    refused: list[BaseException] = []

    def give_back_late(*arguments: Any) -> Any:
        monkeypatch.undo()
        try:
            stalling.pool.release(client)
        except ConnectionNotFoundError as error:
            refused.append(error)
        return give_back(*arguments)

    monkeypatch.setattr(type(state), "give_back", give_back_late)
    stalling.lets.set()
    settle()
    assert numbers(stalling.pool) == (0, 1, 0, 0)
    assert len(state.idle) == 1


# The greenlets that do it


def greenlets_of_resets() -> set[gevent.Greenlet]:
    """Those that reset something, or wait until there is something to reset."""
    everything = gc.get_objects()
    return {one for one in everything if type(one) is gevent.Greenlet and "Upkeep" in repr(one) and not one.dead}


@pytest.fixture
def strangers() -> set[gevent.Greenlet]:
    """What other tests have left."""
    return greenlets_of_resets()


def reset_some(pool: Pool[Client], count: int) -> None:
    clients = [begun(pool) for _ in range(count)]
    for client in clients:
        pool.release(client)
    eventually(lambda: pool.stats().idle == count)


def test_greenlets_of_resets_are_kept_for_the_next_resets(strangers: set[gevent.Greenlet]) -> None:
    with Pool(ScriptedConnector(reset=end_slowly)) as pool:
        reset_some(pool, 3)
        first = greenlets_of_resets() - strangers
        reset_some(pool, 3)
        assert greenlets_of_resets() - strangers == first
        assert len(first) == 3


def test_at_most_16_greenlets_of_resets_are_kept(strangers: set[gevent.Greenlet]) -> None:
    with Pool(ScriptedConnector(reset=end_slowly), max_connections=40) as pool:
        reset_some(pool, 40)
        assert len(greenlets_of_resets() - strangers) <= 16


@pytest.mark.parametrize("error", [gevent.GreenletExit, gevent.Timeout, BoomError])
def test_a_greenlet_of_resets_that_is_killed_while_it_waits_is_replaced(
    strangers: set[gevent.Greenlet], error: type[BaseException]
) -> None:
    with Pool(ScriptedConnector(reset=end_slowly)) as pool:
        reset_some(pool, 3)
        gevent.killall(list(greenlets_of_resets() - strangers), exception=error)
        reset_some(pool, 3)
        assert pool.stats().discarded == {}
        assert len(greenlets_of_resets() - strangers) == 3


def end_slowly(client: Client) -> None:
    gevent.sleep(0)
    client.is_begun = False


@pytest.mark.parametrize("end", ["close", "collect"])
def test_greenlets_of_resets_end_with_the_pool(strangers: set[gevent.Greenlet], end: str) -> None:
    pool = Pool(ScriptedConnector(reset=end_slowly))
    reset_some(pool, 3)
    assert greenlets_of_resets() - strangers
    if end == "close":
        pool.close()
    del pool
    eventually(lambda: not greenlets_of_resets() - strangers)


# The recursion limit


def test_a_reset_that_could_not_be_scheduled_runs_later(stalling: Stalling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near the recursion limit, any call may fail."""
    client = begun(stalling.pool)
    # No public way leads to a callback that can't be made.
    lifecycle = stalling.pool._lifecycle
    loop = lifecycle._loop

    class Failing:
        def run_callback(self, *arguments: Any) -> None:
            lifecycle._loop = loop
            raise RecursionError

    lifecycle._loop = Failing()
    stalling.lets.set()
    stalling.pool.release(client)
    eventually(lambda: numbers(stalling.pool) == (0, 1, 0, 0))
    assert stalling.pool.acquire() is client


def test_a_connection_that_the_stack_is_too_short_to_complete_is_discarded_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connector = ScriptedConnector(complete=raising(RecursionError()))
    pool = Pool(connector, max_connections=1)

    def discard(*arguments: Any) -> None:
        monkeypatch.undo()
        raise RecursionError

    with pytest.raises(RecursionError), pool.connection():
        monkeypatch.setattr(pool, "_discard", discard)
    eventually(lambda: not connector.open)
    assert discarded(pool) == {"error": 1}
    check_whole(pool, connector)
