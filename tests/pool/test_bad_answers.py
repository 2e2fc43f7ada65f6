"""Whatever a connection answers, and however it says so, the pool loses nothing by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest

from gsocketpool import Pool
from tests.support.connections import outcome
from tests.support.scripted import PATIENCE, Plain, Untold, eventually, numbers, settle


def neither() -> Untold:
    """What an array of numbers answers, for instance."""
    return Untold(ValueError("neither true nor false"))


def dead() -> Untold:
    """What a weak reference answers whose object is gone."""
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


def check_whole(pool: Pool[Any], connections: list[Any]) -> None:
    settle()
    assert numbers(pool) == (0, 0, 0, 0)
    assert connections[0] is not pool.acquire(timeout=PATIENCE)
    assert sum(pool.stats().discarded.values()) == 1


class FatalError(BaseException):
    """Not an Exception."""


KINDS = [Foreign, Derived]
ANSWERS = [pytest.param(neither, id="neither"), pytest.param(dead, id="dead")]
THROWN: list[Callable[[], BaseException]] = [gevent.GreenletExit, lambda: gevent.Timeout(1), FatalError]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_idle_connection_that_does_not_say_whether_it_is_open_is_not_handed_out(
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
def test_a_released_connection_that_does_not_say_whether_it_is_open_is_discarded(
    kind: Callable[[], Any], answer: Callable[[], Any]
) -> None:
    pool, made = make_pool(kind)
    pool.acquire()
    made[0].answers["is_connected"] = answer()
    pool.release(made[0])
    check_whole(pool, made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_connection_that_does_not_say_whether_it_is_open_is_discarded_at_the_end_of_its_block(
    kind: Callable[[], Any], answer: Callable[[], Any]
) -> None:
    pool, made = make_pool(kind)
    with pool.connection() as connection:
        connection.answers["is_connected"] = answer()
    check_whole(pool, made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("thrown", THROWN, ids=["kill", "timeout", "error"])
@pytest.mark.parametrize("is_idle", [True, False], ids=["acquired", "released"])
def test_an_answer_that_ends_the_caller_does_not_lose_the_connection(
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
    check_whole(pool, made)
    assert not made[0].is_open


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_idle_connection_that_does_not_say_whether_it_is_usable_is_not_handed_out(answer: Callable[[], Any]) -> None:
    pool, made = make_pool(Checked)
    pool.release(pool.acquire())
    made[0].answers["is_usable"] = answer()
    assert pool.acquire(timeout=PATIENCE) is made[1]
    assert pool.stats().discarded == {"unusable": 1}
    assert not made[0].is_open


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_connection_that_does_not_say_whether_it_is_reusable_is_discarded(answer: Callable[[], Any]) -> None:
    pool, made = make_pool(Checked)
    pool.acquire()
    made[0].answers["is_reusable"] = answer()
    pool.release(made[0])
    check_whole(pool, made)
    assert not made[0].is_open


@pytest.mark.parametrize("kind", [Foreign, Derived, Checked])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_connection_that_does_not_say_whether_it_is_expired_is_closed(
    kind: Callable[[], Any], answer: Callable[[], Any]
) -> None:
    pool, made = make_pool(kind)
    pool.release(pool.acquire())
    made[0].answers["is_expired"] = answer()
    pool.drop_expired()
    assert not made[0].is_open
    assert numbers(pool) == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", [Foreign, Derived, Checked])
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_opening_that_does_not_say_whether_it_has_succeeded_has_failed(
    kind: Callable[[], Any], answer: Callable[[], Any]
) -> None:
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


def test_an_opening_after_which_a_connection_can_not_be_asked_has_failed() -> None:
    pool, made = make_pool(Unaskable)
    error = outcome(pool.acquire)
    assert isinstance(error, ValueError)
    assert str(error) == "no such question"
    settle()
    assert numbers(pool) == (0, 0, 0, 0)
    assert not made[0].is_open
