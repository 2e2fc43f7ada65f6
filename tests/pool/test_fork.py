"""After a fork, the child starts empty, and the parent notices nothing."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import socket
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import gevent
import gevent.event
import gevent.os
import pytest

from gsocketpool import Pool, PoolClosedError, PoolEvents, PoolExhaustedError
from gsocketpool._threads import current
from gsocketpool.connectors import Connector
from tests.support.connections import outcome
from tests.support.internals import is_readable, pause_filling, reaper_of
from tests.support.line_server import Line, LineServer, line_pool
from tests.support.line_server import server as server
from tests.support.processes import in_gevents_child
from tests.support.scripted import (
    PATIENCE,
    Backend,
    CheckedConnection,
    Plain,
    ScriptedConnection,
    end_event_loop,
    eventually,
    numbers,
    settle,
    spawn_acquire,
)


def test_a_forked_child_starts_empty_and_the_parent_notices_nothing(server: LineServer) -> None:
    with line_pool(server, min_connections=1) as pool:
        pool.wait_ready(PATIENCE)
        idle, held = pool.acquire(), pool.acquire()
        held.send(b"half an")
        pool.release(idle)
        before = repr(pool)

        def child() -> None:
            assert numbers(pool)[:2] == (0, 0)
            for connection in (idle, held):
                assert connection.socket.fileno() == -1
            with pool.connection() as connection:
                assert connection not in (idle, held)
                assert connection.exchange(b"child") == b"child"
            pool.close()

        in_gevents_child(child)
        assert repr(pool) == before
        held.send(b" exchange\n")
        assert held.recv_until(b"\n") == b"half an exchange\n"
        pool.release(held)
        with pool.connection() as connection:
            assert connection.exchange(b"parent") == b"parent"
        assert pool.stats().discarded == {}


def test_a_child_forked_inside_a_block_does_not_read_the_reply_of_its_parent(server: LineServer) -> None:
    with line_pool(server) as pool, pool.connection() as connection:
        connection.send(b"one\n")
        eventually(lambda: not connection.is_usable())

        def child() -> None:
            try:
                connection.recv()
            except OSError:
                return
            raise AssertionError("the child has read the parent's reply")

        in_gevents_child(child)
        assert connection.recv_until(b"\n") == b"one\n"


def test_a_reply_that_has_arrived_before_the_fork_goes_to_the_parent_only(server: LineServer) -> None:
    """Both replies come in the same turn of the event loop. Who is woken first forks before the other has run."""
    with line_pool(server) as pool:
        replies: list[bytes] = []
        stolen: list[bytes] = []

        def child() -> None:
            replies.clear()
            settle()
            stolen.extend(replies)
            assert not stolen

        def read(connection: Line) -> None:
            try:
                replies.append(connection.recv_until(b"\n"))
            except OSError:
                # In the child, where the test must not go on.
                gevent.sleep(PATIENCE)
            if len(replies) == 1:
                in_gevents_child(child)

        with pool.connection() as one, pool.connection() as two:
            readers = [gevent.spawn(read, one), gevent.spawn(read, two)]
            settle()
            one.socket.sendall(b"x\n")
            two.socket.sendall(b"y\n")
            gevent.joinall(readers, timeout=PATIENCE, raise_error=True)
        assert sorted(replies) == [b"x\n", b"y\n"]


def test_waits_copied_by_a_fork_end_in_the_child(backend: Backend) -> None:
    """Waiters, an opening and a closing, all copied by the fork."""
    pool = Pool(backend.connect, max_connections=3, max_opening=1)
    first, second = pool.acquire(), pool.acquire()
    backend.closes.clear()
    pool.release(first)
    dropping = gevent.spawn(pool.drop, first)
    settle()
    backend.opens.clear()
    waiters = [spawn_acquire(pool) for _ in range(2)]
    assert numbers(pool) == (1, 0, 1, 2)

    def child() -> None:
        assert numbers(pool)[:3] == (0, 0, 0)
        assert not backend.open
        backend.opens.set()
        for waiter in waiters:
            assert waiter.get(timeout=PATIENCE).number > 2
        settle()
        assert numbers(pool)[0] == 2
        assert first.closings == 1
        backend.closes.set()
        dropping.get(timeout=PATIENCE)

    in_gevents_child(child)
    assert numbers(pool) == (1, 0, 1, 2)
    backend.closes.set()
    backend.opens.set()
    pool.release(second)
    for waiter in waiters:
        pool.release(waiter.get(timeout=PATIENCE))
    assert numbers(pool)[1] == 2


class GreetsForLong(Connector[Any]):
    """Says who it is, again and again, on a socket that the pool hears of when it is open."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock_of_the_test = weakref.ref(sock)

    def connect(self) -> Any:
        raise NotImplementedError

    def is_settled(self, connection: Any) -> bool:
        return True


class WithASocketInALocal(GreetsForLong):
    def connect(self) -> Any:
        sock = self.sock_of_the_test()
        assert sock is not None
        while True:
            sock.sendall(b"%d " % os.getpid())
            gevent.sleep(0)


class WithASocketInAnAttribute(GreetsForLong):
    def connect(self) -> Any:
        client = SimpleNamespace(sock=self.sock_of_the_test())
        while True:
            client.sock.sendall(b"%d " % os.getpid())
            gevent.sleep(0)


class WithADescriptorInALocal(GreetsForLong):
    def connect(self) -> Any:
        sock = self.sock_of_the_test()
        assert sock is not None
        fileno = sock.fileno()
        del sock
        while True:
            os.write(fileno, b"%d " % os.getpid())
            gevent.sleep(0)


@pytest.mark.parametrize("kind", [WithASocketInALocal, WithASocketInAnAttribute, WithADescriptorInALocal])
def test_an_opening_under_way_at_the_fork_sends_nothing_more_in_the_child(kind: type[GreetsForLong]) -> None:
    """The child's copy of the greenlet may run once more before it is killed."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Pool(kind(ours), max_connections=1) as pool:
        opener = spawn_acquire(pool)
        eventually(lambda: is_readable(theirs.fileno()))
        in_gevents_child(settle)
        settle()
        assert set(theirs.recv(100_000).split()) == {b"%d" % os.getpid()}
        opener.kill()


class MadeByAServer(GreetsForLong):
    """Its factory knows a socket that is no connection."""

    def __init__(self, sock: socket.socket, listener: socket.socket) -> None:
        super().__init__(sock)
        self.listener = listener

    def connect(self) -> Any:
        while True:
            gevent.sleep(0)


def test_a_listening_socket_stays_open_in_a_child_forked_during_an_opening() -> None:
    ours, theirs = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0))
    with ours, theirs, listener, Pool(MadeByAServer(ours, listener), max_connections=1) as pool:
        opener = spawn_acquire(pool)
        settle()
        in_gevents_child(lambda: socket.create_connection(listener.getsockname()).close())
        in_gevents_child(lambda: listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        opener.kill()


def test_a_child_has_a_reaper_of_its_own(backend: Backend) -> None:
    pool = Pool(backend.connect, reap_interval=0.005)
    pool.release(pool.acquire())
    parents = reaper_of(pool)
    assert parents is not None

    def child() -> None:
        assert reaper_of(pool) is None
        connection = pool.acquire()
        connection.says_expired = True
        pool.release(connection)
        settle()
        assert parents.dead
        assert reaper_of(pool) is not parents
        eventually(lambda: not connection.is_open)

    in_gevents_child(child)
    assert not parents.dead
    pool.close()


def test_a_waiter_whose_hand_over_is_under_way_at_the_fork_gets_another_connection_in_the_child(
    backend: Backend,
) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    waiter = spawn_acquire(pool)
    pool.release(held)

    def child() -> None:
        assert waiter.get(timeout=PATIENCE) is not held

    in_gevents_child(child)
    assert waiter.get(timeout=PATIENCE) is held


class Asked(CheckedConnection):
    """Notes who was asked whether it is usable."""

    asked: ClassVar[list[int]] = []

    def is_usable(self) -> bool:
        self.asked.append(self.number)
        return super().is_usable()


@pytest.mark.parametrize("is_handed_over", [True, False])
def test_a_check_that_has_not_begun_at_the_fork_does_not_run_in_the_child(
    backend: Backend, is_handed_over: bool
) -> None:
    pool: Pool[Any] = Pool(lambda: backend.add(Asked(backend, {})), max_connections=1)
    held = pool.acquire()
    Asked.asked.clear()
    if is_handed_over:
        waiter = spawn_acquire(pool)
        pool.release(held)
    else:
        pool.release(held)
        waiter = gevent.spawn(pool.acquire)

    def child() -> None:
        assert waiter.get(timeout=PATIENCE) is not held
        assert 0 not in Asked.asked

    # In the turn in which it is woken, or spawns the greenlet that asks.
    gevent.spawn(in_gevents_child, child).get(timeout=PATIENCE)
    assert waiter.get(timeout=PATIENCE) is held
    assert Asked.asked == [0]


@pytest.mark.parametrize("is_under_way", [True, False])
def test_only_the_parent_closes_the_connections_of_a_collected_pool(backend: Backend, is_under_way: bool) -> None:
    class Polite(ScriptedConnection):
        def close(self) -> None:
            super().close()
            goodbyes.append(self.number)

    goodbyes: list[int] = []
    backend.closes.clear()
    pool: Pool[Any] | None = Pool(lambda: backend.add(Polite(backend, {})))
    assert pool is not None
    pool.release(pool.acquire())
    # Until the greenlet that has opened it is gone.
    settle()
    pool = None
    gc.collect()
    (connection,) = backend.connections
    if is_under_way:
        settle()
        assert connection.closings == 1

    def child() -> None:
        assert not connection.is_open
        backend.closes.set()
        settle()
        assert goodbyes == []

    in_gevents_child(child)
    backend.closes.set()
    settle()
    assert goodbyes == [0]


def test_a_waiter_that_times_out_in_the_turn_of_the_fork_times_out_in_both_processes(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    pool.acquire()
    waiter = gevent.spawn(outcome, pool.acquire, timeout=0.02)

    def child() -> None:
        assert isinstance(waiter.get(timeout=PATIENCE), PoolExhaustedError)

    forking = gevent.spawn_later(0.01, in_gevents_child, child)
    settle()
    # Both are late, and their timers go off one after the other.
    time.sleep(0.05)
    forking.get(timeout=PATIENCE)
    assert isinstance(waiter.get(timeout=PATIENCE), PoolExhaustedError)


def test_a_grandchild_forked_at_once_starts_empty(backend: Backend) -> None:
    pools = [Pool(backend.connect, max_connections=1) for _ in range(5)]
    held = [pool.acquire() for pool in pools]
    waiters = [spawn_acquire(pool) for pool in pools]

    def child() -> None:
        def grandchild() -> None:
            assert not any(connection.is_open for connection in held)
            assert all(pool.acquire(timeout=PATIENCE).is_open for pool in pools)

        # The grandchild has a copy of the waiters, too, and they come first.
        for waiter in waiters:
            waiter.kill(block=False)
        in_gevents_child(grandchild)

    in_gevents_child(child)
    gevent.killall(waiters)


def test_closing_in_the_child_wakes_copied_waiters(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    pool.acquire()
    waiter = spawn_acquire(pool)

    def child() -> None:
        pool.close()
        waiter.join(PATIENCE)
        assert isinstance(waiter.exception, PoolClosedError)

    in_gevents_child(child)
    waiter.kill()


def test_wait_ready_continues_in_the_child(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, min_connections=2)
    waiting = gevent.spawn(pool.wait_ready)
    settle()

    def child() -> None:
        backend.opens.set()
        waiting.get(timeout=PATIENCE)
        assert numbers(pool) == (0, 2, 0, 0)

    in_gevents_child(child)
    waiting.kill()


def test_a_child_that_does_not_use_the_pool_opens_nothing(backend: Backend) -> None:
    backend.failures.extend([OSError("down")] * 2)
    pool = Pool(backend.connect, min_connections=1)
    pause_filling(pool, 0.01)
    eventually(lambda: pool.stats().open_errors)
    made = len(backend.connections)

    def child() -> None:
        gevent.sleep(0.03)
        assert len(backend.connections) == made

    in_gevents_child(child)
    pool.close()


def test_a_sweep_under_way_at_the_fork_opens_nothing_in_a_child_that_does_not_use_the_pool(
    backend: Backend,
) -> None:
    class Sweeping(ScriptedConnection):
        def is_expired(self) -> bool:
            sweeping.set()
            going_on.wait()
            return False

    sweeping, going_on = gevent.event.Event(), gevent.event.Event()
    pool = Pool(lambda: backend.add(Sweeping(backend, {})), max_connections=2, min_connections=1, reap_interval=0.001)
    pool.wait_ready(PATIENCE)
    assert sweeping.wait(PATIENCE)

    def child() -> None:
        settle()
        assert len(backend.connections) == 1

    # The sweep goes on in the next turn, before what ends its copy in the child.
    going_on.set()
    in_gevents_child(child)
    pool.close()


class Stalling(logging.Handler):
    """Stalls the code that logs first, until it is told to go on: other pools log, too, after a fork for instance."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.going_on = gevent.event.Event()

    def handle(self, record: logging.LogRecord) -> bool:
        self.messages.append(record.getMessage())
        if len(self.messages) == 1:
            self.going_on.wait()
        return True


@pytest.fixture
def stalling_handler() -> Iterator[Stalling]:
    handler, log = Stalling(), logging.getLogger("gsocketpool")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)
    handler.going_on.set()


def test_a_caller_logging_a_dead_holder_at_the_fork_is_served_in_the_child(
    backend: Backend, stalling_handler: Stalling
) -> None:
    def use() -> None:
        with pool.connection(timeout=PATIENCE) as connection:
            assert connection.is_open

    def go_on() -> None:
        stalling_handler.going_on.set()
        caller.get(timeout=PATIENCE)
        assert numbers(pool) == (0, 1, 0, 0)

    pool = Pool(backend.connect, max_connections=1, reap_expired_connections=False)
    gevent.spawn(pool.acquire).join()
    caller = gevent.spawn(use)
    settle()
    assert len(stalling_handler.messages) == 1
    in_gevents_child(go_on)
    go_on()


def test_a_child_starts_with_empty_statistics(backend: Backend) -> None:
    pool = Pool(backend.connect)
    pool.discard(pool.acquire())

    def child() -> None:
        assert pool.stats() == Pool(backend.connect).stats()

    in_gevents_child(child)
    assert pool.stats().opened == 1


@contextlib.contextmanager
def another_thread(act: Callable[[], object]) -> Iterator[None]:
    """A thread that has done `act`, and is there until the end of the block."""
    ready, done = threading.Event(), threading.Event()

    def run() -> None:
        try:
            act()
        finally:
            ready.set()
        done.wait()
        end_event_loop()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_child_does_not_serve_the_waiters_of_another_thread() -> None:
    pool = Pool(Plain, max_connections=1)

    def use() -> None:
        pool.acquire()
        spawn_acquire(pool)

    def child() -> None:
        pool.release(pool.acquire(timeout=PATIENCE))
        assert numbers(pool) == (0, 1, 0, 0)

    with another_thread(use):
        in_gevents_child(child)


def test_a_child_can_wait_for_a_pool_that_another_thread_of_the_parent_waited_for() -> None:
    pools: list[Pool[Plain]] = []

    def use() -> None:
        pools.append(Pool(Plain, min_connections=1))
        pools[0].wait_ready(PATIENCE)

    def child() -> None:
        pools[0].wait_ready(PATIENCE)
        pools[0].acquire()
        pools[0].close(timeout=0.001)

    with another_thread(use):
        in_gevents_child(child)


@pytest.mark.parametrize("is_used", [True, False], ids=["used", "unused"])
def test_listeners_in_a_child_hear_nothing_about_the_connections_of_its_parent(backend: Backend, is_used: bool) -> None:
    class Telling(PoolEvents):
        def closed(self, pool: Pool[Any], connection: Any, reason: str) -> None:
            told.append(connection.number)

        def released(self, pool: Pool[Any], connection: Any) -> None:
            told.append(connection.number)

    told: list[int] = []
    pool = Pool(backend.connect, events=Telling())
    discarded, released = pool.acquire(), pool.acquire()
    pool.discard(discarded)
    pool.release(released)

    def child() -> None:
        mine = []
        if is_used:
            connection = pool.acquire(timeout=PATIENCE)
            pool.release(connection)
            mine.append(connection.number)
        settle()
        assert told == mine

    in_gevents_child(child)
    settle()
    assert told == [discarded.number, released.number]


def test_a_child_forked_in_a_thread_keeps_no_connection_of_a_collected_pool() -> None:
    # What is left to a thread is a private matter, and all that shows it.
    def use() -> None:
        pool: Pool[Any] | None = Pool(Plain)
        assert pool is not None
        pool.release(pool.acquire())
        settle()
        pool = None
        gc.collect()
        orphans.append(len(current.thread.orphans))
        with warnings.catch_warnings():
            # From Python 3.12 on, there is one of a fork beside other threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os._exit(len(current.thread.orphans))
        orphans.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    orphans: list[int] = []
    with another_thread(use):
        assert orphans == [1, 0]


def test_a_child_destroys_no_client_of_its_parent() -> None:
    """A wrapped client that brings its own socket may say goodbye when it is collected."""
    reader, writer = os.pipe()

    class Client(Plain):
        def __del__(self) -> None:
            os.write(writer, b"QUIT %d" % os.getpid())

    pool = Pool(Client)
    pool.release(pool.acquire())

    def child() -> None:
        settle()
        gc.collect()

    in_gevents_child(child)
    pool.close()
    del pool
    settle()
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"QUIT %d" % os.getpid()


def test_a_closed_pool_can_be_closed_again_in_the_child(backend: Backend) -> None:
    pool = Pool(backend.connect)
    pool.release(pool.acquire())
    pool.close()
    in_gevents_child(pool.close)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_child_of_multiprocessing_can_use_the_pools_of_its_parent(server: LineServer) -> None:
    """One pool has an idle connection and one in use; the other an opening one, and waiters."""
    gate = gevent.event.Event()

    def options() -> dict[str, Any]:
        gate.wait()
        return {"host": "127.0.0.1", "port": server.port}

    context = multiprocessing.get_context("fork")
    hearing, saying = context.Pipe(duplex=False)

    def child() -> None:
        try:
            # Copies, which would keep what they get.
            gevent.killall(waiters, block=False)
            gate.set()
            answers = []
            for pool in (busy, opening):
                with pool.connection(timeout=PATIENCE) as connection:
                    answers.append(connection.exchange(b"child"))
            saying.send([*answers, held.socket.fileno()])
        except BaseException:
            saying.send(traceback.format_exc())

    with line_pool(server) as busy, Pool(Line, options, max_connections=1) as opening:
        idle, held = busy.acquire(), busy.acquire()
        busy.release(idle)
        held.send(b"half a ")
        waiters = [spawn_acquire(opening) for _ in range(2)]
        assert numbers(opening) == (0, 0, 1, 2)

        process = context.Process(target=child)
        process.start()
        process.join(2 * PATIENCE)
        assert hearing.poll()
        assert hearing.recv() == [b"child", b"child", -1]

        assert numbers(busy) == (1, 1, 0, 0)
        held.send(b"line\n")
        assert held.recv_until(b"\n") == b"half a line\n"
        busy.release(held)
        assert busy.acquire() is held
        busy.release(held)
        gate.set()
        for waiter in waiters:
            connection = waiter.get(timeout=PATIENCE)
            assert connection.exchange(b"parent") == b"parent"
            opening.release(connection)
    assert busy.stats().discarded == opening.stats().discarded == {}
