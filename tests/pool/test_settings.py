"""How a pool is set up, filled and kept in order."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from gsocketpool import (
    ConnectionNotFoundError,
    InvalidArgumentError,
    Pool,
    PoolClosedError,
    PoolError,
    PoolNotReadyError,
)
from tests.support.scripted import PATIENCE, Backend, ScriptedConnection, eventually, numbers, settle, spawn_acquire

COUNTS = ["initial_connections", "max_connections", "min_connections", "max_waiting", "max_opening"]
SECONDS = [
    "reap_interval",
    "acquire_timeout",
    "open_timeout",
    "close_timeout",
    "max_lifetime",
    "idle_timeout",
    "leak_threshold",
    "keepalive_interval",
]
OPTIONAL = [
    "max_waiting",
    "max_opening",
    "acquire_timeout",
    "open_timeout",
    "max_lifetime",
    "idle_timeout",
    "leak_threshold",
    "keepalive_interval",
]


@pytest.mark.parametrize("argument", COUNTS + SECONDS)
@pytest.mark.parametrize("given", [-1, "5", True, [], object(), float("nan"), float("inf"), None])
def test_every_number_is_checked_and_every_complaint_names_its_argument(argument: str, given: Any) -> None:
    if given is None and argument in OPTIONAL:
        Pool(dict, **{argument: given})
        return
    with pytest.raises(InvalidArgumentError) as caught:
        Pool(dict, **{argument: given})
    assert caught.value.argument == argument
    assert caught.value.given is given
    assert str(caught.value).startswith(f"{argument} must be {caught.value.allowed}, not {given!r}")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PoolError)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"max_connections": 0}, "max_connections must be a whole number of at least 1, not 0"),
        ({"max_connections": 1.5}, "max_connections must be a whole number of at least 1, not 1.5"),
        ({"max_opening": 0}, "max_opening must be a whole number of at least 1, or None for no limit, not 0"),
        (
            {"initial_connections": 3, "max_connections": 2},
            r"initial_connections must be at most max_connections \(2\), not 3",
        ),
        ({"min_connections": 3, "max_connections": 2}, r"min_connections must be at most max_connections \(2\), not 3"),
        ({"reap_interval": 0}, "reap_interval must be a number of seconds above 0, not 0"),
        ({"close_timeout": 0}, "close_timeout must be a number of seconds above 0, not 0"),
        ({"reap_expired_connections": 1}, "reap_expired_connections must be True or False, not 1"),
        ({"name": 7}, "name must be a str or None, not 7"),
        ({"options": [1]}, r"options must be a mapping .* or a callable .*, not <class .list.>"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{complaint}$"):
        Pool(dict, **arguments)


def test_a_factory_that_can_not_be_called_is_refused() -> None:
    with pytest.raises(
        InvalidArgumentError, match="factory must be a Connection class, a callable or a Connector, not 'x'"
    ):
        Pool("x")  # type: ignore[arg-type]


def test_a_refused_pool_leaves_nothing_behind(backend: Backend) -> None:
    with pytest.raises(InvalidArgumentError):
        Pool(backend.connect, initial_connections=1, idle_timeout=-1)
    assert not backend.connections


def test_options_may_be_made_anew_for_every_open(backend: Backend) -> None:
    passwords = iter(["first", "second"])
    pool = Pool(backend.connect, lambda: {"password": next(passwords)})
    assert [pool.acquire().options["password"] for _ in range(2)] == ["first", "second"]


@pytest.mark.parametrize("options", [None, 5, ["x"]])
def test_options_that_are_none_are_refused(backend: Backend, options: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="options must be a callable that returns a mapping"):
        Pool(backend.connect, lambda: options).acquire()


def test_options_that_can_not_be_made_are_an_open_error(backend: Backend) -> None:
    def options() -> dict[str, Any]:
        raise PermissionError("no token")

    pool = Pool(backend.connect, options)
    with pytest.raises(PermissionError, match="no token"):
        pool.acquire()
    assert pool.size == 0


def test_initial_connections_are_open_when_the_pool_is_made(backend: Backend) -> None:
    pool = Pool(backend.connect, initial_connections=3)
    assert numbers(pool) == (0, 3, 0, 0)
    assert len(backend.open) == 3
    assert pool.stats().opened == 3


def test_initial_and_kept_connections_share_the_limit(backend: Backend) -> None:
    pool = Pool(backend.connect, initial_connections=5, min_connections=5, max_connections=5)
    settle()
    assert backend.most_open == 5
    assert pool.stats().opened == 5


def test_an_initial_connection_that_fails(backend: Backend) -> None:
    backend.failures.append(OSError("down"))
    opened_before = backend.connect
    made: list[Any] = []

    def factory() -> Any:
        made.append(opened_before())
        if len(made) == 3:
            raise OSError("the third")
        return made[-1]

    with pytest.raises(OSError, match="down"):
        Pool(factory, initial_connections=2)
    made.clear()
    with pytest.raises(OSError, match="the third"):
        Pool(factory, initial_connections=3)
    assert not backend.open


def test_min_connections_are_kept_open(backend: Backend) -> None:
    pool = Pool(backend.connect, min_connections=3, max_connections=4)
    assert len(backend.connections) == 0, "in the background"
    pool.wait_ready(timeout=PATIENCE)
    assert numbers(pool) == (0, 3, 0, 0)
    connections = [pool.acquire() for _ in range(3)]
    assert pool.size == 3, "those in use count"
    pool.discard(connections[0])
    settle()
    assert numbers(pool) == (2, 1, 0, 0)
    pool.drain()
    pool.wait_ready(timeout=PATIENCE)
    eventually(lambda: len(backend.open) == 3)


def test_waiting_until_ready(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, min_connections=2, name="cache")
    with pytest.raises(PoolNotReadyError) as caught:
        pool.wait_ready(timeout=0.005)
    assert (caught.value.connections, caught.value.min_connections) == (0, 2)
    waiting = [gevent.spawn(pool.wait_ready) for _ in range(2)]
    settle()
    backend.opens.set()
    gevent.joinall(waiting, timeout=PATIENCE, raise_error=True)
    pool.wait_ready(timeout=0)
    Pool(backend.connect).wait_ready(timeout=0)


def test_waiting_for_a_pool_that_gets_closed(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, min_connections=1)
    waiting = gevent.spawn(pool.wait_ready)
    settle()
    pool.close()
    with pytest.raises(PoolClosedError):
        waiting.get(timeout=PATIENCE)


def test_filling_goes_on_when_the_backend_is_back(backend: Backend) -> None:
    backend.failures.extend(OSError(f"down {number}") for number in range(3))
    pool = Pool(backend.connect, min_connections=1)
    with pytest.raises(PoolNotReadyError, match="opening one last failed with OSError: down 0") as caught:
        pool.wait_ready(timeout=0.02)
    assert caught.value.last_open_error == "OSError: down 0"
    assert len(backend.connections) == 1, "not again and again without a pause"
    pool.wait_ready(timeout=PATIENCE)
    assert pool.stats().open_errors == 3
    assert len(backend.connections) == 4


def test_a_caller_does_not_wait_for_the_pause(backend: Backend) -> None:
    backend.failures.append(OSError("down"))
    pool = Pool(backend.connect, min_connections=1)
    settle()
    pool._lifecycle._pause = 1000.0
    assert pool.acquire(timeout=PATIENCE).number == 1


def test_dropping_an_idle_connection(backend: Backend) -> None:
    pool = Pool(backend.connect)
    idle, held = pool.acquire(), pool.acquire()
    pool.release(idle)
    for wrong in (held, None, backend.connect()):
        with pytest.raises(ConnectionNotFoundError, match="is not idle in pool 'connect'"):
            pool.drop(wrong)
    pool.drop(idle)
    assert not idle.is_open
    assert numbers(pool) == (1, 0, 0, 0)
    assert pool.stats().retired == {"dropped": 1}


def test_growing_serves_those_who_wait(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    pool.acquire()
    waiter = spawn_acquire(pool)
    pool.resize(2)
    assert waiter.get(timeout=PATIENCE).number == 1
    assert pool.stats().max_connections == 2


def test_shrinking_retires_idle_connections_then_others_on_their_return(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=4)
    connections = [pool.acquire() for _ in range(4)]
    pool.release(connections[0])
    pool.release(connections[1])
    pool.resize(3)
    assert [connection.is_open for connection in connections] == [False, True, True, True]
    pool.resize(1)
    assert [connection.is_open for connection in connections] == [False, False, True, True]
    pool.release(connections[2])
    pool.release(connections[3])
    settle()
    assert [connection.is_open for connection in connections] == [False, False, False, True]
    assert pool.stats().retired == {"surplus": 3}


def test_shrinking_counts_what_is_being_opened(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=4, max_opening=None)
    held = [pool.acquire(), pool.acquire()]
    backend.opens.clear()
    callers = [spawn_acquire(pool, timeout=0.001) for _ in range(2)]
    gevent.joinall(callers)
    assert numbers(pool) == (2, 0, 2, 0)
    pool.resize(2)
    for connection in held:
        pool.release(connection)
    assert pool.size == 2
    backend.opens.set()
    settle()
    assert numbers(pool) == (0, 2, 0, 0)


@pytest.mark.parametrize("limit", [0, 1, -1, None, 2.0, "3"])
def test_a_bad_size_is_refused(backend: Backend, limit: Any) -> None:
    pool = Pool(backend.connect, min_connections=2)
    with pytest.raises(InvalidArgumentError, match="max_connections must be a whole number of at least 2"):
        pool.resize(limit)
    pool.close(timeout=0)


def test_an_expiry_question_that_switches_is_asked_about_idle_connections_only(backend: Backend) -> None:
    class Slow(ScriptedConnection):
        def is_expired(self) -> bool:
            gevent.sleep(0)
            return True

    pool = Pool(lambda: backend._made(Slow(backend, {})))
    first, second = pool.acquire(), pool.acquire()
    pool.release(first)
    pool.release(second)
    dropping = gevent.spawn(pool.drop_expired)
    gevent.sleep(0)
    taken = [pool.acquire(), pool.acquire()]
    dropping.get(timeout=PATIENCE)
    assert all(connection.is_open for connection in taken)
    assert numbers(pool) == (2, 0, 0, 0)
