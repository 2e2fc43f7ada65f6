"""A check that raises, or whose result is no answer, loses no capacity."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from gsocketpool import ConnectionNotFoundError, Pool, PoolExhaustedError
from tests.support.callers import Caller, check_whole
from tests.support.connections import outcome
from tests.support.scripted import PATIENCE, Backend, Plain, ScriptedConnection, Untold, eventually, numbers, settle


def neither() -> Untold:
    """Return an answer that is neither true nor false, such as an array of numbers."""
    return Untold(ValueError("neither true nor false"))


def dead() -> Untold:
    """Return the answer of a weak reference whose object is gone."""
    return Untold(ReferenceError("weakly-referenced object no longer exists"))


class Foreign:
    """A connection whose class does not derive from the package's."""

    def __init__(self) -> None:
        self.is_open = False
        #: What it answers instead, if it answers anything else than the truth.
        self.answers: dict[str, Any] = {}

    def open(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False

    def is_connected(self) -> Any:
        return self.answers.get("is_connected", self.is_open)

    def is_expired(self) -> Any:
        return self.answers.get("is_expired", False)


class Derived(Foreign, Plain):
    """A connection of which nothing is asked that the other is not asked."""


class Checked(Derived):
    """A connection that is asked all there is."""

    def is_usable(self) -> Any:
        return self.answers.get("is_usable", self.is_open)

    def is_reusable(self, error: BaseException | None) -> Any:
        return self.answers.get("is_reusable", self.is_open)


def make_pool(kind: Callable[[], Any]) -> tuple[Pool[Any], list[Any]]:
    """A pool for one connection, and the connections that it makes."""
    made: list[Any] = []

    def make() -> Any:
        made.append(kind())
        return made[-1]

    return Pool(make, max_connections=1), made


def check_discarded(pool: Pool[Any], connections: list[Any]) -> None:
    settle()
    assert numbers(pool) == (0, 0, 0, 0)
    assert connections[0] is not pool.acquire(timeout=PATIENCE)
    assert sum(pool.stats().discarded.values()) == 1


class FatalError(BaseException):
    """Not an Exception."""


KINDS = [Foreign, Derived]
ANSWERS = [pytest.param(neither, id="neither"), pytest.param(dead, id="dead")]
THROWN: list[Callable[[], BaseException]] = [gevent.GreenletExit, lambda: gevent.Timeout(1), FatalError]


class DerivedWithSocket(Derived):
    """A connection that is asked what a connection with a socket is asked."""

    def get(self) -> Any:
        return None


@pytest.mark.parametrize("kind", [Foreign, Derived, DerivedWithSocket])
def test_a_connection_that_says_it_is_open_by_something_true_is_kept(kind: Callable[[], Any]) -> None:
    pool, made = make_pool(kind)
    for _ in range(3):
        with pool.connection() as connection:
            connection.answers["is_connected"] = "a socket"
    assert len(made) == 1
    assert made[0].is_open


@pytest.mark.parametrize("kind", [Derived, DerivedWithSocket])
def test_the_default_checks_answer_true_or_false(kind: Callable[[], Any]) -> None:
    connection = kind()
    for answer, expected in (("a socket", True), (None, False)):
        connection.answers["is_connected"] = answer
        assert connection.is_usable() is expected
        assert connection.is_reusable(None) is expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_idle_connection_whose_is_connected_fails_is_not_handed_out(
    kind: Callable[[], Any], answer: Callable[[], Any]
) -> None:
    pool, made = make_pool(kind)
    pool.release(pool.acquire())
    made[0].answers["is_connected"] = answer()
    pool.release(pool.acquire(timeout=PATIENCE))
    assert len(made) == 2
    assert numbers(pool) == (0, 1, 0, 0)
    assert sum(pool.stats().discarded.values()) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_released_connection_whose_is_connected_fails_is_discarded(
    kind: Callable[[], Any], answer: Callable[[], Any]
) -> None:
    pool, made = make_pool(kind)
    pool.acquire()
    made[0].answers["is_connected"] = answer()
    pool.release(made[0])
    check_discarded(pool, made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_connection_whose_is_connected_fails_is_discarded_at_the_end_of_its_block(
    kind: Callable[[], Any], answer: Callable[[], Any]
) -> None:
    pool, made = make_pool(kind)
    with pool.connection() as connection:
        connection.answers["is_connected"] = answer()
    check_discarded(pool, made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("thrown", THROWN, ids=["kill", "timeout", "error"])
@pytest.mark.parametrize("is_idle", [True, False], ids=["acquired", "released"])
def test_an_exception_that_a_check_raises_in_the_caller_closes_the_connection(
    kind: Callable[[], Any], thrown: Callable[[], BaseException], is_idle: bool
) -> None:
    error = thrown()
    pool, made = make_pool(kind)
    pool.acquire()
    if is_idle:
        pool.release(made[0])
    made[0].answers["is_connected"] = Untold(error)
    came_out: BaseException | None = None
    try:
        if is_idle:
            pool.acquire(timeout=PATIENCE)
        else:
            pool.release(made[0])
    except BaseException as caught:
        came_out = caught
    # It can be closed if it answers then.
    made[0].answers.clear()
    assert came_out is error
    check_discarded(pool, made)
    assert not made[0].is_open


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_idle_connection_whose_is_usable_fails_is_not_handed_out(answer: Callable[[], Any]) -> None:
    pool, made = make_pool(Checked)
    pool.release(pool.acquire())
    made[0].answers["is_usable"] = answer()
    assert pool.acquire(timeout=PATIENCE) is made[1]
    assert pool.stats().discarded == {"unusable": 1}
    assert not made[0].is_open


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_connection_whose_is_reusable_fails_is_discarded(answer: Callable[[], Any]) -> None:
    pool, made = make_pool(Checked)
    pool.acquire()
    made[0].answers["is_reusable"] = answer()
    pool.release(made[0])
    check_discarded(pool, made)
    assert not made[0].is_open


@pytest.mark.parametrize("kind", [Foreign, Derived, Checked])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_connection_whose_is_expired_fails_is_closed(kind: Callable[[], Any], answer: Callable[[], Any]) -> None:
    pool, made = make_pool(kind)
    pool.release(pool.acquire())
    made[0].answers["is_expired"] = answer()
    pool.drop_expired()
    assert not made[0].is_open
    assert numbers(pool) == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", [Foreign, Derived, Checked])
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_opening_fails_if_is_connected_fails(kind: Callable[[], Any], answer: Callable[[], Any]) -> None:
    def unable() -> Any:
        connection = kind()
        connection.answers["is_connected"] = answer()
        return connection

    pool, _ = make_pool(unable)
    assert isinstance(outcome(pool.acquire), ValueError | ReferenceError)
    eventually(lambda: numbers(pool) == (0, 0, 0, 0))


class Unaskable(Plain):
    """A connection that, once it is open, raises an error when its check is looked up."""

    def __getattribute__(self, name: str) -> Any:
        if name == "is_usable" and self.is_open:
            raise ValueError("no such question")
        return super().__getattribute__(name)


def test_an_opening_fails_if_looking_up_the_check_of_its_connection_raises() -> None:
    pool, made = make_pool(Unaskable)
    error = outcome(pool.acquire)
    assert isinstance(error, ValueError)
    assert str(error) == "no such question"
    settle()
    assert numbers(pool) == (0, 0, 0, 0)
    assert not made[0].is_open


# Steps that raise, switch or use the pool


@pytest.mark.parametrize("step", ["is_connected", "is_usable", "is_reusable", "close", "is_expired", "__repr__"])
@pytest.mark.parametrize("raised", [ValueError("bad step"), gevent.Timeout(9)], ids=["error", "timeout"])
def test_a_step_that_raises_loses_no_capacity(
    backend: Backend, step: str, raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    armed = False

    def misbehave(self: Any, *arguments: Any) -> Any:
        if armed:
            raise raised
        return getattr(ScriptedConnection, step)(self, *arguments)

    kind = type("Misbehaving", (ScriptedConnection,), {step: misbehave})
    pool: Pool[Any] = Pool(lambda: backend.add(kind(backend, {})), max_connections=1)
    logging.raiseExceptions, before = False, logging.raiseExceptions
    try:
        pool.release(pool.acquire())
        armed = True
        for act in (lambda: pool.release(pool.acquire(timeout=0)), pool.drop_expired, pool.drain):
            with contextlib.suppress(PoolExhaustedError, type(raised)):
                act()
            settle()
        armed = False
        for connection in backend.open:
            # What would not even say whether it is open can't be closed.
            assert step == "is_connected"
            connection.is_open = False
        for connection in backend.connections:
            with contextlib.suppress(ConnectionNotFoundError):
                pool.discard(connection)
        check_whole(pool, backend)
    finally:
        logging.raiseExceptions = before


def test_a_step_that_switches_and_then_fails_harms_no_other_caller(backend: Backend) -> None:
    class Switching(ScriptedConnection):
        fails = True

        def is_reusable(self, error: BaseException | None) -> bool:
            if self.fails:
                Switching.fails = False
                gevent.sleep(0.001)
                raise gevent.Timeout(1)
            return True

    pool = Pool(lambda: backend.add(Switching(backend, {})), max_connections=1)
    connection = pool.acquire()
    first = Caller(pool, lambda pool: pool.release(connection))
    pool.release(connection)
    assert pool.acquire() is connection
    first.greenlet.join()
    assert isinstance(first.ended_by, gevent.Timeout)
    assert connection.is_open
    assert numbers(pool) == (1, 0, 0, 0)


def test_releases_that_overlap_during_a_check_give_a_connection_back_once(backend: Backend) -> None:
    class Switching(ScriptedConnection):
        def is_reusable(self, error: BaseException | None) -> bool:
            gevent.sleep(0)
            return True

    pool = Pool(lambda: backend.add(Switching(backend, {})), max_connections=1)
    connection = pool.acquire()
    releases = [gevent.spawn(pool.release, connection) for _ in range(3)]
    gevent.joinall(releases)
    assert numbers(pool) == (0, 1, 0, 0)
    check_whole(pool, backend)


def test_a_factory_may_use_the_pool_that_calls_it(backend: Backend) -> None:
    def factory() -> ScriptedConnection:
        if len(backend.connections) == 1:
            pool.release(inner)
        return backend.connect()

    pool = Pool(factory, max_connections=2)
    inner = pool.acquire()
    pool.release(pool.acquire())
    check_whole(pool, backend)
