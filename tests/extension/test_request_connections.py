"""A request's own connection goes back when the request is done with it, however the request ends."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from importlib.metadata import version
from typing import Any
from wsgiref.handlers import SimpleHandler

import pytest
from flask import (
    Flask,
    Response,
    abort,
    has_app_context,
    has_request_context,
    request_finished,
    send_file,
    stream_with_context,
)
from flask.sessions import SecureCookieSessionInterface
from werkzeug.exceptions import NotFound
from werkzeug.local import LocalProxy
from werkzeug.test import create_environ
from werkzeug.wsgi import FileWrapper

from flask_gsocketpool import GSocketPool, UnreleasedConnectionWarning, current_connection, current_pool
from flask_gsocketpool.testing import override_pool
from gsocketpool import ConnectionNotFoundError, Pool, PoolError, PoolExhaustedError, TcpConnection
from gsocketpool.testing import FakePool
from tests.support.scripted import PATIENCE, Backend, Plain, end_event_loop, eventually, numbers, settle


class App(Flask):
    """An app with one pool and one page."""

    def __init__(
        self, factory: Callable[..., Any], *, before: Callable[[Flask], object] = lambda app: None, **config: Any
    ) -> None:
        super().__init__("app")
        self.config.update(SOCKETPOOL_FACTORY=factory, SOCKETPOOL_MAX_CONNECTIONS=2, **config)
        # What the app registers on itself before the extension comes.
        before(self)
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
    """Give the request a connection of its own."""
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
def test_an_aborted_request_gives_its_connection_back_before_its_page_is_read(
    site: App, end: Callable[[], Any]
) -> None:
    def view() -> Any:
        touch()
        return end()

    response = site.ask(view)
    assert response.status_code == 404
    assert site.numbers()[0] == 0
    response.close()


@pytest.mark.parametrize("body", ["text", ["two ", "parts"], b"bytes"], ids=["str", "list", "bytes"])
def test_a_complete_body_gives_its_connection_back_before_it_is_read(site: App, body: Any) -> None:
    def view() -> Response:
        touch()
        return Response(body)

    response = site.ask(view, buffered=False)
    assert site.numbers() == (0, 1, 0, 0)
    response.close()


def test_the_body_of_another_wsgi_app_is_streamed(site: App) -> None:
    sent: list[int] = []

    def other(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", str(3 * 40_000))])

        def parts() -> Iterator[bytes]:
            for number in range(3):
                sent.append(number)
                yield bytes(40_000)

        return parts()

    response = site.ask(lambda: other, buffered=False)
    assert len(sent) < 3
    assert len(response.data) == 3 * 40_000


# A stream that ends in another way than by being read


def serve(app: Flask, **request: Any) -> tuple[int, dict[str, str]]:
    """The status and the headers that a plain server sends when it asks `app` for its page."""
    sent = io.BytesIO()
    environ = create_environ("/", **request) | {"SERVER_SOFTWARE": "wsgiref"}
    SimpleHandler(io.BytesIO(), sent, io.StringIO(), environ).run(app)
    head, _, _ = sent.getvalue().decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines)


def endless() -> Iterator[str]:
    while True:
        yield str(touch())


def stream(status: int = 200) -> Response:
    return Response(stream_with_context(endless()), status)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_a_stream_that_has_begun_but_is_not_sent_discards_its_connection(site: App, method: str, status: int) -> None:
    site.add_url_rule("/", "view", lambda: stream(status))
    assert serve(site, method=method)[0] == status
    assert site.numbers() == (0, 0, 0, 0)
    with site.app_context():
        assert current_pool.stats().discarded == {"error": 1}


def fail(*_: object, **__: object) -> Any:
    raise ZeroDivisionError


def fail_after_request(app: Flask) -> None:
    app.after_request(fail)


def fail_to_save_the_session(app: Flask) -> None:
    class Unsaved(SecureCookieSessionInterface):
        save_session = fail

    app.secret_key = "secret"
    app.session_interface = Unsaved()


def fail_at_the_end(app: Flask) -> None:
    request_finished.connect(fail, app)


#: Flask 3.0 itself leaves the context of such a stream pushed, with the extension or without.
FAILURES = [
    fail_to_save_the_session,
    fail_at_the_end,
    *([] if version("flask").startswith("3.0.") else [fail_after_request]),
]


@pytest.mark.parametrize("before", FAILURES)
@pytest.mark.parametrize("propagate", [True, False])
def test_a_stream_whose_response_an_error_replaces_ends_with_its_request(
    backend: Backend, before: Callable[[Flask], object], propagate: bool
) -> None:
    app = App(backend.connect, before=before, PROPAGATE_EXCEPTIONS=propagate)
    ends = []

    @app.get("/")
    def view() -> Response:
        touch()

        def body() -> Iterator[str]:
            try:
                yield from endless()
            finally:
                ends.append(has_request_context())

        return Response(stream_with_context(body()))

    assert serve(app)[0] == 500
    assert not has_request_context()
    assert not has_app_context()
    assert all(ends)
    assert app.numbers() == (0, 0, 0, 0)
    with app.app_context():
        assert current_pool.stats().discarded == {"error": 1}


def test_a_stream_that_another_response_replaces_gives_its_connection_back(backend: Backend) -> None:
    app = App(backend.connect, before=lambda app: app.after_request(lambda response: Response("another")))

    def view() -> Response:
        touch()
        return stream()

    for _ in range(2):
        assert app.ask(view).text == "another"
        assert app.numbers() == (0, 1, 0, 0)
    with app.app_context():
        assert current_pool.stats().discarded == {}


def test_a_stream_is_closed_even_if_the_warning_about_its_request_is_raised(site: App) -> None:
    class Parts(list[bytes]):
        def close(self) -> None:
            closings.append(None)

    def view() -> Response:
        assert current_pool.acquire().is_open
        return Response(iter_closing(Parts([b"part"])))

    def iter_closing(parts: Parts) -> Any:
        return type("Stream", (), {"__iter__": lambda self: iter(parts), "close": lambda self: parts.close()})()

    closings: list[None] = []
    site.add_url_rule("/", "view", view)
    body: Any = site.wsgi_app(create_environ("/"), lambda *arguments: len)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreleasedConnectionWarning):
            body.close()
    assert closings == [None]
    assert site.numbers()[0] == 0


# A body that is passed through to the server as it is


def test_a_stream_with_direct_passthrough_keeps_its_connection_until_its_end(site: App) -> None:
    def view() -> Response:
        connection = current_connection._get_current_object()
        return Response((str(connection.number).encode() for _ in range(3)), direct_passthrough=True)

    response = site.ask(view, buffered=False)
    assert site.numbers() == (1, 0, 0, 0)
    assert b"".join(response.response) == b"000"
    response.close()
    assert site.numbers() == (0, 1, 0, 0)


class ServerWrapper:
    """What a server that sends files by itself wraps them in."""

    def __init__(self, file: Any, size: int = 8192) -> None:
        self.file = file

    # As gunicorn's, it is iterated over by its items.
    def __getitem__(self, key: int) -> bytes:
        if data := self.file.read():
            return bytes(data)
        raise IndexError

    def close(self) -> None:
        self.file.close()


@pytest.mark.parametrize("byte_range", ["", "bytes=1-2"], ids=["whole", "range"])
@pytest.mark.parametrize("wrapper", [FileWrapper, ServerWrapper, lambda file, size: file])
def test_a_file_that_is_sent_holds_no_connection_and_arrives_unchanged(
    site: App, wrapper: Callable[..., Any], byte_range: str
) -> None:
    def view() -> Response:
        touch()
        return send_file(io.BytesIO(b"file"), "text/plain", conditional=True)

    site.add_url_rule("/", "view", view)
    environ = create_environ("/", headers={"Range": byte_range} if byte_range else None)
    body: Any = site.wsgi_app(environ | {"wsgi.file_wrapper": wrapper}, lambda *arguments: len)
    assert site.numbers() == (0, 1, 0, 0)
    assert b"".join(body) == (b"il" if byte_range else b"file")
    body.close()


# A teardown function that uses the request's own connection


@pytest.mark.parametrize("register", [Flask.teardown_request, Flask.teardown_appcontext])
@pytest.mark.parametrize("early", [True, False])
def test_a_connection_that_a_teardown_function_acquires_is_given_back_after_it(
    backend: Backend, register: Callable[..., Any], early: bool
) -> None:
    def add(app: Flask) -> None:
        register(app, lambda error: touch())

    app = App(backend.connect, before=add) if early else App(backend.connect)
    if not early:
        add(app)
    app.testing = True
    for _ in range(3):
        assert app.ask(lambda: "done").text == "done"
        assert app.numbers() == (0, 1, 0, 0)
    with app.app_context():
        assert current_pool.stats().opened == 1


# A stream without a connection


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


def test_a_stream_that_gets_no_connection_after_its_first_part_raises(backend: Backend) -> None:
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


def test_a_released_current_connection_is_acquired_again_at_its_next_use(site: App) -> None:
    def view() -> str:
        before = touch()
        current_pool.release(current_connection)
        assert numbers(current_pool) == (0, 1, 0, 0)
        after = touch()
        assert numbers(current_pool) == (1, 0, 0, 0)
        return f"{before} {after}"

    assert site.ask(view).text == "0 0"
    assert site.numbers() == (0, 1, 0, 0)


def test_a_discarded_current_connection_is_replaced_at_its_next_use(site: App, backend: Backend) -> None:
    def view() -> str:
        before = touch()
        current_pool.discard(current_connection)
        assert numbers(current_pool) == (0, 0, 0, 0)
        return f"{before} {touch()}"

    assert site.ask(view).text == "0 1"
    assert site.numbers() == (0, 1, 0, 0)
    eventually(lambda: [connection.number for connection in backend.open] == [1])


def test_a_detached_current_connection_stays_open_and_is_replaced_at_its_next_use(site: App, backend: Backend) -> None:
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


def test_a_stream_may_release_its_connection_and_acquire_one_later(site: App) -> None:
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
def test_a_current_connection_given_back_without_its_proxy_is_acquired_again(site: App, give_back: str) -> None:
    def view() -> str:
        getattr(current_pool, give_back)(current_connection._get_current_object())
        assert numbers(current_pool)[0] == 0
        return str(touch())

    assert site.ask(view).text == ("0" if give_back == "release" else "1")
    assert site.numbers() == (0, 1, 0, 0)


@pytest.mark.parametrize("give_back", ["release", "discard"])
@pytest.mark.parametrize("kind", [FakePool, Pool])
def test_current_connection_is_given_back_to_a_replacement_pool(
    site: App, backend: Backend, kind: Any, give_back: str
) -> None:
    pool = FakePool(backend.connect()) if kind is FakePool else Pool(backend.connect)

    def view() -> str:
        touch()
        getattr(current_pool, give_back)(current_connection)
        assert pool.stats().in_use == 0
        with pytest.raises(ConnectionNotFoundError):
            getattr(current_pool, give_back)(current_connection)
        touch()
        assert pool.stats().in_use == 1
        return "done"

    with override_pool(site, "default", pool):
        assert site.ask(view).text == "done"
    assert pool.stats().in_use == 0
    assert dict(pool.stats().discarded) == ({} if give_back == "release" else {"explicit": 1})


def test_a_pool_does_not_mistake_another_proxy_for_current_connection(site: App) -> None:
    def view() -> str:
        touch()
        another = current_pool.acquire()
        with pytest.raises(ConnectionNotFoundError):
            current_pool.release(LocalProxy(lambda: another))
        assert numbers(current_pool) == (2, 0, 0, 0)
        current_pool.release(another)
        return "done"

    assert site.ask(view).text == "done"


@pytest.mark.parametrize("give_back", ["release", "discard", "detach", "drop"])
def test_giving_back_current_connection_without_a_context_is_refused(site: App, give_back: str) -> None:
    with site.app_context():
        pool: Any = current_pool._get_current_object()  # type: ignore[attr-defined]
    with pytest.raises(ConnectionNotFoundError):
        getattr(pool, give_back)(current_connection)


# A request's own connection that has died


def use_a_dead_one(port: int, then: Callable[[str], object]) -> None:
    """Call `then` in a request whose own connection has died, with what the error says."""

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


def test_a_dead_current_connection_is_not_replaced_automatically(echo_port: int) -> None:
    opened: list[int] = []
    use_a_dead_one(echo_port, lambda said: opened.append(current_pool.stats().opened))
    assert opened == [1]


def test_the_error_of_a_dead_current_connection_says_how_to_get_a_new_one(echo_port: int) -> None:
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
        self.executor = executor

    def connect(self) -> Noting:
        self.made.append(Noting())
        return self.made[-1]

    def async_to_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            def call() -> Any:
                return asyncio.run(func(*arguments, **keywords))

            if self.executor is not None:
                return self.executor.submit(copy_context().run, call).result(PATIENCE)
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


def test_a_connection_acquired_in_another_thread_is_given_back_in_that_thread() -> None:
    with lasting_thread() as (app, call):
        for _ in range(2):
            assert app.ask(use_own_in_a_thread).text == "0"
            assert call(settled_numbers)[0] == 0


def test_a_connection_forgotten_in_another_thread_is_closed_in_that_thread() -> None:
    with lasting_thread() as (app, call):
        assert app.ask(forget_one_in_a_thread).text == "0"
        assert call(settled_numbers) == (0, 0, 0, 0)
        (connection,) = app.made
        assert connection.closed_in == call(threading.get_ident)


def test_a_thread_that_shares_the_context_has_a_connection_of_its_own() -> None:
    def own() -> Any:
        return current_connection._get_current_object()

    with lasting_thread() as (app, call):
        executor = app.executor
        assert executor is not None

        def view() -> str:
            seen.extend([own(), executor.submit(copy_context().run, own).result(PATIENCE), own()])
            return "done"

        seen: list[Any] = []
        assert app.ask(view).text == "done"
        first, foreign, again = seen
        assert first is again
        assert first is not foreign
        assert call(settled_numbers) == app.numbers() == (0, 1, 0, 0)
