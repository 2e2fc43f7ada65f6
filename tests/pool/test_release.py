"""Giving a connection back never switches to another greenlet, and does no harm wherever it happens."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import ConnectionNotFoundError, Pool, PoolClosedError, PoolExhaustedError
from tests.support.connections import without_switching
from tests.support.garbage import at_line, is_in_package, only_new_garbage
from tests.support.garbage import errors_behind as errors_behind
from tests.support.scripted import (
    PATIENCE,
    Backend,
    Plain,
    ScriptedConnection,
    eventually,
    numbers,
    settle,
    spawn_acquire,
)
from tests.support.threads import in_thread

Act = Callable[[Pool[Any]], object]
#: Makes a generator that acquires a connection, yields, and gives back; and notes in a list when it is collected.
Reader = Callable[[Pool[Any], list[bool]], Iterator[None]]

# Giving back never switches


def leave_by_an_exception(pool: Pool[Any]) -> Any:
    block = pool.connection()
    connection = block.__enter__()
    without_switching(lambda: block.__exit__(LookupError, LookupError(), None))
    return connection


def leave_a_drained_one(pool: Pool[Any]) -> Any:
    block = pool.connection()
    connection = block.__enter__()
    pool.drain()
    without_switching(lambda: block.__exit__(None, None, None))
    return connection


def discard(pool: Pool[Any]) -> Any:
    connection = pool.acquire()
    without_switching(lambda: pool.discard(connection))
    return connection


def release_a_drained_one(pool: Pool[Any]) -> Any:
    connection = pool.acquire()
    pool.drain()
    without_switching(lambda: pool.release(connection))
    return connection


def release_a_surplus(pool: Pool[Any]) -> Any:
    connection = pool.acquire()
    pool.acquire()
    pool.resize(1)
    without_switching(lambda: pool.release(connection))
    return connection


@pytest.mark.parametrize(
    "give_back", [leave_by_an_exception, leave_a_drained_one, discard, release_a_drained_one, release_a_surplus]
)
def test_a_connection_that_is_not_kept_is_closed_in_the_background(
    backend: Backend, give_back: Callable[[Pool[Any]], Any]
) -> None:
    connection = give_back(Pool(backend.connect, max_connections=2))
    eventually(lambda: not connection.is_open)


@pytest.mark.parametrize("waiters", [0, 1])
def test_giving_back_a_connection_that_is_kept_does_not_switch(backend: Backend, waiters: int) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    waiting = [gevent.spawn(pool.acquire) for _ in range(waiters)]
    settle()
    without_switching(lambda: pool.release(held))
    assert [waiter.get(timeout=PATIENCE) for waiter in waiting] == [held] * waiters


def test_an_error_of_giving_back_is_logged_later(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    class Unsure(ScriptedConnection):
        def is_reusable(self, error: BaseException | None) -> bool:
            raise ValueError("it is hard to say")

    connection = Unsure(backend, {})
    pool = Pool(lambda: connection)
    with caplog.at_level(logging.DEBUG, "gsocketpool"):
        pool.acquire()
        caplog.clear()
        pool.release(connection)
        assert not caplog.records
        eventually(lambda: [record for record in caplog.records if record.levelno >= logging.WARNING])
    eventually(lambda: not connection.is_open)


# The exception that leaves a block


class ThrownError(Exception):
    """Thrown at a greenlet from outside."""


THROWN: list[Callable[[], BaseException]] = [gevent.GreenletExit, lambda: gevent.Timeout(1), ThrownError]


@pytest.mark.parametrize("turns", [0, 1, 10], ids=["at once", "a turn later", "later"])
@pytest.mark.parametrize("second", THROWN, ids=["kill", "timeout", "error"])
@pytest.mark.parametrize("first", THROWN, ids=["kill", "timeout", "error"])
def test_an_exception_that_leaves_a_block_is_never_replaced(
    backend: Backend, first: Callable[[], BaseException], second: Callable[[], BaseException], turns: int
) -> None:
    pool = Pool(backend.connect, max_connections=1)
    left_by: list[BaseException] = []

    def work() -> None:
        try:
            with pool.connection():
                gevent.sleep(PATIENCE)
        except BaseException as error:
            left_by.append(error)

    worker = gevent.spawn(work)
    settle()
    backend.closes.clear()
    errors = first(), second()
    worker.kill(errors[0], block=False)
    for _ in range(turns):
        gevent.sleep(0)
    worker.kill(errors[1], block=False)
    settle()
    assert left_by == [errors[0]]
    assert numbers(pool) == (0, 0, 0, 0)
    backend.closes.set()
    eventually(lambda: not backend.open)


def test_a_greenlet_killed_in_a_block_dies_before_a_timeout_of_its_own_can_save_it(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    limit = gevent.Timeout(0.001)
    outlived: list[bool] = []

    def work() -> None:
        try:
            with pool.connection():
                try:
                    gevent.sleep(PATIENCE)
                finally:
                    limit.start()
        except gevent.Timeout:
            outlived.append(True)
        finally:
            limit.close()

    worker = gevent.spawn(work)
    settle()
    backend.closes.clear()
    worker.kill(timeout=PATIENCE)
    assert not outlived
    assert worker.dead
    backend.closes.set()
    eventually(lambda: not backend.open)


# Garbage: a generator that is suspended in a block gives back when it is collected, in the middle of anything


def read_in_a_block(pool: Pool[Any], collected: list[bool]) -> Iterator[None]:
    with pool.connection():
        try:
            yield
        finally:
            collected.append(is_in_package(sys._getframe().f_back))


def read_and_release(pool: Pool[Any], collected: list[bool]) -> Iterator[None]:
    connection = pool.acquire()
    try:
        yield
    finally:
        collected.append(is_in_package(sys._getframe().f_back))
        pool.release(connection)


def read_and_discard(pool: Pool[Any], collected: list[bool]) -> Iterator[None]:
    connection = pool.acquire()
    try:
        yield
    finally:
        collected.append(is_in_package(sys._getframe().f_back))
        pool.discard(connection)


class Response:
    """A response that is read up to its first row: it holds a connection until it is collected."""

    def __init__(self, read: Reader, pool: Pool[Any], in_a_cycle: bool) -> None:
        #: When it has been collected, this says whether code of the package ran at that moment.
        self.collected: list[bool] = []
        self.rows = read(pool, self.collected)
        self.itself = self if in_a_cycle else None
        next(self.rows)


class Switching(Plain):
    def open(self) -> None:
        gevent.sleep(0)
        super().open()

    def close(self) -> None:
        gevent.sleep(0)
        super().close()


def use(pool: Pool[Any]) -> None:
    with pool.connection():
        gevent.sleep(0)


def fail(pool: Pool[Any]) -> None:
    with contextlib.suppress(LookupError), pool.connection():
        raise LookupError


def acquire_and_discard(pool: Pool[Any]) -> None:
    pool.discard(pool.acquire())


def resize(pool: Pool[Any]) -> None:
    pool.resize(1)
    gevent.sleep(0)
    pool.resize(World.LIMIT)


def drop(pool: Pool[Any]) -> None:
    connection = pool.acquire()
    pool.release(connection)
    # It may have been handed over.
    with contextlib.suppress(ConnectionNotFoundError):
        pool.drop(connection)


class World:
    """A pool at work, and garbage that holds one of its connections."""

    LIMIT = 3

    def __init__(self, read: Reader, in_a_cycle: bool = False) -> None:
        self.made: list[Switching] = []
        self.pool: Pool[Any] = Pool(self.make, max_connections=self.LIMIT, reap_expired_connections=False)
        others = [self.pool.acquire() for _ in range(self.LIMIT - 1)]
        response = Response(read, self.pool, in_a_cycle)
        self.collected = response.collected
        self.references = [response]
        for connection in others:
            self.pool.release(connection)
        self.greenlets: list[gevent.Greenlet] = []
        self.wrongs: list[str] = []

    def make(self) -> Switching:
        connection = Switching()
        self.made.append(connection)
        return connection

    def run(self, *acts: Act) -> None:
        """Does all of it at the same time, until it is done or gets no further."""
        self.greenlets = [gevent.spawn(self.call, act) for act in acts]
        for _ in range(60):
            gevent.sleep(0)
            self.look()
            if all(greenlet.ready() for greenlet in self.greenlets):
                break

    def call(self, act: Act) -> None:
        try:
            act(self.pool)
        except PoolClosedError:
            pass
        except Exception as error:
            self.wrongs.append(repr(error))

    def look(self) -> None:
        """What must hold whenever another greenlet can run."""
        # The lines of this look itself, turn after turn, are not worth a run each.
        before = sys.gettrace()
        sys.settrace(None)
        if self.pool.size > self.LIMIT or min(numbers(self.pool)) < 0:
            self.wrongs.append(f"wrong numbers: {self.pool!r}")
        sys.settrace(before)

    def end(self) -> None:
        """The garbage has given back, so nothing keeps the others from coming to their ends."""
        gevent.joinall(self.greenlets, timeout=0.2)
        settle()
        self.look()
        if not all(greenlet.ready() for greenlet in self.greenlets):
            self.wrongs.append(f"stranded: {self.pool!r}")
        in_use, _, opening, waiting = numbers(self.pool)
        if in_use or opening or waiting:
            self.wrongs.append(f"lost: {self.pool!r}")
        if not self.wrongs:
            self.check_whole()
        gevent.killall(self.greenlets)
        try:
            self.pool.close(timeout=0)
        except Exception as error:
            self.wrongs.append(repr(error))
        if any(connection.is_open for connection in self.made):
            self.wrongs.append("left open")

    def check_whole(self) -> None:
        try:
            taken = [self.pool.acquire(timeout=1) for _ in range(self.LIMIT)]
        except PoolClosedError:
            return
        except Exception as error:
            self.wrongs.append(repr(error))
            return
        if len(set(map(id, taken))) != self.LIMIT or not all(connection.is_open for connection in taken):
            self.wrongs.append(f"handed out {taken}")
        with contextlib.suppress(PoolExhaustedError):
            self.wrongs.append(f"one too many: {self.pool.acquire(timeout=0)}")
        for connection in taken:
            self.pool.release(connection)


def run_dropping_at(line: int, act: Act, read: Reader, in_a_cycle: bool) -> tuple[list[bool], list[str]]:
    """Have a pool at work, and the garbage collected at the given one of the lines that the package runs.

    Returns, if it came to that line, whether the garbage was collected inside of the package; and what was wrong.
    """
    world = World(read, in_a_cycle)

    def collect() -> None:
        world.references.clear()
        if in_a_cycle:
            gc.collect()

    with at_line(line, collect):
        world.run(use, act, use, use)
    collected = list(world.collected)
    collect()
    world.end()
    return collected, world.wrongs


@pytest.mark.parametrize(
    ("act", "read", "in_a_cycle"),
    [
        pytest.param(use, read_in_a_block, False, id="use"),
        pytest.param(use, read_and_release, False, id="use, garbage that releases"),
        pytest.param(use, read_and_discard, False, id="use, garbage that discards"),
        pytest.param(use, read_in_a_block, True, id="use, garbage in a cycle"),
        pytest.param(fail, read_in_a_block, False, id="a block left by an error"),
        pytest.param(acquire_and_discard, read_in_a_block, False, id="discard"),
        pytest.param(resize, read_in_a_block, False, id="resize"),
        pytest.param(drop, read_in_a_block, False, id="drop"),
        pytest.param(Pool.drop_expired, read_in_a_block, False, id="drop_expired"),
        pytest.param(Pool.drain, read_in_a_block, False, id="drain"),
        pytest.param(Pool.close, read_in_a_block, False, id="close"),
    ],
)
def test_garbage_collection_at_any_line_loses_nothing(
    act: Act, read: Reader, in_a_cycle: bool, stride: int, errors_behind: list[str]
) -> None:
    fired = 0
    with only_new_garbage():
        for line in itertools.count(1, stride):
            collected, wrongs = run_dropping_at(line, act, read, in_a_cycle)
            gc.collect()
            wrongs += errors_behind
            assert not wrongs, f"at line {line}"
            if not collected:
                break
            assert collected == [True]
            fired += 1
    assert fired * stride > 100


def run_collecting_after(allocations: int) -> tuple[list[bool], list[str]]:
    """Have a pool at work, and the collector run after so many allocations of it."""
    world = World(read_in_a_block, in_a_cycle=True)
    world.references.clear()

    def use_and_be_collected(pool: Pool[Any]) -> None:
        gc.set_threshold(gc.get_count()[0] + allocations)
        gc.enable()
        try:
            use(pool)
        finally:
            gc.disable()

    world.run(use_and_be_collected, use, use, use, use)
    collected = list(world.collected)
    gc.collect()
    world.end()
    return collected, world.wrongs


def test_garbage_collection_at_any_allocation_loses_nothing(errors_behind: list[str]) -> None:
    fired = 0
    with only_new_garbage():
        for allocations in range(1, 80):
            collected, wrongs = run_collecting_after(allocations)
            gc.collect()
            wrongs += errors_behind
            assert not wrongs, f"after {allocations} allocations"
            fired += sum(collected)
    assert fired > 5


WHERE: dict[str, Callable[[Act, Pool[Any]], object]] = {
    "in the greenlet that acquired it": lambda collect, pool: collect(pool),
    "in another greenlet": lambda collect, pool: gevent.spawn(collect, pool),
    "in a callback of the event loop": lambda collect, pool: gevent.get_hub().loop.run_callback(collect, pool),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("in_a_cycle", [False, True], ids=["dropped", "collected"])
def test_a_block_collected_in_any_greenlet_gives_its_connection_back(
    where: str, in_a_cycle: bool, errors_behind: list[str]
) -> None:
    with only_new_garbage():
        world = World(read_in_a_block, in_a_cycle)

        def collect(pool: Pool[Any]) -> None:
            world.references.clear()
            gc.collect()

        WHERE[where](collect, world.pool)
        world.run(use, use, use)
        assert world.collected
        world.end()
        assert not world.wrongs + errors_behind


# Garbage in another thread


class Owned(Plain):
    """Notes in which threads its steps run."""

    def __init__(self, threads: set[int]) -> None:
        self.threads = threads

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        super().close()

    def is_connected(self) -> bool:
        self.threads.add(threading.get_ident())
        return super().is_connected()

    def is_reusable(self, error: BaseException | None) -> bool:
        self.threads.add(threading.get_ident())
        return super().is_reusable(error)


@pytest.mark.parametrize("waiters", [0, 1])
@pytest.mark.parametrize("in_a_cycle", [False, True], ids=["dropped", "collected"])
def test_a_block_collected_in_another_thread_gives_its_connection_back(
    in_a_cycle: bool, waiters: int, errors_behind: list[str]
) -> None:
    threads: set[int] = set()
    pool = Pool(Owned, {"threads": threads}, max_connections=1)
    with only_new_garbage():
        references = [Response(read_in_a_block, pool, in_a_cycle)]
        waiting = [gevent.spawn(use, pool) for _ in range(waiters)]
        settle()

        def collect() -> None:
            references.clear()
            gc.collect()

        in_thread(collect)
        try:
            assert not errors_behind
            eventually(lambda: not pool.stats().in_use and all(waiter.successful() for waiter in waiting))
            pool.release(pool.acquire(timeout=PATIENCE))
            settle()
            assert threads == {threading.get_ident()}
        finally:
            gevent.killall(waiting)


# Releasing what is not in use


@pytest.mark.parametrize("give_back", ["release", "detach"])
def test_giving_back_a_connection_that_is_not_in_use_is_refused_and_changes_nothing(
    backend: Backend, give_back: str
) -> None:
    pool = Pool(backend.connect, max_connections=2)
    other = Pool(backend.connect)
    idle, held, foreign = pool.acquire(), pool.acquire(), other.acquire()
    pool.release(idle)
    before = pool.stats()
    for wrong in (idle, foreign, None, object(), ScriptedConnection(backend, {})):
        with pytest.raises(ConnectionNotFoundError, match="is not in use in pool 'connect'"):
            getattr(pool, give_back)(wrong)
        assert pool.stats() == before
    assert idle.is_open
    assert held.is_open
    assert foreign.is_open


def test_discarding_a_connection_that_is_not_in_the_pool_is_refused_and_changes_nothing(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=2)
    other = Pool(backend.connect)
    held, foreign, gone = pool.acquire(), other.acquire(), pool.acquire()
    pool.discard(gone)
    settle()
    before = pool.stats()
    for wrong in (gone, foreign, None, object(), ScriptedConnection(backend, {})):
        with pytest.raises(ConnectionNotFoundError, match="is not in use or idle in pool 'connect'"):
            pool.discard(wrong)  # type: ignore[arg-type]
        assert pool.stats() == before
    assert held.is_open
    assert foreign.is_open


def test_a_second_release_is_refused(backend: Backend) -> None:
    pool = Pool(backend.connect)
    connection = pool.acquire()
    pool.release(connection)
    with pytest.raises(ConnectionNotFoundError):
        pool.release(connection)
    assert numbers(pool) == (0, 1, 0, 0)


def test_a_second_release_right_after_a_hand_over_serves_one_waiter_only(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    connection = pool.acquire()
    waiters = [spawn_acquire(pool) for _ in range(2)]
    pool.release(connection)
    pool.release(connection)
    for served in (1, 2):
        settle()
        assert sum(waiter.ready() for waiter in waiters) == served
        pool.release(connection)
    assert numbers(pool) == (0, 1, 0, 0)


def test_a_second_release_during_the_check_of_the_next_caller_serves_one_waiter_only(backend: Backend) -> None:
    pool = Pool(backend.connect_checked, max_connections=1)
    connection = pool.acquire()
    pool.release(connection)
    backend.checks.clear()
    waiters = [spawn_acquire(pool) for _ in range(2)]
    pool.release(connection)
    settle()
    backend.checks.set()
    for served in (1, 2):
        settle()
        assert sum(waiter.ready() for waiter in waiters) == served
        pool.release(connection)
    assert numbers(pool) == (0, 1, 0, 0)


def test_each_holder_of_a_connection_made_twice_gives_back_its_own_use(backend: Backend) -> None:
    connection = backend.connect()
    pool = Pool(lambda: connection, initial_connections=2, max_connections=2)

    def use_block() -> None:
        with pool.connection():
            over.wait()

    over = Event()
    other = gevent.spawn(use_block)
    settle()
    pool.release(pool.acquire())
    over.set()
    other.get(timeout=PATIENCE)
    assert numbers(pool) == (0, 2, 0, 0)


def test_equal_connections_are_distinguished_by_identity(backend: Backend) -> None:
    pool = Pool(backend.connect)
    first, second = pool.acquire(), pool.acquire()
    assert first == second
    pool.release(second)
    assert pool.acquire() is second
    pool.discard(first)
    settle()
    assert second.is_open
    assert not first.is_open
    with pytest.raises(ConnectionNotFoundError):
        pool.release(first)
