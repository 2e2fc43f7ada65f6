"""Nothing is mixed up: half-done exchanges, stale connections, old ones, forks and threads."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.os
import pytest

from gsocketpool import Connection, Pool, PoolClosedError, PoolExhaustedError, TcpConnection, WrongThreadError
from tests.scripted import (
    PATIENCE,
    Backend,
    Clock,
    Plain,
    ScriptedConnection,
    eventually,
    numbers,
    settle,
    spawn_acquire,
)

# Blocks


@pytest.mark.parametrize(
    "error", [ValueError(), gevent.Timeout(1), gevent.GreenletExit(), KeyboardInterrupt()], ids=repr
)
def test_a_block_left_by_an_exception_discards_its_connection(backend: Backend, error: BaseException) -> None:
    pool = Pool(backend.connect)
    with pytest.raises(type(error)) as caught, pool.connection() as connection:
        raise error
    assert caught.value is error
    assert not connection.is_open
    assert numbers(pool) == (0, 0, 0, 0)
    assert pool.stats().discarded == {"error": 1}


def test_a_generator_that_is_given_up_discards_its_connection(backend: Backend) -> None:
    pool = Pool(backend.connect)

    def rows() -> Any:
        with pool.connection() as connection:
            yield connection
            yield connection

    iterator = rows()
    connection = next(iterator)
    iterator.close()
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
    assert not backend.open


def test_discarding_by_hand(backend: Backend) -> None:
    pool = Pool(backend.connect)
    connection = pool.acquire()
    pool.discard(connection)
    assert not connection.is_open
    assert pool.stats().discarded == {"by hand": 1}
    with pool.connection() as connection:
        pool.discard(connection)
        other = pool.acquire()
    assert not connection.is_open
    assert other.is_open, "the end of the block concerns its own connection alone"
    assert numbers(pool) == (1, 0, 0, 0)


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
    assert pool.stats().discarded == {"not reusable": 1}
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


class Line(TcpConnection):
    def exchange(self, text: bytes) -> bytes:
        self.send(text + b"\n")
        return self.recv_until(b"\n")[:-1]


class LineServer:
    """Echoes lines, and can be restarted. It is in threads, which a fork does not copy."""

    def __init__(self) -> None:
        self.listen(0)

    def listen(self, port: int) -> None:
        clients: list[socket.socket] = []

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                clients.append(self.connection)
                for line in self.rfile:
                    self.wfile.write(line * (2 if line == b"twice\n" else 1))

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, request: object, address: object) -> None:
                """The client has gone, or this server is being stopped."""

        self.clients = clients
        self.server = Server(("127.0.0.1", port), Handler)
        self.port: int = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.005,))
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        for client in self.clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def restart(self) -> None:
        self.stop()
        self.listen(self.port)


@pytest.fixture
def server() -> Any:
    server = LineServer()
    yield server
    server.stop()


def line_pool(server: LineServer, **settings: Any) -> Pool[Line]:
    return Pool(Line, {"host": "127.0.0.1", "port": server.port}, **settings)


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
    with Pool(Line, {"host": "127.0.0.1", "port": server.port, "timeout": 0.01}) as pool:
        with pool.connection() as first:
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
    assert not first.is_open, "in use: on its return"
    second = pool.acquire()
    pool.release(second)
    clock.advance(100)
    assert pool.acquire() is not second, "idle: when it would be handed out"
    assert pool.stats().retired == {"lifetime": 2}


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
    assert not connection.is_open
    assert pool.stats().retired == {"lifetime": 1}


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
    assert not held.is_open
    assert pool.stats().retired == {"drain": 2}
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


# Forks


def in_child(act: Any) -> None:
    """Forks as gevent does, runs `act` in the child, and raises what went wrong there."""
    reader, writer = os.pipe()
    child = gevent.os.fork()
    if child == 0:
        report = b"ok"
        try:
            os.close(reader)
            with gevent.Timeout(PATIENCE):
                act()
        except BaseException as error:
            import traceback

            report = "".join(traceback.format_exception(error)).encode()
        finally:
            os.write(writer, report[-4000:])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        report = pipe.read()
    os.waitpid(child, 0)
    assert report == b"ok", report.decode()


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

        in_child(child)
        assert repr(pool) == before
        held.send(b" exchange\n")
        assert held.recv_until(b"\n") == b"half an exchange\n"
        pool.release(held)
        with pool.connection() as connection:
            assert connection.exchange(b"parent") == b"parent"
        assert pool.stats().discarded == {}


def test_a_child_forked_inside_a_block_leaves_it_in_peace(server: LineServer) -> None:
    with line_pool(server) as pool, pool.connection() as connection:
        connection.send(b"one\n")
        eventually(lambda: not connection.is_usable())

        def child() -> None:
            try:
                connection.recv()
            except OSError:
                return
            raise AssertionError("the child has read the parent's reply")

        in_child(child)
        assert connection.recv_until(b"\n") == b"one\n"


def test_a_reply_that_is_there_at_the_fork_is_the_parents(server: LineServer) -> None:
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
                in_child(child)

        with pool.connection() as one, pool.connection() as two:
            readers = [gevent.spawn(read, one), gevent.spawn(read, two)]
            settle()
            one.socket.sendall(b"x\n")
            two.socket.sendall(b"y\n")
            gevent.joinall(readers, timeout=PATIENCE, raise_error=True)
        assert sorted(replies) == [b"x\n", b"y\n"]


def test_what_was_under_way_at_a_fork_ends_in_the_child(backend: Backend) -> None:
    """Waiters, an opening and a closing, all copied by the fork."""
    pool = Pool(backend.connect, max_connections=3, max_opening=1)
    first, second = pool.acquire(), pool.acquire()
    backend.closes.clear()
    closing = gevent.spawn(pool.discard, first)
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
        closing.join(PATIENCE)

    in_child(child)
    assert numbers(pool) == (1, 0, 1, 2)
    backend.closes.set()
    backend.opens.set()
    pool.release(second)
    for waiter in waiters:
        pool.release(waiter.get(timeout=PATIENCE))
    assert numbers(pool)[1] == 2


def test_the_childs_reaper_is_its_own(backend: Backend) -> None:
    pool = Pool(backend.connect, reap_interval=0.005)
    pool.release(pool.acquire())
    parents = pool._reaper

    def child() -> None:
        assert pool._reaper is None
        connection = pool.acquire()
        connection.says_expired = True
        pool.release(connection)
        settle()
        assert parents.dead
        assert pool._reaper is not parents
        eventually(lambda: not connection.is_open)

    in_child(child)
    assert not parents.dead
    pool.close()


def test_a_hand_over_that_the_fork_caught_under_way(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    waiter = spawn_acquire(pool)
    pool.release(held)

    def child() -> None:
        assert waiter.get(timeout=PATIENCE) is not held

    in_child(child)
    assert waiter.get(timeout=PATIENCE) is held


def test_a_child_that_forks_again_at_once(backend: Backend) -> None:
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
        in_child(grandchild)

    in_child(child)
    gevent.killall(waiters)


def test_closing_in_the_child_wakes_copied_waiters(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    pool.acquire()
    waiter = spawn_acquire(pool)

    def child() -> None:
        pool.close()
        waiter.join(PATIENCE)
        assert isinstance(waiter.exception, PoolClosedError)

    in_child(child)
    waiter.kill()


def test_waiting_until_ready_goes_on_in_the_child(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect, min_connections=2)
    waiting = gevent.spawn(pool.wait_ready)
    settle()

    def child() -> None:
        backend.opens.set()
        waiting.get(timeout=PATIENCE)
        assert numbers(pool) == (0, 2, 0, 0)

    in_child(child)
    waiting.kill()


def test_a_child_that_does_not_use_the_pool_opens_nothing(backend: Backend) -> None:
    backend.failures.extend([OSError("down")] * 2)
    pool = Pool(backend.connect, min_connections=1)
    pool._pause = 0.01
    eventually(lambda: pool.stats().open_errors)
    made = len(backend.connections)

    def child() -> None:
        gevent.sleep(0.03)
        assert len(backend.connections) == made

    in_child(child)
    pool.close()


def test_the_child_counts_from_0(backend: Backend) -> None:
    pool = Pool(backend.connect)
    pool.discard(pool.acquire())

    def child() -> None:
        assert pool.stats() == Pool(backend.connect).stats()

    in_child(child)
    assert pool.stats().opened == 1


@contextlib.contextmanager
def another_thread(act: Callable[[], object]) -> Iterator[None]:
    """A thread that has done `act`, and is there until the end of the block."""
    ready, done = threading.Event(), threading.Event()

    def run() -> None:
        act()
        ready.set()
        done.wait()
        gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_the_waiters_of_another_thread_are_not_copied() -> None:
    pool = Pool(Plain, max_connections=1)

    def use() -> None:
        pool.acquire()
        spawn_acquire(pool)

    def child() -> None:
        pool.release(pool.acquire(timeout=PATIENCE))
        assert numbers(pool) == (0, 1, 0, 0)

    with another_thread(use):
        in_child(child)


def test_what_another_thread_has_waited_for_can_be_waited_for_in_the_child() -> None:
    pools: list[Pool[Plain]] = []

    def use() -> None:
        pools.append(Pool(Plain, min_connections=1))
        pools[0].wait_ready(PATIENCE)

    def child() -> None:
        pools[0].wait_ready(PATIENCE)
        pools[0].acquire()
        pools[0].close(timeout=0.001)

    with another_thread(use):
        in_child(child)


def test_a_destructor_says_no_goodbye_in_the_child() -> None:
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

    in_child(child)
    pool.close()
    del pool
    settle()
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"QUIT %d" % os.getpid()


def test_a_closed_pool_is_closed_in_the_child(backend: Backend) -> None:
    pool = Pool(backend.connect)
    pool.release(pool.acquire())
    pool.close()
    in_child(pool.close)


# Threads


def in_thread(act: Any) -> Any:
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(act())
        except BaseException as error:
            result.append(error)
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

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
    assert isinstance(in_thread(use), WrongThreadError)
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
