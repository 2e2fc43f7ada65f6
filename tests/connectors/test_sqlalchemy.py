"""SQLAlchemy's engines over a pool keep the promises of both."""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import sqlite3
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import alembic.command
import alembic.config
import gevent
import gevent.event
import psycopg
import pytest
import sqlalchemy.exc
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from gevent.event import Event
from gevent.monkey import get_original
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from flask_gsocketpool import GSocketPool
from flask_gsocketpool.health import blueprint
from gsocketpool import InvalidArgumentError, PoolExhaustedError
from gsocketpool.sqlalchemy import EngineExhaustedError, GeventPool
from tests.support.connectors import error_without, is_imported_by_the_pool
from tests.support.internals import changing
from tests.support.scripted import PATIENCE, eventually
from tests.support.switches import greenlets_there_are

patched = pytest.mark.patched

#: Longer than any test takes: what waits for it must be cut short.
FOR_EVER = 600

SELECT_1 = text("SELECT 1")


class Driver:
    """SQLite's connections, every step of which lets other greenlets run. It knows all that it has made."""

    def __init__(self) -> None:
        self.connections: list[Any] = []
        #: Called at each step, before the others run.
        self.at_step: Callable[[str], object] = lambda name: None
        driver = self

        class Cursor(sqlite3.Cursor):
            def execute(self, *arguments: Any) -> Any:
                driver.step("execute")
                return super().execute(*arguments)

        class Connection(sqlite3.Connection):
            is_open = True

            def cursor(self, factory: Any = Cursor) -> Any:
                return super().cursor(factory)

            def rollback(self) -> None:
                driver.step("rollback")
                super().rollback()

            def commit(self) -> None:
                driver.step("commit")
                super().commit()

            def close(self) -> None:
                self.is_open = False
                driver.step("close")
                super().close()

        self._kind = Connection

    def step(self, name: str) -> None:
        self.at_step(name)
        if gevent.getcurrent() is not gevent.get_hub():
            gevent.sleep(0)

    def connect(self) -> Any:
        self.step("connect")
        connection = sqlite3.connect(":memory:", factory=self._kind, check_same_thread=False)
        self.connections.append(connection)
        return connection

    @property
    def open(self) -> int:
        """How many connections are open."""
        return sum(connection.is_open for connection in self.connections)


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    for connection in driver.connections:
        sqlite3.Connection.close(connection)


def engine_of(driver: Driver, **options: Any) -> Engine:
    return create_engine("sqlite://", creator=driver.connect, poolclass=GeventPool, **options)


def pool_of(engine: Engine) -> GeventPool:
    assert isinstance(engine.pool, GeventPool)
    return engine.pool


def numbers(engine: Engine) -> tuple[int, int, int]:
    """(in use, idle, waiting)"""
    stats = pool_of(engine).gevent_pool.stats()
    return stats.in_use, stats.idle, stats.waiting


def settle() -> None:
    for _ in range(10):
        gevent.sleep(0)


@contextmanager
def connected(conninfo: str, **options: Any) -> Iterator[Engine]:
    """An engine on a real server."""
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo), poolclass=GeventPool, **options
    )
    yield engine
    engine.dispose()


@contextmanager
def observer(conninfo: str) -> Iterator[Any]:
    """Another session, in which each statement is a transaction of its own."""
    with closing(psycopg.connect(conninfo, autocommit=True)) as connection:
        yield connection


def pid_of(connection: Any) -> int:
    return int(connection.connection.driver_connection.info.backend_pid)


def has_session(other: Any, pid: int) -> bool:
    row = other.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
    return bool(row == (1,))


def is_running(other: Any, pid: int) -> bool:
    row = other.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
    return bool(row == ("active",))


def end_session(other: Any, pid: int) -> None:
    other.execute("SELECT pg_terminate_backend(%s)", [pid])
    eventually(lambda: not has_session(other, pid))


def in_child(act: Callable[[], Any]) -> Any:
    """Return what `act` returns in a forked child, as JSON knows it, in a process that is patched or not."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # From Python 3.12 on there is a warning because the resolver has threads. The child doesn't use them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = get_original("os", "fork")()
    if child == 0:
        answer: Any = None
        try:
            # What SQLAlchemy says of a connection that it finds dead.
            logging.disable(logging.CRITICAL)
            with gevent.Timeout(PATIENCE):
                answer = [act(), ""]
        except BaseException:
            answer = [None, traceback.format_exc()]
        finally:
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
    # Patched, it would wait for the event loop's next turn.
    get_original("os", "close")(writer)
    with open(reader, "rb") as pipe:
        returned, error = json.loads(pipe.read())
    get_original("os", "waitpid")(child, 0)
    assert not error, error
    return returned


# The arguments


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pool_size", {"pool_size": 0}),
        ("pool_size", {"pool_size": "5"}),
        ("max_overflow", {"max_overflow": -1}),
        ("max_overflow", {"max_overflow": None}),
        ("timeout", {"pool_timeout": -1}),
        ("timeout", {"pool_timeout": "30"}),
        ("use_lifo", {"pool_use_lifo": False}),
        ("recycle", {"pool_recycle": None}),
        ("recycle", {"pool_recycle": -2}),
        ("max_waiting", {"max_waiting": -1}),
        ("idle_timeout", {"idle_timeout": 0}),
        ("open_timeout", {"open_timeout": 0}),
        ("leak_threshold", {"leak_threshold": 0}),
        ("keepalive_interval", {"keepalive_interval": 0}),
    ],
)
def test_an_argument_without_a_meaning_is_refused_with_its_name(
    driver: Driver, name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{name} must be ") as raised:
        engine_of(driver, **options)
    assert raised.value.argument == name


@pytest.mark.parametrize(
    ("error", "name", "options"),
    [
        (sqlalchemy.exc.ArgumentError, "reset_on_return", {"pool_reset_on_return": "everything"}),
        # A setting of other pools of ours that an engine says in words of its own.
        (TypeError, "max_connections", {"max_connections": 5}),
    ],
)
def test_sqlalchemy_refuses_other_bad_arguments(driver: Driver, error: Any, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=name):
        engine_of(driver, **options)


def test_an_engine_takes_all_other_arguments_of_a_pool(driver: Driver) -> None:
    told: list[str] = []
    engine = engine_of(
        driver,
        pool_use_lifo=True,
        pool_timeout=None,
        pool_recycle=-1,
        pool_pre_ping=True,
        pool_reset_on_return="commit",
        pool_events=[(lambda *arguments: told.append("checkin"), "checkin")],
        pool_logging_name="db",
        echo_pool=False,
    )
    steps: list[str] = []
    driver.at_step = steps.append
    for _ in range(2):
        engine.raw_connection().close()
        engine = engine.execution_options(mine=True)
    assert told == ["checkin"] * 2
    assert steps.count("commit") == 2
    assert steps[-2:] == ["execute", "commit"]
    pool = GeventPool(driver.connect, pool_size=1, max_overflow=0)
    with create_engine("sqlite://", pool=pool).connect() as connection:
        assert connection.execute(SELECT_1).scalar() == 1
        assert pool.checkedout() == 1


def test_an_engine_has_the_defaults_of_queuepool(driver: Driver) -> None:
    ours, theirs = GeventPool(driver.connect), QueuePool(driver.connect)
    assert (ours.size(), ours.timeout(), ours.overflow()) == (theirs.size(), theirs.timeout(), theirs.overflow())
    assert ours.gevent_pool.settings.max_connections == theirs.size() + theirs._max_overflow


def test_a_disposed_engine_makes_a_pool_with_the_same_arguments(driver: Driver) -> None:
    options = {"pool_size": 2, "max_overflow": 3, "pool_timeout": 0, "pool_recycle": 60, "max_waiting": 4}
    engine = engine_of(
        driver,
        **options,
        idle_timeout=5,
        open_timeout=6,
        leak_threshold=7,
        keepalive_interval=8,
        pool_logging_name="db",
    )
    before = engine.pool
    engine.dispose()
    assert engine.pool is not before
    assert pool_of(engine).gevent_pool.settings == before.gevent_pool.settings  # type: ignore[attr-defined]
    assert pool_of(engine).gevent_pool.name == "db"
    assert pool_of(engine).timeout() == 0


def test_an_engine_keeps_pool_size_connections_and_closes_the_others(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=2, max_overflow=2)
    connections = [engine.connect() for _ in range(4)]
    assert pool_of(engine).overflow() == 2
    for connection in connections:
        connection.close()
    assert numbers(engine) == (0, 2, 0)
    eventually(lambda: driver.open == 2)
    assert dict(pool_of(engine).gevent_pool.stats().retired) == {"surplus": 2}
    assert pool_of(engine).status() == (
        "Pool size: 2  Connections in pool: 2 Current Overflow: 0 Current Checked out connections: 0"
        " Current Waiting greenlets: 0"
    )


def test_a_connection_above_pool_size_is_kept_for_a_waiter(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=1)
    first, second = engine.connect(), engine.connect()
    waiting = gevent.spawn(engine.connect)
    settle()
    second.close()
    third = waiting.get(timeout=PATIENCE)
    assert len(driver.connections) == 2
    for connection in (first, third):
        connection.close()


def test_waiters_are_served_in_the_order_of_their_arrival(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0)
    served: list[int] = []

    def use(number: int) -> None:
        for _ in range(3):
            with engine.connect():
                served.append(number)
                gevent.sleep(0)

    gevent.joinall([gevent.spawn(use, number) for number in range(5)], raise_error=True, timeout=PATIENCE)
    assert served == [*range(5)] * 3


@pytest.mark.parametrize("options", [{"pool_timeout": 0.01}, {"pool_timeout": 0}, {"max_waiting": 0}])
def test_an_exhausted_engine_raises_an_error_of_both_libraries(driver: Driver, options: dict[str, Any]) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=1, **options)
    with engine.connect(), engine.connect():
        with pytest.raises(sqlalchemy.exc.TimeoutError) as raised:
            engine.connect()
        error = raised.value
        assert isinstance(error, PoolExhaustedError)
        assert (error.in_use, error.max_connections, error.held_by_caller) == (2, 2, 2)
        assert error.pool_name == "sqlalchemy"
        assert "2 in use" in str(error)
        assert "https://sqlalche.me/e/" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, EngineExhaustedError)
    assert (str(again), again.in_use) == (str(error), 2)


def test_a_connection_is_replaced_after_pool_recycle(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(driver, pool_recycle=60)
    pool = pool_of(engine).gevent_pool
    with engine.connect():
        pass
    # An engine's pool takes no clock.
    now = pool._clock()
    with monkeypatch.context() as later:
        later.setattr(pool, "_clock", lambda: now + 61)
        connection = engine.connect()
    with connection:
        assert len(driver.connections) == 2
    assert pool.stats().retired["lifetime"] == 1
    eventually(lambda: driver.open == 1)


def test_opening_is_bounded_by_open_timeout(driver: Driver) -> None:
    engine = engine_of(driver, open_timeout=0.01)
    driver.at_step = lambda name: gevent.sleep(FOR_EVER)
    with pytest.raises(TimeoutError, match="open_timeout"):
        engine.connect()
    driver.at_step = lambda name: None
    with engine.connect():
        assert numbers(engine) == (1, 0, 0)


def test_an_error_of_opening_is_raised_as_an_error_of_sqlalchemy(driver: Driver) -> None:
    engine = engine_of(driver)

    def fail(name: str) -> None:
        raise sqlite3.OperationalError("unable to open")

    driver.at_step = fail
    with pytest.raises(sqlalchemy.exc.OperationalError, match="unable to open"):
        engine.connect()
    assert numbers(engine) == (0, 0, 0)


# What SQLAlchemy does to its connections


def test_an_invalidated_connection_is_replaced(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0)
    with engine.connect() as connection:
        connection.invalidate()
        assert connection.invalidated
        assert connection.execute(SELECT_1).scalar() == 1
        assert numbers(engine) == (1, 0, 0)
    assert driver.open == 1
    with engine.connect() as connection:
        assert connection.execute(SELECT_1).scalar() == 1


def test_connections_opened_before_a_lost_one_are_replaced_within_the_limits(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(driver, pool_size=4, max_overflow=0, open_timeout=0.01)
    idle, in_use, lost = [engine.connect() for _ in range(3)]
    idle.close()

    def fail(name: str) -> None:
        raise sqlite3.OperationalError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(engine.dialect, "is_disconnect", lambda *arguments: True)
        patch.setattr(driver, "at_step", fail)
        with pytest.raises(sqlalchemy.exc.OperationalError, match="is gone"):
            lost.execute(SELECT_1)
    for connection in (in_use, lost):
        connection.close()
    assert numbers(engine) == (0, 1, 0)
    driver.at_step = lambda name: gevent.sleep(FOR_EVER) if name == "connect" else None
    with gevent.Timeout(PATIENCE), pytest.raises(TimeoutError, match="open_timeout"):
        engine.connect()
    driver.at_step = lambda name: None
    with engine.connect() as connection:
        assert connection.execute(SELECT_1).scalar() == 1
    eventually(lambda: driver.open == 1)
    assert len(driver.connections) == 4


def test_a_connection_that_was_being_opened_when_another_was_lost_is_replaced_outside_of_the_caller(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(driver, pool_size=2, max_overflow=0)
    lost = engine.connect()
    may_open, openers = Event(), []

    def stall(name: str) -> None:
        if name == "connect":
            openers.append(gevent.getcurrent())
            may_open.wait()

    driver.at_step = stall
    caller = gevent.spawn(engine.connect)
    eventually(lambda: openers)
    with monkeypatch.context() as patch:
        patch.setattr(engine.dialect, "is_disconnect", lambda *arguments: True)
        with pytest.raises(sqlalchemy.exc.OperationalError):
            lost.exec_driver_sql("SELECT no_such_column")
    may_open.set()
    with caller.get(timeout=PATIENCE) as connection:
        assert connection.execute(SELECT_1).scalar() == 1
    assert len(openers) == 2
    assert caller not in openers
    lost.close()


@pytest.mark.parametrize("soft", [False, True])
def test_an_invalidated_raw_connection_is_replaced(driver: Driver, soft: bool) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0)
    raw = engine.raw_connection()
    raw.invalidate(soft=soft)
    raw.close() if soft else None
    with engine.connect() as connection:
        assert connection.execute(SELECT_1).scalar() == 1
        assert len(driver.connections) == 2
    eventually(lambda: driver.open == 1)


def test_a_connection_whose_driver_has_closed_it_is_replaced(driver: Driver) -> None:
    engine = engine_of(driver, pool_reset_on_return=None)
    with engine.connect():
        pass
    # As PyMySQL says it.
    driver.connections[0]._sock = None
    with engine.connect() as connection:
        assert connection.execute(SELECT_1).scalar() == 1
    assert len(driver.connections) == 2


def test_a_detached_connection_makes_room_for_another(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0)
    kept = engine.connect()
    kept.detach()
    with engine.connect() as connection:
        assert connection.execute(SELECT_1).scalar() == 1
    assert kept.execute(SELECT_1).scalar() == 1
    assert driver.open == 2
    kept.close()
    assert driver.open == 1
    assert numbers(engine) == (0, 1, 0)


def test_a_failed_ping_replaces_all_idle_connections(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(driver, pool_size=2, max_overflow=0, pool_pre_ping=True)
    first, second = engine.connect(), engine.connect()
    for connection in (first, second):
        connection.close()
    answers = [False]
    monkeypatch.setattr(engine.dialect, "do_ping", lambda connection: answers.pop() if answers else True)
    with engine.connect() as first, engine.connect() as second:
        assert first.execute(SELECT_1).scalar() == second.execute(SELECT_1).scalar() == 1
        assert numbers(engine) == (2, 0, 0)
    assert len(driver.connections) == 4
    eventually(lambda: driver.open == 2)


def test_dispose_closes_idle_connections_at_once_and_others_on_their_return(driver: Driver) -> None:
    engine = engine_of(driver)
    kept = engine.connect()
    with engine.connect():
        pass
    before = weakref.ref(engine.pool)
    engine.dispose()
    assert driver.open == 1
    assert kept.execute(SELECT_1).scalar() == 1
    with engine.connect():
        assert driver.open == 2
    kept.close()
    del kept
    eventually(lambda: driver.open == 1)
    assert before() is None


def test_listeners_of_sqlalchemy_hear_events_in_order(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=1)
    told: list[str] = []
    for name in ("connect", "checkout", "reset", "checkin", "close"):
        event.listen(engine, name, lambda *arguments, name=name: told.append(name))
    with engine.connect():
        pass
    assert told == ["connect", "checkout", "reset", "checkin"]
    pool_of(engine).dispose()
    assert told[4:] == ["close"]


def test_a_session_of_the_orm_uses_the_pool(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0)
    for _ in range(3):
        with Session(engine) as session:
            assert session.scalar(SELECT_1) == 1
    assert (len(driver.connections), numbers(engine)) == (1, (0, 1, 0))


# What was never returned


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The garbage collector runs only when it is told to."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


collecting_by_hand = pytest.mark.usefixtures("no_collector")


def lose_one(engine: Engine) -> None:
    """Leave a connection to the garbage collector."""
    connection: Any = engine.raw_connection()
    connection.cursor().execute("SELECT 1")
    connection.itself = connection


def test_a_collected_connection_returns_to_the_pool(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0)
    connection = engine.connect()
    connection.execute(SELECT_1)
    del connection
    gc.collect()
    eventually(lambda: numbers(engine) == (0, 1, 0))
    assert driver.open == 1


@collecting_by_hand
def test_the_garbage_collector_does_not_switch_during_a_state_change(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=2, max_overflow=0)
    state = pool_of(engine).gevent_pool._state
    kept = engine.raw_connection()
    lose_one(engine)
    ran: list[str] = []
    seen: list[list[str]] = []

    class Idle(list[Any]):
        def append(self, entry: Any) -> None:
            assert state.changing
            gevent.spawn(ran.append, "another greenlet")
            gc.collect()
            seen.append(ran[:])
            super().append(entry)

    state.idle = Idle()
    kept.close()
    assert seen == [[]]
    eventually(lambda: numbers(engine) == (0, 2, 0))
    assert driver.open == 2


@collecting_by_hand
def test_a_collected_connection_is_reset_in_a_greenlet_of_the_pool(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0)
    told: list[str] = []
    for name in ("reset", "checkin"):
        event.listen(engine, name, lambda *arguments, name=name: told.append(name))
    lose_one(engine)
    driver.at_step = told.append
    gc.collect()
    assert told == []
    eventually(lambda: numbers(engine) == (0, 1, 0))
    assert told == ["reset", "rollback", "checkin"]
    with engine.connect() as connection:
        assert connection.execute(SELECT_1).scalar() == 1
    assert len(driver.connections) == 1


@collecting_by_hand
def test_a_collected_connection_that_can_not_be_reset_is_replaced(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0)
    lose_one(engine)

    def fail(name: str) -> None:
        driver.at_step = lambda name: None
        raise sqlite3.OperationalError("gone")

    driver.at_step = fail
    gc.collect()
    with engine.connect() as connection:
        assert connection.execute(SELECT_1).scalar() == 1
    assert (len(driver.connections), driver.open) == (2, 1)


@collecting_by_hand
def test_a_collected_connection_above_pool_size_is_closed(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=1)
    kept = engine.raw_connection()
    lose_one(engine)
    kept.close()
    gc.collect()
    eventually(lambda: (numbers(engine), driver.open) == ((0, 1, 0), 1))


@collecting_by_hand
def test_a_connection_collected_with_its_engine_is_closed(driver: Driver) -> None:
    engine = engine_of(driver)
    reference = weakref.ref(engine)
    lose_one(engine)
    del engine
    eventually(lambda: gc.collect() >= 0 and driver.open == 0)
    assert reference() is None


@collecting_by_hand
def test_a_connection_collected_in_another_thread_returns_to_the_pool(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0)
    lose_one(engine)
    at: list[Any] = []
    driver.at_step = lambda name: at.append(threading.get_ident())
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join(PATIENCE)
    eventually(lambda: numbers(engine) == (0, 1, 0))
    assert at == [threading.get_ident()]


# What may happen at any moment


@pytest.mark.parametrize("kind", [gevent.Timeout, gevent.GreenletExit, ValueError])
@pytest.mark.parametrize("pre_ping", [False, True])
def test_an_exception_at_any_switch_loses_no_connection_and_no_capacity(
    driver: Driver, kind: type[BaseException], pre_ping: bool
) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0, pool_pre_ping=pre_ping)
    loop = gevent.get_hub().loop
    steps: list[str] = []

    def use() -> None:
        try:
            for _ in range(2):
                with engine.begin() as connection:
                    connection.execute(SELECT_1)
                with engine.connect() as connection:
                    connection.execute(SELECT_1)
        except kind:
            # Raised here, it would be printed.
            pass

    def attack(number: int) -> bool:
        """Throw at the step of that number, in any greenlet. Return whether there was one."""
        victim, other = gevent.spawn(use), gevent.spawn(use)
        steps.clear()

        def throw() -> None:
            if not victim.dead:
                victim.throw(kind)

        def note(name: str) -> None:
            steps.append(name)
            if len(steps) == number:
                loop.run_callback(throw)

        driver.at_step = note
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gevent.joinall([victim, other], timeout=PATIENCE)
        assert victim.successful()
        assert other.successful()
        was_hit = len(steps) >= number
        with engine.connect() as connection:
            assert connection.execute(SELECT_1).scalar() == 1
            assert numbers(engine) == (1, 0, 0)
        eventually(lambda: numbers(engine) == (0, driver.open, 0) and driver.open <= 1, f"{number} {steps}")
        return was_hit

    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    try:
        number = 1
        while attack(number):
            number += 1
    finally:
        logging.getLogger("sqlalchemy.pool").setLevel(logging.NOTSET)
    assert number > 20
    assert {"execute", "rollback", "commit"} <= set(steps)


@pytest.mark.parametrize("kind", [gevent.Timeout, gevent.GreenletExit, ValueError])
def test_an_exception_while_the_isolation_level_is_reset_costs_the_connection_but_not_its_place(
    driver: Driver, kind: type[BaseException]
) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0, pool_timeout=1)
    error = kind()

    def fail(name: str) -> None:
        if name == "execute":
            raise error

    connection = engine.connect().execution_options(isolation_level="READ UNCOMMITTED")
    driver.at_step = fail
    with pytest.raises(kind) as raised:
        connection.close()
    assert raised.value is error
    driver.at_step = lambda name: None
    settle()
    assert numbers(engine) == (0, 0, 0)
    assert driver.open == 0
    with engine.connect() as connection:
        assert connection.execute(SELECT_1).scalar() == 1
    assert numbers(engine) == (0, 1, 0)


def test_a_connection_of_a_dead_greenlet_is_taken_back(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0, pool_timeout=PATIENCE)
    kept = gevent.spawn(engine.connect).get()
    with engine.connect() as connection:
        assert connection.execute(SELECT_1).scalar() == 1
    assert "its greenlet has ended without releasing it" in caplog.text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept.close()
    eventually(lambda: driver.open == 1)
    assert numbers(engine) == (0, 1, 0)


def test_a_return_during_a_state_change_is_deferred(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=1)
    connections = [engine.connect(), engine.connect()]
    with changing(pool_of(engine).gevent_pool):
        for connection in connections:
            connection.close()
        assert numbers(engine) == (2, 0, 0)
    settle()
    assert numbers(engine) == (0, 1, 0)


def test_each_thread_has_connections_of_its_own_and_may_return_those_of_another(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0)
    ready, go_on = threading.Event(), threading.Event()
    taken: list[Any] = []
    seen: list[Any] = []

    def use() -> None:
        taken.append(engine.raw_connection())
        ready.set()
        while not go_on.is_set():
            gevent.sleep(0.001)
        eventually(lambda: numbers(engine) == (0, 1, 0))
        with engine.connect() as connection:
            seen.append(connection.execute(SELECT_1).scalar())
        engine.pool.dispose()
        gevent.get_hub().destroy(destroy_loop=True)

    with engine.connect():
        thread = threading.Thread(target=use)
        thread.start()
        ready.wait(PATIENCE)
        assert numbers(engine) == (1, 0, 0)
        taken.pop().close()
        go_on.set()
        thread.join(PATIENCE)
    assert seen == [1]
    assert (len(driver.connections), driver.open) == (2, 1)
    assert numbers(engine) == (0, 1, 0)


@pytest.mark.parametrize("has_closure", [False, True])
def test_an_engine_is_collected_with_its_connections_and_greenlets(driver: Driver, has_closure: bool) -> None:
    before = greenlets_there_are()
    engine = engine_of(driver, pool_recycle=3600, pool_pre_ping=True)
    if has_closure:
        event.listen(engine, "checkout", lambda *arguments, engine=engine: None)
        event.listen(engine, "do_connect", lambda *arguments, engine=engine: None)
    with engine.connect(), engine.connect():
        pass
    raw = engine.raw_connection()
    assert driver.open == 2
    gone = [weakref.ref(engine), weakref.ref(engine.pool), weakref.ref(pool_of(engine).gevent_pool)]
    del engine
    gc.collect()
    # A connection in use keeps the pool.
    assert driver.open == 2
    raw.close()
    del raw
    gc.collect()
    eventually(lambda: driver.open == 0)
    gc.collect()
    settle()
    assert [reference() for reference in gone] == [None] * 3
    assert not [one for one in greenlets_there_are() - before if not one.dead]


def test_a_child_uses_connections_of_its_own(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0)
    with engine.connect():
        pass

    def child() -> list[Any]:
        with engine.connect() as connection:
            return [connection.execute(SELECT_1).scalar(), len(driver.connections), numbers(engine)]

    assert in_child(child) == [1, 2, [1, 0, 0]]
    assert numbers(engine) == (0, 1, 0)


# On a real server


@patched
def test_a_block_that_does_not_commit_is_rolled_back(conninfo: str) -> None:
    table = f"t{uuid4().hex}"
    with connected(conninfo, pool_size=1, max_overflow=0) as engine:
        with engine.begin() as connection:
            connection.execute(text(f"CREATE TABLE {table} (value int)"))
            pid = pid_of(connection)
        with engine.connect() as connection:
            connection.execute(text(f"INSERT INTO {table} VALUES (1)"))
        with engine.begin() as connection:
            assert pid_of(connection) == pid
            assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar() == 0
            connection.execute(text(f"DROP TABLE {table}"))


@patched
def test_a_timeout_in_a_statement_cancels_it_on_the_server(conninfo: str) -> None:
    with connected(conninfo, pool_size=1, max_overflow=0) as engine, observer(conninfo) as other:
        with engine.connect() as connection:
            pid = pid_of(connection)
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
                connection.execute(text(f"SELECT pg_sleep({FOR_EVER})"))
            assert connection.invalidated
            # Its record is closed as well, and has no connection any more.
            assert pool_of(engine).gevent_pool.stats().closing == 2
        eventually(lambda: not has_session(other, pid))
        with engine.connect() as connection:
            assert connection.execute(SELECT_1).scalar() == 1
        assert numbers(engine) == (0, 1, 0)


@patched
def test_a_caught_timeout_on_a_raw_connection_leaves_no_statement_running(conninfo: str) -> None:
    with (
        connected(conninfo, pool_size=1, max_overflow=0, pool_reset_on_return=None) as engine,
        observer(conninfo) as other,
    ):
        raw = engine.raw_connection()
        pid = raw.driver_connection.info.backend_pid  # type: ignore[union-attr]
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
            raw.cursor().execute(f"SELECT pg_sleep({FOR_EVER})")
        raw.close()
        eventually(lambda: not has_session(other, pid))
        assert numbers(engine) == (0, 0, 0)


@patched
def test_a_greenlet_killed_in_a_statement_leaves_no_statement_running(conninfo: str) -> None:
    with connected(conninfo, pool_size=1, max_overflow=0) as engine, observer(conninfo) as other:
        kept: list[Any] = []

        def use() -> None:
            raw = engine.raw_connection()
            kept.append(raw)
            raw.cursor().execute(f"SELECT pg_sleep({FOR_EVER})")

        greenlet = gevent.spawn(use)
        eventually(lambda: kept and is_running(other, kept[0].driver_connection.info.backend_pid))
        pid = kept[0].driver_connection.info.backend_pid
        greenlet.kill()
        with engine.connect() as connection:
            assert connection.execute(SELECT_1).scalar() == 1
        eventually(lambda: not has_session(other, pid))


@patched
def test_no_caller_gets_a_connection_that_died_while_idle(conninfo: str) -> None:
    with connected(conninfo) as engine, observer(conninfo) as other:
        connections = [engine.connect() for _ in range(3)]
        pids = [pid_of(connection) for connection in connections]
        for connection in connections:
            connection.close()
        for pid in pids:
            end_session(other, pid)
        with engine.connect() as connection:
            assert connection.execute(SELECT_1).scalar() == 1
        assert pool_of(engine).gevent_pool.stats().discarded["unusable"] == 3


@patched
def test_a_connection_that_dies_in_use_is_replaced(conninfo: str) -> None:
    with connected(conninfo, pool_size=2, max_overflow=0) as engine, observer(conninfo) as other:
        with engine.connect() as first, engine.connect() as second:
            end_session(other, pid_of(first))
            with pytest.raises(sqlalchemy.exc.OperationalError) as raised:
                first.execute(SELECT_1)
            assert raised.value.connection_invalidated
            before = pid_of(second)
        # With it, all that were opened earlier are invalid to SQLAlchemy.
        assert numbers(engine) == (0, 0, 0)
        with engine.connect() as connection:
            assert pid_of(connection) != before
        assert numbers(engine) == (0, 1, 0)


@patched
def test_a_two_phase_transaction_commits_or_rolls_back(conninfo: str) -> None:
    table = f"t{uuid4().hex}"
    with connected(conninfo, pool_size=1, max_overflow=0) as engine:
        with engine.begin() as connection:
            connection.execute(text(f"CREATE TABLE {table} (value int)"))
        for value, end in enumerate(("commit", "rollback", "leave")):
            with engine.connect() as connection:
                transaction = connection.begin_twophase()
                connection.execute(text(f"INSERT INTO {table} VALUES ({value})"))
                if end != "leave":
                    transaction.prepare()
                    getattr(transaction, end)()
        with engine.begin() as connection:
            assert connection.execute(text(f"SELECT value FROM {table}")).all() == [(0,)]
            assert connection.execute(text("SELECT count(*) FROM pg_prepared_xacts")).scalar() == 0
            connection.execute(text(f"DROP TABLE {table}"))
        assert numbers(engine) == (0, 1, 0)


@patched
@pytest.mark.parametrize("ending", ["leave", "dispose", "dispose(close=False)"])
def test_a_child_leaves_the_sessions_of_its_parent_alone(conninfo: str, ending: str) -> None:
    with connected(conninfo, pool_size=2, max_overflow=0) as engine:
        with engine.connect() as connection:
            idle = pid_of(connection)
            kept = engine.connect()
            in_use = pid_of(kept)

        def child() -> bool:
            if ending != "leave":
                engine.dispose(**({"close": False} if "close" in ending else {}))
            with engine.connect() as own:
                own.execute(SELECT_1)
                is_own = pid_of(own) not in (idle, in_use)
            kept.close()
            gc.collect()
            settle()
            return is_own

        assert in_child(child)
        assert kept.execute(SELECT_1).scalar() == 1
        kept.close()
        with engine.connect() as connection, engine.connect() as other:
            assert {pid_of(connection), pid_of(other)} == {idle, in_use}


@patched
def test_a_child_cancels_no_statement_of_its_parent(conninfo: str) -> None:
    with connected(conninfo, pool_size=2, max_overflow=0) as engine, observer(conninfo) as other:
        pids: list[int] = []

        def use() -> Any:
            with engine.connect() as connection:
                pids.append(pid_of(connection))
                return connection.execute(text("SELECT pg_sleep(0.3), 7")).all()[0][1]

        greenlet = gevent.spawn(use)
        eventually(lambda: pids and is_running(other, pids[0]))

        def child() -> None:
            # A copy of the one in the parent.
            greenlet.kill()
            gevent.sleep(0.1)

        in_child(child)
        assert greenlet.get(timeout=PATIENCE) == 7


@patched
def test_a_collected_engine_ends_its_sessions(conninfo: str) -> None:
    with observer(conninfo) as other:
        engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo), poolclass=GeventPool)
        with engine.connect() as connection:
            pid = pid_of(connection)
        del engine, connection
        gc.collect()
        eventually(lambda: not has_session(other, pid))


# In migrations

MIGRATIONS = """
from alembic import context
from sqlalchemy import engine_from_config
from gsocketpool.sqlalchemy import GeventPool

engine = engine_from_config(context.config.get_section("alembic"), poolclass=GeventPool)
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
assert engine.pool.gevent_pool.stats().max_connections == 3
engine.dispose()
"""

MIGRATION = """
import sqlalchemy
from alembic import op

revision, down_revision = "one", None

def upgrade():
    op.create_table("migrated", sqlalchemy.Column("value", sqlalchemy.Integer))

def downgrade():
    op.drop_table("migrated")
"""


def test_alembic_migrates_with_a_gevent_pool(tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(MIGRATIONS)
    (tmp_path / "versions" / "one.py").write_text(MIGRATION)
    config = alembic.config.Config()
    settings = {"pool_size": "1", "max_overflow": "2", "pool_timeout": "5", "url": f"sqlite:///{tmp_path}/data"}
    for name, value in settings.items():
        config.set_main_option(f"sqlalchemy.{name}", value)
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "os")

    def tables() -> set[str]:
        with closing(sqlite3.connect(tmp_path / "data")) as connection:
            return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}

    alembic.command.upgrade(config, "head")
    assert tables() == {"alembic_version", "migrated", "sqlite_autoindex_alembic_version_1"}
    alembic.command.downgrade(config, "base")
    assert "migrated" not in tables()


# In an app


def flask_app(driver: Driver, **options: Any) -> tuple[Flask, Any]:
    app = Flask("app")
    # For one in memory, it chooses the pool.
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:////no/such/file"
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"poolclass": GeventPool, "creator": driver.connect, **options}
    GSocketPool(app)
    db: Any = SQLAlchemy(app)

    @app.get("/")
    def index() -> str:
        return str(db.session.scalar(SELECT_1))

    return app, db


def test_flask_sqlalchemy_gives_its_connection_back_at_the_end_of_a_request(driver: Driver) -> None:
    app, db = flask_app(driver, pool_size=1, max_overflow=0)
    assert [app.test_client().get("/").text for _ in range(3)] == ["1"] * 3
    with app.app_context():
        assert (numbers(db.engine), len(driver.connections)) == ((0, 1, 0), 1)


def test_an_exhausted_engine_is_answered_503(driver: Driver) -> None:
    app, db = flask_app(driver, pool_size=1, max_overflow=0, pool_timeout=0)
    with app.app_context(), db.engine.connect():
        response = app.test_client().get("/")
    assert response.status_code == 503
    assert response.headers["Retry-After"]


def test_the_statistics_of_an_app_show_an_engine_too(driver: Driver) -> None:
    app, db = flask_app(driver)
    app.register_blueprint(blueprint, url_prefix="/health")
    GSocketPool.show(app, "db", lambda: db.engine.pool.gevent_pool)
    client = app.test_client()
    client.get("/")
    shown = client.get("/health/pools").json["pools"]["db"]
    assert (shown["name"], shown["idle"], shown["address"]) == ("sqlalchemy", 1, None)
    with pytest.raises(InvalidArgumentError, match="name"):
        GSocketPool.show(app, "db", lambda: db.engine.pool.gevent_pool)


# The module


def test_importing_the_module_without_sqlalchemy_says_what_to_install() -> None:
    said = error_without("sqlalchemy", "gsocketpool.sqlalchemy")
    assert said.endswith("needs SQLAlchemy 2: pip install 'gsocketpool[sqlalchemy]'")


def test_the_pool_does_not_import_sqlalchemy() -> None:
    assert not is_imported_by_the_pool("sqlalchemy")


def test_an_idle_connection_is_pinged_and_rolled_back(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=0, keepalive_interval=0.01)
    steps: list[str] = []
    engine.connect().close()
    driver.at_step = steps.append
    eventually(lambda: "execute" in steps)
    driver.at_step = lambda name: None
    eventually(lambda: pool_of(engine).checkedin() == 1)
    assert steps[:2] == ["execute", "rollback"]
    engine.dispose()


def test_a_connection_being_pinged_counts_as_idle(driver: Driver) -> None:
    engine = engine_of(driver, pool_size=1, max_overflow=1, keepalive_interval=0.01)
    first, second = engine.connect(), engine.connect()
    pinging = Event()
    answering = Event()

    def stall(name: str) -> None:
        if name == "execute":
            pinging.set()
            answering.wait()

    first.close()
    driver.at_step = stall
    assert pinging.wait(PATIENCE)
    driver.at_step = lambda name: None
    second.close()
    answering.set()
    eventually(lambda: numbers(engine) == (0, 1, 0))
    eventually(lambda: driver.open == 1)
    engine.dispose()


def test_a_pool_without_an_engine_keeps_its_idle_connection(driver: Driver) -> None:
    pool = GeventPool(driver.connect, pool_size=1, max_overflow=0, keepalive_interval=0.01)
    pool.connect().close()
    connection = pool.gevent_pool.acquire()
    pool.gevent_pool.release(connection)
    gevent.sleep(0.05)
    eventually(lambda: pool.checkedin() == 1)
    assert len(driver.connections) == 1
    assert dict(pool.gevent_pool.stats().discarded) == {}
    pool.dispose()
