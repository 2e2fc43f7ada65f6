"""Nothing is lost: exceptions at every switch, failing and slow openings, wrong releases."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import weakref
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import ConnectionNotFoundError, InvalidArgumentError, Pool, PoolError, PoolExhaustedError
from tests.support.scripted import PATIENCE, Backend, ScriptedConnection, eventually, numbers, settle, spawn_acquire


class InterruptionError(Exception):
    """An ordinary exception, thrown from outside."""


THROWN = [gevent.GreenletExit(), gevent.Timeout(1), InterruptionError(), KeyError("x")]


def throw(greenlet: gevent.Greenlet, error: BaseException) -> None:
    greenlet.kill(error, block=False)


def what_came_of(greenlet: gevent.Greenlet) -> object:
    """What ended a greenlet: an error, or what it has returned."""
    greenlet.join()
    return greenlet.exception or greenlet.value


def check_whole(pool: Pool[Any], backend: Backend) -> None:
    """The pool has its whole capacity, and knows every connection that is open."""
    eventually(lambda: pool.stats().opening == 0)
    settle()
    assert pool.stats().waiting == 0
    assert len(backend.open) == pool.size
    limit = pool.stats().max_connections
    taken = [pool.acquire(timeout=PATIENCE) for _ in range(limit - pool.stats().in_use)]
    assert len({connection.number for connection in taken}) == len(taken)
    assert pool.stats().in_use == limit
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    for connection in taken:
        pool.release(connection)


@pytest.fixture(params=THROWN, ids=lambda e: type(e).__name__)
def error(request: pytest.FixtureRequest) -> BaseException:
    thrown: BaseException = request.param
    return thrown


class Caller:
    """A greenlet that acquires, keeps what it gets, and tells how that ended."""

    def __init__(self, pool: Pool[Any], act: Callable[[Pool[Any]], object] | None = None) -> None:
        self.pool = pool
        self.ended_by: BaseException | None = None
        self.result: Any = None
        self.greenlet = gevent.spawn(self._run, act or (lambda pool: pool.acquire(timeout=PATIENCE)))
        settle()

    def _run(self, act: Callable[[Pool[Any]], object]) -> None:
        try:
            self.result = act(self.pool)
        except BaseException as error:
            self.ended_by = error

    def throw(self, error: BaseException) -> None:
        throw(self.greenlet, error)


def test_thrown_at_a_waiter(backend: Backend, error: BaseException) -> None:
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


def test_thrown_before_a_hand_over_arrives(backend: Backend, error: BaseException) -> None:
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


def test_thrown_after_a_hand_over(backend: Backend, error: BaseException) -> None:
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


def test_thrown_before_the_opening_lands(backend: Backend, error: BaseException) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, max_connections=2)
    caller = Caller(pool)
    caller.throw(error)
    backend.opens.set()
    settle()
    assert caller.ended_by is error
    assert numbers(pool) == (0, 1, 0, 0), "the open is not wasted"
    check_whole(pool, backend)


def test_thrown_while_opening(backend: Backend, error: BaseException) -> None:
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


def test_thrown_while_checking(backend: Backend, error: BaseException) -> None:
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


def test_an_interrupted_check_keeps_nothing_of_its_caller_alive(backend: Backend) -> None:
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


def test_thrown_while_checking_what_was_handed_over(backend: Backend, error: BaseException) -> None:
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
def test_thrown_while_closing(backend: Backend, error: BaseException, way: str) -> None:
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


def test_thrown_in_a_block_at_its_user(backend: Backend, error: BaseException) -> None:
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


def test_killing_the_greenlet_that_opens(backend: Backend) -> None:
    """As a program does that kills every greenlet it can find."""
    backend.opens.clear()
    pool = Pool(backend.connect, max_connections=1)
    caller = Caller(pool)
    (opener,) = pool._state.opening
    throw(opener, gevent.GreenletExit())  # type: ignore[arg-type]
    settle()
    assert type(caller.ended_by) is PoolError, "a GreenletExit would end the caller's greenlet without a trace"
    backend.opens.set()
    check_whole(pool, backend)


def test_killing_the_greenlet_that_opens_before_it_has_begun(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    (opener,) = pool._state.opening
    throw(opener, gevent.GreenletExit())  # type: ignore[arg-type]
    settle()
    assert not backend.connections
    check_whole(pool, backend)


def test_killing_the_greenlet_that_closes(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    backend.closes.clear()
    caller = Caller(pool, lambda pool: pool.discard(pool.acquire()))
    for greenlet in list(pool._closer._closing):
        greenlet.kill(block=False)
    settle()
    assert caller.greenlet.ready()
    assert not backend.open, "it has lost its descriptor at least"
    check_whole(pool, backend)


@pytest.mark.parametrize("kills", [1, 2])
def test_killing_the_greenlet_that_closes_before_it_has_begun(backend: Backend, kills: int) -> None:
    pool = Pool(backend.connect, max_connections=1)
    killed: list[gevent.Greenlet] = []

    def kill_before_it_begins() -> None:
        for greenlet in [greenlet for greenlet in pool._closer._closing if greenlet not in killed]:
            greenlet.kill(block=False)
            killed.append(greenlet)
        if len(killed) < kills:
            gevent.get_hub().loop.run_callback(kill_before_it_begins)

    pool.discard(pool.acquire())
    gevent.get_hub().loop.run_callback(kill_before_it_begins)
    settle()
    assert len(killed) == kills
    assert backend.connections[0].closings == 2 - kills, "it is begun once more"
    assert not backend.open, "it has lost its descriptor at least"
    assert pool.stats().closing == 0
    check_whole(pool, backend)


@pytest.mark.parametrize("error", [gevent.Timeout(1), InterruptionError()], ids=["timeout", "error"])
def test_what_is_thrown_at_a_sleeping_reaper_does_not_end_it(backend: Backend, error: BaseException) -> None:
    pool = Pool(backend.connect, reap_interval=0.002)
    connection = pool.acquire()
    settle()
    reaper: Any = pool._reaper.greenlet
    reaper.kill(error, block=False)
    settle()
    connection.says_expired = True
    pool.release(connection)
    eventually(lambda: not connection.is_open)
    assert pool._reaper.greenlet is reaper
    pool.close()


@pytest.mark.parametrize("timeout", [PATIENCE, math.inf])
def test_a_killed_reaper_is_replaced_as_soon_as_somebody_waits(backend: Backend, timeout: float) -> None:
    """Or what a dead greenlet holds would be lost for good."""
    pool = Pool(backend.connect, max_connections=1, reap_interval=0.002)
    gevent.spawn(pool.acquire).join()
    assert pool._reaper.greenlet is not None
    pool._reaper.greenlet.kill()
    pool.release(gevent.spawn(pool.acquire, timeout=timeout).get(timeout=PATIENCE))
    pool.close()
    settle()
    assert pool._reaper.greenlet.dead


# Opening


def test_an_open_error_reaches_the_caller_as_it_is(backend: Backend) -> None:
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
def test_so_does_anything_else_that_opening_raises(backend: Backend, error: BaseException) -> None:
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


def test_while_the_backend_is_down_every_caller_gets_an_error_of_its_own(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=3, max_opening=2)
    errors = [OSError(number) for number in range(10)]
    backend.failures.extend(errors)
    callers = [Caller(pool) for _ in range(10)]
    settle()
    assert {id(caller.ended_by) for caller in callers} == set(map(id, errors))
    check_whole(pool, backend)


def test_an_open_whose_caller_gave_up_lands_in_the_pool(backend: Backend) -> None:
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


def test_at_most_max_opening_run_at_once(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, max_opening=2)
    callers = [Caller(pool) for _ in range(5)]
    assert numbers(pool) == (0, 0, 2, 5)
    assert len(backend.connections) == 2
    backend.opens.set()
    settle()
    assert all(caller.result for caller in callers)
    assert pool.stats().opened == 5


def test_a_release_serves_the_waiter_and_its_opening_serves_the_next(backend: Backend) -> None:
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

    pool = Pool(lambda: backend._made(Handshaking(backend, {})))
    with pytest.raises(PermissionError):
        pool.acquire()
    settle()
    assert not backend.open
    assert backend.connections[0].closings == 1


def test_what_an_overridden_method_made_is_closed_if_opening_it_fails(backend: Backend) -> None:
    class Stalling(ScriptedConnection):
        def open(self) -> None:
            self.has_socket = True
            gevent.sleep(PATIENCE)

        def abort(self) -> None:
            self.has_socket = False

    class Own(Pool[Any]):
        def _create_connection(self) -> Any:
            return self._factory()

    pool = Own(lambda: backend._made(Stalling(backend, {})), open_timeout=0.01)
    with pytest.raises(TimeoutError):
        pool.acquire()
    settle()
    assert not backend.connections[0].has_socket  # type: ignore[attr-defined]


def test_an_error_in_the_background_is_nobodys(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, max_connections=1)
    caller = Caller(pool)
    caller.throw(gevent.GreenletExit())
    backend.failures.append(OSError("late"))
    backend.opens.set()
    settle()
    assert numbers(pool) == (0, 0, 0, 0)
    check_whole(pool, backend)


def test_a_factory_that_raises(backend: Backend) -> None:
    def factory() -> ScriptedConnection:
        raise LookupError("no such thing")

    pool: Pool[Any] = Pool(factory, max_connections=1)
    with pytest.raises(LookupError):
        pool.acquire()
    assert pool.size == 0


@pytest.mark.parametrize("made", [None, 3, object()])
def test_a_factory_that_makes_something_else(made: object) -> None:
    pool = Pool(lambda: made)
    with pytest.raises(InvalidArgumentError, match=r"factory must be a callable that returns an object with open\(\)"):
        pool.acquire()
    assert pool.size == 0


# Users' code that misbehaves while the state is being changed


@pytest.mark.parametrize("step", ["is_connected", "is_usable", "is_reusable", "close", "is_expired", "__repr__"])
@pytest.mark.parametrize("raised", [ValueError("bad step"), gevent.Timeout(9)], ids=["error", "timeout"])
def test_steps_that_raise_do_no_harm(
    backend: Backend, step: str, raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    armed = False

    def misbehave(self: Any, *arguments: Any) -> Any:
        if armed:
            raise raised
        return getattr(ScriptedConnection, step)(self, *arguments)

    kind = type("Misbehaving", (ScriptedConnection,), {step: misbehave})
    pool: Pool[Any] = Pool(lambda: backend._made(kind(backend, {})), max_connections=1)
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
        while pool.stats().in_use:
            (entry,) = pool._state.entries_in_use()
            pool.discard(entry.connection)
        check_whole(pool, backend)
    finally:
        logging.raiseExceptions = before


class SlowHandler(logging.Handler):
    """Takes its time for the first record. The others don't wait for that."""

    is_first = True

    def handle(self, record: logging.LogRecord) -> bool:
        if self.is_first:
            self.is_first = False
            gevent.sleep(PATIENCE)
        return True


@pytest.mark.parametrize("context", [None, contextlib.nullcontext], ids=["", "in a context"])
def test_thrown_while_a_bad_answer_is_logged(backend: Backend, context: Any, error: BaseException) -> None:
    armed = False

    class Misbehaving(ScriptedConnection):
        def is_connected(self) -> bool:
            if armed and not self.closings:
                raise ValueError("bad step")
            return super().is_connected()

    pool = Pool(lambda: backend._made(Misbehaving(backend, {})), max_connections=1, context=context)
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


class NoNotesError(Exception):
    def add_note(self, note: str) -> None:
        raise RuntimeError("no notes, please")


def test_an_open_error_that_takes_no_note_reaches_the_caller_all_the_same(backend: Backend) -> None:
    error = NoNotesError()
    backend.failures.append(error)
    pool = Pool(backend.connect, acquire_timeout=PATIENCE)
    caller = Caller(pool)
    settle()
    assert caller.ended_by is error


def test_a_step_that_switches_and_then_fails_harms_nobody_else(backend: Backend) -> None:
    class Switching(ScriptedConnection):
        fails = True

        def is_reusable(self, error: BaseException | None) -> bool:
            if self.fails:
                Switching.fails = False
                gevent.sleep(0.001)
                raise gevent.Timeout(1)
            return True

    pool = Pool(lambda: backend._made(Switching(backend, {})), max_connections=1)
    connection = pool.acquire()
    first = Caller(pool, lambda pool: pool.release(connection))
    pool.release(connection)
    assert pool.acquire() is connection
    first.greenlet.join()
    assert isinstance(first.ended_by, gevent.Timeout)
    assert connection.is_open
    assert numbers(pool) == (1, 0, 0, 0)


def test_a_step_that_lets_another_greenlet_release_too(backend: Backend) -> None:
    class Switching(ScriptedConnection):
        def is_reusable(self, error: BaseException | None) -> bool:
            gevent.sleep(0)
            return True

    pool = Pool(lambda: backend._made(Switching(backend, {})), max_connections=1)
    connection = pool.acquire()
    releases = [gevent.spawn(pool.release, connection) for _ in range(3)]
    gevent.joinall(releases)
    assert numbers(pool) == (0, 1, 0, 0)
    check_whole(pool, backend)


def test_a_factory_that_uses_the_pool_itself(backend: Backend) -> None:
    def factory() -> ScriptedConnection:
        if len(backend.connections) == 1:
            pool.release(inner)
        return backend.connect()

    pool = Pool(factory, max_connections=2)
    inner = pool.acquire()
    pool.release(pool.acquire())
    check_whole(pool, backend)


# Wrong releases


@pytest.mark.parametrize("give_back", ["release", "detach"])
def test_giving_back_what_is_not_in_use_changes_nothing(backend: Backend, give_back: str) -> None:
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


def test_discarding_what_is_not_the_pools_changes_nothing(backend: Backend) -> None:
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


def test_a_second_release_in_the_turn_of_a_hand_over_serves_nobody_else(backend: Backend) -> None:
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


def test_a_second_release_while_the_next_user_has_it_checked_serves_nobody_else(backend: Backend) -> None:
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


def test_of_one_connection_made_twice_everybody_gives_back_the_own_use(backend: Backend) -> None:
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


def test_connections_are_told_apart_though_they_are_equal(backend: Backend) -> None:
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


def test_waiters_that_were_killed_leave_nothing_in_the_queue(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    pool.acquire()
    waiters = [spawn_acquire(pool) for _ in range(10)]
    gevent.killall(waiters)
    assert pool.stats().waiting == 0
