"""Nothing is mixed up: half-done exchanges, stale connections, old ones and threads. Forks are in test_fork.py."""

from __future__ import annotations

import math
import threading
from typing import Any

import gevent
import gevent.os
import pytest

from gsocketpool import Connection, Pool, PoolExhaustedError, WrongThreadError
from tests.support.line_server import LineServer, line_pool
from tests.support.line_server import server as server
from tests.support.scripted import (
    PATIENCE,
    Backend,
    Clock,
    ScriptedConnection,
    end_event_loop,
    eventually,
    numbers,
    settle,
    spawn_acquire,
)

# Blocks


@pytest.mark.parametrize(
    "error",
    [ValueError(), gevent.Timeout(1), gevent.GreenletExit(), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_a_block_left_by_an_exception_discards_its_connection(backend: Backend, error: BaseException) -> None:
    pool = Pool(backend.connect)
    with pytest.raises(type(error)) as caught, pool.connection() as connection:
        raise error
    assert caught.value is error
    assert numbers(pool) == (0, 0, 0, 0)
    assert pool.stats().discarded == {"error": 1}
    settle()
    assert not connection.is_open


def test_a_generator_that_is_given_up_discards_its_connection(backend: Backend) -> None:
    pool = Pool(backend.connect)

    def rows() -> Any:
        with pool.connection() as connection:
            yield connection
            yield connection

    iterator = rows()
    connection = next(iterator)
    iterator.close()
    assert numbers(pool) == (0, 0, 0, 0)
    settle()
    assert not connection.is_open


def test_a_class_that_knows_better_keeps_its_connection(backend: Backend) -> None:
    class Wise(ScriptedConnection):
        def is_reusable(self, error: BaseException | None) -> bool:
            return not isinstance(error, OSError)

    pool = Pool(lambda: backend._made(Wise(backend, {})))
    with pytest.raises(LookupError), pool.connection():
        raise LookupError
    assert numbers(pool) == (0, 1, 0, 0)
    with pytest.raises(OSError, match="gone"), pool.connection():
        raise OSError("gone")
    assert numbers(pool) == (0, 0, 0, 0)


def test_only_true_is_a_yes(backend: Backend) -> None:
    """What answers everything with something true doesn't know better."""

    class Vague(ScriptedConnection):
        def is_reusable(self, error: BaseException | None) -> Any:
            return "maybe"

    pool = Pool(lambda: backend._made(Vague(backend, {})))
    with pytest.raises(LookupError), pool.connection():
        raise LookupError
    assert numbers(pool) == (0, 0, 0, 0)
    settle()
    assert not backend.open


def test_discarding_by_hand(backend: Backend) -> None:
    pool = Pool(backend.connect)
    connection = pool.acquire()
    pool.discard(connection)
    assert numbers(pool) == (0, 0, 0, 0)
    assert pool.stats().discarded == {"explicit": 1}
    settle()
    assert not connection.is_open
    with pool.connection() as connection:
        pool.discard(connection)
        other = pool.acquire()
    settle()
    assert not connection.is_open
    assert other.is_open, "the end of the block concerns its own connection alone"
    assert numbers(pool) == (1, 0, 0, 0)


def test_an_idle_connection_may_be_discarded(backend: Backend) -> None:
    pool = Pool(backend.connect)
    connection, other = pool.acquire(), pool.acquire()
    pool.release(connection)
    pool.release(other)
    pool.discard(connection)
    assert numbers(pool) == (0, 1, 0, 0)
    assert pool.stats().discarded == {"explicit": 1}
    settle()
    assert not connection.is_open
    assert pool.acquire(timeout=0) is other


def test_a_block_is_for_one_use(backend: Backend) -> None:
    pool = Pool(backend.connect)
    block = pool.connection()
    with block, pytest.raises(RuntimeError, match="call connection\\(\\) again for another"):
        block.__enter__()
    with pytest.raises(RuntimeError):
        block.__enter__()
    assert numbers(pool) == (0, 1, 0, 0)


def test_a_block_does_not_give_back_what_is_anothers_by_now(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    with pool.connection() as connection:
        pool.release(connection)
        assert pool.acquire() is connection
    assert numbers(pool) == (1, 0, 0, 0)


def test_detaching(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    with pool.connection() as connection:
        assert pool.detach(connection) is connection
        assert numbers(pool) == (0, 0, 0, 0)
        waiter = spawn_acquire(pool)
        assert waiter.get(timeout=PATIENCE) is not connection
    assert connection.is_open
    assert numbers(pool) == (1, 0, 0, 0)


def test_what_was_closed_by_its_user_is_not_kept(backend: Backend) -> None:
    pool = Pool(backend.connect)
    with pool.connection() as connection:
        connection.close()
    assert numbers(pool) == (0, 0, 0, 0)
    assert pool.stats().discarded == {"not_reusable": 1}
    assert connection.closings == 1, "it was closed already"


# Checks


def test_an_idle_connection_that_is_closed_is_not_handed_out(backend: Backend) -> None:
    pool = Pool(backend.connect)
    connections = [pool.acquire() for _ in range(3)]
    for connection in connections:
        pool.release(connection)
    for connection in connections[1:]:
        connection.is_open = False
    assert pool.acquire() is connections[0], "the next one is tried"
    assert pool.acquire().number == 3, "then a fresh one"
    assert pool.stats().discarded == {"unusable": 2}


def test_steps_that_are_an_instances_own_are_asked(backend: Backend) -> None:
    class Wrapper(Connection):
        def __init__(self) -> None:
            self.inner = Inner(backend, {})
            backend._made(self.inner)
            self.is_usable, self.is_reusable = self.inner.is_usable, self.inner.is_reusable  # type: ignore[method-assign]

        def open(self) -> None:
            self.inner.open()

        def close(self) -> None:
            self.inner.close()

        def is_connected(self) -> bool:
            return True

    class Inner(ScriptedConnection):
        def is_connected(self) -> bool:
            return self.is_open and bool(self.backend.answer)

    pool = Pool(Wrapper)
    first = pool.acquire()
    pool.release(first)
    backend.answer = False
    second = pool.acquire()
    assert second is not first


@pytest.mark.parametrize("step", ["get", "is_reusable", "is_usable"])
def test_a_step_that_can_not_be_looked_at(backend: Backend, step: str) -> None:
    """It is found out what a class defines, and nothing of the class is run for that."""

    def look(self: object) -> object:
        raise LookupError("not to be looked at")

    kind: Any = type("Shy", (ScriptedConnection,), {step: property(look)})
    pool = Pool(lambda: backend._made(kind(backend, {})))
    connection = pool.acquire()
    if step != "is_reusable":
        pool.release(connection)
    assert numbers(pool)[:2] == ((1, 0) if step == "is_reusable" else (0, 1))


def test_a_connection_that_was_never_used_is_checked_like_any_other(backend: Backend) -> None:
    pool = Pool(backend.connect, initial_connections=3)
    for connection in backend.connections:
        connection.is_open = False
    assert pool.acquire().number == 3


@pytest.mark.parametrize("answer", [False, OSError("no pong"), None, 0])
def test_a_check_of_the_users_own(backend: Backend, answer: Any) -> None:
    pool = Pool(backend.connect_checked)
    first = pool.acquire()
    pool.release(first)
    assert pool.acquire() is first
    pool.release(first)
    backend.answer = answer
    assert pool.acquire().number == 1, "a fresh one is not asked"
    assert not first.is_open


def test_after_a_restart_of_the_backend_not_one_request_fails(server: LineServer) -> None:
    with line_pool(server) as pool:
        connections = [pool.acquire() for _ in range(8)]
        for connection in connections:
            assert connection.exchange(b"before") == b"before"
            pool.release(connection)
        server.restart()
        eventually(lambda: not any(connection.is_usable() for connection in connections))

        def request(number: int) -> None:
            with pool.connection() as connection:
                assert connection.exchange(b"%d" % number) == b"%d" % number

        gevent.joinall([gevent.spawn(request, number) for number in range(20)], raise_error=True)
        assert pool.stats().discarded == {"unusable": 8}


def test_the_next_user_never_reads_a_reply_that_is_not_its_own(server: LineServer) -> None:
    with line_pool(server) as pool:
        with pool.connection() as first:
            assert first.exchange(b"twice") == b"twice"
        with pool.connection() as second:
            assert second.exchange(b"mine") == b"mine"
        assert second is not first


def test_bytes_left_unread_make_a_connection_unfit(server: LineServer) -> None:
    with line_pool(server) as pool:
        with pool.connection() as first:
            first.send(b"a long line\n")
            assert first.recv_exactly(6) == b"a long"
        with pool.connection() as second:
            assert second.exchange(b"mine") == b"mine"
        assert second is not first


def test_a_timeout_caught_in_the_block_makes_a_connection_unfit(server: LineServer) -> None:
    with line_pool(server) as pool:
        with pool.connection() as first:
            # For connecting it has all the time that it takes, also on a busy machine.
            first.socket.settimeout(0.01)
            with pytest.raises(TimeoutError):
                first.recv()
            first.send(b"late\n")
        with pool.connection() as second:
            assert second.exchange(b"mine") == b"mine"
        assert second is not first


def test_checking_a_socket_does_not_switch(server: LineServer) -> None:
    with line_pool(server) as pool:
        with pool.connection() as connection:
            connection.exchange(b"x")
        settle()
        ran: list[bool] = []
        gevent.spawn(ran.append, True)
        pool.release(pool.acquire(timeout=0))
        assert not ran


# Growing old


def test_a_connection_is_retired_at_the_end_of_its_lifetime(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, max_lifetime=100)
    first = pool.acquire()
    pool.release(first)
    clock.advance(89)
    assert pool.acquire() is first
    clock.advance(11)
    pool.release(first)
    settle()
    assert not first.is_open, "in use: on its return"
    second = pool.acquire()
    pool.release(second)
    clock.advance(100)
    assert pool.acquire() is not second, "idle: when it would be handed out"
    assert pool.stats().retired == {"lifetime": 2}


def test_a_lifetime_that_ends_while_a_waiter_is_about_to_wake(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, max_connections=1, max_lifetime=100)
    first = pool.acquire()
    waiter = spawn_acquire(pool, timeout=math.inf)
    pool.release(first)
    clock.advance(101)
    assert waiter.get(timeout=PATIENCE) is not first
    assert pool.stats().retired == {"lifetime": 1}


def test_lifetimes_are_jittered_by_up_to_a_tenth_downwards(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, max_lifetime=100, max_opening=None)
    for connection in [pool.acquire() for _ in range(200)]:
        pool.release(connection)
    ends = [entry.expires_at - clock.now for entry in pool._state.idle]
    assert all(90 <= end <= 100 for end in ends)
    assert max(ends) - min(ends) > 5
    before = list(ends)
    for connection in [pool.acquire() for _ in range(200)]:
        pool.release(connection)
    assert sorted(entry.expires_at - clock.now for entry in pool._state.idle) == sorted(before), "computed once"


def test_however_short_its_lifetime_a_connection_is_good_for_one_use(backend: Backend) -> None:
    pool = Pool(backend.connect, max_lifetime=1e-9)
    with pool.connection() as connection:
        assert backend.connections == [connection]
    assert pool.stats().retired == {"lifetime": 1}
    settle()
    assert not connection.is_open


def test_a_connection_idle_for_too_long_is_retired(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, idle_timeout=10, max_connections=1)
    first = pool.acquire()
    clock.advance(50)
    pool.release(first)
    clock.advance(9)
    assert pool.acquire() is first
    clock.advance(50)
    waiter = spawn_acquire(pool)
    pool.release(first)
    assert waiter.get(timeout=PATIENCE) is first, "handed over, it was not idle at all"
    pool.release(first)
    clock.advance(10)
    assert pool.acquire() is not first
    assert pool.stats().retired == {"idle": 1}


def test_draining(backend: Backend) -> None:
    pool = Pool(backend.connect)
    idle, held = pool.acquire(), pool.acquire()
    pool.release(idle)
    pool.drain()
    assert not idle.is_open
    assert held.is_open
    fresh = pool.acquire()
    pool.release(held)
    assert pool.stats().retired == {"drain": 2}
    settle()
    assert not held.is_open
    pool.release(fresh)
    assert pool.acquire() is fresh, "those opened afterwards are not concerned"


def test_what_was_being_checked_at_a_drain_is_not_handed_out(backend: Backend) -> None:
    pool = Pool(backend.connect_checked)
    pool.release(pool.acquire())
    backend.checks.clear()
    caller = spawn_acquire(pool)
    pool.drain()
    backend.checks.set()
    assert caller.get(timeout=PATIENCE).number == 1
    assert pool.stats().retired == {"drain": 1}


def test_what_was_being_opened_at_a_drain_is_not_kept(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect)
    caller = spawn_acquire(pool)
    pool.drain()
    backend.opens.set()
    settle()
    assert caller.get(timeout=PATIENCE).number == 1
    assert not backend.connections[0].is_open


def test_a_sweep_retires_what_is_overdue(backend: Backend, clock: Clock) -> None:
    pool = clock.pool(backend.connect, idle_timeout=60, max_lifetime=1000, reap_interval=0.005)
    for connection in [pool.acquire() for _ in range(3)]:
        pool.release(connection)
    clock.advance(59)
    used = pool.acquire()
    pool.release(used)
    clock.advance(1)
    eventually(lambda: len(backend.open) == 1)
    assert used.is_open
    assert numbers(pool) == (0, 1, 0, 0)
    assert pool.stats().retired == {"idle": 2}
    pool.close()


def test_the_users_is_expired_is_the_reapers_alone(backend: Backend) -> None:
    pool = Pool(backend.connect)
    connection = pool.acquire()
    connection.says_expired = True
    pool.release(connection)
    assert pool.acquire() is connection
    pool.release(connection)
    pool.drop_expired()
    assert not connection.is_open
    assert pool.stats().retired == {"expired": 1}


# Threads


def in_thread(act: Any) -> Any:
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(act())
        except BaseException as error:
            result.append(error)
        finally:
            end_event_loop()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    (outcome,) = result
    return outcome


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
        error = in_thread(act)
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
    assert all(isinstance(in_thread(use), WrongThreadError) for _ in range(10))
    with pytest.raises(WrongThreadError):
        use()


def test_pools_of_one_program_do_not_meet(backend: Backend) -> None:
    first, second = Pool(backend.connect, max_connections=1), Pool(backend.connect, max_connections=1)
    connection = first.acquire()
    other = second.acquire()
    waiter = spawn_acquire(first)
    second.release(other)
    settle()
    assert not waiter.ready()
    with pytest.raises(PoolExhaustedError):
        first.acquire(timeout=0)
    first.release(connection)
    assert waiter.get(timeout=PATIENCE) is connection


def test_a_class_of_the_old_days_is_peeked_at_by_its_socket(server: LineServer) -> None:
    class Old(Connection):
        def __init__(self, port: int) -> None:
            self._port = port
            self._sock: Any = None

        def open(self) -> None:
            self._sock = gevent.socket.create_connection(("127.0.0.1", self._port))

        def close(self) -> None:
            self._sock.close()
            self._sock = None

        def get(self) -> Any:
            return self._sock

        def is_connected(self) -> bool:
            return self._sock is not None

    with Pool(Old, {"port": server.port}) as pool:
        with pool.connection() as first:
            first.get().sendall(b"x\n")
            assert first.get().recv(10) == b"x\n"
        server.restart()
        eventually(lambda: not first.is_usable())
        with pool.connection() as second:
            second.get().sendall(b"y\n")
            assert second.get().recv(10) == b"y\n"
        assert second is not first
