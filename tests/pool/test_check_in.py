"""A check that discards, raises or blocks at the wrong moment ends the lease once, and loses no connection."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import Connection, Pool, PoolError, PoolExhaustedError
from tests.support.scripted import (
    Client,
    Plain,
    ScriptedConnector,
    end_event_loop,
    eventually,
    numbers,
    raising,
    settle,
)
from tests.support.threads import in_thread


@contextlib.contextmanager
def in_a_change(pool: Pool[Any]) -> Iterator[None]:
    """What runs in this block is in the middle of a change to the state, as what the garbage collector runs may be."""
    # Nothing public tells when that is, and a collection at such a moment can't be brought about.
    pool._state.changing = True
    yield
    assert pool._state.changing
    pool._state.changing = False


GIVE_BACKS = {
    "release": lambda lease: lease.release(),
    "discard": lambda lease: lease.discard(),
    "block": lambda lease: lease.__exit__(None, None, None),
    "failed block": lambda lease: lease.__exit__(LookupError, LookupError(), None),
}


@pytest.mark.parametrize("way", GIVE_BACKS)
@pytest.mark.parametrize("kind", [Plain, ScriptedConnector()], ids=["connection", "connector"])
def test_a_give_back_during_a_state_change_is_deferred(way: str, kind: Any) -> None:
    pool: Pool[Any] = Pool(kind, max_connections=1)
    lease = pool.lease()
    is_refused = kind is not Plain and way == "block"
    with in_a_change(pool):
        # A block's work can't be completed there.
        with pytest.raises(PoolError, match="can't be completed") if is_refused else contextlib.nullcontext():
            GIVE_BACKS[way](lease)
        assert lease.is_active
        assert numbers(pool) == (1, 0, 0, 0)
    settle()
    assert not lease.is_active
    is_kept = way in ("release", "block") and not is_refused
    assert numbers(pool) == (0, int(is_kept), 0, 0)
    pool.close()


def test_a_connection_that_its_own_check_discards_is_not_handed_out() -> None:
    class Discarding(Plain):
        discards = False

        def is_connected(self) -> bool:
            if self.discards:
                self.discards = False
                pool.discard(self)
            return self.is_open

    pool: Pool[Any] = Pool(Discarding, max_connections=1)
    first = pool.acquire()
    pool.release(first)
    first.discards = True
    second = pool.acquire()
    assert second is not first
    assert numbers(pool) == (1, 0, 0, 0)
    assert pool.stats().discarded == {"explicit": 1}
    pool.release(second)
    pool.close()


def test_a_connection_that_its_connector_discards_in_is_settled_is_not_reset() -> None:
    def discard(client: Client) -> bool:
        connector.acts.clear()
        pool.discard(client)
        return False

    connector = ScriptedConnector()
    pool = Pool(connector, max_connections=1)
    with pool.connection():
        connector.acts["is_settled"] = discard
    settle()
    assert pool.stats().discarded == {"explicit": 1}
    assert numbers(pool) == (0, 0, 0, 0)
    assert "reset" not in connector.steps
    pool.close()


def test_a_connection_whose_check_raises_when_it_comes_back_is_discarded_at_once() -> None:
    connector = ScriptedConnector()
    connector.acts["is_reusable"] = raising(LookupError())
    pool = Pool(connector, max_connections=1)
    with pool.connection():
        pass
    assert numbers(pool) == (0, 0, 0, 0)
    pool.close()


def test_a_settled_connection_that_is_released_without_a_block_is_reset_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connector = ScriptedConnector()
    pool = Pool(connector, max_connections=1, reset="always")
    pool.release(pool.acquire())
    eventually(lambda: numbers(pool) == (0, 1, 0, 0))
    assert "reset_session" in connector.steps
    assert "unfinished work" not in caplog.text
    pool.close()


@pytest.mark.parametrize("name", ["release", "discard"])
def test_a_lease_that_ends_in_another_thread_after_the_event_loop_aborts_its_connection(name: str) -> None:
    def outlive_the_loop() -> tuple[Pool[Plain], Plain]:
        pool = Pool(Plain, max_connections=1)
        lease = pool.lease()
        connection = lease.connection
        end_event_loop()
        in_thread(getattr(lease, name), ends_loop=False)
        assert not connection.is_open
        assert numbers(pool) == (0, 0, 0, 0)
        assert pool.stats().discarded == {"interrupted": 1}
        return pool, connection

    in_thread(outlive_the_loop, ends_loop=False)


def test_an_acquire_with_a_timeout_of_0_discards_a_connection_whose_peek_target_raises() -> None:
    connector = ScriptedConnector()
    pool = Pool(connector, max_connections=2)
    with pool.connection() as bad, pool.connection():
        pass
    connector.acts["peek_target"] = lambda client: raising(LookupError())(client) if client is bad else None
    while numbers(pool)[1]:
        assert pool.acquire(timeout=0) is not bad
    assert pool.stats().discarded == {"unusable": 1}
    pool.close(timeout=0)


def test_an_acquire_with_a_timeout_of_0_calls_is_connected_instead_of_a_check_that_may_block() -> None:
    class Failing(Plain):
        fails = False

        def is_usable(self) -> bool:
            raise AssertionError("it may block")

        def is_connected(self) -> bool:
            if self.fails:
                raise LookupError
            return self.is_open

    pool = Pool(Failing, max_connections=1)
    connection = pool.acquire()
    pool.release(connection)
    assert pool.acquire(timeout=0) is connection
    pool.release(connection)
    connection.fails = True
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    assert pool.stats().discarded == {"unusable": 1}
    connection.fails = False
    pool.close()


def test_a_connection_that_fails_its_check_in_a_sweep_is_closed(clock: Any) -> None:
    class Failing(Plain):
        fails = False

        def is_connected(self) -> bool:
            if self.fails:
                raise LookupError
            return self.is_open

    pool = Pool(Failing, max_connections=1, reap_interval=0.002)
    connection = pool.acquire()
    pool.release(connection)
    connection.fails = True
    eventually(lambda: pool.stats().discarded == {"unusable": 1})
    assert numbers(pool) == (0, 0, 0, 0)
    connection.fails = False
    eventually(lambda: not connection.is_open)
    pool.close()


def test_a_connection_whose_check_raises_is_discarded_even_if_the_context_suppresses_the_error() -> None:
    connector = ScriptedConnector()
    pool = Pool(connector, context=lambda: contextlib.suppress(LookupError), max_connections=1)
    with pool.connection():
        connector.acts["is_reusable"] = raising(LookupError())
    assert pool.stats().discarded == {"not_reusable": 1}
    connector.acts.clear()
    with pool.connection() as client:
        connector.acts["complete"] = lambda client: None
        client.begin()
        connector.acts["reset"] = raising(LookupError())
    eventually(lambda: pool.stats().discarded == {"not_reusable": 1, "not_reset": 1})
    connector.acts.clear()
    pool.close()


def test_an_idle_connection_that_is_not_reusable_after_its_ping_is_discarded() -> None:
    connector = ScriptedConnector()
    pool = Pool(connector, keepalive_interval=0.01, max_connections=1)
    with pool.connection():
        pass
    connector.acts["ping"] = lambda client: connector.acts.update(is_reusable=lambda client: False)
    eventually(lambda: pool.stats().discarded == {"not_pinged": 1})
    connector.acts.clear()
    pool.close()


def test_closing_a_pool_raises_a_keyboard_interrupt_from_abort() -> None:
    released = Event()

    class Stubborn(Plain):
        def close(self) -> None:
            while not released.is_set():
                with contextlib.suppress(gevent.Timeout, gevent.GreenletExit):
                    released.wait()

        def abort(self) -> None:
            if not released.is_set():
                raise KeyboardInterrupt

    pool = Pool(Stubborn, close_timeout=0.01)
    pool.release(pool.acquire())
    with pytest.raises(KeyboardInterrupt):
        pool.close()
    released.set()
    settle()


def test_a_connection_class_without_a_reset_is_always_settled() -> None:
    assert Connection().is_settled()
    with pytest.raises(NotImplementedError, match=r"Connection has no reset\(\)"):
        Connection().reset()


def test_reset_session_calls_reset_by_default() -> None:
    class Resetting(Plain):
        resets = 0

        def is_settled(self) -> bool:
            return True

        def reset(self) -> None:
            self.resets += 1

    pool = Pool(Resetting, max_connections=1, reset="always")
    for times in range(3):
        with pool.connection() as connection:
            assert connection.resets == times
    pool.close()


def test_a_pool_collected_during_a_reset_closes_all_but_connections_in_use() -> None:
    """Connections that are idle or being reset are closed; a connection in use stays open."""
    parked = Event()
    connector = ScriptedConnector(reset=lambda client: parked.wait())
    pool: Pool[Any] = Pool(connector, max_connections=3)
    with pool.connection() as reset:
        connector.acts["complete"] = lambda client: None
        reset.begin()
    connector.acts["complete"] = lambda client: None
    used, idle = pool.acquire(), pool.acquire()
    pool.release(idle)
    settle()
    assert pool.stats().resetting == 1
    del pool
    gc.collect()
    eventually(lambda: not reset.is_open and not idle.is_open)
    assert used.is_open
    parked.set()
