"""The blueprint reports the health of a worker."""

from __future__ import annotations

import os
from typing import Any

import gevent
import pytest
from flask import Flask, Response, abort, request

from flask_gsocketpool import GSocketPool, current_pool, current_pools, health
from gsocketpool.testing import FlakyServer
from tests.support.scripted import PATIENCE, Backend, settle
from tests.support.servers import refusing_address

SECRET = "hunter2"


def make_app(**config: Any) -> Flask:
    app = Flask("app")
    app.config.update(config)
    GSocketPool(app)
    app.register_blueprint(health.blueprint, url_prefix="/health")
    return app


def get(app: Flask, what: str, status: int = 200) -> Any:
    with gevent.Timeout(PATIENCE):
        answer = app.test_client().get(f"/health/{what}")
    assert answer.status_code == status, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.mimetype == "application/json"
    assert SECRET not in answer.text
    assert answer.json["pid"] == os.getpid()
    return answer.json


def url(address: tuple[str, int]) -> str:
    return f"tcp://{address[0]}:{address[1]}"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make readiness a matter of a moment."""
    monkeypatch.setattr(health, "READY_TIMEOUT", 0.5)


def test_an_app_without_the_blueprint_has_no_health_pages(backend: Backend) -> None:
    app = Flask("app")
    app.config["SOCKETPOOL_FACTORY"] = backend.connect
    GSocketPool(app)
    assert not app.blueprints
    assert app.test_client().get("/health/live").status_code == 404


def test_a_worker_is_live_even_if_its_backends_are_down() -> None:
    with refusing_address() as refusing:
        assert get(make_app(SOCKETPOOL_URL=url(refusing)), "live")["ok"] is True


def test_each_app_reports_its_own_pools(backend: Backend) -> None:
    backend.failures.append(OSError("down"))
    one, two = (make_app(SOCKETPOOL_FACTORY=backend.connect) for _ in range(2))
    assert get(one, "ready", 503)["ok"] is False
    assert get(two, "ready")["ok"] is True
    assert get(one, "pools")["pools"]["default"]["open_errors"] == 1
    assert get(two, "pools")["pools"]["default"]["open_errors"] == 0


# ready


def test_a_worker_is_ready_while_each_pool_hands_out_a_connection() -> None:
    with FlakyServer() as one, FlakyServer() as two:
        app = make_app(SOCKETPOOL_URL=url(one.address), SOCKETPOOL_POOLS={"other": {"url": url(two.address)}})
        for _ in range(3):
            assert get(app, "ready") == {
                "ok": True,
                "pid": os.getpid(),
                "pools": {"default": {"ok": True}, "other": {"ok": True}},
            }
        assert len(one.connections) == len(two.connections) == 1, "it is kept for the next"
        with app.app_context():
            assert current_pool.stats().in_use == 0
        two.fail("refuse")
        two.close_connections()
        found = get(app, "ready", 503)
        assert found["ok"] is False
        assert found["pools"]["default"] == {"ok": True}
        assert found["pools"]["other"]["error"]["type"] == "ConnectionRefusedError"
        two.heal()
        assert get(app, "ready")["ok"] is True
        app.extensions["gsocketpool"].close()


@pytest.mark.usefixtures("short")
def test_the_readiness_check_does_not_wait_for_a_backend_that_hangs() -> None:
    with FlakyServer() as server:
        server.fail("hang")
        app = make_app(SOCKETPOOL_URL=url(server.address))
        error = get(app, "ready", 503)["pools"]["default"]["error"]
        app.extensions["gsocketpool"].close()
    assert error["type"] == "PoolExhaustedError"
    assert "no connection from pool 'default' within" in error["message"]


@pytest.mark.usefixtures("short")
def test_the_readiness_check_does_not_wait_for_a_pool_that_is_still_being_made(backend: Backend) -> None:
    backend.opens.clear()
    app = make_app(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_INITIAL_CONNECTIONS=1)
    error = get(app, "ready", 503)["pools"]["default"]["error"]
    assert error == {"type": "TimeoutError", "message": "no connection, or no answer to a ping, within 0.5 s"}
    assert get(app, "pools")["pools"] == {}
    backend.opens.set()
    settle()
    stats = get(app, "pools")["pools"]["default"]
    assert stats["opened"] == 1
    assert stats["acquired_at_once"] == stats["timed_out"] == 0, "the probe has ended with its answer"
    assert get(app, "ready")["ok"] is True


@pytest.mark.usefixtures("short")
def test_a_worker_with_all_connections_in_use_is_not_ready(backend: Backend) -> None:
    app = make_app(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_MAX_CONNECTIONS=1)
    with app.app_context():
        with current_pool.connection():
            error = get(app, "ready", 503)["pools"]["default"]["error"]
        assert error["type"] == "PoolExhaustedError"
        assert get(app, "ready")["ok"] is True


def test_the_readiness_check_tries_all_pools_at_the_same_time(backend: Backend) -> None:
    pool = {"factory": backend.connect}
    app = make_app(SOCKETPOOL_POOLS={"one": pool, "two": pool})
    backend.opens.clear()
    asking = gevent.spawn(get, app, "ready")
    settle()
    assert len(backend.connections) == 2
    backend.opens.set()
    assert asking.get(timeout=PATIENCE)["ok"] is True


@pytest.mark.parametrize("by_callable", [True, False])
def test_the_readiness_check_shows_an_error_without_secrets(backend: Backend, by_callable: bool) -> None:
    options = {"password": SECRET}
    app = make_app(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_OPTIONS=(lambda: options) if by_callable else options)
    backend.failures.append(OSError(f"{SECRET!r} is wrong"))
    error = get(app, "ready", 503)["pools"]["default"]["error"]
    assert error == {"type": "OSError", "message": "'***' is wrong"}


class FalsyError(OSError):
    def __bool__(self) -> bool:
        return False


class UnprintableError(OSError):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("kind", [FalsyError, UnprintableError])
def test_the_readiness_check_reports_an_error_of_any_kind(backend: Backend, kind: type[OSError]) -> None:
    app = make_app(SOCKETPOOL_FACTORY=backend.connect)
    backend.failures.append(kind("down"))
    error = get(app, "ready", 503)["pools"]["default"]["error"]
    assert error["type"] == kind.__name__
    assert "down" in error["message"]


def test_the_request_timeout_does_not_bound_the_readiness_check(backend: Backend) -> None:
    app = make_app(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_REQUEST_TIMEOUT=lambda request: 0)
    assert get(app, "ready")["ok"] is True


def test_an_app_without_pools_is_not_ready() -> None:
    assert get(make_app(), "ready", 503) == {"ok": False, "pid": os.getpid(), "pools": {}}


# pools


def test_the_pools_page_shows_the_statistics_of_the_pools_made_so_far(backend: Backend) -> None:
    options = {"host": "db.example", "port": 2000, "password": SECRET}
    pool = {"factory": backend.connect, "options": options}
    app = make_app(SOCKETPOOL_POOLS={"used": pool, "unused": pool})
    assert get(app, "pools")["pools"] == {}
    with app.app_context(), current_pools["used"].connection():
        found = get(app, "pools")["pools"]
        assert found == {"used": {"address": "db.example:2000", **current_pools["used"].stats().as_dict()}}
    assert found["used"]["in_use"] == 1
    assert len(backend.connections) == 1


# The guard


def make_guarded_app(backend: Backend, guard: Any) -> Flask:
    app = Flask("app")
    app.config["SOCKETPOOL_FACTORY"] = backend.connect
    GSocketPool(app)
    app.register_blueprint(health.make_blueprint(guard), url_prefix="/health")
    return app


def require_token() -> None:
    if request.headers.get("Authorization") != f"Bearer {SECRET}":
        abort(403)


def test_a_guard_may_abort_a_request_for_the_statistics(backend: Backend) -> None:
    app = make_guarded_app(backend, require_token)
    refused = app.test_client().get("/health/pools")
    assert refused.status_code == 403
    assert refused.headers["Cache-Control"] == "no-store"
    admitted = app.test_client().get("/health/pools", headers={"Authorization": f"Bearer {SECRET}"})
    assert admitted.json == {"pid": os.getpid(), "pools": {}}


def test_a_guard_may_answer_a_request_for_the_statistics(backend: Backend) -> None:
    app = make_guarded_app(backend, lambda: Response("log in first", 401))
    answer = app.test_client().get("/health/pools")
    assert (answer.status_code, answer.text) == (401, "log in first")


def test_a_guard_does_not_guard_the_checks(backend: Backend) -> None:
    app = make_guarded_app(backend, require_token)
    assert get(app, "live")["ok"] is True
    assert get(app, "ready")["ok"] is True


def test_a_blueprint_without_a_guard_shows_the_statistics(backend: Backend) -> None:
    assert get(make_guarded_app(backend, None), "pools")["pools"] == {}


def test_an_app_may_guard_the_whole_blueprint(backend: Backend) -> None:
    app = Flask("app")
    app.config["SOCKETPOOL_FACTORY"] = backend.connect
    GSocketPool(app)
    blueprint = health.make_blueprint()
    blueprint.before_request(require_token)
    app.register_blueprint(blueprint, url_prefix="/health")
    for what in ("live", "ready", "pools"):
        assert app.test_client().get(f"/health/{what}").status_code == 403
    # The one that other apps share is as it was.
    assert get(make_app(SOCKETPOOL_FACTORY=backend.connect), "live")["ok"] is True
