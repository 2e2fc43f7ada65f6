"""A pool belongs to the thread that first uses it."""

from __future__ import annotations

import gevent
import pytest

from gsocketpool import Pool, WrongThreadError
from tests.support.callers import METHODS, ended_by
from tests.support.scripted import PATIENCE, Backend, Plain, eventually, numbers, settle
from tests.support.threads import in_thread


def test_another_thread_gets_a_clear_error_and_does_no_harm(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=2)
    held = pool.acquire()
    pool.release(pool.acquire())
    acts = [
        pool.acquire,
        pool.connection().__enter__,
        lambda: pool.release(held),
        lambda: pool.discard(held),
        lambda: pool.detach(held),
        pool.drain,
        pool.drop_expired,
        pool.wait_ready,
        pool.close,
        lambda: pool.resize(5),
    ]
    before = pool.stats()
    for act in acts:
        error = ended_by(in_thread, act)
        assert isinstance(error, WrongThreadError)
        assert "pool 'connect' is in use by another thread" in str(error)
        assert pool.stats() == before
    pool.release(held)
    assert numbers(pool) == (0, 2, 0, 0)


def test_a_pool_belongs_to_the_thread_that_first_uses_it(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)

    def use() -> object:
        with pool.connection() as connection:
            return connection

    assert in_thread(use) is backend.connections[0]
    # That thread has ended: one of the others may have got its ident.
    assert all(isinstance(ended_by(in_thread, use), WrongThreadError) for _ in range(10))
    with pytest.raises(WrongThreadError):
        use()


def test_the_tests_cover_every_public_method() -> None:
    public = {name for name in dir(Pool) if not name.startswith("_") and callable(getattr(Pool, name))}
    assert public - set(METHODS) == {"from_url", "stats"}, "what any thread may call"


@pytest.mark.parametrize("name", METHODS)
def test_a_call_in_another_thread_raises_and_leaves_waiters_alone(name: str) -> None:
    pool = Pool(Plain, max_connections=2)
    held, other = pool.acquire(), pool.acquire()
    pool.release(other)
    before = pool.stats()
    assert isinstance(ended_by(in_thread, lambda: METHODS[name](pool, held)), WrongThreadError)
    assert pool.stats() == before
    taken = pool.acquire()
    waiter = gevent.spawn(pool.acquire)
    settle()
    assert isinstance(ended_by(in_thread, lambda: METHODS[name](pool, held)), WrongThreadError)
    settle()
    assert numbers(pool) == (2, 0, 0, 1)
    assert in_thread(pool.stats).waiting == 1
    assert "2 in use" in in_thread(lambda: repr(pool))
    pool.release(held)
    assert waiter.get(timeout=PATIENCE) is held
    pool.release(held)
    pool.release(taken)
    pool.close()


def test_a_lease_can_not_be_transferred_to_another_thread() -> None:
    pool = Pool(Plain, max_connections=1)
    lease = pool.lease()
    assert isinstance(ended_by(in_thread, lease.transfer), WrongThreadError)
    assert lease.is_active
    lease.release()
    assert numbers(pool) == (0, 1, 0, 0)
    pool.close()


@pytest.mark.parametrize("name", ["release", "discard"])
def test_a_lease_that_ends_in_another_thread_is_given_back_in_the_thread_of_the_pool(name: str) -> None:
    pool = Pool(Plain, max_connections=1)
    lease = pool.lease()
    assert in_thread(getattr(lease, name)) is None
    eventually(lambda: not lease.is_active)
    assert numbers(pool) == (0, int(name == "release"), 0, 0)
    pool.close()


def test_a_block_left_in_another_thread_is_given_back_in_the_thread_of_the_pool() -> None:
    """The collector may leave it there, and what that raised would reach no caller."""
    pool = Pool(Plain, max_connections=1)
    block = pool.connection()
    connection = block.__enter__()
    assert in_thread(lambda: block.__exit__(None, None, None)) is None
    eventually(lambda: numbers(pool) == (0, 1, 0, 0))
    assert pool.acquire(timeout=0) is connection
    pool.close(timeout=0)


def test_a_block_whose_use_is_over_may_be_left_in_any_thread() -> None:
    pool = Pool(Plain, max_connections=1)
    block = pool.connection()
    pool.discard(block.__enter__())
    assert in_thread(lambda: block.__exit__(None, None, None)) is None
