"""Code of the user's that uses the very pool that calls it, closings that go wrong in every way, and other threads."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.hub import Hub

from gsocketpool import Pool, PoolClosedError, PoolError, PoolExhaustedError, WrongThreadError
from tests.support.scripted import (
    PATIENCE,
    Backend,
    Plain,
    ScriptedConnection,
    end_event_loop,
    eventually,
    numbers,
    settle,
)


class Reentrant(ScriptedConnection):
    """One of its steps does something with the pool before it does what it should."""

    def check_whether_armed(self, step: str) -> None:
        arm = self.backend.answer
        if isinstance(arm, Arm):
            arm.go_off(self, step)

    def open(self) -> None:
        self.check_whether_armed("open")
        super().open()

    def close(self) -> None:
        self.check_whether_armed("close")
        super().close()

    def is_connected(self) -> bool:
        self.check_whether_armed("is_connected")
        return super().is_connected()

    def is_usable(self) -> bool:
        self.check_whether_armed("is_usable")
        # Without a look at what has become of it meanwhile.
        return True

    def is_reusable(self, error: BaseException | None) -> bool:
        self.check_whether_armed("is_reusable")
        return error is None and self.is_open

    def is_expired(self) -> bool:
        self.check_whether_armed("is_expired")
        return super().is_expired()

    def abort(self) -> None:
        self.check_whether_armed("abort")
        super().abort()

    def __repr__(self) -> str:
        self.check_whether_armed("__repr__")
        return super().__repr__()


class Arm:
    def __init__(self, pool: Pool[Any], step: str, act: Callable[[Pool[Any], Any], object]) -> None:
        self.pool = pool
        self.step = step
        self.act = act
        self.times = 0
        self.is_going_off = False

    def go_off(self, connection: Any, step: str) -> None:
        if step != self.step or self.is_going_off:
            return
        self.is_going_off = True
        self.times += 1
        try:
            # As a careful user would: what the pool refuses is no reason to fail.
            with contextlib.suppress(PoolError):
                self.act(self.pool, connection)
        finally:
            self.is_going_off = False


def use(pool: Pool[Any], timeout: float) -> None:
    with pool.connection(timeout=timeout) as connection:
        assert connection.is_open, "it was handed out closed"


STEPS = ["factory", "open", "close", "is_connected", "is_usable", "is_reusable", "is_expired", "abort", "__repr__"]
ACTS: dict[str, Callable[[Pool[Any], Any], object]] = {
    "use without waiting": lambda pool, connection: use(pool, 0),
    "use after waiting": lambda pool, connection: use(pool, 0.01),
    "release": lambda pool, connection: pool.release(connection),
    "discard": lambda pool, connection: pool.discard(connection),
    "detach": lambda pool, connection: setattr(pool.detach(connection), "is_open", False),
    "drop": lambda pool, connection: pool.drop(connection),
    "drop_expired": lambda pool, connection: pool.drop_expired(),
    "drain": lambda pool, connection: pool.drain(),
    "resize": lambda pool, connection: pool.resize(pool.stats().max_connections),
    "wait_ready": lambda pool, connection: pool.wait_ready(0.01),
    "fill": lambda pool, connection: pool.fill(pool.stats().max_connections),
    "ping": lambda pool, connection: pool.ping(0.01),
    "close": lambda pool, connection: pool.close(timeout=0.01),
    "look": lambda pool, connection: (pool.stats(), repr(pool), pool.size),
}


def everything(pool: Pool[Any], backend: Backend) -> None:
    """Makes every step of the connections be called."""
    with contextlib.suppress(PoolError):
        use(pool, 0.05)
    with contextlib.suppress(PoolError):
        pool.release(pool.acquire(timeout=0.05))
    with contextlib.suppress(PoolError), contextlib.suppress(LookupError), pool.connection(timeout=0.05):
        raise LookupError
    with contextlib.suppress(PoolError):
        pool.discard(pool.acquire(timeout=0.05))
    with contextlib.suppress(PoolError), pool.connection(timeout=0.05), contextlib.suppress(PoolError):
        use(pool, 0.01)
    for connection in backend.connections:
        connection.says_expired = True
    pool.drop_expired()
    for connection in backend.connections:
        connection.says_expired = False
    for connection in backend.open[:1]:
        with contextlib.suppress(PoolError):
            pool.drop(connection)
    with contextlib.suppress(PoolError):
        use(pool, 0.05)
    # One that its user has closed is let go of.
    for connection in backend.open:
        connection.is_open = False
    pool.drain()


def check_whole(pool: Pool[Any], backend: Backend) -> None:
    if not pool._state.closed:
        assert numbers(pool)[0] == 0, "something is lost"
        taken = [pool.acquire(timeout=PATIENCE) for _ in range(pool.stats().max_connections)]
        assert all(connection.is_open for connection in taken)
        with pytest.raises(PoolExhaustedError):
            pool.acquire(timeout=0)
        for connection in taken:
            pool.release(connection)
    pool.close()
    assert pool.size == 0
    assert not backend.open


def cases() -> Iterator[Any]:
    """Every act in every step: in a pool of one size in the suite, turn and turn about, and of both in the torture."""
    for (row, act), (column, step), size in itertools.product(enumerate(ACTS), enumerate(STEPS), (1, 2)):
        is_rare = (row + column + size) % 2
        yield pytest.param(act, step, size, marks=[pytest.mark.torture] if is_rare else [])


@pytest.mark.parametrize(("act", "step", "size"), list(cases()))
def test_a_step_that_uses_the_pool(backend: Backend, act: str, step: str, size: int) -> None:
    def factory() -> ScriptedConnection:
        connection = Reentrant(backend, {})
        connection.check_whether_armed("factory")
        return backend._made(connection)

    pool = Pool(factory, max_connections=size, close_timeout=0.2)
    use(pool, PATIENCE)
    arm = Arm(pool, step, ACTS[act])
    backend.answer = arm
    with gevent.Timeout(PATIENCE, AssertionError("a deadlock")):
        everything(pool, backend)
        if step == "__repr__":
            with pytest.raises(PoolError):
                pool.release(Reentrant(backend, {}))
        settle()
    assert arm.times, "it has not been called"
    backend.answer = True
    eventually(lambda: not pool.stats().closing)
    check_whole(pool, backend)


@pytest.mark.parametrize("is_waited_for", [True, False], ids=["drop_expired", "discard"])
def test_a_close_that_kills_its_own_greenlet(backend: Backend, is_waited_for: bool) -> None:
    class Suicidal(ScriptedConnection):
        def close(self) -> None:
            gevent.getcurrent().kill()

    pool = Pool(lambda: backend._made(Suicidal(backend, {})), max_connections=2)
    close_one(pool, is_waited_for)
    check_whole(pool, backend)


class FatalError(BaseException):
    """Not an Exception."""


@pytest.mark.parametrize("is_waited_for", [True, False], ids=["drop_expired", "discard"])
@pytest.mark.parametrize(
    "error",
    [FatalError(), gevent.GreenletExit(), gevent.Timeout(1), OSError("no")],
    ids=lambda error: type(error).__name__,
)
def test_a_close_that_raises(
    backend: Backend, error: BaseException, is_waited_for: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raising(ScriptedConnection):
        def close(self) -> None:
            raise error

    in_the_background: list[Any] = []
    monkeypatch.setattr(Hub, "print_exception", lambda *arguments: in_the_background.append(arguments[3]))
    pool = Pool(lambda: backend._made(Raising(backend, {})), max_connections=2)
    close_one(pool, is_waited_for)
    assert in_the_background == ([error] if isinstance(error, FatalError) else [])
    check_whole(pool, backend)


def close_one(pool: Pool[Any], is_waited_for: bool) -> None:
    """Whatever close() does, the caller that lets a connection be closed hears nothing of it, and its place is free."""
    connection = pool.acquire()
    if is_waited_for:
        pool.release(connection)
        connection.says_expired = True
        pool.drop_expired()
    else:
        pool.discard(connection)
        settle()
    assert not connection.is_open
    assert pool.size == 0


def test_a_close_that_ends_the_program(backend: Backend) -> None:
    """SystemExit is for the main greenlet, as gevent has it, and costs the pool nothing."""

    class Exiting(ScriptedConnection):
        def close(self) -> None:
            super().close()
            if self.number == 0:
                raise SystemExit(3)

    pool = Pool(lambda: backend._made(Exiting(backend, {})), max_connections=2)
    pool.discard(pool.acquire())
    with pytest.raises(SystemExit):
        settle()
    settle()
    assert not backend.open
    check_whole(pool, backend)


def test_closings_that_hang_hold_no_place(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    class Hanging(ScriptedConnection):
        def close(self) -> None:
            gevent.sleep(PATIENCE)

    caplog.set_level(logging.CRITICAL, "gsocketpool")
    pool = Pool(lambda: backend._made(Hanging(backend, {})), max_connections=2, close_timeout=0.5)

    def discard() -> None:
        pool.discard(pool.acquire())

    discarding = [gevent.spawn(discard) for _ in range(20)]
    eventually(lambda: pool.stats().closing == 20, "each has its turn, though none is closed yet")
    assert numbers(pool) == (0, 0, 0, 0)
    assert all(one.successful() for one in discarding)
    check_whole(pool, backend)


# Threads


def in_thread(act: Callable[[], object]) -> Any:
    """What a call in another thread returns, or the error that it raises."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(act())
        except BaseException as error:
            outcome.append(error)
        finally:
            end_event_loop()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    return outcome[0]


METHODS: dict[str, Callable[[Pool[Any], Any], object]] = {
    "acquire": lambda pool, held: pool.acquire(),
    "acquire at once": lambda pool, held: pool.acquire(timeout=0),
    "acquire and retry": lambda pool, held: pool.acquire(retry=1),
    "connection": lambda pool, held: use(pool, 1),
    "lease": lambda pool, held: pool.lease(),
    "release": lambda pool, held: pool.release(held),
    "discard": lambda pool, held: pool.discard(held),
    "detach": lambda pool, held: pool.detach(held),
    "drop": lambda pool, held: pool.drop(pool._state.idle[0].connection),
    "drop_expired": lambda pool, held: pool.drop_expired(),
    "drain": lambda pool, held: pool.drain(),
    "resize": lambda pool, held: pool.resize(1),
    "wait_ready": lambda pool, held: pool.wait_ready(),
    "fill": lambda pool, held: pool.fill(2),
    "ping": lambda pool, held: pool.ping(),
    "close": lambda pool, held: pool.close(),
    "with": lambda pool, held: pool.__enter__().__exit__(None, None, None),
}


def test_there_is_a_case_for_every_method() -> None:
    public = {name for name in dir(Pool) if not name.startswith("_") and callable(getattr(Pool, name))}
    assert public - set(METHODS) == {"from_url", "stats"}, "what any thread may call"


@pytest.mark.parametrize("name", METHODS)
def test_another_thread_is_told_so_and_those_who_wait_are_left_alone(name: str) -> None:
    pool = Pool(Plain, max_connections=2)
    held, other = pool.acquire(), pool.acquire()
    pool.release(other)
    before = pool.stats()
    assert isinstance(in_thread(lambda: METHODS[name](pool, held)), WrongThreadError)
    assert pool.stats() == before
    taken = pool.acquire()
    waiter = gevent.spawn(pool.acquire)
    settle()
    if name != "drop":
        assert isinstance(in_thread(lambda: METHODS[name](pool, held)), WrongThreadError)
        settle()
        assert numbers(pool) == (2, 0, 0, 1)
    assert in_thread(pool.stats).waiting == 1
    assert "2 in use" in in_thread(lambda: repr(pool))
    pool.release(held)
    assert waiter.get(timeout=PATIENCE) is held
    pool.release(held)
    pool.release(taken)
    pool.close()


def test_a_lease_is_not_transferred_to_another_thread() -> None:
    pool = Pool(Plain, max_connections=1)
    lease = pool.lease()
    assert isinstance(in_thread(lease.transfer), WrongThreadError)
    assert lease.is_active
    lease.release()
    assert numbers(pool) == (0, 1, 0, 0)
    pool.close()


@pytest.mark.parametrize("name", ["release", "discard"])
def test_a_lease_that_ends_in_another_thread_is_given_back_in_the_pools_own(name: str) -> None:
    pool = Pool(Plain, max_connections=1)
    lease = pool.lease()
    assert in_thread(getattr(lease, name)) is None
    eventually(lambda: not lease.is_active)
    assert numbers(pool) == (0, int(name == "release"), 0, 0)
    pool.close()


def test_a_block_left_in_another_thread_is_given_back_in_the_pools_own() -> None:
    """The collector may leave it there, and what that raised would reach no caller."""
    pool = Pool(Plain, max_connections=1)
    block = pool.connection()
    connection = block.__enter__()
    assert in_thread(lambda: block.__exit__(None, None, None)) is None
    eventually(lambda: numbers(pool) == (0, 1, 0, 0))
    assert pool.acquire(timeout=0) is connection
    pool.close(timeout=0)


def test_a_block_whose_use_is_over_may_be_left_anywhere() -> None:
    pool = Pool(Plain, max_connections=1)
    block = pool.connection()
    pool.discard(block.__enter__())
    assert in_thread(lambda: block.__exit__(None, None, None)) is None


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("drop", "close", "with")])
def test_a_closed_pool_does_nothing_any_more(name: str) -> None:
    """It says so to whoever wants something of it; what would change nothing is allowed."""
    pool = Pool(Plain, max_connections=2)
    held = pool.acquire()
    closing = gevent.spawn(pool.close, timeout=PATIENCE)
    settle()
    outcome: Any = None
    try:
        outcome = METHODS[name](pool, held)
    except PoolClosedError as error:
        outcome = error
    refused = name.startswith(("acquire", "connection", "lease", "wait_ready", "fill", "ping"))
    assert isinstance(outcome, PoolClosedError) is refused
    if name not in ("release", "discard", "detach"):
        pool.release(held)
    closing.join(PATIENCE)
    assert closing.successful()
    assert held.is_open is (name == "detach")
    assert numbers(pool) == (0, 0, 0, 0)
