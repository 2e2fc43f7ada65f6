"""``flask socketpool config``."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support.commands import SECRET, make_app, run, run_json
from tests.support.scripted import Backend


def options() -> dict[str, str]:
    raise AssertionError("these are never asked for")


def seconds_for(request: object) -> float:
    return 1.0


def test_config_shows_where_each_setting_comes_from(backend: Backend) -> None:
    app = make_app(
        SOCKETPOOL_URL="tcp://db.example:2000?timeout=2",
        SOCKETPOOL_OPTIONS={"lifetime": 60},
        SOCKETPOOL_MAX_CONNECTIONS="7",
        SOCKETPOOL_REQUEST_TIMEOUT=seconds_for,
        SOCKETPOOL_POOLS={"cache": {"factory": "tests.support.scripted:Plain", "idle_timeout": 30, "options": options}},
    )
    found = run_json(app, "config")
    assert found["app"] == {
        "drain_timeout": {"value": None, "from": "default"},
        "request_timeout": {
            "value": f"{__name__}:seconds_for",
            "from": "SOCKETPOOL_REQUEST_TIMEOUT",
        },
    }
    default, cache = found["pools"]["default"], found["pools"]["cache"]
    assert default["url"] == {"value": "tcp://db.example:2000?timeout=2", "from": "SOCKETPOOL_URL"}
    assert default["factory"] == {"value": "gsocketpool.connection.tcp:TcpConnection", "from": "SOCKETPOOL_URL"}
    assert default["options"] == {
        "value": {"host": "db.example", "port": 2000, "timeout": 2, "lifetime": 60},
        "from": "SOCKETPOOL_URL and SOCKETPOOL_OPTIONS",
    }
    assert default["max_connections"] == {"value": 7, "from": "SOCKETPOOL_MAX_CONNECTIONS"}
    assert default["acquire_timeout"] == {"value": 5.0, "from": "default"}
    assert default["name"] == {"value": "default", "from": "default"}
    assert cache["factory"] == {"value": "tests.support.scripted:Plain", "from": "SOCKETPOOL_POOLS['cache']['factory']"}
    assert cache["idle_timeout"] == {"value": 30, "from": "SOCKETPOOL_POOLS['cache']['idle_timeout']"}
    assert cache["options"]["value"] == f"what {__name__}:options returns"
    assert "url" not in cache

    lines = [line.split() for line in run(app, "config").stdout.splitlines()]
    assert ["max_connections", "7", "SOCKETPOOL_MAX_CONNECTIONS"] in lines
    assert ["acquire_timeout", "5.0", "default"] in lines
    assert ["host", "db.example"] in lines
    assert ["pool", "cache"] in lines


def test_config_shows_the_classes_of_connectors_and_urls_without_secrets() -> None:
    urls = {"db": f"postgresql://me:{SECRET}@localhost/app", "cache": f"valkey://:{SECRET}@localhost:6379/0"}
    app = make_app(SOCKETPOOL_POOLS={name: {"url": url} for name, url in urls.items()})
    found = run_json(app, "config")["pools"]
    assert found["db"]["factory"]["value"] == "<gsocketpool.connectors.psycopg:PsycopgConnector>"
    assert found["cache"]["factory"]["value"] == "<gsocketpool.connectors.valkey:ValkeyConnector>"
    assert found["db"]["url"]["value"] == "postgresql://***@localhost/app"
    assert found["cache"]["url"]["value"] == "valkey://***@localhost:6379/0"
    shown = run(app, "config").stdout
    assert "gsocketpool.connectors.psycopg:PsycopgConnector" in shown
    assert SECRET not in shown


def test_config_marks_a_default_timeout() -> None:
    urls = {"short": "tcp://localhost:2000", "long": "tcp://localhost:2000?timeout=20"}
    found = run_json(make_app(SOCKETPOOL_POOLS={name: {"url": url} for name, url in urls.items()}), "config")["pools"]
    assert found["short"]["options"]["value"]["timeout"] == 10
    assert found["short"]["options"]["from"] == "SOCKETPOOL_POOLS['short']['url'] and default"
    assert found["long"]["options"]["from"] == "SOCKETPOOL_POOLS['long']['url']"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_config_shows_no_secret(backend: Backend, form: list[str]) -> None:
    class Client:
        def __repr__(self) -> str:
            return SECRET

    def connect(**options: object) -> object:
        raise AssertionError

    secrets = {
        "password": SECRET,
        "db_passwd": SECRET,
        "clientSecret": SECRET,
        "AUTH": ("me", SECRET),
        "api-key": SECRET,
        "credentials": {"user": SECRET},
        "access_token": SECRET.encode(),
        "nested": {"deep": [{"password": SECRET}]},
        "target": f"postgres://me:{SECRET}@db/name",
        "line": f"host=db password={SECRET}",
        "client": Client(),
        "call": partial(connect, password=SECRET),
    }
    app = make_app(
        SOCKETPOOL_FACTORY=partial(connect, password=SECRET),
        SOCKETPOOL_OPTIONS=secrets,
        SOCKETPOOL_POOLS={
            "url": {
                "url": f"tcp://db:2000?pass%77ord={SECRET}&timeout=3&extra=%7B%22password%22%3A%22{SECRET}%22%7D",
                "factory": connect,
            }
        },
    )
    result = run(app, "config", *form)
    assert result.exit_code == 0
    assert SECRET not in result.output
    assert result.output.count("***") > len(secrets) / 2
    assert "tcp://db:2000?pass%77ord=***&timeout=3&extra=***" in result.output


def test_config_prints_each_setting_on_one_line(backend: Backend) -> None:
    app = make_app(
        SOCKETPOOL_FACTORY=backend.connect,
        SOCKETPOOL_OPTIONS={"greeting": "hello\n  there", "bell": "\x07\x7f\udcff", "key\rboard": 1, "name": "é à"},
        SOCKETPOOL_POOLS={"a\nb": {"factory": backend.connect}},
    )
    output = run(app, "config").stdout
    assert all(line.isprintable() for line in output.split("\n"))
    lines = [" ".join(line.split()) for line in output.splitlines()]
    assert r'greeting "hello\n there"' in lines
    assert r'bell "\u0007\u007f\udcff"' in lines
    assert r'"key\rboard" ***' in lines
    assert "name é à" in lines
    assert r'pool "a\nb"' in lines
    assert run_json(app, "config")["pools"]["default"]["options"]["value"]["greeting"] == "hello\n  there"


def test_config_reports_an_app_without_pools() -> None:
    result = run(make_app(SOCKETPOOL_DRAIN_TIMEOUT=3), "config")
    assert result.exit_code == 0
    assert "SOCKETPOOL_DRAIN_TIMEOUT" in result.stdout
    assert "The app has no pools" in result.stderr
