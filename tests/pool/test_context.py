"""The context that a pool enters around user code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import Connection, Pool
from tests.support.callers import check_whole, ended_by
from tests.support.callers import thrown as thrown
from tests.support.connections import outcome
from tests.support.scripted import PATIENCE, eventually, numbers, settle

Act = Callable[[Pool[Any]], object]


class Context:
    """Notes which greenlets are inside, and which exceptions leave it."""

    def __init__(self) -> None:
        self.inside: list[Any] = []
        self.left_by: list[BaseException | None] = []

    def __call__(self) -> Context:
        return self

    def __enter__(self) -> None:
        self.inside.append(gevent.getcurrent())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.inside.remove(gevent.getcurrent())
        self.left_by.append(error)


class Asked:
    """What the connections of one test have in common: they note what they are asked where."""

    def __init__(self) -> None:
        self.context = Context()
        #: Each step, and whether it was taken inside of the context.
        self.steps: set[tuple[str, bool]] = set()
        #: What a step raises, or waits for.
        self.errors: dict[str, BaseException] = {}
        self.going_on: dict[str, Event] = {}

    def note(self, step: str) -> None:
        self.steps.add((step, gevent.getcurrent() in self.context.inside))
        if step in self.going_on:
            self.going_on[step].wait()
        if step in self.errors:
            raise self.errors[step]

    def pool(self, kind: type[Any], **settings: Any) -> Pool[Any]:
        usual: dict[str, Any] = {"max_connections": 1, "reap_expired_connections": False}
        return Pool(kind, {"asked": self}, context=self.context, **{**usual, **settings})


@pytest.fixture
def asked() -> Asked:
    return Asked()


class Foreign:
    """Derives from nothing of ours."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.is_open = False
        asked.note("making")

    def open(self) -> None:
        self.asked.note("open")
        self.is_open = True

    def close(self) -> None:
        self.is_open = False
        self.asked.note("close")

    def abort(self) -> None:
        self.is_open = False

    def is_connected(self) -> bool:
        self.asked.note("is_connected")
        return self.is_open

    def is_expired(self) -> bool:
        self.asked.note("is_expired")
        return False


class Simple(Foreign, Connection):
    """Overrides no check."""


class WithSocket(Simple):
    """Has something to look at, and the usual check, which never waits."""

    def get(self) -> None:
        self.asked.note("get")


class Checked(Simple):
    """Has a check of its own, which may wait, and decides by itself whether it is kept."""

    def is_usable(self) -> bool:
        self.asked.note("is_usable")
        return self.is_open

    def is_reusable(self, error: BaseException | None) -> bool:
        self.asked.note("is_reusable")
        return self.is_open


KINDS: list[tuple[type[Any], set[str]]] = [
    (Simple, set()),
    (WithSocket, {"get"}),
    (Checked, {"is_usable", "is_reusable"}),
    (Foreign, set()),
]


@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_every_step_of_a_connection_runs_inside_the_context(asked: Asked, kind: type[Any], more: set[str]) -> None:
    pool = asked.pool(kind, min_connections=1, reap_expired_connections=True, reap_interval=0.005)
    pool.wait_ready(PATIENCE)
    for timeout in (PATIENCE, 0):
        with pool.connection(timeout=timeout):
            pass
        pool.release(pool.acquire(timeout=timeout))
    eventually(lambda: ("is_expired", True) in asked.steps)
    pool.drop_expired()
    pool.close()
    steps = {"making", "open", "close", "is_connected", "is_expired"} | more
    assert asked.steps == {(step, True) for step in steps}
    assert not asked.context.inside
    assert set(asked.context.left_by) == {None}


@pytest.mark.parametrize("timeout", [PATIENCE, 0], ids=["with time", "without"])
@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_the_context_is_entered_once_for_each_check(
    asked: Asked, kind: type[Any], more: set[str], timeout: float
) -> None:
    pool = asked.pool(kind)
    pool.release(pool.acquire())
    settle()
    asked.steps.clear()
    asked.context.left_by.clear()
    connection = pool.acquire(timeout=timeout)
    assert len(asked.context.left_by) == 1
    pool.release(connection)
    assert len(asked.context.left_by) == 2
    assert asked.steps
    assert all(is_inside for _, is_inside in asked.steps)


def test_options_and_create_connection_are_called_inside_the_context(asked: Asked) -> None:
    class Special(Pool[Any]):
        def _create_connection(self) -> Any:
            asked.note("creating")
            return super()._create_connection()

    def options() -> dict[str, Any]:
        asked.note("options")
        return {"asked": asked}

    pool = Special(Simple, options, context=asked.context)
    pool.acquire()
    assert {("creating", True), ("options", True)} <= asked.steps
    assert {is_inside for _, is_inside in asked.steps} == {True}


@pytest.mark.parametrize("step", ["making", "open", "is_connected"])
@pytest.mark.parametrize("kind", [Simple, Foreign])
def test_an_error_of_opening_leaves_through_the_context(asked: Asked, kind: type[Any], step: str) -> None:
    error = asked.errors[step] = OSError("not today")
    pool = asked.pool(kind)
    with pytest.raises(OSError, match="not today") as raised:
        pool.acquire()
    assert raised.value is error
    assert error in asked.context.left_by
    asked.errors.clear()
    check_whole(pool)


STEPS: list[tuple[type[Any], str, Act]] = [
    (Simple, "is_connected", lambda pool: pool.acquire()),
    (Foreign, "is_connected", lambda pool: pool.acquire()),
    (WithSocket, "is_connected", lambda pool: pool.acquire()),
    (Checked, "is_usable", lambda pool: pool.acquire()),
    (Simple, "is_expired", Pool.drop_expired),
    (Foreign, "is_expired", Pool.drop_expired),
    (Simple, "close", Pool.drain),
    (Foreign, "close", Pool.drain),
]


@pytest.mark.parametrize("error", [ValueError("a bad step"), gevent.Timeout(1)], ids=["error", "timeout"])
@pytest.mark.parametrize(("kind", "step", "act"), STEPS)
def test_an_error_of_a_step_leaves_through_the_context(
    asked: Asked, kind: type[Any], step: str, act: Act, error: BaseException
) -> None:
    pool = asked.pool(kind)
    connection = pool.acquire()
    pool.release(connection)
    asked.errors[step] = error
    # Other tests look at the greenlet that it reaches.
    result = gevent.spawn(outcome, act, pool).get(timeout=PATIENCE)
    settle()
    assert error in asked.context.left_by
    assert not asked.context.inside
    asked.errors.clear()
    if isinstance(result, kind):
        pool.release(result)
    check_whole(pool)


@pytest.mark.parametrize(
    ("kind", "step"), [(Simple, "is_connected"), (Foreign, "is_connected"), (Checked, "is_reusable")]
)
def test_an_error_of_a_check_on_return_leaves_through_the_context(asked: Asked, kind: type[Any], step: str) -> None:
    pool = asked.pool(kind)
    connection = pool.acquire()
    error = asked.errors[step] = ValueError("a bad step")
    pool.release(connection)
    assert asked.context.left_by[-1] is error
    settle()
    asked.errors.clear()
    assert pool.stats().discarded == {"not_reusable": 1}
    check_whole(pool)


@pytest.mark.parametrize("step", ["open", "is_usable", "close"])
def test_an_exception_that_cuts_a_step_short_leaves_through_the_context(asked: Asked, step: str) -> None:
    pool = asked.pool(Checked, open_timeout=0.01, close_timeout=0.01, acquire_timeout=None)
    if step != "open":
        pool.release(pool.acquire())
    asked.going_on[step] = Event()
    if step == "close":
        pool.drain()
    else:
        gevent.spawn(outcome, lambda: pool.acquire(timeout=0.005)).join()
    eventually(lambda: not asked.context.inside)
    (error,) = (error for error in asked.context.left_by if error is not None)
    assert isinstance(error, gevent.Timeout | gevent.GreenletExit)
    asked.going_on[step].set()
    check_whole(pool)


def test_a_caller_killed_during_a_check_leaves_the_context(asked: Asked, thrown: BaseException) -> None:
    pool = asked.pool(Checked)
    pool.release(pool.acquire())
    asked.going_on["is_usable"] = Event()
    caller = gevent.spawn(ended_by, pool.acquire)
    settle()
    assert asked.context.inside
    caller.kill(thrown, block=False)
    assert caller.get(timeout=PATIENCE) is thrown
    settle()
    assert not asked.context.inside
    asked.going_on["is_usable"].set()
    check_whole(pool)


@pytest.mark.parametrize("kind", [Simple, WithSocket, Checked, Foreign])
def test_a_context_that_can_not_be_entered_loses_no_capacity(asked: Asked, kind: type[Any]) -> None:
    def context() -> Context:
        if error is not None:
            raise error
        return asked.context

    error: Exception | None = RuntimeError("no context")
    pool = Pool(kind, {"asked": asked}, context=context, max_connections=1, reap_expired_connections=False)
    with pytest.raises(RuntimeError, match="no context"):
        pool.acquire()
    error = None
    connection = pool.acquire()
    error = RuntimeError("no context")
    pool.release(connection)
    settle()
    assert numbers(pool) == (0, 0, 0, 0)
    error = None
    pool.release(pool.acquire())
    error = RuntimeError("no context")
    with pytest.raises(RuntimeError, match="no context"):
        pool.acquire()
    error = None
    check_whole(pool)


@pytest.mark.parametrize("kind", [Simple, WithSocket, Checked, Foreign])
def test_a_connection_that_fails_is_not_handed_out_even_if_the_context_swallows_the_error(
    asked: Asked, kind: type[Any]
) -> None:
    pool = Pool(kind, {"asked": asked}, context=lambda: contextlib.suppress(OSError), max_connections=1)
    pool.release(pool.acquire())
    asked.errors["is_usable" if kind is Checked else "is_connected"] = OSError("not today")
    asked.errors["open"] = OSError("not today")
    assert isinstance(gevent.spawn(outcome, pool.acquire).get(timeout=PATIENCE), Exception)
    asked.errors.clear()
    check_whole(pool)
