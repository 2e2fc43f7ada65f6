"""Nothing is lost, wherever a kill, a Timeout or another exception strikes a caller or a greenlet of the pool's."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import Pool, PoolError, PoolExhaustedError
from tests.support.callers import THROWN, Caller, InterruptionError, check_whole, throw
from tests.support.internals import closers_of, openers_of, reaper_of
from tests.support.logs import LockedHandler
from tests.support.logs import handler as handler
from tests.support.scripted import PATIENCE, Backend, ScriptedConnection, eventually, numbers, settle, spawn_acquire
from tests.support.switches import greenlets_there_are


@pytest.fixture(params=THROWN, ids=lambda e: type(e).__name__)
def error(request: pytest.FixtureRequest) -> BaseException:
    thrown: BaseException = request.param
    return thrown


def test_a_waiter_that_is_interrupted_leaves_the_queue(backend: Backend, error: BaseException) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    first, second = Caller(pool), Caller(pool)
    first.throw(error)
    settle()
    assert first.ended_by is error
    pool.release(held)
    settle()
    assert second.result is held
    pool.release(held)
    check_whole(pool, backend)


def test_a_killed_waiter_passes_its_connection_on(backend: Backend, error: BaseException) -> None:
    """The kill is under way when the connection is handed over: the waiter has it and can't use it."""
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    first, second = Caller(pool), Caller(pool)
    first.throw(error)
    pool.release(held)
    settle()
    assert first.ended_by is error
    assert second.result is held
    pool.release(held)
    check_whole(pool, backend)


def test_a_waiter_interrupted_after_its_hand_over_still_gets_the_connection(
    backend: Backend, error: BaseException
) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    first, second = Caller(pool), Caller(pool)
    pool.release(held)
    first.throw(error)
    settle()
    assert first.result is held
    assert first.ended_by is None
    assert second.result is None
    pool.release(held)
    settle()
    pool.release(second.result)
    check_whole(pool, backend)


def test_a_caller_interrupted_just_before_its_opening_ends_leaves_the_connection_idle(
    backend: Backend, error: BaseException
) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, max_connections=2)
    caller = Caller(pool)
    caller.throw(error)
    backend.opens.set()
    settle()
    assert caller.ended_by is error
    assert numbers(pool) == (0, 1, 0, 0), "the open is not wasted"
    check_whole(pool, backend)


def test_a_caller_interrupted_during_its_opening_loses_no_capacity(backend: Backend, error: BaseException) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, max_connections=1)
    caller = Caller(pool)
    caller.throw(error)
    settle()
    assert caller.ended_by is error
    assert numbers(pool) == (0, 0, 1, 0)
    backend.opens.set()
    settle()
    assert numbers(pool) == (0, 1, 0, 0)
    check_whole(pool, backend)


def test_a_caller_interrupted_during_its_check_loses_no_capacity(backend: Backend, error: BaseException) -> None:
    pool = Pool(backend.connect_checked, max_connections=1)
    pool.release(pool.acquire())
    backend.checks.clear()
    caller = Caller(pool)
    assert numbers(pool) == (1, 0, 0, 0)
    caller.throw(error)
    settle()
    assert caller.ended_by is error
    assert not backend.open, "half checked, it must not be used again"
    backend.checks.set()
    check_whole(pool, backend)


def test_an_interrupted_check_keeps_no_local_of_its_caller_alive(backend: Backend) -> None:
    pool = Pool(backend.connect_checked, max_connections=1)
    pool.release(pool.acquire())
    backend.checks.clear()
    references: list[weakref.ref[Any]] = []

    def use() -> None:
        local = Backend()
        references.append(weakref.ref(local))
        with contextlib.suppress(InterruptionError):
            pool.acquire()

    gc.disable()
    try:
        caller = gevent.spawn(use)
        settle()
        throw(caller, InterruptionError())
        settle()
        assert caller.successful()
        del caller
        settle()
        assert references[0]() is None
    finally:
        gc.enable()


def test_a_waiter_interrupted_while_its_connection_is_checked_makes_room_for_the_next(
    backend: Backend, error: BaseException
) -> None:
    pool = Pool(backend.connect_checked, max_connections=1)
    held = pool.acquire()
    first, second = Caller(pool), Caller(pool)
    backend.checks.clear()
    pool.release(held)
    settle()
    first.throw(error)
    settle()
    assert first.ended_by is error
    backend.checks.set()
    settle()
    pool.release(second.result)
    check_whole(pool, backend)


@pytest.mark.parametrize("way", ["drop", "drop_expired", "drain", "resize"])
def test_a_caller_interrupted_while_it_closes_connections_loses_no_capacity(
    backend: Backend, error: BaseException, way: str
) -> None:
    pool = Pool(backend.connect, max_connections=2)

    def after_idle(act: Callable[[ScriptedConnection], None]) -> Callable[[Pool[Any]], None]:
        def run(pool: Pool[Any]) -> None:
            first, second = pool.acquire(), pool.acquire()
            pool.release(first)
            pool.release(second)
            second.says_expired = True
            act(second)

        return run

    acts: dict[str, Callable[[Pool[Any]], None]] = {
        "drop": after_idle(pool.drop),
        "drop_expired": after_idle(lambda _: pool.drop_expired()),
        "drain": after_idle(lambda _: pool.drain()),
        "resize": after_idle(lambda _: pool.resize(1)),
    }
    backend.closes.clear()
    caller = Caller(pool, acts[way])
    eventually(lambda: sum(connection.closings for connection in backend.connections))
    caller.throw(error)
    settle()
    assert caller.ended_by is error
    backend.closes.set()
    settle()
    check_whole(pool, backend)


def test_a_caller_interrupted_in_its_block_loses_no_capacity(backend: Backend, error: BaseException) -> None:
    pool = Pool(backend.connect, max_connections=1)

    def use(pool: Pool[Any]) -> None:
        with pool.connection():
            gevent.sleep(PATIENCE)

    caller = Caller(pool, use)
    caller.throw(error)
    settle()
    assert caller.ended_by is error
    assert not backend.open
    check_whole(pool, backend)


def test_killing_an_opener_raises_a_pool_error_in_its_caller(backend: Backend) -> None:
    """As a program does that kills every greenlet it can find."""
    backend.opens.clear()
    pool = Pool(backend.connect, max_connections=1)
    caller = Caller(pool)
    (opener,) = openers_of(pool)
    throw(opener, gevent.GreenletExit())
    settle()
    assert type(caller.ended_by) is PoolError, "a GreenletExit would end the caller's greenlet without a trace"
    backend.opens.set()
    check_whole(pool, backend)


def test_an_opener_killed_before_it_begins_loses_no_capacity(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    (opener,) = openers_of(pool)
    throw(opener, gevent.GreenletExit())
    settle()
    assert not backend.connections
    check_whole(pool, backend)


def test_a_connection_whose_closer_is_killed_does_not_stay_open(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    backend.closes.clear()
    caller = Caller(pool, lambda pool: pool.discard(pool.acquire()))
    for greenlet in closers_of(pool):
        greenlet.kill(block=False)
    settle()
    assert caller.greenlet.ready()
    assert not backend.open, "it has lost its descriptor at least"
    check_whole(pool, backend)


def discard_and_kill_closers(pool: Pool[Any], kills: int) -> None:
    """Discard a connection, and kill the greenlets that close it, one after another, before they begin."""
    killed: list[gevent.Greenlet] = []

    def kill_before_it_begins() -> None:
        for greenlet in [greenlet for greenlet in closers_of(pool) if greenlet not in killed]:
            greenlet.kill(block=False)
            killed.append(greenlet)
        if len(killed) < kills:
            gevent.get_hub().loop.run_callback(kill_before_it_begins)

    pool.discard(pool.acquire())
    gevent.get_hub().loop.run_callback(kill_before_it_begins)
    settle()
    assert len(killed) == kills


@pytest.mark.parametrize("kills", [1, 2])
def test_a_connection_whose_closer_is_killed_before_it_begins_does_not_stay_open(backend: Backend, kills: int) -> None:
    pool = Pool(backend.connect, max_connections=1)
    discard_and_kill_closers(pool, kills)
    assert backend.connections[0].closings == 2 - kills, "it is begun once more"
    assert not backend.open, "it has lost its descriptor at least"
    assert pool.stats().closing == 0
    check_whole(pool, backend)


def test_a_failing_abort_in_place_of_a_killed_close_is_logged_though_a_handler_is_busy(
    backend: Backend, handler: LockedHandler
) -> None:
    class Unabortable(ScriptedConnection):
        def abort(self) -> None:
            raise LookupError("no socket")

    pool = Pool(lambda: backend.add(Unabortable(backend, {})))
    with handler.lock:
        discard_and_kill_closers(pool, 2)
        assert pool.stats().closing == 0
        assert handler.messages == []
    eventually(lambda: handler.messages)
    assert "could not abort" in handler.messages[0]


@pytest.fixture
def failing_spawns() -> Iterator[list[tuple[object, BaseException]]]:
    """Pairs of an object and an error: the next greenlet whose first argument is that object fails to start.

    Others may start at any moment, such as those that close the connections of a collected pool.
    """
    failing: list[tuple[object, BaseException]] = []

    def fail(greenlet: gevent.Greenlet) -> None:
        for number, (argument, error) in enumerate(failing):
            if greenlet.args and greenlet.args[0] is argument:
                del failing[number]
                raise error

    gevent.Greenlet.add_spawn_callback(fail)
    yield failing
    gevent.Greenlet.remove_spawn_callback(fail)


def test_an_opener_that_cannot_start_does_not_keep_its_place(
    backend: Backend, failing_spawns: list[tuple[object, BaseException]], error: BaseException
) -> None:
    pool = Pool(backend.connect, max_connections=1)
    # The first use starts the reaper.
    pool.drop_expired()
    failing_spawns.append((pool, error))
    with pytest.raises(type(error)) as caught:
        pool.acquire()
    assert caught.value is error
    assert numbers(pool) == (0, 0, 0, 0)
    pool.release(pool.acquire(timeout=PATIENCE))
    check_whole(pool, backend)


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_connection_is_closed_later_if_the_greenlet_that_closes_it_cannot_start(
    backend: Backend, failing_spawns: list[tuple[object, BaseException]], is_killed: bool
) -> None:
    pool = Pool(backend.connect)
    backend.closes.clear()
    first = pool.acquire()
    second = pool.acquire()
    if is_killed:
        pool.discard(first)
        settle()
        failing_spawns.append((first, OSError("no second greenlet")))
        gevent.killall(closers_of(pool))
    else:
        failing_spawns.append((first, OSError("no greenlet")))
        pool.discard(first)
    settle()
    assert not failing_spawns
    assert pool.stats().closing == 1
    backend.closes.set()
    pool.discard(second)
    eventually(lambda: not backend.open)
    assert pool.stats().closing == 0
    check_whole(pool, backend)


@pytest.mark.parametrize("error", [gevent.Timeout(1), InterruptionError()], ids=["timeout", "error"])
def test_an_exception_thrown_at_a_sleeping_reaper_does_not_end_it(backend: Backend, error: BaseException) -> None:
    pool = Pool(backend.connect, reap_interval=0.002)
    connection = pool.acquire()
    settle()
    reaper: Any = reaper_of(pool)
    reaper.kill(error, block=False)
    settle()
    connection.says_expired = True
    pool.release(connection)
    eventually(lambda: not connection.is_open)
    assert reaper_of(pool) is reaper
    pool.close()


@pytest.mark.parametrize("timeout", [PATIENCE, math.inf])
def test_a_killed_reaper_is_replaced_as_soon_as_a_caller_waits(backend: Backend, timeout: float) -> None:
    """Or what a dead greenlet holds would be lost for good."""
    pool = Pool(backend.connect, max_connections=1, reap_interval=0.002)
    gevent.spawn(pool.acquire).join()
    assert reaper_of(pool) is not None
    reaper_of(pool).kill()
    pool.release(gevent.spawn(pool.acquire, timeout=timeout).get(timeout=PATIENCE))
    pool.close()
    settle()
    assert reaper_of(pool).dead


class SlowHandler(logging.Handler):
    """Takes its time for the first record. The others don't wait for that."""

    is_first = True

    def handle(self, record: logging.LogRecord) -> bool:
        if self.is_first:
            self.is_first = False
            gevent.sleep(PATIENCE)
        return True


@pytest.mark.parametrize("context", [None, contextlib.nullcontext], ids=["", "in a context"])
def test_a_caller_interrupted_while_a_failed_check_is_logged_loses_no_capacity(
    backend: Backend, context: Any, error: BaseException
) -> None:
    armed = False

    class Misbehaving(ScriptedConnection):
        def is_connected(self) -> bool:
            if armed and not self.closings:
                raise ValueError("bad step")
            return super().is_connected()

    pool = Pool(lambda: backend.add(Misbehaving(backend, {})), max_connections=1, context=context)
    pool.release(pool.acquire())
    armed = True
    log, handler = logging.getLogger("gsocketpool"), SlowHandler()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        caller = Caller(pool)
        eventually(lambda: not handler.is_first)
        caller.throw(error)
        caller.greenlet.join()
        assert caller.ended_by is error
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
    armed = False
    settle()
    assert numbers(pool) == (0, 0, 0, 0)


def test_killed_waiters_leave_the_queue(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    pool.acquire()
    waiters = [spawn_acquire(pool) for _ in range(10)]
    gevent.killall(waiters)
    assert pool.stats().waiting == 0


# Programs that kill every greenlet they can find


class Foreign:
    """A connection of a class that has nothing to do with ours: the pool can't close it but by its ``close()``."""

    def __init__(self) -> None:
        self.is_open = False
        self.may_close = Event()
        #: The greenlets that have begun to close it.
        self.closers: list[Any] = []

    def open(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.closers.append(gevent.getcurrent())
        self.may_close.wait()
        self.is_open = False

    def is_connected(self) -> bool:
        return self.is_open


def test_a_foreign_connection_is_closed_even_if_its_closer_is_killed() -> None:
    pool = Pool(Foreign, max_connections=1, reap_expired_connections=False)
    connection = pool.acquire()
    pool.discard(connection)
    settle()
    (closer,) = connection.closers
    closer.kill(block=False)
    connection.may_close.set()
    settle()
    assert not connection.is_open
    assert len(connection.closers) == 2
    assert pool.size == 0


def test_a_foreign_connection_is_closed_even_if_its_closer_is_killed_before_it_begins() -> None:
    pool = Pool(Foreign, max_connections=1, reap_expired_connections=False)
    connection = pool.acquire()
    connection.may_close.set()
    others = greenlets_there_are()
    killed: list[Any] = []

    def kill_closers() -> None:
        killed.extend(each for each in greenlets_there_are() if each not in others)
        gevent.killall(killed, block=False)

    pool.discard(connection)
    # The event loop makes the greenlet first, does this, and then lets the greenlet begin.
    gevent.get_hub().loop.run_callback(kill_closers)
    settle()
    assert len(killed) == 1
    assert not connection.is_open
    assert len(connection.closers) == 1
    assert pool.size == 0


def test_closing_a_pool_waits_for_a_connection_whose_closer_was_killed() -> None:
    pool = Pool(Foreign, max_connections=1, reap_expired_connections=False)
    connection = pool.acquire()
    pool.release(connection)
    closing = gevent.spawn(pool.close)
    settle()
    connection.closers[0].kill(block=False)
    settle()
    assert len(connection.closers) == 2
    assert not closing.ready()
    connection.may_close.set()
    closing.get(timeout=PATIENCE)
    assert not connection.is_open
    assert pool.stats().closing == 0


class Stubborn(Foreign):
    """A connection whose ``close()`` goes on when its time is over, and ends only when its greenlet is killed."""

    def close(self) -> None:
        self.closers.append(gevent.getcurrent())
        while not self.may_close.is_set():
            with suppress(gevent.Timeout):
                self.may_close.wait()


def test_a_closed_pool_forgets_a_stubborn_connection_whose_closer_was_killed() -> None:
    pool = Pool(Stubborn, max_connections=1, reap_expired_connections=False, close_timeout=0.01)
    connection = pool.acquire()
    pool.discard(connection)
    settle()
    connection.closers[0].kill(block=False)
    settle()
    assert len(connection.closers) == 2
    pool.close(timeout=0)
    settle()
    assert pool.stats().closing == 0
    reference = weakref.ref(connection)
    del connection
    gc.collect()
    assert reference() is None
