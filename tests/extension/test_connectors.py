"""Apps use connectors in their configuration, requests, health checks and commands."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask

from flask_gsocketpool import (
    ConfigurationError,
    GSocketPool,
    UnreleasedConnectionWarning,
    current_connection,
    current_pool,
)
from flask_gsocketpool.config import read_config
from flask_gsocketpool.health import blueprint
from flask_gsocketpool.testing import override_pool
from gsocketpool import Pool
from gsocketpool.testing import FakePool
from tests.support.commands import run, run_json
from tests.support.scripted import Client, ScriptedConnector, eventually, numbers, raising


class Configured(ScriptedConnector):
    """Takes an option, as connectors of client libraries do."""

    def __init__(self, host: str = "localhost") -> None:
        super().__init__()
        self.host = host


CONNECTOR = Configured()


def make_app(connector: Any, **config: Any) -> Flask:
    app = Flask("app")
    app.testing = True
    app.config.update(SOCKETPOOL_FACTORY=connector, **config)
    GSocketPool(app)
    app.register_blueprint(blueprint, url_prefix="/health")
    return app


# Configuration


def test_a_connector_may_be_given_as_the_factory() -> None:
    assert read_config({"SOCKETPOOL_FACTORY": CONNECTOR})["default"].factory is CONNECTOR
    by_name = {"SOCKETPOOL_FACTORY": f"{__name__}:CONNECTOR"}
    assert isinstance(read_config(by_name)["default"].factory, Configured)
    by_class = {"SOCKETPOOL_FACTORY": Configured, "SOCKETPOOL_OPTIONS": {"host": "db"}}
    made: Any = read_config(by_class)["default"].factory
    assert (type(made), made.host) == (Configured, "db")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"FACTORY": CONNECTOR, "OPTIONS": {"host": "db"}}, "SOCKETPOOL_OPTIONS must be left out"),
        ({"FACTORY": Configured, "OPTIONS": {"hots": "db"}}, "SOCKETPOOL_OPTIONS can't be used: .*'hots'"),
        ({"FACTORY": Configured, "OPTIONS": dict}, "SOCKETPOOL_OPTIONS must map names to values for a connector"),
        ({"FACTORY": CONNECTOR, "URL": "valkey://db"}, "SOCKETPOOL_URL chooses a connector: leave out SOCKETPOOL_F"),
        ({"FACTORY": CONNECTOR, "URL": "tcp://db:1"}, "SOCKETPOOL_URL must be left out"),
        ({"FACTORY": Configured, "URL": "tcp://db:1"}, "SOCKETPOOL_URL must be left out"),
        ({"URL": "valkey://db", "OPTIONS": {"retry": 3}}, "SOCKETPOOL_OPTIONS can't be used: retry must be left out"),
        ({"URL": "valkey://db?retry=3", "OPTIONS": {"db": 1}}, "SOCKETPOOL_URL can't be used: retry must be left out"),
        ({"URL": "postgresql://me:a/b@db"}, "SOCKETPOOL_URL can't be used: conninfo must be a URL whose password is q"),
        ({"URL": "valkey://db", "OPTIONS": {1: 2}}, "SOCKETPOOL_OPTIONS can't be used: keywords must be strings"),
    ],
)
def test_keys_that_do_not_go_with_a_connector_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_config({f"SOCKETPOOL_{key}": value for key, value in config.items()})


def test_the_config_command_names_the_connector() -> None:
    shown = run_json(make_app(CONNECTOR), "config")["pools"]["default"]["factory"]
    assert shown == {"value": f"<{__name__}:Configured>", "from": "SOCKETPOOL_FACTORY"}


# Requests


def ask(app: Flask, view: Any) -> Any:
    app.add_url_rule("/", "view", view)
    app.config["PROPAGATE_EXCEPTIONS"] = False
    return app.test_client().get("/")


def begin() -> str:
    current_connection.begin()
    return "done"


def test_unfinished_work_of_a_request_is_reset_and_reported_but_not_completed() -> None:
    connector = Configured()
    app = make_app(connector)
    with pytest.warns(UnreleasedConnectionWarning, match="left work open, which is reset, not completed"):
        ask(app, begin)
    with app.app_context():
        eventually(lambda: numbers(current_pool) == (0, 1, 0, 0))
    assert connector.steps == ["reset"]


def test_unfinished_work_outside_of_a_request_is_reported_with_its_place() -> None:
    app = make_app(Configured())
    where = rf"a request or command left work open.* acquired at {re.escape(__file__)}:\d+ in begin"
    with pytest.warns(UnreleasedConnectionWarning, match=where), app.app_context():
        begin()


def test_unfinished_work_on_an_overriding_pool_is_reported_without_a_place() -> None:
    app = make_app(Configured())
    with (
        Pool(Configured()) as pool,
        override_pool(app, "default", pool),
        pytest.warns(UnreleasedConnectionWarning, match="left work open.* acquired at an unknown place"),
    ):
        ask(app, begin)


def test_a_request_without_unfinished_work_or_without_resets_is_not_warned_about() -> None:
    def complete() -> str:
        current_connection.begin()
        current_connection.is_begun = False
        return "done"

    # What is warned of would be an error here.
    for view, config in ((complete, {}), (begin, {"SOCKETPOOL_RESET": "never"})):
        connector = Configured()
        app = make_app(connector, **config)
        assert ask(app, view).text == "done"
        with app.app_context():
            assert numbers(current_pool) == (0, 1, 0, 0)
        assert connector.steps == []


def test_unfinished_work_of_a_failed_request_discards_the_connection() -> None:
    def fail() -> None:
        current_connection.begin()
        raise LookupError

    connector = Configured()
    assert ask(make_app(connector), fail).status_code == 500
    eventually(lambda: not connector.open)
    assert connector.steps == ["cancel", "close"]


def test_a_block_in_a_view_completes_its_work() -> None:
    def view() -> str:
        with current_pool.connection() as client:
            client.begin()
        return "done"

    connector = Configured()
    assert ask(make_app(connector), view).text == "done"
    assert connector.steps == ["complete"]


# Health checks and commands


def test_a_backend_that_answers_no_ping_is_not_ready() -> None:
    connector = Configured()
    app = make_app(connector)
    assert app.test_client().get("/health/ready").status_code == 200
    assert "ping" in connector.steps
    connector.acts["ping"] = raising(OSError("no answer"))
    answer = app.test_client().get("/health/ready")
    assert answer.status_code == 503
    assert answer.json is not None
    assert answer.json["pools"]["default"]["error"] == {"type": "OSError", "message": "no answer"}


def test_the_check_command_pings_the_backend() -> None:
    connector = Configured()
    app = make_app(connector)
    assert run(app, "check").exit_code == 0
    assert "ping" in connector.steps
    assert not connector.open
    connector.acts["ping"] = raising(OSError("no answer"))
    assert run_json(app, "check", status=1)["pools"]["default"]["error"]["message"] == "no answer"


def test_a_fake_pool_can_be_pinged_and_its_leases_are_settled() -> None:
    pool = FakePool(Client(0))
    pool.ping()
    lease = pool.lease()
    assert lease.is_settled
    lease.release(warn=False)
    assert pool.stats().in_use == 0
