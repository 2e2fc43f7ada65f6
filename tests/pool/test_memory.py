"""A pool keeps nothing of finished uses in memory, and little of those under way."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.hub import Waiter

from gsocketpool import Pool, PoolExhaustedError
from tests.support.internals import look_once_for_dead_holders
from tests.support.scripted import PATIENCE, Backend, Clock, Plain, eventually, numbers, settle, spawn_acquire

#: Bytes: less than any object has. What lists and dicts keep in reserve comes to less for each of many.
SMALL = 16


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory is counted, and collected only where a test says so."""
    # The one greenlet of a pool that looks for dead holders in a moment is there all the time, or else now and then.
    look_once_for_dead_holders(monkeypatch)
    gc.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.enable()


def memory() -> tuple[int, int]:
    """Return how many bytes are allocated, and how many objects there are that the collector looks after."""
    gc.collect()
    count = len(gc.get_objects())
    return tracemalloc.get_traced_memory()[0], count


def growth(act: Callable[[], object], few_bytes: int, few_objects: int) -> tuple[int, int]:
    """Return by how much memory grows when something is done again, in bytes and in objects.

    What is kept in reserve grows now and then, what leaks grows every time: it is tried until it is no more than a few,
    ten times at most.
    """
    act()
    for _ in range(10):
        bytes_before, objects_before = memory()
        act()
        settle()
        bytes_after, objects_after = memory()
        more_bytes, more_objects = bytes_after - bytes_before, objects_after - objects_before
        if more_bytes < few_bytes and more_objects < few_objects:
            break
    return more_bytes, more_objects


def garbage_of(act: Callable[[], object]) -> Iterator[int]:
    """How much the collector finds when something was done, each time: other threads leave something now and then."""
    for _ in range(10):
        gc.collect()
        act()
        settle()
        yield gc.collect()


def failing(options: dict[str, Any]) -> Callable[[], Plain]:
    """A factory of connections that can be told not to open."""

    def make() -> Plain:
        if options["fails"]:
            raise ConnectionRefusedError("down")
        return Plain()

    return make


class Uses:
    """Every way of using a pool of one connection, and of failing to."""

    def __init__(self) -> None:
        self.options = {"fails": False}
        self.pool = Pool(failing(self.options), max_connections=1, leak_threshold=1000)

    def acquire_and_release(self) -> None:
        self.pool.release(self.pool.acquire())

    def use_in_a_block(self) -> None:
        with self.pool.connection():
            pass

    def fail_in_a_block(self) -> None:
        with contextlib.suppress(LookupError), self.pool.connection():
            raise LookupError

    def detach(self) -> None:
        self.pool.detach(self.pool.acquire())

    def wait(self) -> None:
        held = self.pool.acquire()
        waiter = spawn_acquire(self.pool)
        self.pool.release(held)
        self.pool.release(waiter.get(timeout=PATIENCE))

    def fail_to_wait(self) -> None:
        with self.pool.connection(), contextlib.suppress(PoolExhaustedError):
            self.pool.acquire(timeout=0)

    def time_out(self) -> None:
        with self.pool.connection(), contextlib.suppress(PoolExhaustedError):
            self.pool.acquire(timeout=0.00001)

    def be_killed(self) -> None:
        with self.pool.connection():
            spawn_acquire(self.pool).kill()

    def be_interrupted(self) -> None:
        with self.pool.connection(), contextlib.suppress(gevent.Timeout), gevent.Timeout(0.00001):
            self.pool.acquire()

    def fail_to_open(self) -> None:
        self.pool.drain()
        self.options["fails"] = True
        with contextlib.suppress(ConnectionRefusedError):
            self.pool.acquire()
        self.options["fails"] = False


USES = [name for name in vars(Uses) if not name.startswith("_")]


@pytest.mark.parametrize("name", USES)
def test_a_use_leaves_nothing_in_memory(name: str) -> None:
    uses = Uses()
    use = getattr(uses, name)

    def use_often() -> None:
        for _ in range(200):
            use()

    more_bytes, more_objects = growth(use_often, 200 * SMALL, 50)
    assert more_objects < 50
    assert more_bytes < 200 * SMALL
    if name != "be_killed":
        # A greenlet that was killed has what killed it, that has the frames where it was, and these have the greenlet.
        assert 0 in garbage_of(use_often), "it takes the collector to get rid of something"
    uses.pool.close()


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.torture)])
def test_many_acquires_leave_nothing_in_memory(count: int) -> None:
    pool = Pool(Plain, max_connections=2)

    def use(times: int) -> None:
        for number in range(times):
            connection = pool.acquire()
            if number % 100 == 0:
                # The others get to run, and have to wait.
                gevent.sleep(0)
            pool.release(connection)

    def use_together(times: int) -> None:
        gevent.joinall([gevent.spawn(use, times // 4) for _ in range(4)], raise_error=True)

    more_bytes, more_objects = growth(lambda: use_together(count // 4), 8192, 50)
    assert pool.stats().acquired_after_wait > count // 1000
    assert more_objects < 50
    assert more_bytes < 8192
    pool.close()


NOTHING: dict[str, Any] = {}


def cost_of_each(wait: Callable[[], object], count: int) -> float:
    """The bytes that each of `count` greenlets takes that does nothing but `wait`."""
    before, _ = memory()
    greenlets = [gevent.spawn(wait) for _ in range(count)]
    settle()
    after, _ = memory()
    gevent.killall(greenlets)
    greenlets.clear()
    gc.collect()
    settle()
    return (after - before) / count


# What calls and their variables take on the stack is the greenlet's, and depends on the version of Python. So these
# wait without a pool, but as far from the beginning of the greenlet as acquire() does, and with as many variables.


def wait_without_a_pool() -> Any:
    return like_acquire(NOTHING)


def like_acquire(a: Any, b: Any = 0, c: Any = 0, d: Any = 0) -> Any:
    return like_acquire_inside(a, b)


def like_acquire_inside(a: Any, b: Any, c: Any = 0, d: Any = 0, e: Any = 0, f: Any = 0) -> Any:
    return like_acquire_slowly(a, b, c, d, e=e)


def like_acquire_slowly(
    a: Any, b: Any, c: Any, d: Any, e: Any, f: Any = 0, g: Any = 0, h: Any = 0, i: Any = 0, j: Any = 0
) -> Any:
    try:
        return like_wait(a, b, c, d, e)
    finally:
        a.clear()


def like_wait(
    a: Any, b: Any, c: Any, d: Any, e: Any, f: Any = 0, g: Any = 0, h: Any = 0, i: Any = 0, j: Any = 0, k: Any = 0
) -> Any:
    h = Waiter()
    try:
        return h.get()
    finally:
        a.clear()


@pytest.mark.parametrize("timeout", [5.0, None])
def test_a_waiter_costs_less_than_a_kilobyte(timeout: float | None) -> None:
    pool = Pool(Plain, max_connections=1, acquire_timeout=timeout)
    pool.acquire()

    def wait() -> None:
        pool.acquire()

    count = 1_000
    cost_of_each(wait_without_a_pool, 100)
    bare = cost_of_each(wait_without_a_pool, count)
    waiting = cost_of_each(wait, count)
    assert pool.stats().waiting == 0
    assert bare > 1000, "a greenlet has a stack"
    assert waiting - bare < 1024, (bare, waiting)
    pool.close(timeout=0)


@pytest.mark.parametrize("end", ["killed", "timed out"])
def test_waiters_killed_or_timed_out_leave_nothing_in_memory(end: str) -> None:
    pool = Pool(Plain, max_connections=1)
    held = pool.acquire()

    def wait_in_vain(count: int) -> None:
        timeout = 0.01 if end == "timed out" else PATIENCE

        def wait() -> None:
            with contextlib.suppress(PoolExhaustedError):
                pool.acquire(timeout=timeout)

        waiters = [gevent.spawn(wait) for _ in range(count)]
        settle()
        if end == "killed":
            assert pool.stats().waiting == count
            gevent.killall(waiters)
        gevent.joinall(waiters, timeout=PATIENCE)
        assert pool.stats().waiting == 0

    more_bytes, more_objects = growth(lambda: wait_in_vain(1000), 1000 * SMALL, 50)
    assert more_objects < 50
    assert more_bytes < 1000 * SMALL
    pool.release(held)
    assert pool.acquire(timeout=0) is held
    pool.close(timeout=0)


def test_a_pool_is_as_small_after_a_burst_of_callers_as_before(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(
        backend.connect, max_connections=50, min_connections=2, max_opening=None, idle_timeout=60, reap_interval=0.002
    )
    eventually(lambda: numbers(pool) == (0, 2, 0, 0))

    def storm() -> None:
        def use() -> None:
            for _ in range(3):
                with pool.connection():
                    gevent.sleep(0)

        gevent.joinall([gevent.spawn(use) for _ in range(200)], raise_error=True)
        assert numbers(pool) == (0, 50, 0, 0)
        clock.advance(59)
        # The pool needs no more than this from now on.
        with pool.connection() as used:
            pass
        clock.advance(1)
        eventually(lambda: numbers(pool) == (0, 2, 0, 0), "it has not shrunk")
        assert used.is_open
        eventually(lambda: len(backend.open) == 2)
        backend.connections[:] = backend.open

    more_bytes, more_objects = growth(storm, 8192, 48)
    assert more_objects < 48
    assert more_bytes < 8192
    pool.close()
