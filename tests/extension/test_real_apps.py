"""Apps as people write them: a factory with blueprints, other extensions in the same views, tests of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from flask import Blueprint, Flask, g
from flask_caching import Cache
from flask_sqlalchemy import SQLAlchemy

from flask_gsocketpool import GSocketPool, connection_closed, current_connection, current_pool, current_pools
from tests.support.line_server import LineServer, server
from tests.support.scripted import PATIENCE, Backend, numbers, settle

assert server  # the fixture

# A factory


socketpool = GSocketPool()

echo = Blueprint("echo", __name__, url_prefix="/echo")
admin = Blueprint("admin", __name__, url_prefix="/admin")


@echo.get("/<text>")
def say(text: str) -> str:
    with current_pool.connection() as connection:
        answer: bytes = connection.exchange(text.encode())
    return answer.decode()


@echo.get("/own/<text>")
def say_on_own(text: str) -> str:
    answer: bytes = current_connection.exchange(text.encode())
    return answer.decode()


@echo.errorhandler(OSError)
def the_echo_is_down(error: OSError) -> tuple[str, int]:
    return "no echo", 502


@admin.before_request
def be_known() -> None:
    # Blueprints talk to backends before their views do.
    answer: bytes = current_pools["users"].acquire().exchange(b"admin") if "users" in current_pools else b"nobody"
    g.user = answer.decode()


@admin.get("/pools")
def show_pools() -> dict[str, Any]:
    return {"user": g.user, "pools": {name: pool.stats().max_connections for name, pool in current_pools.items()}}


def create_app(**config: Any) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(SOCKETPOOL_FACTORY="tests.support.line_server:Line", SOCKETPOOL_MAX_CONNECTIONS=3)
    app.config.from_prefixed_env()
    app.config.update(config)
    socketpool.init_app(app)
    app.register_blueprint(echo)
    app.register_blueprint(admin)
    return app


@pytest.fixture
def environment(server: LineServer, monkeypatch: pytest.MonkeyPatch) -> LineServer:
    """Configure apps by the environment, as a deployment does. Yield the server that they talk to."""
    monkeypatch.setenv("FLASK_SOCKETPOOL_URL", f"tcp://127.0.0.1:{server.port}?timeout={PATIENCE}")
    monkeypatch.setenv("FLASK_SOCKETPOOL_ACQUIRE_TIMEOUT", "7")
    return server


def close(*apps: Flask) -> None:
    for app in apps:
        app.extensions["gsocketpool"].close()


def of_pool(app: Flask, name: str = "default") -> tuple[int, int, int, int]:
    with app.app_context():
        return numbers(current_pools[name])


def test_an_app_factory_makes_apps_with_separate_pools(environment: LineServer) -> None:
    one, two = create_app(), create_app(SOCKETPOOL_MAX_CONNECTIONS=5)
    assert one.test_client().get("/echo/hello").text == "hello"
    assert one.test_client().get("/echo/own/hello").text == "hello"
    assert of_pool(one) == (0, 1, 0, 0)
    assert of_pool(two) == (0, 0, 0, 0)
    assert two.test_client().get("/echo/own/you").text == "you"
    assert of_pool(two) == (0, 1, 0, 0)
    assert [app.test_client().get("/admin/pools").json for app in (one, two)] == [
        {"user": "nobody", "pools": {"default": 3}},
        {"user": "nobody", "pools": {"default": 5}},
    ]
    # One that ends does not take the other with it.
    close(one)
    assert two.test_client().get("/echo/still").text == "still"
    close(two)


def test_a_blueprint_handles_errors_until_its_backend_is_up_again(environment: LineServer) -> None:
    app = create_app()
    client = app.test_client()
    assert client.get("/echo/own/hello").text == "hello"
    environment.stop()
    for path in ("/echo/hello", "/echo/own/hello"):
        answer = client.get(path)
        assert (answer.status_code, answer.text) == (502, "no echo")
    environment.listen(environment.port)
    for path in ("/echo/hello", "/echo/own/hello"):
        assert client.get(path).text == "hello"
    close(app)


def test_concurrent_requests_to_two_blueprints_get_their_own_answers(
    environment: LineServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLASK_SOCKETPOOL_POOLS__users__url", f"tcp://127.0.0.1:{environment.port}")
    monkeypatch.setenv("FLASK_SOCKETPOOL_POOLS__users__factory", "tests.support.line_server:Line")
    monkeypatch.setenv("FLASK_SOCKETPOOL_POOLS__users__max_connections", "2")
    app = create_app()

    def ask(number: int) -> str:
        client = app.test_client()
        if number % 2:
            return client.get(f"/echo/own/{number}").text
        answer: dict[str, Any] = client.get("/admin/pools").get_json()
        return str(answer["user"])

    asking = [gevent.spawn(ask, number) for number in range(20)]
    gevent.joinall(asking, timeout=PATIENCE, raise_error=True)
    assert [one.value for one in asking] == [str(number) if number % 2 else "admin" for number in range(20)]
    assert of_pool(app)[0] == of_pool(app, "users")[0] == 0
    # What the blueprint's before_request has forgotten was taken back each time.
    assert of_pool(app, "users") == (0, 0, 0, 0)
    assert [record.getMessage().count("in be_known") for record in caplog.records] == [1]
    close(app)


# Beside a database and a cache


class Shop:
    """An app whose views use all three, and what they do, in the order in which they do it."""

    def __init__(self, backend: Backend, *, pool_first: bool = True) -> None:
        self.log: list[str] = []
        self.app = app = Flask("shop")
        app.config.update(
            SOCKETPOOL_FACTORY=backend.connect,
            SOCKETPOOL_MAX_CONNECTIONS=1,
            SOCKETPOOL_ACQUIRE_TIMEOUT=0.5,
            SQLALCHEMY_DATABASE_URI="sqlite:///:memory:",
            CACHE_TYPE="SimpleCache",
        )
        self.db: Any = SQLAlchemy()
        self.cache = Cache()
        extensions: list[Any] = [GSocketPool(), self.db, self.cache]
        for extension in extensions if pool_first else reversed(extensions):
            extension.init_app(app)

        class Order(self.db.Model):  # type: ignore[name-defined, misc]
            id = self.db.Column(self.db.Integer, primary_key=True)
            connection = self.db.Column(self.db.Integer, nullable=False, unique=True)

        self.order = Order
        with app.app_context():
            self.db.create_all()
        app.add_url_rule("/order/<end>", view_func=self.make_order)
        app.add_url_rule("/count", view_func=self.count)
        app.add_url_rule("/block/<end>", view_func=self.use_block)
        app.add_url_rule("/price", view_func=self.cache.cached(timeout=3600)(self.price))
        app.add_url_rule("/broken", "broken", self.cache.cached(timeout=3600)(lambda: self.make_order("error")))
        app.teardown_request(self.note_end_of_request)
        app.teardown_appcontext(self.note_end)
        connection_closed.connect(self.note_closed, app)

    def make_order(self, end: str) -> str:
        g.numbers = number = int(current_connection.number)
        self.db.session.add(self.order(connection=number))
        self.db.session.flush()
        self.finish(end)
        self.db.session.commit()
        return str(number)

    def use_block(self, end: str) -> str:
        with current_pool.connection() as connection:
            self.db.session.add(self.order(connection=connection.number))
            self.db.session.flush()
            self.finish(end)
            self.db.session.commit()
            return str(connection.number)

    def finish(self, end: str) -> None:
        if end == "error":
            raise LookupError("the view's")
        if end == "database":
            # The same again, which the database refuses.
            self.db.session.add(self.order(connection=current_pool.stats().opened - 1))
            self.db.session.flush()

    def count(self) -> str:
        return str(self.db.session.query(self.order).count())

    def price(self) -> str:
        self.log.append("asked")
        return f"price of {current_connection.number}"

    def note_end_of_request(self, error: BaseException | None) -> None:
        self.log.append(f"request: {current_pool.stats().in_use} in use")

    def note_end(self, error: BaseException | None) -> None:
        # Opening and closing connections have contexts of their own.
        if "numbers" in g:
            self.log.append(f"context: {current_pool.stats().in_use} in use")

    def note_closed(self, sender: Flask, reason: str, **what: Any) -> None:
        self.log.append(f"closed: {reason}")

    def ask(self, path: str) -> tuple[int, str]:
        answer = self.app.test_client().get(path)
        return answer.status_code, answer.text

    def numbers(self) -> tuple[int, int, int, int]:
        return of_pool(self.app)

    def discarded(self) -> dict[str, int]:
        with self.app.app_context():
            return dict(current_pool.stats().discarded)


@pytest.fixture(params=[True, False], ids=["pool first", "pool last"])
def shop(backend: Backend, request: pytest.FixtureRequest) -> Iterator[Shop]:
    shop = Shop(backend, pool_first=request.param)
    yield shop
    close(shop.app)
    with shop.app.app_context():
        shop.db.engine.dispose()


@pytest.mark.parametrize("path", ["/order", "/block"])
def test_a_view_uses_the_database_and_a_connection(shop: Shop, path: str) -> None:
    assert shop.ask(f"{path}/well") == (200, "0")
    assert shop.ask("/count") == (200, "1")
    assert shop.numbers() == (0, 1, 0, 0)
    assert shop.discarded() == {}


@pytest.mark.parametrize("end", ["error", "database"])
@pytest.mark.parametrize("path", ["/order", "/block"])
def test_a_view_that_fails_rolls_the_session_back_and_discards_its_connection(shop: Shop, path: str, end: str) -> None:
    assert shop.ask(f"{path}/{end}")[0] == 500
    assert shop.ask("/count") == (200, "0")
    assert shop.numbers() == (0, 0, 0, 0)
    assert shop.discarded() == {"error": 1}
    # The next request has a clean session and a new connection.
    assert shop.ask(f"{path}/well") == (200, "1")
    assert shop.ask("/count") == (200, "1")
    assert shop.discarded() == {"error": 1}


def test_an_error_that_the_app_handles_discards_the_connection_and_rolls_back(shop: Shop) -> None:
    shop.app.register_error_handler(LookupError, lambda error: ("handled", 409))
    assert shop.ask("/order/error") == (409, "handled")
    assert shop.ask("/count") == (200, "0")
    assert shop.numbers() == (0, 0, 0, 0)
    assert shop.discarded() == {"error": 1}


@pytest.mark.parametrize(("end", "in_use"), [("well", 1), ("error", 0)])
def test_teardown_functions_can_use_the_connection_unless_the_view_has_failed(
    shop: Shop, end: str, in_use: int
) -> None:
    """A teardown of the app's runs before that of an extension which was registered earlier."""
    shop.log.clear()
    shop.ask(f"/order/{end}")
    settle()
    assert [line for line in shop.log if "in use" in line] == [f"request: {in_use} in use", "context: 0 in use"]
    assert [line for line in shop.log if "in use" not in line] == (["closed: error"] if end == "error" else [])


def test_a_cached_view_acquires_a_connection_only_the_first_time(shop: Shop) -> None:
    assert [shop.ask("/price") for _ in range(3)] == [(200, "price of 0")] * 3
    assert shop.log.count("asked") == 1
    # There is one connection, and another request has it.
    with shop.app.app_context():
        held = current_pool.acquire()
        assert shop.ask("/price") == (200, "price of 0")
        assert shop.ask("/order/well")[0] == 503
        shop.cache.clear()
        assert shop.ask("/price")[0] == 503
        current_pool.release(held)
    assert shop.ask("/price") == (200, "price of 0")
    assert shop.log.count("asked") == 3


def test_a_failing_view_is_not_cached(shop: Shop) -> None:
    assert [shop.ask("/broken")[0] for _ in range(2)] == [500, 500]
    assert shop.discarded() == {"error": 2}
    assert shop.numbers() == (0, 0, 0, 0)


# Under pytest-flask

CONFTEST = """
import multiprocessing

import pytest
from flask import Flask

from flask_gsocketpool import GSocketPool, current_pool

# live_server can't be started in any other way, which is not the default from Python 3.14 on.
multiprocessing.set_start_method("fork")


@pytest.fixture(scope="session")
def app():
    app = Flask("shop")
    app.config["SOCKETPOOL_URL"] = "tcp://127.0.0.1:{port}?timeout={patience}"
    app.config["TESTING"] = True
    # That which live_server sets otherwise is not the one it listens at; until Flask 3.1, that makes every URL unknown.
    app.config["SERVER_NAME"] = "localhost"
    GSocketPool(app)

    @app.get("/echo/<text>")
    def echo(text):
        with current_pool.connection() as conn:
            conn.send(text.encode() + b"\\n")
            return conn.recv_until(b"\\n").decode().strip()

    return app
"""

TESTS = """
import urllib.request

from flask_gsocketpool import current_pool


def get(url):
    with urllib.request.urlopen(url, timeout={patience}) as answer:
        return answer.read().decode()


# In both orders: the server has been started by then, or has not.

def test_before(live_server, socketpool_app):
    assert get(live_server.url("/echo/one")) == "one"
    assert get(live_server.url("/echo/two")) == "two"


def test_the_client_beside_it(socketpool_app, client, live_server):
    assert client.get("/echo/one").text == "one"
    assert current_pool.stats().opened == 1
    assert get(live_server.url("/echo/two")) == "two"


def test_pools_are_fresh_again(socketpool_app, client, live_server):
    assert current_pool.stats().opened == 0
    assert client.get("/echo/one").text == "one"
    assert get(live_server.url("/echo/two")) == "two"


def test_without_a_server(socketpool_app, client):
    assert client.get("/echo/one").text == "one"
    assert current_pool.stats().opened == 1
"""


def test_the_fixtures_work_with_pytest_flask_and_a_live_server(pytester: pytest.Pytester, server: LineServer) -> None:
    pytester.makeconftest(CONFTEST.format(port=server.port, patience=PATIENCE))
    pytester.makepyfile(TESTS.format(patience=PATIENCE))
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-W", "error", timeout=6 * PATIENCE)
    result.assert_outcomes(passed=4)
