"""How connections are opened: whose error it is, how many at once, and what becomes of an open whose caller left."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from gsocketpool import InvalidArgumentError, Pool, PoolExhaustedError
from tests.support.callers import Caller, InterruptionError, check_whole
from tests.support.scripted import PATIENCE, Backend, ScriptedConnection, numbers, settle


def test_an_open_error_reaches_the_caller_unchanged(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    error = ConnectionRefusedError(111, "refused")
    backend.failures.append(error)
    with pytest.raises(ConnectionRefusedError) as caught:
        pool.acquire()
    assert caught.value is error
    assert error.__notes__ == ["while opening a connection for pool 'connect'"]
    assert numbers(pool) == (0, 0, 0, 0)
    check_whole(pool, backend)


@pytest.mark.parametrize(
    "error", [gevent.Timeout(3), InterruptionError(), SystemExit(3)], ids=lambda e: type(e).__name__
)
def test_any_other_exception_of_opening_reaches_the_caller(backend: Backend, error: BaseException) -> None:
    pool = Pool(backend.connect, max_connections=1)
    backend.failures.append(error)
    with pytest.raises(type(error)) as caught:
        pool.acquire()
    assert caught.value is error
    check_whole(pool, backend)


def test_a_failed_open_gives_its_place_to_the_next_waiter(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, max_connections=1)
    first, second = Caller(pool), Caller(pool)
    backend.failures.append(OSError("no"))
    backend.opens.set()
    settle()
    assert isinstance(first.ended_by, OSError)
    assert second.result is not None
    pool.release(second.result)
    check_whole(pool, backend)


def test_every_caller_gets_an_error_of_its_own_while_the_backend_is_down(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=3, max_opening=2)
    errors = [OSError(number) for number in range(10)]
    backend.failures.extend(errors)
    callers = [Caller(pool) for _ in range(10)]
    settle()
    assert {id(caller.ended_by) for caller in callers} == set(map(id, errors))
    check_whole(pool, backend)


def test_an_opening_whose_caller_gave_up_leaves_an_idle_connection(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect)
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0.01)
    backend.opens.set()
    settle()
    assert numbers(pool) == (0, 1, 0, 0)
    assert pool.acquire(timeout=0) is backend.connections[0]


def test_impatient_callers_do_not_start_one_opening_each(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect)
    for _ in range(5):
        with pytest.raises(PoolExhaustedError):
            pool.acquire(timeout=0.002)
    assert pool.stats().opening == 1


def test_at_most_max_opening_connections_are_opened_at_once(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, max_opening=2)
    callers = [Caller(pool) for _ in range(5)]
    assert numbers(pool) == (0, 0, 2, 5)
    assert len(backend.connections) == 2
    backend.opens.set()
    settle()
    assert all(caller.result for caller in callers)
    assert pool.stats().opened == 5


def test_a_waiter_served_by_a_release_leaves_its_opening_to_the_next_caller(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=2)
    held = pool.acquire()
    backend.opens.clear()
    waiter = Caller(pool)
    pool.release(held)
    settle()
    assert waiter.result is held
    backend.opens.set()
    settle()
    assert numbers(pool) == (1, 1, 0, 0)


def test_opening_is_bounded_by_open_timeout(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, max_connections=1, open_timeout=0.01)
    with gevent.Timeout(PATIENCE), pytest.raises(TimeoutError, match=r"longer than open_timeout \(0.01 s\)"):
        pool.acquire()
    backend.opens.set()
    check_whole(pool, backend)


def test_a_half_open_connection_is_closed(backend: Backend) -> None:
    """Connected, but refused at the handshake that follows."""

    class Handshaking(ScriptedConnection):
        def open(self) -> None:
            super().open()
            raise PermissionError("wrong password")

    pool = Pool(lambda: backend.add(Handshaking(backend, {})))
    with pytest.raises(PermissionError):
        pool.acquire()
    settle()
    assert not backend.open
    assert backend.connections[0].closings == 1


def test_a_connection_of_an_overridden_create_connection_is_aborted_if_its_opening_fails(backend: Backend) -> None:
    class Stalling(ScriptedConnection):
        def open(self) -> None:
            self.has_socket = True
            gevent.sleep(PATIENCE)

        def abort(self) -> None:
            self.has_socket = False

    class Own(Pool[Any]):
        def _create_connection(self) -> Any:
            return self._factory()

    pool = Own(lambda: backend.add(Stalling(backend, {})), open_timeout=0.01)
    with pytest.raises(TimeoutError):
        pool.acquire()
    settle()
    assert not backend.connections[0].has_socket  # type: ignore[attr-defined]


def test_an_open_error_whose_caller_has_left_loses_no_capacity(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, max_connections=1)
    caller = Caller(pool)
    caller.throw(gevent.GreenletExit())
    backend.failures.append(OSError("late"))
    backend.opens.set()
    settle()
    assert numbers(pool) == (0, 0, 0, 0)
    check_whole(pool, backend)


def test_an_error_of_the_factory_reaches_the_caller(backend: Backend) -> None:
    def factory() -> ScriptedConnection:
        raise LookupError("no such thing")

    pool: Pool[Any] = Pool(factory, max_connections=1)
    with pytest.raises(LookupError):
        pool.acquire()
    assert pool.size == 0


@pytest.mark.parametrize("made", [None, 3, object()])
def test_a_factory_that_returns_no_connection_is_refused(made: object) -> None:
    pool = Pool(lambda: made)
    with pytest.raises(InvalidArgumentError, match=r"factory must be a callable that returns an object with open\(\)"):
        pool.acquire()
    assert pool.size == 0


class NoNotesError(Exception):
    def add_note(self, note: str) -> None:
        raise RuntimeError("no notes, please")


def test_an_open_error_that_takes_no_notes_reaches_the_caller(backend: Backend) -> None:
    error = NoNotesError()
    backend.failures.append(error)
    pool = Pool(backend.connect, acquire_timeout=PATIENCE)
    caller = Caller(pool)
    settle()
    assert caller.ended_by is error
