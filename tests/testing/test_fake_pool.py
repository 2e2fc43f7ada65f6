"""``FakePool`` stands in for a pool in tests, without a server."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from gsocketpool import ConnectionNotFoundError, InvalidArgumentError, Pool, PoolClosedError
from gsocketpool.testing import FakePool
from tests.support.scripted import Plain


@pytest.fixture
def connection() -> SimpleNamespace:
    return SimpleNamespace(number=7)


@pytest.fixture
def pool(connection: SimpleNamespace) -> FakePool[SimpleNamespace]:
    return FakePool(connection)


def numbers(pool: FakePool[Any]) -> tuple[int, int, dict[str, int]]:
    """(in use, acquired, discarded)"""
    stats = pool.stats()
    assert stats.in_use == pool.size
    return stats.in_use, stats.acquired_at_once, dict(stats.discarded)


def test_a_fake_pool_hands_its_connection_out_to_any_number_of_callers(pool: FakePool[Any], connection: Any) -> None:
    with pool.connection() as first, pool.connection() as second:
        assert first is second is connection
        assert pool.acquire() is connection
        assert numbers(pool) == (3, 3, {})
        pool.release(connection)
    assert numbers(pool) == (0, 3, {})


def test_a_lease_is_inactive_before_its_block(pool: FakePool[Any]) -> None:
    lease = pool.connection()
    assert not lease.is_active
    assert numbers(pool) == (0, 0, {})


def test_discards_are_counted_by_reason(pool: FakePool[Any], connection: Any) -> None:
    pool.discard(pool.acquire())
    pool.lease().discard("garbled")
    with pytest.raises(LookupError), pool.connection():
        raise LookupError
    assert numbers(pool) == (0, 3, {"explicit": 1, "garbled": 1, "error": 1})
    assert pool.acquire() is connection


def test_a_connection_that_is_not_in_use_can_not_be_given_back(pool: FakePool[Any], connection: Any) -> None:
    for give_back in (pool.release, pool.discard):
        with pytest.raises(ConnectionNotFoundError):
            give_back(connection)
    pool.acquire()
    with pytest.raises(ConnectionNotFoundError):
        pool.release(SimpleNamespace(number=7))
    assert numbers(pool) == (1, 1, {})


def test_a_lease_serves_one_use_only(pool: FakePool[Any], connection: Any) -> None:
    lease = pool.lease(timeout=2)
    assert lease.is_active
    assert lease.pool is pool
    assert lease.connection is connection
    assert lease.holder is gevent.getcurrent()
    taker = gevent.spawn(lease.transfer)
    taker.join()
    assert lease.holder is taker
    with lease as given:
        assert given is connection
    assert numbers(pool) == (0, 1, {})
    with pytest.raises(RuntimeError, match="one use"), lease:
        pass
    for use in (lease.release, lease.discard, lease.transfer, lambda: lease.connection):
        with pytest.raises(ConnectionNotFoundError):
            use()


@pytest.mark.parametrize("give_back", ["release", "discard"])
def test_a_connection_may_be_given_back_within_its_block(pool: FakePool[Any], connection: Any, give_back: str) -> None:
    with pool.connection():
        getattr(pool, give_back)(connection)
        assert pool.size == 0
    assert pool.size == 0


def test_a_release_ends_an_acquire_by_hand_before_it_ends_a_block(pool: FakePool[Any], connection: Any) -> None:
    acquired = pool.acquire()
    with pool.connection():
        pool.release(acquired)
        assert numbers(pool) == (1, 2, {})
        acquired = pool.acquire()
    assert numbers(pool) == (1, 3, {})
    pool.release(acquired)


def test_a_closed_fake_pool_hands_out_nothing(pool: FakePool[Any]) -> None:
    with pool, pool.connection():
        pool.close(timeout=0)
        assert "closed" in repr(pool)
    for use in (pool.acquire, pool.lease, pool.connection().__enter__):
        with pytest.raises(PoolClosedError):
            use()


@pytest.mark.parametrize("timeout", [-1, "1", float("nan")])
def test_a_fake_pool_refuses_a_bad_timeout(pool: FakePool[Any], timeout: Any) -> None:
    for use in (lambda: pool.acquire(timeout=timeout), lambda: pool.lease(timeout), lambda: pool.connection(timeout)):
        with pytest.raises(InvalidArgumentError):
            use()
    assert numbers(pool) == (0, 0, {})


def test_acquire_takes_the_arguments_of_0_1_6(pool: FakePool[Any], connection: Any) -> None:
    assert pool.acquire(3) is connection
    for arguments in ({"retry": -1}, {"retry": 3, "timeout": 1}):
        with pytest.raises(InvalidArgumentError):
            pool.acquire(**arguments)


@pytest.mark.parametrize("name", ["detach", "drop", "drop_expired", "drain", "resize", "wait_ready"])
def test_an_unsupported_method_raises_an_error_that_names_it(pool: FakePool[Any], name: str) -> None:
    assert hasattr(Pool, name)
    with pytest.raises(AttributeError, match=f"a FakePool has no '{name}'; use a real Pool"):
        getattr(pool, name)
    with pytest.raises(AttributeError, match=r"a FakePool has no 'aquire'$"):
        pool.aquire()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["acquire", "connection", "lease", "release", "discard", "close", "stats"])
def test_methods_of_a_fake_pool_take_the_arguments_of_a_pool(name: str) -> None:
    fake, real = (inspect.signature(getattr(kind, name)).parameters.values() for kind in (FakePool, Pool))
    assert [(it.name, it.kind, it.default) for it in fake] == [(it.name, it.kind, it.default) for it in real]


def test_a_lease_of_a_fake_pool_has_the_public_names_of_a_lease_of_a_pool() -> None:
    def public(lease: object) -> set[str]:
        return {name for name in dir(lease) if not name.startswith("_")}

    with Pool(Plain) as pool:
        assert public(FakePool(None).connection()) == public(pool.connection())


def test_statistics_of_a_fake_pool_have_the_keys_of_those_of_a_pool(pool: FakePool[Any]) -> None:
    with Pool(Plain) as real:
        assert json.loads(json.dumps(pool.stats().as_dict())).keys() == real.stats().as_dict().keys()
    assert pool.stats().name == pool.name == "fake"
    assert FakePool(None, name="db").stats().name == "db"
