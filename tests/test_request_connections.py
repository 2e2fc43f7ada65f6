"""A request's own connection goes back when the request is done with it, in whatever way that comes about."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any
from wsgiref.handlers import SimpleHandler

import pytest
from flask import Flask, Response, abort, stream_with_context
from werkzeug.exceptions import NotFound
from werkzeug.test import create_environ

from flask_gsocketpool import GSocketPool, current_connection, current_pool
from gsocketpool import PoolError, PoolExhaustedError, TcpConnection
from tests.scripted import PATIENCE, Backend, Plain, end_event_loop, eventually, numbers, settle


class App(Flask):
    """An app with one pool and one page."""

    def __init__(self, factory: Callable[..., Any], **config: Any) -> None:
        super().__init__("app")
        self.config.update(SOCKETPOOL_FACTORY=factory, SOCKETPOOL_MAX_CONNECTIONS=2, **config)
        GSocketPool(self)

    def ask(self, view: Callable[[], Any], **arguments: Any) -> Any:
        """The response to a request that `view` answers."""
        if "view" not in self.view_functions:
            self.add_url_rule("/", "view", view)
        return self.test_client().get("/", **arguments)

    def numbers(self) -> tuple[int, int, int, int]:
        with self.app_context():
            return numbers(current_pool)


# Not called `app`: pytest-flask would push a request context of it around every test.
@pytest.fixture
def site(backend: Backend) -> App:
    site = App(backend.connect)
    site.testing = True
    return site


def touch() -> int:
    """Gives the request a connection of its own."""
    number: int = current_connection.number
    return number


# A request that is aborted


def raise_an_error() -> None:
    raise NotFound


@pytest.mark.parametrize(
    "end",
    [
        lambda: abort(404),
        raise_an_error,
        NotFound,
        lambda: abort(Response("nothing is here", 404)),
    ],
    ids=["abort", "raise", "return", "abort with a response"],
)
def test_an_aborted_request_holds_no_connection_until_its_page_is_read(site: App, end: Callable[[], Any]) -> None:
    def view() -> Any:
        touch()
        return end()

    response = site.ask(view)
    assert response.status_code == 404
    assert site.numbers()[0] == 0
    response.close()


@pytest.mark.parametrize("body", ["text", ["two ", "parts"], b"bytes"], ids=["str", "list", "bytes"])
def test_a_body_that_is_there_holds_no_connection_until_it_is_read(site: App, body: Any) -> None:
    def view() -> Response:
        touch()
        return Response(body)

    response = site.ask(view, buffered=False)
    assert site.numbers() == (0, 1, 0, 0)
    response.close()


# A stream without a connection


def serve(app: Flask) -> tuple[int, dict[str, str]]:
    """The status and the headers that a plain server sends when it asks `app` for its page."""
    sent = io.BytesIO()
    SimpleHandler(io.BytesIO(), sent, io.StringIO(), create_environ("/") | {"SERVER_SOFTWARE": "wsgiref"}).run(app)
    head, _, _ = sent.getvalue().decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines)


def exhausted_app(backend: Backend) -> tuple[App, Any, Any]:
    """An app whose connections are all in use, its pool, and a connection to release."""
    app = App(backend.connect, SOCKETPOOL_ACQUIRE_TIMEOUT=0.01)
    with app.app_context():
        pool: Any = current_pool._get_current_object()  # type: ignore[attr-defined]
    held = [pool.acquire(), pool.acquire()]
    return app, pool, held


def use_own() -> str:
    return str(touch())


def use_block() -> str:
    with current_pool.connection(timeout=0) as connection:
        return str(connection.number)


@pytest.mark.parametrize("use", [use_own, use_block])
def test_a_stream_that_gets_no_connection_for_its_first_part_is_answered_503(
    backend: Backend, caplog: pytest.LogCaptureFixture, use: Callable[[], str]
) -> None:
    app, pool, held = exhausted_app(backend)

    @app.get("/")
    def view() -> Response:
        def body() -> Iterator[str]:
            yield use()

        return Response(stream_with_context(body()))

    status, headers = serve(app)
    assert status == 503
    assert int(headers["Retry-After"]) >= 1
    assert [record.levelno for record in caplog.records if "answered 503" in record.getMessage()] == [logging.WARNING]
    for connection in held:
        pool.release(connection)
    status, headers = serve(app)
    assert status == 200
    assert "Retry-After" not in headers
    assert numbers(pool) == (0, 2, 0, 0)


def test_a_stream_that_gets_no_connection_later_fails_for_it_is_on_its_way(backend: Backend) -> None:
    app, _, _ = exhausted_app(backend)

    def view() -> Response:
        def body() -> Iterator[str]:
            yield "the first part"
            yield use_block()

        return Response(stream_with_context(body()))

    response = app.ask(view, buffered=False)
    assert response.status_code == 200
    parts = response.iter_encoded()
    assert next(parts) == b"the first part"
    with pytest.raises(PoolExhaustedError):
        next(parts)
    response.close()


# Giving back the request's own connection by hand


def test_a_released_current_connection_is_acquired_anew_at_the_next_touch(site: App) -> None:
    def view() -> str:
        before = touch()
        current_pool.release(current_connection)
        assert numbers(current_pool) == (0, 1, 0, 0)
        after = touch()
        assert numbers(current_pool) == (1, 0, 0, 0)
        return f"{before} {after}"

    assert site.ask(view).text == "0 0"
    assert site.numbers() == (0, 1, 0, 0)


def test_a_discarded_current_connection_is_followed_by_another_one(site: App, backend: Backend) -> None:
    def view() -> str:
        before = touch()
        current_pool.discard(current_connection)
        assert numbers(current_pool) == (0, 0, 0, 0)
        return f"{before} {touch()}"

    assert site.ask(view).text == "0 1"
    assert site.numbers() == (0, 1, 0, 0)
    eventually(lambda: [connection.number for connection in backend.open] == [1])


def test_a_detached_current_connection_is_the_callers_and_is_followed_by_another_one(
    site: App, backend: Backend
) -> None:
    def view() -> str:
        touch()
        detached.append(current_pool.detach(current_connection))
        assert numbers(current_pool) == (0, 0, 0, 0)
        return str(touch())

    detached: list[Any] = []
    assert site.ask(view).text == "1"
    # The connection, for the proxy is another one by now.
    assert detached[0] is backend.connections[0]
    assert detached[0].is_open
    assert site.numbers() == (0, 1, 0, 0)


def test_a_stream_may_give_its_connection_back_and_go_on_with_another_one_later(site: App) -> None:
    def view() -> Response:
        touch()
        current_pool.release(current_connection)

        def body() -> Iterator[str]:
            yield "nothing yet"
            yield str(touch())
            current_pool.release(current_connection)
            yield "nothing for a while"

        return Response(stream_with_context(body()))

    response = site.ask(view, buffered=False)
    parts = response.iter_encoded()
    seen = [(next(parts), site.numbers()[0]) for _ in range(3)]
    assert seen == [(b"nothing yet", 0), (b"0", 1), (b"nothing for a while", 0)]
    assert list(parts) == []
    response.close()
    assert site.numbers() == (0, 1, 0, 0)


@pytest.mark.parametrize("give_back", ["release", "detach"])
def test_a_connection_that_was_given_back_by_itself_is_acquired_anew(site: App, give_back: str) -> None:
    def view() -> str:
        getattr(current_pool, give_back)(current_connection._get_current_object())
        assert numbers(current_pool)[0] == 0
        return str(touch())

    assert site.ask(view).text == ("0" if give_back == "release" else "1")
    assert site.numbers() == (0, 1, 0, 0)


# A request's own connection that has died


def use_a_dead_one(port: int, then: Callable[[str], object]) -> None:
    """Calls `then` in a request whose own connection has died, with what the error says."""

    def view() -> str:
        current_connection.send(b"hello")
        current_connection.close()
        with pytest.raises((PoolError, OSError)) as caught:
            current_connection.send(b"hello again")
        then("".join(traceback.format_exception_only(caught.value)))
        return "done"

    app = App(TcpConnection, SOCKETPOOL_OPTIONS={"host": "127.0.0.1", "port": port})
    app.testing = True
    assert app.ask(view).text == "done"


def test_a_current_connection_that_has_died_is_not_renewed_by_itself(echo_port: int) -> None:
    opened: list[int] = []
    use_a_dead_one(echo_port, lambda said: opened.append(current_pool.stats().opened))
    assert opened == [1]


def test_the_error_of_a_current_connection_that_has_died_says_how_to_get_a_new_one(echo_port: int) -> None:
    def renew(said: str) -> None:
        assert re.search(r"\bdiscard\(", said)
        current_pool.discard(current_connection)
        current_connection.send(b"hello")
        assert current_connection.recv_exactly(5) == b"hello"

    use_a_dead_one(echo_port, renew)


# Views that run in another thread


class Noting(Plain):
    """Notes which thread closes it."""

    closed_in: int | None = None

    def close(self) -> None:
        self.closed_in = threading.get_ident()
        super().close()


class AsyncApp(App):
    """Runs async views as asgiref does, in another thread that has a copy of the context."""

    def __init__(self, executor: Executor | None = None) -> None:
        super().__init__(self.connect)
        self.made: list[Noting] = []
        self._executor = executor

    def connect(self) -> Noting:
        self.made.append(Noting())
        return self.made[-1]

    def async_to_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            def call() -> Any:
                return asyncio.run(func(*arguments, **keywords))

            if self._executor is not None:
                return self._executor.submit(copy_context().run, call).result(PATIENCE)
            with ThreadPoolExecutor(max_workers=1) as executor:
                return executor.submit(copy_context().run, call).result(PATIENCE)

        return run


async def use_own_in_a_thread() -> str:
    return str(touch())


async def forget_one_in_a_thread() -> str:
    return str(current_pool.acquire().number)


@pytest.mark.parametrize("view", [use_own_in_a_thread, forget_one_in_a_thread])
def test_an_async_view_may_use_connections(view: Callable[[], Any]) -> None:
    app = AsyncApp()
    assert app.ask(view).text == "0"
    assert app.test_client().get("/").text == "0"
    assert len(app.made) == 2
    gc.collect()
    eventually(lambda: not any(connection.is_open for connection in app.made))


@contextmanager
def lasting_thread() -> Iterator[tuple[AsyncApp, Callable[[Callable[[], Any]], Any]]]:
    """An app whose async views run in one thread, and what calls a function there in the app's context."""

    def call(function: Callable[[], Any]) -> Any:
        def call_in_context() -> Any:
            with app.app_context():
                return function()

        return executor.submit(call_in_context).result(PATIENCE)

    def end() -> None:
        current_pool.close()
        end_event_loop()

    with ThreadPoolExecutor(max_workers=1) as executor:
        app = AsyncApp(executor)
        try:
            yield app, call
        finally:
            call(end)


def settled_numbers() -> tuple[int, int, int, int]:
    settle()
    return numbers(current_pool)


def test_what_was_acquired_in_another_thread_is_given_back_there() -> None:
    with lasting_thread() as (app, call):
        for _ in range(2):
            assert app.ask(use_own_in_a_thread).text == "0"
            assert call(settled_numbers)[0] == 0


def test_what_was_forgotten_in_another_thread_is_closed_there() -> None:
    with lasting_thread() as (app, call):
        assert app.ask(forget_one_in_a_thread).text == "0"
        assert call(settled_numbers) == (0, 0, 0, 0)
        (connection,) = app.made
        assert connection.closed_in == call(threading.get_ident)
