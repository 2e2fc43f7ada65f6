"""The defaults are safe: how many connections, how long they may take, where names are imported from."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask

from flask_gsocketpool import GSocketPool, current_connection, current_pool, current_pools
from flask_gsocketpool.testing import override_pool
from gsocketpool import Pool, PoolExhaustedError
from gsocketpool.testing import FakePool, FlakyServer
from tests.support.scripted import Backend, Plain, numbers
from tests.support.servers import client_context, server_context

ANYWHERE = "tcp://localhost:2000"


def make_app(**config: Any) -> Flask:
    app = Flask("app")
    app.config.update({f"SOCKETPOOL_{key}": value for key, value in config.items()})
    GSocketPool(app)
    return app


def run_command(app: Flask, *arguments: str) -> Any:
    """Return what a command prints as JSON."""
    done = app.test_cli_runner().invoke(args=["socketpool", *arguments, "--json"])
    # No assertion, for it is no promise that is broken then.
    if done.exit_code:
        raise RuntimeError(done.output)
    return json.loads(done.stdout)


# Numbers


def test_a_pool_of_an_app_has_ten_connections_at_most() -> None:
    app = make_app(URL=ANYWHERE, POOLS={"cache": {"url": ANYWHERE}})
    with app.app_context():
        assert [pool.stats().max_connections for pool in current_pools.values()] == [10, 10]
    in_force = run_command(app, "config")["pools"]["default"]["max_connections"]
    assert in_force == {"value": 10, "from": "default"}


def test_a_pool_of_an_app_is_swept_every_thirty_seconds() -> None:
    in_force = run_command(make_app(POOLS={"cache": {"url": ANYWHERE}}), "config")["pools"]["cache"]
    assert in_force["reap_interval"] == {"value": 30, "from": "default"}


def test_an_app_may_override_the_default_numbers() -> None:
    app = make_app(URL=ANYWHERE, MAX_CONNECTIONS="60", REAP_INTERVAL="200")
    in_force = run_command(app, "config")["pools"]["default"]
    assert in_force["max_connections"] == {"value": 60, "from": "SOCKETPOOL_MAX_CONNECTIONS"}
    assert in_force["reap_interval"] == {"value": 200, "from": "SOCKETPOOL_REAP_INTERVAL"}


def test_a_pool_without_an_app_keeps_the_defaults_of_0_1_6() -> None:
    parameters = inspect.signature(Pool).parameters
    assert parameters["max_connections"].default == 200
    assert parameters["reap_interval"].default == 180
    assert Pool(Plain).stats().max_connections == 200


# The timeout of a connection


def timeout_of_connection(kind: str, query: str = "", **options: Any) -> float | None:
    """The timeout of the socket of a connection that an app has opened by a URL of that kind."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket" if kind == "unix" else None
        with FlakyServer(path=path, tls=server_context("localhost") if kind == "tls" else None) as server:
            url = f"unix://{path}" if kind == "unix" else f"{kind}://{server.host}:{server.port}"
            if kind == "tls":
                options = {"ssl_context": client_context(), "server_hostname": "localhost", **options}
            app = make_app(URL=url + query, OPTIONS=options)
            with app.app_context():
                with current_pool.connection() as connection:
                    timeout: float | None = connection.socket.gettimeout()
                current_pool.close()
            return timeout


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
def test_a_connection_of_a_url_has_a_timeout_of_ten_seconds(kind: str) -> None:
    assert timeout_of_connection(kind) == 10


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
def test_a_url_may_turn_the_timeout_off(kind: str) -> None:
    assert timeout_of_connection(kind, "?timeout=none") is None


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
def test_a_url_or_the_options_may_set_another_timeout(kind: str) -> None:
    assert timeout_of_connection(kind, "?timeout=2.5") == 2.5
    assert timeout_of_connection(kind, timeout=2.5) == 2.5
    assert timeout_of_connection(kind, timeout=None) is None


class Elsewhere(Plain):
    """A connection of a class that knows no timeout."""

    def __init__(self, host: str, port: int) -> None:
        self.place = host, port


def test_a_class_without_a_timeout_argument_gets_no_timeout() -> None:
    app = make_app(URL=ANYWHERE, FACTORY=Elsewhere)
    with app.app_context(), current_pool.connection() as connection:
        assert connection.place == ("localhost", 2000)


# Where things are imported from


def tell_seconds(request: Any) -> float:
    return 0.001


def exchange(connection: Any) -> None:
    assert connection.is_open


def use_factory(name: str) -> None:
    app = make_app(FACTORY=name)
    with app.app_context(), current_pool.connection() as connection:
        assert type(connection) is Plain


def use_request_timeout(name: str) -> None:
    app = make_app(FACTORY=Plain, MAX_CONNECTIONS=1, ACQUIRE_TIMEOUT=1000, REQUEST_TIMEOUT=name)
    with app.app_context():
        pool: Any = current_pool._get_current_object()  # type: ignore[attr-defined]
    held = pool.acquire()
    with app.test_request_context(), pytest.raises(PoolExhaustedError):
        current_pool.acquire()
    pool.release(held)


def use_exchange(name: str) -> None:
    found = run_command(make_app(FACTORY=Plain), "bench", "--seconds", "0.01", "--exchange", name)
    assert found["exchanges_per_second"] > 0


# What each place imports, by the name of its module and its own there.
PLACES = [
    pytest.param(use_factory, ("tests.support.scripted", "Plain"), id="factory"),
    pytest.param(use_request_timeout, (__name__, "tell_seconds"), id="request timeout"),
    pytest.param(use_exchange, (__name__, "exchange"), id="exchange"),
]


@pytest.mark.parametrize(("use", "name"), PLACES)
def test_a_name_to_import_may_have_a_colon(use: Callable[[str], None], name: tuple[str, str]) -> None:
    use(":".join(name))


@pytest.mark.parametrize(("use", "name"), PLACES)
def test_a_name_to_import_may_have_dots_only(use: Callable[[str], None], name: tuple[str, str]) -> None:
    use(".".join(name))


# A pool without a server


def test_a_fake_pool_hands_out_its_connection() -> None:
    connection = SimpleNamespace(number=7)
    pool = FakePool(connection)
    with pool.connection() as given:
        assert given is connection
    with pool.connection(timeout=2) as given:
        assert given is connection
    acquired = pool.acquire()
    assert acquired is connection
    pool.release(acquired)
    acquired = pool.acquire(timeout=0)
    assert acquired is connection
    pool.discard(acquired)
    with pytest.raises(LookupError), pool.connection():
        raise LookupError


def test_a_fake_pool_may_replace_a_pool_of_an_app() -> None:
    def view() -> str:
        with current_pool.connection() as connection:
            number = connection.number
        return f"{number} {current_connection.number}"

    # Where no server listens.
    app = make_app(URL="tcp://127.0.0.1:1")
    app.testing = True
    app.add_url_rule("/", "view", view)
    with override_pool(app, "default", FakePool(SimpleNamespace(number=7))):
        for _ in range(2):
            assert app.test_client().get("/").text == "7 7"


def test_any_pool_may_replace_a_pool_of_an_app(backend: Backend) -> None:
    app = make_app(URL="tcp://127.0.0.1:1")
    app.testing = True
    app.add_url_rule("/", "view", lambda: str(current_connection.number))
    with Pool(backend.connect) as pool, override_pool(app, "default", pool):
        assert app.test_client().get("/").text == "0"
        assert numbers(pool) == (0, 1, 0, 0)
