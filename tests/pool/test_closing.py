"""How a pool ends: it is closed, or the last reference to it goes."""

from __future__ import annotations

import contextlib
import gc
import logging
import subprocess
import threading
import time
import weakref
from typing import Any

import gevent
import pytest

from gsocketpool import InvalidArgumentError, Pool, PoolClosedError, TcpConnection
from tests.support.callers import METHODS
from tests.support.internals import reaper_of
from tests.support.processes import run_python
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


def test_closing_a_pool_closes_idle_connections_and_refuses_every_caller(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=2, name="mine")
    first, second = pool.acquire(), pool.acquire()
    waiters = [gevent.spawn(pool.acquire), gevent.spawn(pool.connection().__enter__)]
    settle()
    closing = gevent.spawn(pool.close, timeout=PATIENCE)
    settle()
    for waiter in waiters:
        with pytest.raises(PoolClosedError, match="pool 'mine' is closed"):
            waiter.get(timeout=PATIENCE)
    with pytest.raises(PoolClosedError):
        pool.acquire()
    with pytest.raises(PoolClosedError):
        pool.acquire(timeout=0)
    assert not closing.ready(), "it waits for those in use"
    assert first.is_open
    pool.release(first)
    settle()
    assert not first.is_open
    pool.discard(second)
    settle()
    assert closing.ready()
    assert numbers(pool) == (0, 0, 0, 0)
    assert pool.stats().retired == {"closed": 1}


def test_closing_a_pool_closes_connections_still_in_use_after_its_timeout(backend: Backend) -> None:
    pool = Pool(backend.connect)
    with pool.connection() as connection:
        pool.close(timeout=0.01)
        assert not connection.is_open
        assert numbers(pool) == (0, 0, 0, 0)
    assert connection.closings == 1


def test_a_connection_handed_over_before_its_pool_is_closed_is_not_checked(backend: Backend) -> None:
    pool = Pool(backend.connect_checked, max_connections=1)
    held = pool.acquire()
    waiter = spawn_acquire(pool)
    backend.checks.clear()
    pool.release(held)
    closing = gevent.spawn(pool.close, timeout=0)
    # It would wait for the answer.
    settle()
    assert isinstance(waiter.exception, PoolClosedError)
    closing.get(timeout=PATIENCE)


def test_a_pool_may_be_closed_twice_or_by_several_greenlets_at_once(backend: Backend) -> None:
    pool = Pool(backend.connect)
    held = pool.acquire()
    closings = [gevent.spawn(pool.close, timeout=PATIENCE) for _ in range(3)]
    settle()
    pool.release(held)
    gevent.joinall(closings, timeout=PATIENCE, raise_error=True)
    pool.close()
    assert held.closings == 1


def test_a_close_without_a_timeout_ends_the_wait_of_another_one(backend: Backend) -> None:
    pool = Pool(backend.connect)
    pool.acquire()
    first = gevent.spawn(pool.close, 100 * PATIENCE)
    settle()
    assert backend.open, "its user has time"
    pool.close(timeout=0)
    assert not backend.open
    first.get(timeout=PATIENCE)


def test_a_pool_that_was_never_used_can_be_closed(backend: Backend) -> None:
    pool = Pool(backend.connect)
    pool.close()
    with pytest.raises(PoolClosedError):
        pool.acquire()
    assert not backend.connections


def test_closing_a_pool_gives_up_its_openings(backend: Backend) -> None:
    backend.opens.clear()
    pool = Pool(backend.connect)
    caller = spawn_acquire(pool)
    with gevent.Timeout(PATIENCE / 2):
        pool.close(timeout=PATIENCE)
    assert isinstance(caller.exception, PoolClosedError)
    assert numbers(pool) == (0, 0, 0, 0)
    backend.opens.set()
    settle()
    assert not backend.open


def test_closing_a_pool_closes_half_open_connections_before_it_returns(backend: Backend) -> None:
    class Handshaking(ScriptedConnection):
        def open(self) -> None:
            super().open()
            gevent.sleep(PATIENCE)

    pool = Pool(lambda: backend.add(Handshaking(backend, {})))
    spawn_acquire(pool)
    assert backend.open
    pool.close(timeout=0)
    assert not backend.open


def test_an_interrupted_close_still_closes_the_pool(backend: Backend) -> None:
    pool = Pool(backend.connect)
    held = pool.acquire()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.005):
        pool.close()
    with pytest.raises(PoolClosedError):
        pool.acquire()
    pool.release(held)
    pool.close()
    assert not held.is_open


def test_a_with_statement_closes_the_pool(backend: Backend) -> None:
    with Pool(backend.connect) as pool:
        connection = pool.acquire()
        pool.release(connection)
    assert not connection.is_open
    with pytest.raises(PoolClosedError):
        pool.acquire()


def test_closing_a_connection_is_bounded_and_its_error_is_logged(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(ScriptedConnection):
        def close(self) -> None:
            self.closings += 1
            if self.number == 0:
                raise ValueError("I won't")
            gevent.sleep(PATIENCE)

    pool = Pool(lambda: backend.add(Stubborn(backend, {})), close_timeout=0.01)
    for connection in [pool.acquire() for _ in range(5)]:
        pool.release(connection)
    with gevent.Timeout(PATIENCE / 2), caplog.at_level(logging.WARNING, "gsocketpool"):
        pool.close()
    messages = [record.getMessage() for record in caplog.records]
    assert sorted(messages) == [
        "closing <connection 0> failed, so it was aborted",
        *(f"closing <connection {number}> took longer than 0.01 s, so it was aborted" for number in range(1, 5)),
    ]
    assert not backend.open, "they have lost their descriptors"


class Deaf(ScriptedConnection):
    """Its close() ends when it wants to."""

    abort_of = False

    def close(self) -> None:
        with contextlib.suppress(BaseException):
            gevent.sleep(PATIENCE)
        gevent.sleep(PATIENCE)

    def abort(self) -> None:
        self.abort_of = True


def test_a_close_that_ignores_interruptions_does_not_hold_up_the_end_of_the_pool(backend: Backend) -> None:
    pool = Pool(lambda: backend.add(Deaf(backend, {})), close_timeout=0.01)
    pool.release(pool.acquire())
    with gevent.Timeout(PATIENCE / 2):
        pool.close()
    assert backend.connections[0].abort_of  # type: ignore[attr-defined]


def test_closing_a_pool_aborts_an_opening_that_ignores_interruptions(backend: Backend) -> None:
    class DeafOpener(ScriptedConnection):
        def open(self) -> None:
            super().open()
            while len(backend.open):
                with contextlib.suppress(BaseException):
                    gevent.sleep(PATIENCE)

    pool = Pool(lambda: backend.add(DeafOpener(backend, {})), close_timeout=0.01)
    spawn_acquire(pool)
    with gevent.Timeout(PATIENCE / 2):
        pool.close(timeout=0)
    assert not backend.open


def test_a_drain_waits_for_all_stubborn_closes_at_once(backend: Backend) -> None:
    pool = Pool(lambda: backend.add(Deaf(backend, {})), close_timeout=0.2, max_opening=None)
    for connection in [pool.acquire() for _ in range(50)]:
        pool.release(connection)
    with gevent.Timeout(PATIENCE / 2):
        pool.drain()
    assert numbers(pool) == (0, 0, 0, 0)


def test_a_connection_with_a_slow_close_makes_room_at_once(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    backend.closes.clear()
    held = pool.acquire()
    pool.discard(held)
    settle()
    assert pool.stats().closing == 1
    assert held.is_open
    other = pool.acquire(timeout=PATIENCE)
    assert other is not held
    pool.release(other)
    backend.closes.set()
    settle()
    assert pool.stats().closing == 0
    assert not held.is_open


def test_a_connection_may_be_given_back_in_a_callback_of_the_event_loop(backend: Backend) -> None:
    """There, nothing can be waited for."""
    pool = Pool(backend.connect)
    kept, discarded = pool.acquire(), pool.acquire()
    loop = gevent.get_hub().loop
    loop.run_callback(pool.release, kept)
    loop.run_callback(pool.discard, discarded)
    eventually(lambda: not discarded.is_open)
    assert numbers(pool) == (0, 1, 0, 0)


@pytest.mark.parametrize("timeout", [None, -1, "x", float("inf")])
def test_close_refuses_a_bad_timeout(backend: Backend, timeout: Any) -> None:
    pool = Pool(backend.connect)
    with pytest.raises(InvalidArgumentError, match="timeout"):
        pool.close(timeout=timeout)
    pool.acquire()


# Given up


def test_a_pool_without_references_is_collected(backend: Backend) -> None:
    gc.disable()
    try:
        pool = Pool(backend.connect, min_connections=2)
        pool.wait_ready(PATIENCE)
        held = pool.acquire()
        idle = [connection for connection in backend.connections if connection is not held]
        reaper: Any = reaper_of(pool)
        settle()
        reference = weakref.ref(pool)
        del pool
        # Without a cycle it takes no garbage collector.
        assert reference() is None
        eventually(lambda: reaper.dead)
        eventually(lambda: not any(connection.is_open for connection in idle))
        assert held.is_open
    finally:
        gc.enable()


def test_the_reaper_does_not_keep_its_pool_alive(backend: Backend) -> None:
    swept: list[bool] = []

    class Watched(ScriptedConnection):
        def is_expired(self) -> bool:
            swept.append(True)
            return False

    pool = Pool(lambda: backend.add(Watched(backend, {})), reap_interval=0.002)
    pool.release(pool.acquire())
    eventually(lambda: swept)
    settle()
    reference = weakref.ref(pool)
    del pool
    assert reference() is None


def test_a_pool_with_waiters_is_not_collected(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire()
    waiter = spawn_acquire(pool)
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    kept: Any = reference()
    assert kept is not None
    kept.release(held)
    assert waiter.get(timeout=PATIENCE) is held


def test_a_pool_collected_in_another_thread_closes_its_connections_in_its_own_thread(backend: Backend) -> None:
    closed_in: list[int] = []

    class Watched(ScriptedConnection):
        def close(self) -> None:
            closed_in.append(threading.get_ident())
            super().close()

    holder = [Pool(lambda: backend.add(Watched(backend, {})))]
    holder[0].release(holder[0].acquire())
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join(PATIENCE)
    eventually(lambda: closed_in)
    assert closed_in == [threading.get_ident()]


def test_collecting_a_pool_neither_switches_nor_closes_a_connection_at_once(backend: Backend) -> None:
    """It may be collected in the middle of anything."""
    pool = Pool(backend.connect)
    connection = pool.acquire()
    pool.release(connection)
    switches: list[bool] = []
    gevent.spawn(switches.append, True)
    del pool
    assert connection.is_open
    assert not switches
    settle()
    assert not connection.is_open


def run(program: str) -> subprocess.CompletedProcess[str]:
    return run_python(program, options=["-X", "dev", "-W", "error"], patience=3 * PATIENCE)


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()"])
def test_an_interpreter_exits_cleanly_without_closing_its_pool(patch: str) -> None:
    program = f"""
{patch}
import gevent, gc
from gevent.server import StreamServer
from gsocketpool import Pool, TcpConnection
server = StreamServer(("127.0.0.1", 0), lambda sock, address: gevent.sleep(100))
server.start()
pool = Pool(TcpConnection, dict(host="127.0.0.1", port=server.server_port), max_connections=2, min_connections=1)
pool.wait_ready(5)
conn = pool.acquire()
other = pool.acquire()
pool.release(other)
waiters = [gevent.spawn(pool.acquire) for _ in range(3)]
gevent.sleep(0)
print(pool.size)
"""
    done = run(program)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
    assert "Traceback" not in done.stderr


def test_a_pool_can_be_collected_after_its_event_loop_has_ended(backend: Backend) -> None:
    """Its thread has ended, and with it the event loop that would have closed its connections."""
    holder: list[Pool[Any]] = []

    def use() -> None:
        holder.append(Pool(backend.connect))
        holder[0].release(holder[0].acquire())
        end_event_loop()

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(PATIENCE)
    assert holder
    holder.clear()
    gc.collect()


def test_a_collected_pool_closes_its_sockets() -> None:
    from gevent.server import StreamServer

    closed: list[bytes] = []

    def handle(sock: Any, address: object) -> None:
        closed.append(sock.recv(10))

    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    try:
        pool = Pool(TcpConnection, {"host": "127.0.0.1", "port": server.server_port})
        pool.release(pool.acquire())
        del pool
        eventually(lambda: closed)
        assert closed == [b""]
    finally:
        server.stop()


@pytest.mark.parametrize("error", [RuntimeError("broken"), gevent.Timeout(1)], ids=["error", "timeout"])
def test_a_failing_sweep_does_not_end_the_reaper(
    backend: Backend, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    fails = False

    def clock() -> float:
        if fails:
            raise error
        return time.monotonic()

    pool = Pool(backend.connect, reap_interval=0.002, clock=clock)
    connection = pool.acquire()
    pool.release(connection)
    fails = True
    eventually(lambda: len(caplog.records) >= 2)
    fails = False
    connection.says_expired = True
    eventually(lambda: not connection.is_open, "the next sweeps do what they are for")
    assert "a sweep of pool 'connect' failed" in caplog.text
    pool.close()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("drop", "close", "with")])
def test_a_closed_pool_refuses_every_call_that_wants_a_connection_and_allows_the_others(name: str) -> None:
    """A call that wants something of it is refused; a call that would change nothing is allowed."""
    pool = Pool(Plain, max_connections=2)
    held = pool.acquire()
    closing = gevent.spawn(pool.close, timeout=PATIENCE)
    settle()
    outcome: Any = None
    try:
        outcome = METHODS[name](pool, held)
    except PoolClosedError as error:
        outcome = error
    refused = name.startswith(("acquire", "connection", "lease", "wait_ready", "fill", "ping"))
    assert isinstance(outcome, PoolClosedError) is refused
    if name not in ("release", "discard", "detach"):
        pool.release(held)
    closing.join(PATIENCE)
    assert closing.successful()
    assert held.is_open is (name == "detach")
    assert numbers(pool) == (0, 0, 0, 0)
