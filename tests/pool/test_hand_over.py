"""What happens between a hand-over and the moment at which its waiter runs, and what a give-back leaves behind."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from gsocketpool import ConnectionNotFoundError, Pool, PoolExhaustedError
from tests.support.scripted import (
    Backend,
    Client,
    Clock,
    Plain,
    ScriptedConnector,
    numbers,
    raising,
    settle,
    spawn_acquire,
)


def test_a_connection_given_back_before_its_waiter_runs_goes_to_the_next_waiter(backend: Backend) -> None:
    """The waiter finds that it has lost it, and is still the first of those that wait."""
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    first, second, third = (spawn_acquire(pool, timeout=60) for _ in range(3))
    pool.release(held)
    # It is in use by the first already, which has not run yet.
    pool.release(held)
    settle()
    assert [greenlet.ready() for greenlet in (first, second, third)] == [False, True, False]
    for greenlet, later in ((second, first), (first, third)):
        assert greenlet.get() is held
        pool.release(held)
        settle()
        assert later.ready()
    pool.release(third.get())
    pool.close()


def test_a_waiter_without_time_left_after_its_hand_over_skips_a_check_that_may_block(
    backend: Backend, clock: Clock
) -> None:
    pool = clock.pool(backend.connect_checked, max_connections=1)
    held = pool.acquire()
    waiter = spawn_acquire(pool, timeout=10)
    backend.checks.clear()
    pool.release(held)
    clock.advance(20)
    settle()
    assert waiter.get(timeout=0) is held
    backend.checks.set()
    pool.release(held)
    pool.close()


def test_an_acquire_in_the_event_loop_reports_a_timeout_of_0(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    errors: list[PoolExhaustedError] = []

    def acquire() -> None:
        with pytest.raises(PoolExhaustedError) as caught:
            pool.acquire(timeout=5)
        errors.append(caught.value)

    gevent.get_hub().loop.run_callback(acquire)
    settle()
    assert errors[0].timeout == 0
    pool.release(held)
    pool.close()


def test_a_connection_closed_after_an_error_can_not_be_dropped(backend: Backend) -> None:
    pool = Pool(backend.connect)
    with pytest.raises(LookupError), pool.connection() as connection:
        raise LookupError
    with pytest.raises(ConnectionNotFoundError):
        pool.drop(connection)
    pool.close()


def test_a_connection_of_any_class_is_discarded_if_its_exchange_is_left_open() -> None:
    pool: Pool[Any] = Pool(Plain, max_connections=1)
    connection = pool.acquire()
    exchange = connection.exchange()
    exchange.__enter__()
    pool.release(connection)
    assert pool.stats().discarded == {"not_reusable": 1}
    pool.close()


def test_a_place_that_releases_unfinished_work_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(ScriptedConnector(), max_connections=1)
    for _ in range(3):
        client = pool.acquire()
        client.begin()
        pool.release(client)
        settle()
    assert caplog.text.count("was released with unfinished work") == 1
    pool.close()


class Interrupted(BaseException):
    """What a program may throw at a greenlet anywhere."""


@pytest.mark.parametrize("step", ["is_settled", "is_reusable"])
def test_an_exception_that_interrupts_a_release_propagates_and_discards_the_connection(step: str) -> None:
    connector = ScriptedConnector()
    pool = Pool(connector, max_connections=1)
    client = pool.acquire()
    error = Interrupted()
    connector.acts[step] = raising(error)
    with pytest.raises(Interrupted) as caught:
        pool.release(client)
    assert caught.value is error
    connector.acts.clear()
    assert numbers(pool) == (0, 0, 0, 0)
    assert pool.stats().discarded == {"interrupted": 1}
    pool.close()


def test_an_exception_that_interrupts_a_check_propagates_and_discards_the_connection() -> None:
    class Checked(Plain):
        error: BaseException | None = None

        def is_connected(self) -> bool:
            if self.error is not None:
                raise self.error
            return self.is_open

    pool = Pool(Checked, max_connections=1)
    connection = pool.acquire()
    pool.release(connection)
    connection.error = Interrupted()
    with pytest.raises(Interrupted) as caught:
        pool.acquire()
    assert caught.value is connection.error
    connection.error = None
    assert numbers(pool) == (0, 0, 0, 0)
    assert pool.stats().discarded == {"interrupted": 1}
    pool.close()


def test_a_connection_closed_by_a_release_can_be_dropped_once() -> None:
    connector = ScriptedConnector(is_reusable=lambda client: False)
    pool = Pool(connector, max_connections=1)
    client: Client = pool.acquire()
    pool.release(client)
    pool.drop(client)
    with pytest.raises(ConnectionNotFoundError):
        pool.drop(client)
    pool.close()
