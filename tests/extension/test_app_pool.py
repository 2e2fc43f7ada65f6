"""An app's pools take what any pool takes, and what goes wrong with one of them leaves the rest of a request whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gevent
import pytest
from flask import Flask, Response, stream_with_context
from werkzeug.test import create_environ, run_wsgi_app

from flask_gsocketpool import (
    ConfigurationError,
    GSocketPool,
    _sigterm,
    current_connection,
    current_connections,
    current_pool,
    current_pools,
)
from flask_gsocketpool._redaction import error_as_dict
from gsocketpool import InvalidArgumentError, PoolExhaustedError
from tests.support.commands import make_app, run
from tests.support.scripted import Backend, ScriptedConnection, eventually, numbers


@pytest.fixture
def site(backend: Backend) -> Flask:
    return make_app(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_MAX_CONNECTIONS=1, TESTING=True)


def test_retry_bounds_the_wait_of_a_view(site: Flask) -> None:
    with site.test_request_context():
        connection = current_pool.acquire(retry=0)
        for retry in (0, 1):
            with pytest.raises(PoolExhaustedError) as caught:
                current_pool.acquire(retry=retry)
            assert caught.value.timeout == retry * 0.1
        current_pool.release(connection)
        with pytest.raises(InvalidArgumentError, match="timeout must be left out where retry is given"):
            current_pool.acquire(retry=1, timeout=1)
        with pytest.raises(InvalidArgumentError, match="retry must be"):
            current_pool.acquire(retry=-1)


def test_retry_does_not_bound_the_wait_for_an_opening(backend: Backend) -> None:
    """`retry` is about connections in use, and this one has to be opened first."""
    app = make_app(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_ACQUIRE_TIMEOUT=1000)
    backend.opens.clear()
    with app.test_request_context():
        greenlet = gevent.spawn(current_pool._get_current_object().acquire, retry=0)
        eventually(lambda: numbers(current_pool)[3])
        backend.opens.set()
        connection = greenlet.get()
        current_pool.release(connection)


def test_an_idle_connection_of_an_app_can_be_dropped(site: Flask) -> None:
    with site.app_context():
        connection = current_pool.acquire()
        current_pool.release(connection)
        current_pool.drop(connection)
        assert current_pool.stats().retired == {"dropped": 1}


class Interrupted(BaseException):
    """What a program may throw at a greenlet anywhere."""


class Interrupting(ScriptedConnection):
    def is_reusable(self, error: BaseException | None) -> bool:
        raise Interrupted


def test_an_interrupted_give_back_propagates_and_the_other_connections_are_given_back(
    backend: Backend,
) -> None:
    app = make_app(
        SOCKETPOOL_POOLS={
            "first": {"factory": lambda: Interrupting(backend, {})},
            "second": {"factory": backend.connect},
            "third": {"factory": backend.connect},
        }
    )

    @app.get("/")
    def view() -> str:
        assert current_connections["first"].is_open
        assert current_connections["second"].is_open
        current_pools["third"].acquire()
        return ""

    with pytest.raises(Interrupted):
        app.test_client().get("/")
    with app.app_context():
        assert current_pools["first"].stats().discarded == {"interrupted": 1}
        assert numbers(current_pools["second"]) == (0, 1, 0, 0)
        assert current_pools["third"].stats().discarded == {"not_released": 1}


def answer(app: Flask) -> Any:
    """Return the body of the answer to a request that a server makes."""
    body, _, _ = run_wsgi_app(app, create_environ("/") | {"SERVER_SOFTWARE": "a server/1.0"})
    return body


def test_an_error_at_the_start_of_a_streamed_body_reaches_its_reader(site: Flask) -> None:
    @site.get("/")
    def view() -> Response:
        def body() -> Iterator[str]:
            assert current_connection.is_open
            raise LookupError("the first part")
            yield ""

        return Response(stream_with_context(body()))

    with pytest.raises(LookupError, match="the first part"):
        b"".join(answer(site))
    with site.app_context():
        # Its exchange may be half done.
        assert current_pool.stats().discarded == {"error": 1}


def test_a_streamed_body_may_lack_a_close(site: Flask) -> None:
    @site.get("/")
    def view() -> Response:
        return Response(map(str, [current_connection.number, "x"]))

    with closing(answer(site)) as parts:
        assert b"".join(parts) == b"0x"
    with site.app_context():
        assert numbers(current_pool) == (0, 1, 0, 0)


def test_a_callable_of_options_must_return_a_mapping(backend: Backend) -> None:
    app = make_app(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_OPTIONS=lambda: [("host", "db")])
    with app.app_context(), pytest.raises(InvalidArgumentError, match="a callable that returns a mapping"):
        current_pool.acquire()


def test_a_callable_of_options_for_a_client_library_must_return_a_mapping() -> None:
    app = make_app(SOCKETPOOL_URL="valkey://localhost", SOCKETPOOL_OPTIONS=lambda: [("timeout", 1)])
    with app.app_context(), pytest.raises(TypeError, match="must be a mapping, not list"):
        current_pool.acquire()


def test_a_missing_client_library_is_refused_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkey", None)
    monkeypatch.delitem(sys.modules, "gsocketpool.connectors.valkey", raising=False)
    app = Flask("app")
    app.config["SOCKETPOOL_URL"] = "valkey://localhost"
    with pytest.raises(ConfigurationError, match=r"SOCKETPOOL_URL can't be used: .*'gsocketpool\[valkey\]'"):
        GSocketPool(app)


def test_a_secret_option_that_is_not_text_masks_nothing_in_an_error() -> None:
    options = {"password": None, "secret": True, "token": object(), "key": "hunter2"}
    shown = error_as_dict(OSError("None or True, not hunter2"), options)
    assert shown == {"type": "OSError", "message": "None or True, not ***"}


def test_the_config_command_says_how_to_configure_a_pool() -> None:
    result = run(make_app(), "config")
    assert result.exit_code == 0
    assert result.stderr.startswith("The app has no pools: set SOCKETPOOL_URL")


def test_pools_close_after_the_drain_timeout_of_a_worker_that_ends_itself(backend: Backend) -> None:
    class Worker:
        is_ending = False
        looks = 0

        @property
        def alive(self) -> bool:
            self.looks += 1
            return not self.is_ending

    app = make_app(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_DRAIN_TIMEOUT=0.001)
    worker = Worker()
    _sigterm.watch_worker(worker)
    with app.app_context():
        connection = current_pool.acquire()
        before = worker.looks
        eventually(lambda: worker.looks >= before + 2)
        assert connection.is_open, "the worker is alive"
        worker.is_ending = True
        eventually(lambda: not connection.is_open)
