"""SIGTERM closes an app's pools a while later, in this process. Real servers are in test_worker_exit.py."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from flask import Flask

from flask_gsocketpool import GSocketPool, current_pool, current_pools
from gsocketpool import PoolClosedError
from tests.support.scripted import PATIENCE, Backend, Plain, end_event_loop, eventually, settle, spawn_acquire

#: Seconds: at once, for all that a test can tell, and never.
SOON, NEVER = 0.01, 10_000


@pytest.fixture
def term() -> Iterator[None]:
    """Restore what SIGTERM does."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def heard(term: None) -> list[int]:
    """What the handler of SIGTERM was called with that was there before the app was made, as a server's is."""
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    return heard


def make_app(factory: Callable[..., Any], seconds: float | None, **config: Any) -> Flask:
    app = Flask("app")
    app.config.update(SOCKETPOOL_FACTORY=factory, SOCKETPOOL_DRAIN_TIMEOUT=seconds, **config)
    GSocketPool(app)
    return app


def send_term() -> None:
    signal.raise_signal(signal.SIGTERM)


def wait() -> None:
    """Return when everything is done that is due :data:`SOON`. Of two timers the earlier one goes first."""
    gevent.spawn_later(SOON, settle).join(PATIENCE)


def test_sigterm_closes_all_pools_after_the_drain_timeout(
    backend: Backend, heard: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    others = {name: {"factory": backend.connect, "initial_connections": 1} for name in ("idle", "unused")}
    app = make_app(backend.connect, SOON, SOCKETPOOL_MAX_CONNECTIONS=1, SOCKETPOOL_POOLS=others)
    with app.app_context():
        with current_pools["idle"].connection():
            pass
        current_pool.acquire()
        waiting = spawn_acquire(current_pool)
        send_term()
        assert heard == [signal.SIGTERM]
        eventually(lambda: not backend.open)
        waiting.join(PATIENCE)
        assert isinstance(waiting.exception, PoolClosedError)
        for name in current_pools:
            with pytest.raises(PoolClosedError):
                current_pools[name].acquire()
    assert caplog.text.count("closing connections in use, 0.01 s after SIGTERM: <AppPool 'default': 1 in use") == 1
    assert len(caplog.records) == 1
    assert len(backend.connections) == 2


def test_a_request_that_waits_for_an_answer_gets_an_os_error_when_its_pool_closes(
    echo_port: int, heard: list[int]
) -> None:
    app = Flask("app")
    app.config.update(SOCKETPOOL_URL=f"tcp://127.0.0.1:{echo_port}", SOCKETPOOL_DRAIN_TIMEOUT=SOON)
    GSocketPool(app)
    with app.app_context(), current_pool.connection() as connection:
        send_term()
        with pytest.raises(OSError, match="closed"), gevent.Timeout(PATIENCE):
            connection.recv()


def test_connections_stay_open_before_the_drain_timeout(backend: Backend, heard: list[int]) -> None:
    app = make_app(backend.connect, NEVER)
    with app.app_context(), current_pool.connection() as first:
        send_term()
        wait()
        with current_pool.connection() as second:
            assert first.is_open
            assert second.is_open
    assert len(backend.open) == 2


def test_a_pool_that_is_still_being_made_is_closed_too(backend: Backend, heard: list[int]) -> None:
    slow = {"factory": backend.connect, "initial_connections": 1}
    app = make_app(Plain, SOON, SOCKETPOOL_POOLS={"slow": slow})
    pools = app.extensions["gsocketpool"]
    used = pools["default"].acquire()
    backend.opens.clear()
    asking = gevent.spawn(lambda: pools["slow"].acquire())
    settle()
    send_term()
    eventually(lambda: not used.is_open)
    asking.join(PATIENCE)
    assert isinstance(asking.exception, PoolClosedError)
    assert len(backend.connections) == 1
    assert not backend.open


def test_a_sigterm_handler_that_raises_still_raises(backend: Backend, term: None) -> None:
    def leave(number: int, frame: object) -> None:
        raise SystemExit(3)

    signal.signal(signal.SIGTERM, leave)
    app = make_app(backend.connect, SOON)
    with app.app_context():
        current_pool.acquire()
        with pytest.raises(SystemExit, match="3"):
            send_term()
        eventually(lambda: not backend.open)


# Where there is nothing to listen with


@pytest.mark.parametrize("seconds", [None, NEVER])
@pytest.mark.parametrize("meaning", [signal.SIG_DFL, signal.SIG_IGN])
def test_the_default_and_the_ignored_action_of_sigterm_stay_unchanged(
    backend: Backend, term: None, meaning: signal.Handlers, seconds: float | None
) -> None:
    signal.signal(signal.SIGTERM, meaning)
    app = make_app(backend.connect, seconds)
    with app.app_context(), current_pool.connection():
        assert signal.getsignal(signal.SIGTERM) is meaning


def test_no_sigterm_handler_is_installed_by_default(backend: Backend, heard: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    app = make_app(backend.connect, None)
    with app.app_context(), current_pool.connection():
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_sigterm_handler_of_the_event_loop_is_left_alone(backend: Backend, term: None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    heard: list[str] = []
    watcher = gevent.signal_handler(signal.SIGTERM, heard.append, "TERM")
    try:
        app = make_app(backend.connect, SOON)
        with app.app_context(), current_pool.connection():
            os.kill(os.getpid(), signal.SIGTERM)
            eventually(lambda: heard)
    finally:
        watcher.cancel()
    assert len(backend.open) == 1


def test_an_app_in_another_thread_installs_no_sigterm_handler(heard: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def serve() -> None:
        app = make_app(Plain, SOON)
        with app.app_context(), current_pool.connection() as connection:
            seen.append(connection.is_open)
        end_event_loop()

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(PATIENCE)
    assert seen == [True]
    assert signal.getsignal(signal.SIGTERM) is before


# Processes that live on


@pytest.mark.parametrize("before", [signal.SIG_DFL, lambda number, frame: None], ids=["none", "another"])
def test_a_sigterm_handler_installed_after_the_app_is_called_too(backend: Backend, term: None, before: Any) -> None:
    """As under ``--preload``: the server has its handlers after the import, and its workers have others."""
    signal.signal(signal.SIGTERM, before)
    app = make_app(backend.connect, SOON)
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    with app.app_context():
        current_pool.acquire()
        send_term()
        assert heard == [signal.SIGTERM]
        eventually(lambda: not backend.open)


def test_many_apps_share_one_sigterm_handler(backend: Backend, heard: list[int]) -> None:
    apps = [make_app(backend.connect, SOON)]
    handler = signal.getsignal(signal.SIGTERM)
    apps += [make_app(backend.connect, SOON) for _ in range(5)]
    for app in apps:
        with app.app_context():
            current_pool.acquire()
    assert signal.getsignal(signal.SIGTERM) is handler
    send_term()
    assert heard == [signal.SIGTERM]
    eventually(lambda: not backend.open)


@pytest.mark.parametrize("is_told", [False, True], ids=["before", "after"])
def test_a_sigterm_handler_does_not_keep_an_app_alive(backend: Backend, heard: list[int], is_told: bool) -> None:
    app = make_app(backend.connect, NEVER)
    with app.app_context(), current_pool.connection():
        pass
    if is_told:
        send_term()
        settle()
    references = [weakref.ref(app), weakref.ref(app.extensions["gsocketpool"])]
    del app
    gc.collect()
    settle()
    assert [reference() for reference in references] == [None, None]
    assert not backend.open


def test_a_second_sigterm_does_not_postpone_the_close(backend: Backend, heard: list[int]) -> None:
    app = make_app(backend.connect, SOON)
    with app.app_context():
        current_pool.acquire()
        send_term()
        send_term()
        eventually(lambda: not backend.open)
        wait()
        with pytest.raises(PoolClosedError):
            current_pool.acquire()
    assert heard == [signal.SIGTERM] * 2


def test_a_child_forked_before_the_close_keeps_its_pools(heard: list[int]) -> None:
    """It has copies of the handler and of what the handler has arranged."""
    app = make_app(Plain, SOON)
    with app.app_context():
        with current_pool.connection():
            pass
        send_term()
        with warnings.catch_warnings():
            # From Python 3.12 on there is a warning because of the threads of other tests.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = gevent.os.fork()
        if child == 0:
            status = 1
            try:
                connection = current_pool.acquire()
                wait()
                if connection.is_open:
                    send_term()
                    eventually(lambda: not connection.is_open)
                    status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
    assert status == 0


def test_sigterm_still_interrupts_a_blocking_call(backend: Backend, term: None) -> None:
    class TermError(Exception):
        pass

    def handle(number: int, frame: object) -> None:
        raise TermError

    def send() -> None:
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        if not was_raised.wait(PATIENCE):
            os.write(writer, b"too late")

    signal.signal(signal.SIGTERM, handle)
    make_app(backend.connect, NEVER)
    reader, writer = os.pipe()
    was_raised = threading.Event()
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(TermError):
            os.read(reader, 100)
    finally:
        was_raised.set()
        sender.join()
        os.close(reader)
        os.close(writer)
