"""The extension on apps, without a server."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import gevent
import pytest
from flask import Blueprint, Flask

from flask_gsocketpool import (
    ConfigurationError,
    GSocketPool,
    UnknownPoolError,
    current_connection,
    current_connections,
    current_pool,
    current_pools,
    named_pool,
)
from gsocketpool import Pool, PoolError, PoolExhaustedError
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
)


def make_app(backend: Backend, **config: Any) -> Flask:
    app = Flask("app")
    app.config["SOCKETPOOL_FACTORY"] = backend.connect
    app.config.update(config)
    GSocketPool(app)

    @app.get("/")
    def index() -> str:
        with current_pool.connection(timeout=0.01) as connection:
            return str(connection.number)

    return app


def test_a_view_uses_the_pool_of_its_app(backend: Backend) -> None:
    app = make_app(backend, SOCKETPOOL_MAX_CONNECTIONS=3)
    client = app.test_client()
    assert client.get("/").text == "0"
    assert client.get("/").text == "0", "the connection is kept between requests"
    with app.app_context():
        assert numbers(current_pool) == (0, 1, 0, 0)
        assert current_pool.stats().max_connections == 3
        assert current_pool.name == "default"
        assert current_pools["default"] is current_pool._get_current_object()  # type: ignore[attr-defined]


def test_named_pool_stands_for_the_pool_of_the_current_app(backend: Backend) -> None:
    db = named_pool("db", ScriptedConnection)
    with pytest.raises(RuntimeError):
        db.stats()
    for _ in range(2):
        app = Flask("app")
        app.config["SOCKETPOOL_POOLS"] = {"db": {"factory": backend.connect}}
        GSocketPool(app)
        with app.app_context(), db.connection() as connection:
            assert isinstance(connection, ScriptedConnection)
            assert current_pools["db"].stats().in_use == 1
        app.extensions["gsocketpool"].close()


def test_an_app_may_have_named_pools_beside_the_default_one(backend: Backend) -> None:
    app = make_app(backend, SOCKETPOOL_POOLS={"cache": {"factory": backend.connect, "max_connections": 2}})
    with app.app_context():
        assert list(current_pools) == ["default", "cache"]
        assert len(current_pools) == 2
        assert "cache" in current_pools
        cache = current_pools["cache"]
        assert isinstance(cache, Pool)
        assert cache is current_pools["cache"]
        assert cache.name == "cache"
        assert cache is not current_pools["default"]


def test_one_extension_object_serves_several_apps(backend: Backend) -> None:
    extension = GSocketPool()
    apps = [Flask(name) for name in ("one", "two")]
    for app in apps:
        app.config["SOCKETPOOL_FACTORY"] = backend.connect
        extension.init_app(app)
    pools = []
    for app in apps:
        with app.app_context():
            pools.append(current_pools["default"])
    assert pools[0] is not pools[1]
    assert not vars(extension)
    with apps[0].app_context(), apps[1].app_context():
        assert current_pools["default"] is pools[1]


def test_no_pool_is_made_before_its_first_use(backend: Backend) -> None:
    app = make_app(backend, SOCKETPOOL_MIN_CONNECTIONS=2)
    with app.app_context():
        settle()
        assert not backend.connections
        assert list(current_pools) == ["default"]
        current_pool.wait_ready(PATIENCE)
        assert len(backend.connections) == 2
        current_pool.close()


def test_requests_that_arrive_together_make_one_pool(backend: Backend) -> None:
    app = make_app(backend, SOCKETPOOL_INITIAL_CONNECTIONS=1, SOCKETPOOL_MAX_CONNECTIONS=1)
    backend.opens.clear()

    def request() -> object:
        with app.app_context():
            return current_pools["default"]

    requests = [gevent.spawn(request) for _ in range(5)]
    settle()
    backend.opens.set()
    gevent.joinall(requests, timeout=PATIENCE, raise_error=True)
    assert len({id(one.value) for one in requests}) == 1
    assert len(backend.connections) == 1


def test_a_pool_may_use_another_pool_while_it_is_made(backend: Backend) -> None:
    """For a password that is kept behind the other one."""

    def options() -> dict[str, str]:
        with current_app_pools(app)["vault"].connection() as vault:
            return {"password": str(vault.number)}

    def current_app_pools(app: Flask) -> Mapping[str, Any]:
        pools: Mapping[str, Any] = app.extensions["gsocketpool"]
        return pools

    vault = {"factory": backend.connect, "initial_connections": 1}
    app = make_app(
        backend,
        SOCKETPOOL_OPTIONS=options,
        SOCKETPOOL_INITIAL_CONNECTIONS=1,
        SOCKETPOOL_POOLS={"vault": vault},
    )
    with app.app_context(), gevent.Timeout(PATIENCE / 2), current_pool.connection() as connection:
        assert connection.options == {"password": "0"}


def test_requests_that_arrive_together_get_the_same_error_and_the_next_one_tries_again(backend: Backend) -> None:
    app = make_app(backend, SOCKETPOOL_INITIAL_CONNECTIONS=1)
    backend.failures.append(OSError("down"))

    def request() -> object:
        try:
            return app.extensions["gsocketpool"]["default"]
        except OSError as error:
            return error

    requests = [gevent.spawn(request) for _ in range(5)]
    gevent.joinall(requests, timeout=PATIENCE)
    assert {str(one.value) for one in requests} == {"down"}
    assert len(backend.connections) == 1
    assert isinstance(request(), Pool)


def test_a_pool_that_fails_to_open_its_initial_connections_leaves_none_open(backend: Backend) -> None:
    def connect() -> Any:
        if len(backend.connections) == 1:
            backend.failures.append(OSError("down"))
        return backend.connect()

    app = make_app(backend, SOCKETPOOL_FACTORY=connect, SOCKETPOOL_INITIAL_CONNECTIONS=2)
    with app.app_context():
        with pytest.raises(OSError, match="down"):
            current_pool.stats()
        eventually(lambda: not backend.open)
        assert numbers(current_pool) == (0, 2, 0, 0)


@pytest.mark.parametrize("begun", [True, False])
def test_killing_the_greenlet_that_makes_a_pool_raises_a_pool_error_in_each_view(backend: Backend, begun: bool) -> None:
    app = make_app(backend, SOCKETPOOL_INITIAL_CONNECTIONS=2)
    backend.opens.clear()

    def request() -> str:
        with pytest.raises(PoolError, match="pool 'default' was not made"):
            app.extensions["gsocketpool"]["default"]
        return "told"

    def kill() -> None:
        app.extensions["gsocketpool"].of_this_thread().makers["default"].kill(block=False)

    requests = [gevent.spawn(request) for _ in range(2)]
    if begun:
        settle()
    # Without that, it comes in between: that greenlet is spawned by the first request, and so later than this one.
    gevent.spawn(kill).join()
    backend.opens.set()
    assert [one.get(timeout=PATIENCE) for one in requests] == ["told", "told"]
    eventually(lambda: not backend.open)
    assert app.test_client().get("/").status_code == 200


def test_comparing_the_registry_makes_no_pool(backend: Backend) -> None:
    app = make_app(backend, SOCKETPOOL_INITIAL_CONNECTIONS=1)
    assert app.extensions["gsocketpool"] != {}
    assert not backend.connections


def test_registering_the_extension_after_the_first_request_is_refused(backend: Backend) -> None:
    app = Flask("app")
    app.test_client().get("/")
    with pytest.raises(AssertionError, match=r"after the first request|already handled its first request"):
        GSocketPool(app)
    assert not app.extensions


def test_registering_the_extension_twice_is_refused(backend: Backend) -> None:
    app = make_app(backend)
    with pytest.raises(RuntimeError, match="GSocketPool is already registered on app 'app'"):
        GSocketPool(app)


def test_a_bad_configuration_is_refused_at_once() -> None:
    app = Flask("app")
    app.config["SOCKETPOOL_URL"] = "http://localhost"
    with pytest.raises(ConfigurationError, match="SOCKETPOOL_URL must start with"):
        GSocketPool(app)
    assert not app.extensions


def test_using_a_pool_outside_an_app_context_raises_an_error_that_says_what_to_do() -> None:
    for use in (lambda: current_pool.size, lambda: current_pools["default"], lambda: list(current_pools)):
        with pytest.raises(
            RuntimeError, match=r"no application context here.*stream_with_context.*`with app.app_context\(\):`"
        ):
            use()


def test_using_a_pool_of_an_app_without_the_extension_raises() -> None:
    app = Flask("bare")
    with app.app_context(), pytest.raises(RuntimeError, match=r"App 'bare' has no pools. Call GSocketPool\(app\)"):
        current_pool.acquire()


def test_using_a_pool_of_an_app_without_keys_raises_an_error_that_names_the_key() -> None:
    app = Flask("app")
    GSocketPool(app)
    with app.app_context():
        assert not list(current_pools)
        uses: list[Callable[[], object]] = [
            lambda: current_pool.acquire(),
            lambda: current_pools["default"],
            lambda: current_connection.send(b"?"),
            lambda: current_connections["default"],
        ]
        for use in uses:
            with pytest.raises(UnknownPoolError, match=r"no default pool: set SOCKETPOOL_URL, or .* \(pools: none\)"):
                use()
    app.add_url_rule("/", "nothing", lambda: "uses nothing")
    assert app.test_client().get("/").text == "uses nothing"


def test_using_an_unknown_pool_raises_an_error_that_names_the_known_ones(backend: Backend) -> None:
    app = make_app(backend, SOCKETPOOL_POOLS={"cache": {"factory": backend.connect}})
    with app.app_context():
        with pytest.raises(LookupError, match=r"no pool 'cash': add it to SOCKETPOOL_POOLS \(pools: default, cache\)"):
            current_pools["cash"]
        assert "cash" not in current_pools
        with pytest.raises(PoolError):
            current_pools["cash"]


def test_an_app_with_an_idle_connection_can_be_collected(backend: Backend) -> None:
    app = make_app(backend)
    app.test_client().get("/")
    (connection,) = backend.connections
    references = [weakref.ref(app), weakref.ref(app.extensions["gsocketpool"])]
    del app
    gc.collect()
    settle()
    assert [reference() for reference in references] == [None, None]
    assert not connection.is_open


# Exhaustion


def test_an_exhausted_pool_is_answered_503(backend: Backend) -> None:
    app = make_app(backend, SOCKETPOOL_MAX_CONNECTIONS=1)
    with app.app_context(), current_pool.connection():
        answer = app.test_client().get("/")
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert "Service Unavailable" in answer.text
    assert app.test_client().get("/").status_code == 200


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", [PoolExhaustedError, PoolError, Exception, 503])
def test_an_error_handler_of_the_app_takes_precedence(backend: Backend, kind: Any, when: str) -> None:
    app = Flask("app")
    app.config.update(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_MAX_CONNECTIONS=1)
    if when == "after":
        GSocketPool(app)

    @app.errorhandler(kind)
    def handle(error: Exception) -> tuple[str, int]:
        return f"mine: {type(error).__name__}", 429

    if when == "before":
        GSocketPool(app)

    @app.get("/")
    def index() -> str:
        with current_pool.connection(timeout=0):
            return ""

    with app.app_context(), current_pool.connection():
        answer = app.test_client().get("/")
    assert answer.status_code == 429
    assert answer.text == f"mine: {'ServiceUnavailable' if kind == 503 else 'PoolExhaustedError'}"


@pytest.mark.parametrize("kind", [PoolExhaustedError, 503])
def test_an_error_handler_of_a_blueprint_takes_precedence(backend: Backend, kind: Any) -> None:
    app = make_app(backend, SOCKETPOOL_MAX_CONNECTIONS=1)
    blueprint = Blueprint("part", "part")

    @blueprint.errorhandler(kind)
    def handle(error: Exception) -> tuple[str, int]:
        return "the blueprint's", 429

    @blueprint.get("/part")
    def part() -> str:
        with current_pool.connection(timeout=0):
            return ""

    app.register_blueprint(blueprint)
    with app.app_context(), current_pool.connection():
        assert app.test_client().get("/part").text == "the blueprint's"
        assert app.test_client().get("/").status_code == 503


class NextFlask(Flask):
    """The methods that answer errors have one more parameter in the next version of Flask."""

    def handle_http_exception(self, context: Any, error: Any) -> Any:  # type: ignore[override]
        raise AssertionError("this is never called with a context")


def test_an_exhausted_pool_is_answered_503_by_the_next_flask_too(backend: Backend) -> None:
    app = NextFlask("app")
    app.config.update(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_MAX_CONNECTIONS=1)
    GSocketPool(app)

    @app.get("/")
    def index() -> str:
        with current_pool.connection(timeout=0):
            return ""

    with app.app_context(), current_pool.connection():
        assert app.test_client().get("/").status_code == 503


# The end of the process


def run(program: str, status: int = 0) -> list[str]:
    """Return what a program prints: its app has a pool of connections that tell what happens to them."""
    prelude = """
import os, sys, gevent
from flask import Flask
from gsocketpool import Connection
from flask_gsocketpool import GSocketPool, current_pool, current_pools
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
class Told(Connection):
    is_open = False
    def open(self): self.is_open = True; self.pid = os.getpid()
    def close(self): gevent.sleep(0.001); self.is_open = False; say("closed", self.pid == os.getpid())
    def is_connected(self): return self.is_open
    def abort(self): self.is_open = False
app = Flask("app")
app.config.update(
    SOCKETPOOL_FACTORY=Told, SOCKETPOOL_POOLS={"other": {"factory": Told}}, SOCKETPOOL_CLOSE_TIMEOUT=0.2,
    SOCKETPOOL_MAX_CONNECTIONS=100,
)
GSocketPool(app)
"""
    done = run_python(prelude + program, options=["-X", "dev", "-W", "error"], patience=3 * PATIENCE)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()


def test_pools_are_closed_at_the_end_of_the_process() -> None:
    lines = run("""
with app.app_context():
    with current_pool.connection(): pass
    with current_pools["other"].connection(): pass
    taken = current_pool.acquire(), current_pool.acquire()
say("end")
""")
    assert lines == ["end", *["closed True"] * 3]


def test_a_close_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    lines = run("""
import time
Told.close = lambda self: gevent.sleep(1000)
with app.app_context():
    taken = [current_pool.acquire() for _ in range(20)]
say("end")
""")
    assert lines == ["end"]


def test_every_process_closes_its_own_connections_after_a_fork() -> None:
    lines = run("""
context = app.app_context()
context.push()
held = current_pool.acquire()
current_pool.release(current_pool.acquire())
child = gevent.os.fork()
if child == 0:
    assert current_pool.size == 0
    with current_pool.connection() as conn:
        assert conn is not held
    say("child")
    sys.exit(0)
os.waitpid(child, 0)
say("parent")
current_pool.release(held)
""")
    assert lines == ["child", "closed True", "parent", "closed True", "closed True"]


def test_a_process_that_never_used_its_pools_ends_cleanly() -> None:
    assert run("say('end')") == ["end"]


# Threads


def run_in_thread(act: Any) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(PATIENCE)


def test_each_thread_has_pools_of_its_own(backend: Backend) -> None:
    """As under Flask's own server."""
    app = make_app(backend, SOCKETPOOL_FACTORY=Plain)
    seen: list[Any] = []

    def request() -> None:
        seen.append(app.test_client().get("/").status_code)
        with app.app_context():
            seen.append(current_pools["default"])
            current_pool.close()
        end_event_loop()

    for _ in range(2):
        run_in_thread(request)
    request_here = app.test_client().get("/").status_code
    assert [seen[0], seen[2], request_here] == [200, 200, 200]
    assert seen[1] is not seen[3]


def test_a_thread_that_ends_leaves_no_connection_open(backend: Backend) -> None:
    """As under Flask's own server, where every request has a thread of its own."""
    opened: list[Plain] = []

    def connect() -> Plain:
        opened.append(Plain())
        return opened[-1]

    app = make_app(backend, SOCKETPOOL_FACTORY=connect)

    def request() -> None:
        assert app.test_client().get("/").status_code == 200

    for _ in range(3):
        run_in_thread(request)
    gc.collect()
    assert [connection.is_open for connection in opened] == [False] * 3


def test_the_registry_is_a_mapping(backend: Backend) -> None:
    app = make_app(backend)
    pools = app.extensions["gsocketpool"]
    assert isinstance(pools, Mapping)
    assert dict(pools) == {"default": pools["default"]}


# Without Flask

BLOCKED_IMPORT = """\
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
import gsocketpool
import flask_gsocketpool
"""


def error_of_importing_without(module: str) -> str:
    """The last line of the traceback."""
    code = BLOCKED_IMPORT.format(blocked=module)
    done = run_python(code, patience=3 * PATIENCE)
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


def test_importing_the_extension_without_flask_says_what_to_install() -> None:
    error = error_of_importing_without("flask")
    assert error == "ImportError: flask_gsocketpool needs Flask: pip install 'gsocketpool[flask]'"


def test_importing_the_extension_with_a_broken_flask_says_what_is_broken() -> None:
    assert error_of_importing_without("werkzeug").startswith("ModuleNotFoundError: No module named 'werkzeug")
