"""User code that uses the very pool that calls it, and closings that go wrong in every way."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.hub import Hub

from gsocketpool import Pool, PoolError, PoolExhaustedError
from tests.support.callers import is_closed
from tests.support.scripted import PATIENCE, Backend, ScriptedConnection, eventually, numbers, settle


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
    """Make every step of the connections be called."""
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
    if not is_closed(pool):
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
def test_a_step_may_use_the_pool_that_calls_it(backend: Backend, act: str, step: str, size: int) -> None:
    def factory() -> ScriptedConnection:
        connection = Reentrant(backend, {})
        connection.check_whether_armed("factory")
        return backend.add(connection)

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
def test_a_close_that_kills_its_own_greenlet_loses_no_capacity(backend: Backend, is_waited_for: bool) -> None:
    class Suicidal(ScriptedConnection):
        def close(self) -> None:
            gevent.getcurrent().kill()

    pool = Pool(lambda: backend.add(Suicidal(backend, {})), max_connections=2)
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
def test_a_close_that_raises_loses_no_capacity(
    backend: Backend, error: BaseException, is_waited_for: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raising(ScriptedConnection):
        def close(self) -> None:
            raise error

    in_the_background: list[Any] = []
    monkeypatch.setattr(Hub, "print_exception", lambda *arguments: in_the_background.append(arguments[3]))
    pool = Pool(lambda: backend.add(Raising(backend, {})), max_connections=2)
    close_one(pool, is_waited_for)
    assert in_the_background == ([error] if isinstance(error, FatalError) else [])
    check_whole(pool, backend)


def close_one(pool: Pool[Any], is_waited_for: bool) -> None:
    """What ``close()`` raises does not reach the caller that has a connection closed, and its place is free."""
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


def test_a_close_that_raises_system_exit_ends_the_program_and_loses_no_capacity(backend: Backend) -> None:
    """SystemExit is for the main greenlet, as gevent has it, and costs the pool nothing."""

    class Exiting(ScriptedConnection):
        def close(self) -> None:
            super().close()
            if self.number == 0:
                raise SystemExit(3)

    pool = Pool(lambda: backend.add(Exiting(backend, {})), max_connections=2)
    pool.discard(pool.acquire())
    with pytest.raises(SystemExit):
        settle()
    settle()
    assert not backend.open
    check_whole(pool, backend)


def test_connections_whose_close_hangs_make_room_at_once(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    class Hanging(ScriptedConnection):
        def close(self) -> None:
            gevent.sleep(PATIENCE)

    caplog.set_level(logging.CRITICAL, "gsocketpool")
    pool = Pool(lambda: backend.add(Hanging(backend, {})), max_connections=2, close_timeout=0.5)

    def discard() -> None:
        pool.discard(pool.acquire())

    discarding = [gevent.spawn(discard) for _ in range(20)]
    eventually(lambda: pool.stats().closing == 20, "each has its turn, though none is closed yet")
    assert numbers(pool) == (0, 0, 0, 0)
    assert all(one.successful() for one in discarding)
    check_whole(pool, backend)
