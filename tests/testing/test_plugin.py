"""The fixtures of the pytest plugin, and what they are made of."""

from __future__ import annotations

import socket
from typing import Any

import gevent
import pytest
from flask import Flask

from flask_gsocketpool import GSocketPool, UnknownPoolError, current_pool, current_pools
from flask_gsocketpool.testing import fresh_pools, override_pool
from gsocketpool import InvalidArgumentError, Pool, TcpConnection
from gsocketpool.testing import FakePool, FlakyServer, exchange_line, no_leaks
from tests.support.internals import NO_LEAKS_GRACE
from tests.support.processes import run_python
from tests.support.scripted import Backend, settle

HEADER = """
    from functools import partial

    import gevent
    import pytest
    from flask import Flask

    from flask_gsocketpool import GSocketPool, current_pool
    from flask_gsocketpool.testing import override_pool
    from gsocketpool import Pool, TcpConnection
    from gsocketpool.testing import exchange_line, no_leaks, torture
"""


#: Each in a file of its own, for the fixtures need no import. They share a process, which takes a second to begin.
PROGRAMS = {
    "torture": """
    def test_it_survives(flaky_server, assert_no_leaks):
        connect = partial(TcpConnection, flaky_server.host, flaky_server.port, timeout=0.3)
        assert torture(connect, server=flaky_server, rounds=100).exchanges
    """,
    "another_server": """
    @pytest.mark.parametrize("flaky_server", [{"answer": bytes.upper}], indirect=True)
    def test_it_shouts(flaky_server):
        with Pool(TcpConnection, {"host": flaky_server.host, "port": flaky_server.port}) as pool:
            with pool.connection() as connection:
                assert exchange_line(connection, b"hello") == b"HELLO"
    """,
    "left_behind": """
    left = []

    @pytest.fixture(autouse=True)
    def in_a_hurry(monkeypatch):
        monkeypatch.setattr("gsocketpool.testing._leaks._GRACE", 0.05)

    def test_it_leaves_a_socket(flaky_server, assert_no_leaks):
        left.append(TcpConnection(flaky_server.host, flaky_server.port))
        left[-1].open()

    def test_it_leaves_a_greenlet(assert_no_leaks):
        left.append(gevent.spawn(gevent.sleep, 3600))

    def test_it_leaves_nothing(assert_no_leaks):
        pass
    """,
    "older_pool": """
    from gsocketpool.connectors import Connector

    class Slow(Connector):
        connect = list

        def is_settled(self, connection):
            return True

        def reset(self, connection):
            gevent.sleep(0.01)

        def close(self, connection):
            pass

    pool = Pool(Slow(), reset="always", reap_expired_connections=False)

    @pytest.fixture(autouse=True)
    def in_a_hurry(monkeypatch):
        monkeypatch.setattr("gsocketpool.testing._leaks._GRACE", 0.05)

    def test_it_resets(assert_no_leaks):
        with pool.connection():
            pass
        gevent.sleep(0.05)
        assert pool.stats().idle == 1
    """,
    "app": """
    kept = []

    @pytest.fixture(scope="session")
    def app():
        app = Flask(__name__)
        # No server is asked there: nothing connects.
        app.config["SOCKETPOOL_URL"] = "tcp://localhost:1"
        GSocketPool(app)

        @app.get("/")
        def index():
            return repr(current_pool)

        return app

    def test_one(socketpool_app, client):
        assert b"'default'" in client.get("/").data
        with socketpool_app.app_context():
            kept.append(current_pool._get_current_object())

    def test_another(socketpool_app, client):
        assert "closed" in repr(kept[0])
        with socketpool_app.app_context():
            assert current_pool._get_current_object() is not kept[0]

    def test_a_scripted_one(socketpool_app, client):
        override_pool(socketpool_app, "default", "scripted")
        assert client.get("/").data == b"'scripted'"

    def test_that_it_is_gone(socketpool_app, client):
        assert b"'default'" in client.get("/").data
    """,
}


def test_the_fixtures_work_in_a_project_and_report_leaks(pytester: pytest.Pytester) -> None:
    """A class is tortured in three lines, and what is left behind fails a test.

    The server may be of another kind. What an older pool keeps for its next reset is not left behind. An app has pools
    of its own in each test.
    """
    pytester.makepyfile(**{f"test_{name}": HEADER + program for name, program in PROGRAMS.items()})
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-W", "error", "-rEp")
    result.assert_outcomes(passed=10, errors=2)
    result.stdout.fnmatch_lines(["*an open socket: AF_INET from ('127.0.0.1', *) to ('127.0.0.1', *)"])
    result.stdout.fnmatch_lines(["*a greenlet: <Greenlet * sleep*"])
    found = [f"ERROR test_left_behind.py::test_it_leaves_a_{what} *" for what in ("greenlet", "socket")]
    result.stdout.fnmatch_lines_random(found)


@pytest.mark.parametrize("module", ["gevent", "flask", "gsocketpool"])
def test_the_plugin_imports_nothing_before_it_is_used(module: str) -> None:
    # That would be before a conftest.py could patch anything.
    program = f"import sys, pytest_gsocketpool; assert {module!r} not in sys.modules"
    done = run_python(program)
    assert done.returncode == 0, done.stderr


# What is left behind


def test_no_leaks_reports_connections_in_use(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NO_LEAKS_GRACE, 0.05)
    pool = Pool(backend.connect)
    pool.release(pool.acquire())
    with no_leaks(), pool.connection():
        pass
    with pytest.raises(AssertionError, match="connections in use: <Pool 'connect': 1 in use"):
        leave(pool.acquire)
    pool.close(timeout=0)


def leave(something: Any) -> None:
    with no_leaks():
        something()


def test_no_leaks_ignores_leaks_that_go_away_in_time(flaky_server: FlakyServer) -> None:
    with no_leaks():
        connection = TcpConnection(flaky_server.host, flaky_server.port)
        connection.open()
        exchange_line(connection, b"hello")
        # The server has not noticed yet when the block ends.
        connection.close()
        gevent.spawn_later(0.01, settle)


def test_no_leaks_ignores_objects_from_before_its_block() -> None:
    with socket.socket() as there:
        greenlet = gevent.spawn(gevent.sleep, 3600)
        with no_leaks():
            there.fileno()
        greenlet.kill()


def test_no_leaks_ignores_a_pool_that_could_not_be_made() -> None:
    with no_leaks(), pytest.raises(InvalidArgumentError) as caught:
        Pool(None)  # type: ignore[arg-type]
    assert caught.value.argument == "factory"


def test_no_leaks_reports_a_greenlet_that_replaces_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NO_LEAKS_GRACE, 0.05)
    there = [gevent.spawn(gevent.sleep, 3600)]
    settle()

    def replace() -> None:
        there.pop().kill()
        there.append(gevent.spawn(gevent.sleep, 3600))
        settle()

    with pytest.raises(AssertionError, match="a greenlet"):
        leave(replace)
    there[0].kill()


def test_no_leaks_ignores_an_older_pool_whose_last_reference_goes(backend: Backend) -> None:
    pools = [Pool(backend.connect)]

    def use() -> None:
        pools.pop().acquire()

    leave(use)


def test_no_leaks_ignores_a_restart_of_a_flaky_server(
    flaky_server: FlakyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NO_LEAKS_GRACE, 0.05)
    leave(flaky_server.restart)


def test_no_leaks_raises_the_error_of_its_block() -> None:
    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        leave(fail)


# Apps


@pytest.fixture
def app() -> Flask:
    app = Flask("app")
    app.config["SOCKETPOOL_URL"] = "tcp://localhost:1"
    app.config["SOCKETPOOL_POOLS"] = {"cache": {"url": "tcp://localhost:2"}}
    GSocketPool(app)
    return app


def test_override_pool_takes_effect_at_once_and_until_the_end_of_its_block(app: Flask) -> None:
    with app.app_context():
        real = current_pools["cache"]
        undo = override_pool(app, "cache", "first")
        assert current_pools["cache"] == "first"
        with override_pool(app, "cache", "second"):
            assert current_pools["cache"] == "second"
            assert current_pool.name == "default"
        assert current_pools["cache"] == "first"
        with undo:
            pass
        assert current_pools["cache"] is real
    real.close()


def test_overrides_may_be_undone_in_any_order(app: Flask) -> None:
    with app.app_context():
        real = current_pools["cache"]
        first, second, third = (override_pool(app, "cache", name) for name in ("first", "second", "third"))
        for undo, left in ((second, "third"), (third, "first"), (first, real)):
            with undo:
                pass
            assert current_pools["cache"] == left
        with override_pool(app, "cache", "fourth"):
            with first:
                pass
            assert current_pools["cache"] == "fourth"
    real.close()


def test_only_a_pool_that_the_app_has_can_be_overridden(app: Flask) -> None:
    with pytest.raises(UnknownPoolError, match="cashe"):
        override_pool(app, "cashe", None)
    with pytest.raises(RuntimeError, match="has no pools"):
        override_pool(Flask("another"), "default", None)
    with pytest.raises(RuntimeError, match="has no pools"), fresh_pools(Flask("another")):
        pass


def test_fresh_pools_are_closed_and_the_usual_ones_return(app: Flask) -> None:
    with app.app_context():
        usual = current_pools["cache"]
        with fresh_pools(app):
            fresh = current_pools["cache"]
            assert fresh is not usual
            override_pool(app, "default", "scripted")
        assert "closed" in repr(fresh)
        assert current_pools["cache"] is usual
        assert current_pool != "scripted"
        usual.close()


def test_fresh_pools_keep_overrides_and_pools_that_are_shown(app: Flask) -> None:
    another = FakePool(object())
    GSocketPool.show(app, "another", lambda: another)
    with app.app_context(), override_pool(app, "default", FakePool("scripted")), fresh_pools(app):
        assert current_pool.acquire() == "scripted"
        assert app.extensions["gsocketpool"].shown()["another"] is another
