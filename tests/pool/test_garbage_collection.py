"""The garbage collector may run, and the interpreter may end, at any moment."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from gsocketpool import Pool, PoolEvents, TcpConnection, _fork
from gsocketpool._adapter import Adapter
from gsocketpool._closer import Closer
from gsocketpool._steps import ConnectionSteps
from gsocketpool._threads import Thread
from tests.support.connections import check_echo
from tests.support.internals import sweep_all_the_time
from tests.support.processes import run_python
from tests.support.scripted import PATIENCE, Backend, Plain, ScriptedConnection, end_event_loop, eventually, settle
from tests.support.switches import Switches, greenlets_there_are
from tests.support.threads import in_thread

#: Seconds for what takes hundreds of collections, each of everything that the process has loaded.
LONG = 6 * PATIENCE


@contextmanager
def collecting_at_every_switch() -> Iterator[Switches]:
    """Run the garbage collector at every switch, and nowhere else."""
    collections: list[int] = []
    switches = Switches(greenlets_there_are(), after_switch=lambda: collections.append(gc.collect()))
    gc.collect()
    gc.disable()
    try:
        with switches.following():
            yield switches
    finally:
        gc.enable()
    assert len(collections) >= len(switches.slices) > 20


class Switching(ScriptedConnection):
    def open(self) -> None:
        gevent.sleep(0)
        super().open()

    def close(self) -> None:
        gevent.sleep(0)
        super().close()

    def is_usable(self) -> bool:
        gevent.sleep(0)
        return self.is_open


class Garbage:
    """Only the collector finds it."""

    def __init__(self, found: list[int], number: int) -> None:
        self.itself, self.found, self.number = self, found, number

    def __del__(self) -> None:
        self.found.append(self.number)


def use(pool: Pool[Any], number: int, served: list[int], found: list[int]) -> None:
    for _ in range(3):
        with pool.connection(timeout=LONG) as connection:
            assert connection.is_open
            gevent.sleep(0)
            Garbage(found, number)
            connection.says_expired = number % 2 == 0
            if number == 3:
                pool.discard(connection)
    served.append(number)


def test_a_pool_serves_its_callers_while_garbage_is_collected_at_every_switch(backend: Backend) -> None:
    pool = Pool(lambda: backend.add(Switching(backend, {})), max_connections=2)
    pool.release(pool.acquire())
    settle()
    served: list[int] = []
    found: list[int] = []
    with collecting_at_every_switch() as switches:
        sweep_all_the_time(pool)
        callers = [gevent.spawn(use, pool, number, served, found) for number in range(5)]
        gevent.joinall(callers, timeout=LONG, raise_error=True)
        # Callers look for dead holders now and then.
        assert switches.names - {"_check_if_awaited"} == {"use", "_open", "_close", "_check", "_sweep_forever"}
    assert sorted(served) == list(range(5))
    assert len(found) == 15, "the collector was not at work"
    taken = [pool.acquire() for _ in range(2)]
    assert all(connection.is_open for connection in taken)
    for connection in taken:
        pool.release(connection)
    pool.close()
    assert not backend.open


def test_waiters_keep_their_pool_alive_until_they_are_served(backend: Backend) -> None:
    """They wait without a limit, so not even a timer knows them; and nothing else refers to their pool."""
    served: list[int] = []
    with collecting_at_every_switch():
        pool = Pool(lambda: backend.add(Switching(backend, {})), max_connections=1, acquire_timeout=None)

        def use_without_a_limit(pool: Pool[Any], number: int) -> None:
            for _ in range(3):
                with pool.connection():
                    gevent.sleep(0)
            served.append(number)

        for number in range(5):
            gevent.spawn(use_without_a_limit, pool, number)
        reference = weakref.ref(pool)
        del pool
        eventually(lambda: len(served) == 5, patience=LONG)
        eventually(lambda: reference() is None, "it is not collected when the last one has gone", patience=LONG)
        eventually(lambda: not backend.open, patience=LONG)


def test_a_pool_collected_after_its_last_waiter_leaves_connections_in_use_open(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=2)
    held, other = pool.acquire(), pool.acquire()
    pool.release(other)
    pool.resize(1)
    waiter = gevent.spawn(pool.acquire)
    settle()
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is not None
    waiter.kill()
    # It has what killed it, and that where it was killed.
    del waiter
    eventually(lambda: gc.collect() >= 0 and reference() is None)
    settle()
    assert held.is_open
    assert backend.open == [held]


def test_a_pool_in_a_cycle_is_collected_at_any_step_of_its_reaper(backend: Backend) -> None:
    """It sleeps, or is in the middle of a sweep, which waits for a connection to be closed."""
    for turns in range(12):
        pool: Any = Pool(lambda: backend.add(Switching(backend, {})), max_connections=3)
        pool.itself = pool
        for connection in [pool.acquire() for _ in range(3)]:
            pool.release(connection)
        settle()
        reaper = sweep_all_the_time(pool)
        backend.open[0].says_expired = True
        for _ in range(turns):
            gevent.sleep(0)
        reference = weakref.ref(pool)
        del pool
        gc.collect()
        # A sweep under way ends first.
        eventually(lambda reference=reference: gc.collect() >= 0 and reference() is None)  # type: ignore[misc]
        eventually(lambda reaper=reaper: reaper.dead)  # type: ignore[misc]
        eventually(lambda: not backend.open)


@pytest.mark.parametrize("ends_loop", [True, False])
def test_a_pool_whose_thread_has_ended_closes_idle_connections_and_can_be_collected(ends_loop: bool) -> None:
    pools = [Pool(Plain, reap_expired_connections=False)]
    connections: list[Plain] = []

    def use() -> None:
        connections.append(pools[0].acquire())
        pools[0].release(connections[0])
        # Until the greenlet that has opened it is gone.
        settle()
        if ends_loop:
            end_event_loop()

    in_thread(use, ends_loop=False)
    assert not connections[0].is_open
    reference = weakref.ref(pools.pop())
    gc.collect()
    assert reference() is None


# The end of a thread


class Telling(PoolEvents):
    def closed(self, pool: Pool[Any], connection: Any, reason: str) -> None:
        pass


def leave_a_block(pool: Pool[Any]) -> None:
    with pool.connection():
        pass


def leave_a_block_by_an_error(pool: Pool[Any]) -> None:
    with contextlib.suppress(LookupError), pool.connection():
        raise LookupError


def release_in_another_thread(pool: Pool[Any]) -> None:
    in_thread(pool.lease().release, ends_loop=False)


def retire(pool: Pool[Any]) -> None:
    connection = pool.acquire()
    # The event loop's own greenlet does not wait for closings.
    gevent.get_hub().loop.run_callback(pool.drain)
    gevent.sleep(0)
    pool.release(connection)


LAST_ACTS: dict[str, Callable[[Pool[Any]], object]] = {
    "a block": leave_a_block,
    "a block left by an error": leave_a_block_by_an_error,
    "discard": lambda pool: pool.discard(pool.acquire()),
    "acquire": lambda pool: pool.acquire(),
    "retirement": retire,
    "a release in another thread": release_in_another_thread,
}


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "given up"])
@pytest.mark.parametrize("events", [None, Telling()], ids=["quiet", "telling"])
@pytest.mark.parametrize("act", LAST_ACTS)
def test_a_thread_that_ends_leaves_no_connection_open(act: str, events: PoolEvents | None, is_kept: bool) -> None:
    connections: list[weakref.ref[Plain]] = []
    kept: list[Pool[Plain]] = []

    def make() -> Plain:
        connection = Plain()
        connections.append(weakref.ref(connection))
        return connection

    def use() -> None:
        pool = Pool(make, events=events)
        if is_kept:
            kept.append(pool)
        # Until the greenlet that has opened it is gone.
        leave_a_block(pool)
        settle()
        LAST_ACTS[act](pool)

    in_thread(use, ends_loop=False)
    gc.collect()
    # A connection that no pool knows any more is as good as closed when it is gone.
    assert [found for one in connections if (found := one()) is not None and found.is_open] == []


# What the event loop is asked for by another thread keeps the pool. That of a thread that has ended never runs again.
@pytest.mark.parametrize("act", [act for act in LAST_ACTS if act != "a release in another thread"])
def test_a_pool_is_collected_after_any_last_act_of_its_thread(act: str) -> None:
    pools: list[weakref.ref[Pool[Plain]]] = []

    def use() -> None:
        pool = Pool(Plain)
        pools.append(weakref.ref(pool))
        leave_a_block(pool)
        settle()
        LAST_ACTS[act](pool)

    in_thread(use, ends_loop=False)
    gc.collect()
    assert pools[0]() is None


def test_a_thread_that_ends_as_its_pool_is_collected_leaves_no_connection_open() -> None:
    class Loop:
        """The event loop of a thread that ends at the worst moment."""

        @property
        def default(self) -> bool:
            thread.end()
            return False

        def run_callback_threadsafe(self, *_: Any) -> None:
            pass

    # The moment is one in the middle of a method, so that its parts are put together by hand.
    thread = Thread()
    closer = Closer(1, Adapter(ConnectionSteps(), None, "never"))
    connection = Plain()
    connection.open()
    closer.add(connection)
    closer.outlive_pool(Loop(), thread, lambda: None)
    assert not connection.is_open
    assert closer not in _fork.orphans
    assert thread.orphans == []


def test_a_running_thread_does_not_keep_its_pools_alive() -> None:
    def use() -> None:
        pool: Any = Pool(Plain)
        pool.itself = pool
        leave_a_block(pool)
        settle()
        reference = weakref.ref(pool)
        del pool
        gc.collect()
        collected.append(reference() is None)

    collected: list[bool] = []
    in_thread(use, ends_loop=False)
    assert collected == [True]


def test_sockets_are_closed_even_if_their_event_loop_was_destroyed(
    echo_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    connections: list[TcpConnection] = []

    def use() -> None:
        pool = Pool(TcpConnection, {"host": "127.0.0.1", "port": echo_port})
        with pool.connection() as connection:
            connections.append(connection)
        # So that gevent has watchers for it.
        check_echo(connection)
        end_event_loop()

    thread = threading.Thread(target=use)
    thread.start()
    # The server runs in this thread.
    eventually(lambda: not thread.is_alive())
    thread.join()
    assert connections[0].socket.fileno() == -1
    assert caplog.records == []


# The end of the interpreter

BEGINNING = """
import sys
import gevent
from gsocketpool import Connection, Pool

class Slow(Connection):
    opens = closes = is_open = False
    def open(self):
        while self.opens:
            gevent.sleep(100)
        self.is_open = True
    def close(self):
        while self.closes:
            gevent.sleep(100)
        self.is_open = False
    def is_connected(self):
        return self.is_open

pool = Pool(Slow, max_connections=2, min_connections=1, reap_interval=0.001)
pool.wait_ready(5)
conn = pool.acquire()
"""

SITUATIONS = {
    "idle": "pool.release(conn)",
    "in use": "pass",
    "in a block": "block = pool.connection(); block.__enter__()",
    "in a block of a greenlet": """
def use():
    with pool.connection():
        gevent.sleep(100)
user = gevent.spawn(use)
gevent.sleep(0.01)
""",
    "waiters": """
pool.acquire()
waiters = [gevent.spawn(pool.acquire) for _ in range(3)]
gevent.spawn(pool.acquire, timeout=float("inf"))
gevent.sleep(0.01)
""",
    "an opener": """
Slow.opens = True
opener = gevent.spawn(pool.acquire)
gevent.sleep(0.01)
""",
    "a sweep": """
Slow.closes = True
Slow.is_expired = lambda self: True
pool.release(conn)
gevent.sleep(0.01)
""",
    "a hanging close": """
Slow.closes = True
pool.release(conn)
dropping = gevent.spawn(pool.drop, conn)
gevent.sleep(0.01)
""",
    "a pool being closed": """
closing = gevent.spawn(pool.close)
gevent.sleep(0.01)
""",
    "a pool given up": """
pool.release(conn)
Slow.closes = True
del pool
""",
    "a thread": """
import threading
def use():
    global other
    other = Pool(Slow)
    other.release(other.acquire())
thread = threading.Thread(target=use)
thread.start()
thread.join()
""",
    "a thread that goes on": """
import threading
Slow.abort = lambda self: print("aborted")
ready = threading.Event()
def use():
    global other
    other = Pool(Slow)
    other.release(other.acquire())
    ready.set()
    gevent.sleep(100)
threading.Thread(target=use, daemon=True).start()
ready.wait()
""",
}


def endings() -> Iterator[Any]:
    """Every situation: plain or patched in the suite, turn and turn about, and both in the torture."""
    for number, situation in enumerate(SITUATIONS):
        for is_patched in (False, True):
            is_rare = is_patched is (number % 2 == 0)
            name = f"{situation}-{'patched' if is_patched else 'plain'}"
            yield pytest.param(situation, is_patched, id=name, marks=[pytest.mark.torture] if is_rare else [])


@pytest.mark.parametrize(("situation", "is_patched"), list(endings()))
def test_an_interpreter_exits_cleanly_while_a_pool_is_at_work(situation: str, is_patched: bool) -> None:
    beginning = "from gevent import monkey; monkey.patch_all()" if is_patched else ""
    program = f"{beginning}\n{BEGINNING}\n{SITUATIONS[situation]}\nprint('here')\nsys.exit(3)"
    done = run_python(program, options=["-X", "dev", "-W", "error"], patience=3 * PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (3, "here\n", "")


@pytest.mark.parametrize("beginning", ["", "from gevent import monkey; monkey.patch_all()"], ids=["plain", "patched"])
def test_an_error_in_a_block_ends_the_interpreter_with_one_traceback(beginning: str) -> None:
    program = f"{beginning}\n{BEGINNING}\nwith pool.connection():\n    raise LookupError('mine')"
    done = run_python(program, patience=3 * PATIENCE)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("LookupError: mine\n")
