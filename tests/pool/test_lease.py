"""A lease is one use of one connection, and knows when that is over."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import ConnectionNotFoundError, InvalidArgumentError, Lease, Pool, PoolExhaustedError
from tests.support.connections import no_hanging as no_hanging
from tests.support.connections import outcome, without_switching
from tests.support.scripted import (
    PATIENCE,
    Backend,
    Plain,
    ScriptedConnection,
    end_event_loop,
    eventually,
    numbers,
    settle,
    spawn_acquire,
)

Use = Callable[[Lease[Any]], object]


@pytest.fixture
def pool(backend: Backend) -> Pool[Any]:
    return Pool(backend.connect, max_connections=1, reap_expired_connections=False)


# A block


def test_a_lease_of_connection_is_inactive_until_its_block_is_entered(pool: Pool[Any], backend: Backend) -> None:
    lease = pool.connection()
    settle()
    assert lease.is_active is False
    assert not backend.connections
    assert numbers(pool) == (0, 0, 0, 0)
    with lease:
        assert lease.is_active is True
        assert numbers(pool) == (1, 0, 0, 0)
    assert lease.is_active is False
    assert numbers(pool) == (0, 1, 0, 0)


@pytest.mark.parametrize("lease_from", [Pool.connection, Pool.lease])
def test_a_block_gets_the_connection(pool: Pool[Any], lease_from: Callable[[Pool[Any]], Lease[Any]]) -> None:
    lease = lease_from(pool)
    with lease as connection:
        assert isinstance(connection, ScriptedConnection)
        assert lease.connection is connection
        assert lease.pool is pool


@pytest.mark.parametrize("lease_from", [Pool.connection, Pool.lease])
def test_a_block_that_an_exception_leaves_discards_the_connection(
    pool: Pool[Any], backend: Backend, lease_from: Callable[[Pool[Any]], Lease[Any]]
) -> None:
    lease, error = lease_from(pool), LookupError()
    with pytest.raises(LookupError) as raised, lease:
        raise error
    assert raised.value is error
    assert lease.is_active is False
    assert pool.stats().discarded == {"error": 1}
    eventually(lambda: not backend.open)


def test_a_lease_that_was_never_acquired_can_not_be_given_back(pool: Pool[Any]) -> None:
    lease = pool.connection()
    for use in USES.values():
        with pytest.raises(ConnectionNotFoundError):
            use(lease)
    assert numbers(pool) == (0, 0, 0, 0)
    with lease:
        assert lease.is_active


# For one use


@pytest.mark.parametrize("lease_from", [Pool.connection, Pool.lease])
def test_a_lease_is_not_entered_again_after_its_block(
    pool: Pool[Any], lease_from: Callable[[Pool[Any]], Lease[Any]]
) -> None:
    lease = lease_from(pool)
    with lease:
        pass
    before = pool.stats()
    with pytest.raises(RuntimeError, match="one use"):
        lease.__enter__()
    assert pool.stats() == before


@pytest.mark.parametrize("lease_from", [Pool.connection, Pool.lease])
def test_a_lease_is_not_entered_again_inside_its_block(
    pool: Pool[Any], lease_from: Callable[[Pool[Any]], Lease[Any]]
) -> None:
    lease = lease_from(pool)
    with lease as connection:
        with pytest.raises(RuntimeError, match="one use"):
            lease.__enter__()
        assert lease.is_active
        assert lease.connection is connection
        assert numbers(pool) == (1, 0, 0, 0)
    assert numbers(pool) == (0, 1, 0, 0)


def test_a_lease_that_was_given_back_can_not_be_entered(pool: Pool[Any]) -> None:
    lease = pool.lease()
    lease.release()
    before = pool.stats()
    with pytest.raises(ConnectionNotFoundError):
        lease.__enter__()
    assert pool.stats() == before


def test_two_uses_of_the_same_connection_have_two_leases(pool: Pool[Any]) -> None:
    first = pool.lease()
    connection = first.connection
    first.release()
    second = pool.lease()
    assert second.connection is connection
    assert (first.is_active, second.is_active) == (False, True)


# Without a block


def test_a_lease_of_lease_is_active_at_once(pool: Pool[Any], backend: Backend) -> None:
    lease = pool.lease()
    assert lease.is_active is True
    assert lease.connection is backend.connections[0]
    assert lease.pool is pool
    assert numbers(pool) == (1, 0, 0, 0)


def test_release_gives_the_connection_back_without_a_switch(pool: Pool[Any], backend: Backend) -> None:
    lease = pool.lease()
    without_switching(lease.release)
    assert lease.is_active is False
    assert numbers(pool) == (0, 1, 0, 0)
    assert pool.acquire(timeout=0) is backend.connections[0]


def test_release_hands_the_connection_over_to_the_waiter(pool: Pool[Any], backend: Backend) -> None:
    lease = pool.lease()
    waiting = spawn_acquire(pool)
    lease.release()
    assert lease.is_active is False
    assert waiting.get(timeout=PATIENCE) is backend.connections[0]


def test_release_discards_a_dead_connection(pool: Pool[Any]) -> None:
    lease = pool.lease()
    lease.connection.is_open = False
    lease.release()
    assert lease.is_active is False
    assert pool.stats().discarded == {"not_reusable": 1}
    assert numbers(pool) == (0, 0, 0, 0)


@pytest.mark.parametrize("reason", ["explicit", "x"])
def test_discard_closes_the_connection_and_counts_the_reason(pool: Pool[Any], backend: Backend, reason: str) -> None:
    lease = pool.lease()
    without_switching(lease.discard if reason == "explicit" else lambda: lease.discard(reason=reason))
    assert lease.is_active is False
    assert numbers(pool) == (0, 0, 0, 0)
    assert pool.stats().discarded == {reason: 1}
    eventually(lambda: not backend.open)


def test_a_discarded_connection_makes_room_for_a_waiter(pool: Pool[Any], backend: Backend) -> None:
    lease = pool.lease()
    waiting = spawn_acquire(pool)
    lease.discard()
    assert waiting.get(timeout=PATIENCE) is backend.connections[1]


# What is over is over


def leave(lease: Lease[Any]) -> None:
    with lease:
        pass


def leave_by_an_error(lease: Lease[Any]) -> None:
    with pytest.raises(LookupError), lease:
        raise LookupError


def let_the_holder_die(lease: Lease[Any]) -> None:
    gevent.spawn(lease.transfer).join()
    # A caller at the limit takes it back.
    spawn_acquire(lease.pool).kill()


ENDS: dict[str, Use] = {
    "release": lambda lease: lease.release(),
    "discard": lambda lease: lease.discard(),
    "the end of its block": leave,
    "an error in its block": leave_by_an_error,
    "release by the pool": lambda lease: lease.pool.release(lease.connection),
    "discard by the pool": lambda lease: lease.pool.discard(lease.connection),
    "detach": lambda lease: lease.pool.detach(lease.connection),
    "the end of its holder": let_the_holder_die,
    "the end of the pool": lambda lease: lease.pool.close(timeout=0),
}

USES: dict[str, Use] = {
    "connection": lambda lease: lease.connection,
    "release": lambda lease: lease.release(),
    "discard": lambda lease: lease.discard(),
    "transfer": lambda lease: lease.transfer(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("end", ENDS)
def test_a_lease_that_is_over_refuses_every_call_and_changes_nothing(
    pool: Pool[Any], backend: Backend, end: str, use: str
) -> None:
    lease = pool.lease()
    ENDS[end](lease)
    settle()
    before = pool.stats(), closings(backend)
    assert lease.is_active is False
    with pytest.raises(ConnectionNotFoundError):
        USES[use](lease)
    settle()
    assert lease.is_active is False
    assert (pool.stats(), closings(backend)) == before


def closings(backend: Backend) -> list[int]:
    """Return how often each connection was closed."""
    return [connection.closings for connection in backend.connections]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("end", ["release", "release by the pool", "the end of its block"])
def test_a_lease_that_is_over_does_not_affect_the_next_use_of_its_connection(
    pool: Pool[Any], end: str, use: str
) -> None:
    lease = pool.lease()
    ENDS[end](lease)
    following = pool.lease()
    before = pool.stats()
    with pytest.raises(ConnectionNotFoundError):
        USES[use](lease)
    assert pool.stats() == before
    assert (lease.is_active, following.is_active) == (False, True)
    assert following.connection.is_open


@pytest.mark.parametrize("use", ["release", "discard"])
def test_a_lease_is_over_once_its_connection_is_handed_over(pool: Pool[Any], use: str) -> None:
    lease = pool.lease()
    # The waiter has it from now on, though its greenlet has not run yet.
    waiting = spawn_acquire(pool)
    lease.release()
    with pytest.raises(ConnectionNotFoundError):
        USES[use](lease)
    assert waiting.get(timeout=PATIENCE).is_open
    assert not pool.stats().discarded


def test_a_detached_connection_stays_open(pool: Pool[Any]) -> None:
    with pool.connection() as connection:
        pool.detach(connection)
    settle()
    assert connection.is_open
    assert numbers(pool) == (0, 0, 0, 0)


# Leaving a block whose connection was given back by hand

BY_HAND = ["release", "discard", "release by the pool", "discard by the pool", "detach", "the end of the pool"]


@pytest.mark.parametrize("end", BY_HAND)
def test_a_block_ends_without_error_after_its_connection_was_given_back(pool: Pool[Any], end: str) -> None:
    lease = pool.connection()
    with lease:
        ENDS[end](lease)
        settle()
        before = pool.stats()
    settle()
    assert lease.is_active is False
    assert pool.stats() == before


@pytest.mark.parametrize("end", BY_HAND)
def test_an_exception_leaves_a_block_unchanged_after_its_connection_was_given_back(pool: Pool[Any], end: str) -> None:
    def fail() -> None:
        with lease:
            ENDS[end](lease)
            settle()
            before.append(pool.stats())
            raise error

    lease, error = pool.connection(), LookupError()
    before: list[object] = []
    assert outcome(fail) is error
    settle()
    assert [pool.stats()] == before


@pytest.mark.parametrize("error", [None, LookupError()], ids=["well", "by an error"])
@pytest.mark.parametrize("has_waited", [False, True], ids=["from idle", "handed over"])
def test_the_end_of_a_block_does_not_touch_a_connection_that_another_greenlet_has_acquired(
    pool: Pool[Any], has_waited: bool, error: LookupError | None
) -> None:
    def use() -> None:
        with pool.connection() as connection:
            used.append(connection)
            over.wait()

    def leave_after_giving_back() -> None:
        with pool.connection() as connection:
            if has_waited:
                users.append(gevent.spawn(use))
                settle()
            pool.release(connection)
            if not has_waited:
                users.append(gevent.spawn(use))
            settle()
            assert used == [connection]
            if error is not None:
                raise error

    used: list[Any] = []
    users: list[gevent.Greenlet] = []
    over = Event()
    assert outcome(leave_after_giving_back) is error
    settle()
    assert numbers(pool) == (1, 0, 0, 0)
    assert used[0].is_open
    over.set()
    gevent.joinall(users, raise_error=True)
    assert numbers(pool) == (0, 1, 0, 0)
    assert not pool.stats().discarded


# Holders


def test_a_lease_that_is_garbage_collected_does_not_end_its_use(pool: Pool[Any]) -> None:
    connection = pool.lease().connection
    gc.collect()
    settle()
    assert numbers(pool) == (1, 0, 0, 0)
    assert connection.is_open
    pool.release(connection)
    assert numbers(pool) == (0, 1, 0, 0)


def test_the_connection_of_a_collected_lease_is_taken_back_when_its_holder_ends(
    pool: Pool[Any], backend: Backend
) -> None:
    def drop_a_lease() -> None:
        pool.lease()
        over.wait()

    over = Event()
    holder = gevent.spawn(drop_a_lease)
    settle()
    gc.collect()
    assert numbers(pool) == (1, 0, 0, 0)
    over.set()
    holder.join()
    assert pool.acquire(timeout=PATIENCE) is backend.connections[1]
    assert pool.stats().discarded == {"holder_dead": 1}
    eventually(lambda: not backend.connections[0].is_open)


def test_transfer_makes_the_calling_greenlet_the_holder(pool: Pool[Any]) -> None:
    lease: Lease[Any] = gevent.spawn(pool.lease).get(timeout=PATIENCE)
    lease.transfer()
    # The greenlet that acquired it is dead, and the pool looks for such holders now.
    with pytest.raises(PoolExhaustedError) as raised:
        pool.acquire(timeout=0.01)
    assert raised.value.held_by_caller == 1
    assert lease.is_active
    assert lease.connection.is_open
    lease.release()
    assert numbers(pool) == (0, 1, 0, 0)


def test_a_lease_that_is_not_transferred_ends_with_the_greenlet_that_acquired_it(pool: Pool[Any]) -> None:
    lease: Lease[Any] = gevent.spawn(pool.lease).get(timeout=PATIENCE)
    assert pool.acquire(timeout=PATIENCE).number == 1
    assert lease.is_active is False


def test_the_former_holder_of_a_transferred_lease_does_not_hold_it_any_more(pool: Pool[Any]) -> None:
    def take_over() -> None:
        lease.transfer()
        over.wait()
        lease.release()

    over = Event()
    lease = pool.lease()
    taker = gevent.spawn(take_over)
    settle()
    with pytest.raises(PoolExhaustedError) as raised:
        pool.acquire(timeout=0)
    assert raised.value.held_by_caller == 0
    over.set()
    taker.get(timeout=PATIENCE)
    assert numbers(pool) == (0, 1, 0, 0)


def test_a_lease_may_be_transferred_many_times(pool: Pool[Any]) -> None:
    lease: Lease[Any] = gevent.spawn(pool.lease).get(timeout=PATIENCE)
    for _ in range(3):
        gevent.spawn(lease.transfer).get(timeout=PATIENCE)
    lease.transfer()
    lease.transfer()
    assert lease.is_active
    lease.release()
    assert numbers(pool) == (0, 1, 0, 0)


def test_a_block_may_end_in_the_greenlet_that_its_lease_was_transferred_to(pool: Pool[Any]) -> None:
    def begin() -> Lease[Any]:
        lease = pool.connection()
        lease.__enter__()
        return lease

    lease: Lease[Any] = gevent.spawn(begin).get(timeout=PATIENCE)
    lease.transfer()
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0.01)
    lease.__exit__(None, None, None)
    assert numbers(pool) == (0, 1, 0, 0)


@pytest.mark.parametrize("end", ["release", "discard", "the end of its block", "an error in its block"])
def test_a_lease_whose_thread_has_ended_can_be_given_back_in_another_thread(end: str) -> None:
    pool = Pool(Plain, max_connections=1, reap_expired_connections=False)
    leases: list[Lease[Plain]] = []

    def begin() -> None:
        leases.append(pool.lease())
        end_event_loop()

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    (lease,) = leases
    connection = lease.connection
    assert numbers(pool) == (1, 0, 0, 0)
    ENDS[end](lease)
    assert lease.is_active is False
    assert not connection.is_open
    assert numbers(pool) == (0, 0, 0, 0)


# The time to acquire


def test_a_lease_has_a_timeout_until_it_is_acquired(pool: Pool[Any]) -> None:
    lease = pool.connection(timeout=2)
    lease.timeout = 1
    assert lease.timeout == 1
    with lease:
        assert lease.timeout is None
    acquired = pool.lease(timeout=2)
    acquired.timeout = 1
    assert acquired.timeout is None
    acquired.release()


@pytest.mark.parametrize("timeout", [0, 0.01])
@pytest.mark.parametrize(
    "acquire",
    [lambda pool, timeout: pool.connection(timeout=timeout).__enter__(), Pool.lease],
    ids=["connection", "lease"],
)
def test_the_timeout_of_a_lease_bounds_its_acquire(
    pool: Pool[Any], acquire: Callable[..., object], timeout: float
) -> None:
    held = pool.acquire()
    with pytest.raises(PoolExhaustedError) as raised:
        acquire(pool, timeout=timeout)
    assert raised.value.timeout == timeout
    pool.release(held)
    assert numbers(pool) == (0, 1, 0, 0)


def test_a_lease_without_a_timeout_uses_acquire_timeout(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1, acquire_timeout=0.01)
    pool.acquire()
    for acquire in (pool.lease, pool.connection().__enter__):
        with pytest.raises(PoolExhaustedError) as raised:
            acquire()
        assert raised.value.timeout == 0.01


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1"])
def test_a_bad_timeout_is_refused_with_its_name(pool: Pool[Any], timeout: Any) -> None:
    for acquire in (lambda: pool.lease(timeout=timeout), pool.connection(timeout=timeout).__enter__):
        with pytest.raises(InvalidArgumentError) as raised:
            acquire()
        assert raised.value.argument == "timeout"
    assert numbers(pool) == (0, 0, 0, 0)


def test_a_failed_opening_leaves_the_lease_inactive(pool: Pool[Any], backend: Backend) -> None:
    lease = pool.connection()
    error = ConnectionRefusedError("not today")
    backend.failures.append(error)
    with pytest.raises(ConnectionRefusedError) as raised, lease:
        pytest.fail("there is no connection")
    assert raised.value is error
    assert lease.is_active is False
    assert numbers(pool) == (0, 0, 0, 0)


# Seeing


def test_the_repr_of_a_lease_shows_its_connection_and_whether_it_is_over(pool: Pool[Any]) -> None:
    lease = pool.connection()
    unused = repr(lease)
    with lease as connection:
        active = repr(lease)
        assert repr(connection) in active
    over = repr(lease)
    assert len({unused, active, over}) == 3
    assert "over" in over
    for text in (unused, active, over):
        assert "Lease" in text
        assert "\n" not in text


# The same connection object, twice


@pytest.fixture
def twice(backend: Backend) -> Pool[Any]:
    """A pool whose factory returns one connection object again and again."""
    connection = backend.connect()
    return Pool(lambda: connection, max_connections=2, reap_expired_connections=False)


@pytest.mark.parametrize("first", [0, 1])
def test_two_leases_of_one_connection_object_end_independently(twice: Pool[Any], first: int) -> None:
    leases = [twice.lease(), twice.lease()]
    assert leases[0].connection is leases[1].connection
    leases[first].release()
    assert leases[first].is_active is False
    assert leases[1 - first].is_active is True
    assert numbers(twice) == (1, 1, 0, 0)
    with pytest.raises(ConnectionNotFoundError):
        leases[first].release()
    assert numbers(twice) == (1, 1, 0, 0)
    leases[1 - first].release()
    assert numbers(twice) == (0, 2, 0, 0)


@pytest.mark.parametrize("first", [0, 1])
def test_a_discarded_lease_leaves_another_lease_of_the_same_object_active(twice: Pool[Any], first: int) -> None:
    leases = [twice.lease(), twice.lease()]
    leases[first].discard()
    assert leases[first].is_active is False
    assert leases[1 - first].is_active is True
    assert numbers(twice) == (1, 0, 0, 0)
    leases[1 - first].release()
    assert numbers(twice)[0] == 0


def test_a_transferred_lease_leaves_another_lease_of_the_same_object_with_its_holder(twice: Pool[Any]) -> None:
    first: Lease[Any] = gevent.spawn(twice.lease).get(timeout=PATIENCE)
    second: Lease[Any] = gevent.spawn(twice.lease).get(timeout=PATIENCE)
    second.transfer()
    spawn_acquire(twice).kill()
    assert (first.is_active, second.is_active) == (False, True)


def test_a_release_of_an_object_with_two_leases_ends_the_callers_own_lease(twice: Pool[Any]) -> None:
    def use() -> None:
        connection = twice.acquire()
        over.wait()
        twice.release(connection)

    over = Event()
    mine = twice.lease()
    other = gevent.spawn(use)
    settle()
    assert numbers(twice) == (2, 0, 0, 0)
    twice.release(mine.connection)
    assert mine.is_active is False
    assert numbers(twice) == (1, 1, 0, 0)
    over.set()
    other.get(timeout=PATIENCE)
    assert numbers(twice) == (0, 2, 0, 0)


def test_the_holder_of_a_lease_is_the_greenlet_that_has_its_connection(backend: Backend) -> None:
    pool = Pool(backend.connect)
    lease = pool.connection()
    assert lease.holder is None
    with lease:
        assert lease.holder is gevent.getcurrent()
        taker = gevent.spawn(lease.transfer)
        taker.join()
        assert lease.holder is taker
    # Another lease of the same connection has another holder.
    with pool.connection():
        assert lease.holder is None


def test_a_lease_does_not_keep_its_holder_alive(backend: Backend) -> None:
    pool = Pool(backend.connect, reap_expired_connections=False)
    leases: list[Any] = []
    taker = gevent.spawn(lambda: leases.append(pool.lease()))
    taker.join()
    del taker
    # gevent keeps what has just ended.
    settle()
    gc.collect()
    assert leases[0].is_active
    assert leases[0].holder is None
