"""``flask socketpool``: check, config and bench."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from click.testing import Result
from flask import Flask, current_app

from flask_gsocketpool import GSocketPool, commands, current_pools
from gsocketpool import TcpConnection
from gsocketpool.testing import FlakyServer
from tests.lines import LineServer
from tests.lines import server as server
from tests.scripted import PATIENCE, Backend, settle
from tests.servers import hanging_address, refusing_address, silent_listener

SECRET = "hunter2"


def make_app(**config: Any) -> Flask:
    app = Flask("app")
    app.config.update(config)
    GSocketPool(app)
    return app


def run(app: Flask, *args: str) -> Result:
    with gevent.Timeout(PATIENCE):
        result = app.test_cli_runner().invoke(args=["socketpool", *args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def run_json(app: Flask, *args: str, status: int = 0) -> Any:
    result = run(app, *args, "--json")
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def url(address: tuple[str, int]) -> str:
    return f"tcp://{address[0]}:{address[1]}"


# check


def test_check_opens_one_connection_of_each_pool_and_closes_it(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with FlakyServer() as tcp, FlakyServer(path=path) as unix:
        app = make_app(
            SOCKETPOOL_URL=url(tcp.address),
            SOCKETPOOL_INITIAL_CONNECTIONS=3,
            SOCKETPOOL_MIN_CONNECTIONS=2,
            SOCKETPOOL_POOLS={"cache": {"url": f"unix://{path}"}},
        )
        result = run(app, "check")
        for one in (tcp, unix):
            one.wait_until(lambda one=one: [served.end for served in one.connections] == ["closed"])
        address = f"127.0.0.1:{tcp.port}"
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["pool", "address", "time", "result"]
    assert [[*line[:2], *line[3:]] for line in lines[1:]] == [
        ["default", address, "ms", "ok"],
        ["cache", path, "ms", "ok"],
    ]


def test_check_says_what_is_so_now_and_leaves_the_apps_pools_alone() -> None:
    with FlakyServer() as server:
        app = make_app(SOCKETPOOL_URL=url(server.address))
        assert run(app, "check").exit_code == 0
        with app.app_context(), current_pools["default"].connection():
            server.fail("refuse")
            assert run_json(app, "check", status=1)["ok"] is False
            assert current_pools["default"].stats().opened == 1
        app.extensions["gsocketpool"].close()


def test_check_fails_where_one_pool_does() -> None:
    with FlakyServer() as server, refusing_address() as refusing:
        app = make_app(SOCKETPOOL_URL=url(server.address), SOCKETPOOL_POOLS={"down": {"url": url(refusing)}})
        result = run(app, "check")
        found = run_json(app, "check", status=1)
    assert result.exit_code == 1
    _, good, bad = result.stdout.splitlines()
    assert good.endswith("ok")
    assert "ConnectionRefusedError" in bad
    assert found["pools"]["default"]["ok"] is True
    assert found["pools"]["default"]["error"] is None
    assert found["pools"]["down"]["ok"] is False
    assert found["pools"]["down"]["address"] == f"127.0.0.1:{refusing[1]}"
    assert found["pools"]["down"]["error"]["type"] == "ConnectionRefusedError"
    assert found["ok"] is False


@pytest.mark.parametrize("by_option", [True, False])
def test_check_is_bounded_in_time(by_option: bool) -> None:
    with hanging_address() as hanging:
        app = make_app(SOCKETPOOL_URL=url(hanging), SOCKETPOOL_OPEN_TIMEOUT="1000" if by_option else "0.05")
        found = run_json(app, "check", *(["--timeout", "0.05"] if by_option else []), status=1)
    assert found["pools"]["default"]["error"]["type"] == "TimeoutError"
    assert "0.05 s" in found["pools"]["default"]["error"]["message"]


def test_check_is_bounded_where_the_handshake_hangs() -> None:
    with silent_listener() as silent:
        app = make_app(SOCKETPOOL_URL=f"tls://{silent[0]}:{silent[1]}")
        assert run_json(app, "check", "--timeout", "0.05", status=1)["ok"] is False


def test_check_is_bounded_where_closing_hangs(backend: Backend) -> None:
    app = make_app(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_CLOSE_TIMEOUT=1000)
    backend.closes.clear()
    assert run_json(app, "check", "--timeout", "0.05")["ok"] is True


@pytest.mark.parametrize("timeout", ["0", "-1", "inf", "nan", "soon"])
def test_check_takes_a_number_of_seconds(backend: Backend, timeout: str) -> None:
    result = run(make_app(SOCKETPOOL_FACTORY=backend.connect), "check", "--timeout", timeout)
    assert result.exit_code == 2
    assert "--timeout" in result.stderr


def test_check_tries_all_pools_at_the_same_time(backend: Backend) -> None:
    pool = {"factory": backend.connect}
    app = make_app(SOCKETPOOL_POOLS={"one": pool, "two": pool, "three": pool})
    backend.opens.clear()
    checking = gevent.spawn(run, app, "check")
    settle()
    assert len(backend.connections) == 3
    backend.opens.set()
    assert checking.get(timeout=PATIENCE).exit_code == 0
    assert not backend.open


def test_check_shows_no_secret_of_an_error(backend: Backend) -> None:
    app = make_app(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_OPTIONS={"password": SECRET, "host": "db"})
    backend.failures += [OSError(f"{SECRET!r} is wrong,\n sorry")] * 2
    result = run(app, "check")
    assert result.stdout.splitlines()[1].endswith("OSError: '***' is wrong, sorry")
    assert SECRET not in result.output
    assert SECRET not in run(app, "check", "--json").output


def test_check_of_an_app_without_pools_fails_and_says_why() -> None:
    result = run(make_app(), "check")
    assert result.exit_code == 1
    assert "The app has no pools" in result.stderr
    assert run_json(make_app(), "check", status=1) == {"ok": False, "pools": {}}


def test_check_knows_the_secrets_that_a_callable_returns(backend: Backend) -> None:
    app = make_app(
        SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_OPTIONS=lambda: {"password": SECRET, "host": "db", "port": 1}
    )
    backend.failures.append(OSError(f"{SECRET} is wrong"))
    found = run_json(app, "check", status=1)["pools"]["default"]
    assert found["error"]["message"] == "*** is wrong"
    assert found["address"] == "db:1"


# config


def options() -> dict[str, str]:
    raise AssertionError("nobody asks for these")


def seconds_for(request: object) -> float:
    return 1.0


def test_config_tells_where_each_setting_comes_from(backend: Backend) -> None:
    app = make_app(
        SOCKETPOOL_URL="tcp://db.example:2000?timeout=2",
        SOCKETPOOL_OPTIONS={"lifetime": 60},
        SOCKETPOOL_MAX_CONNECTIONS="7",
        SOCKETPOOL_REQUEST_TIMEOUT=seconds_for,
        SOCKETPOOL_POOLS={"cache": {"factory": "tests.scripted:Plain", "idle_timeout": 30, "options": options}},
    )
    found = run_json(app, "config")
    assert found["app"] == {
        "drain_timeout": {"value": None, "from": "default"},
        "request_timeout": {"value": "tests.test_commands:seconds_for", "from": "SOCKETPOOL_REQUEST_TIMEOUT"},
    }
    default, cache = found["pools"]["default"], found["pools"]["cache"]
    assert default["url"] == {"value": "tcp://db.example:2000?timeout=2", "from": "SOCKETPOOL_URL"}
    assert default["factory"] == {"value": "gsocketpool.connection:TcpConnection", "from": "SOCKETPOOL_URL"}
    assert default["options"] == {
        "value": {"host": "db.example", "port": 2000, "timeout": 2, "lifetime": 60},
        "from": "SOCKETPOOL_URL and SOCKETPOOL_OPTIONS",
    }
    assert default["max_connections"] == {"value": 7, "from": "SOCKETPOOL_MAX_CONNECTIONS"}
    assert default["acquire_timeout"] == {"value": 5.0, "from": "default"}
    assert default["name"] == {"value": "default", "from": "default"}
    assert cache["factory"] == {"value": "tests.scripted:Plain", "from": "SOCKETPOOL_POOLS['cache']['factory']"}
    assert cache["idle_timeout"] == {"value": 30, "from": "SOCKETPOOL_POOLS['cache']['idle_timeout']"}
    assert cache["options"]["value"] == "what tests.test_commands:options returns"
    assert "url" not in cache

    lines = [line.split() for line in run(app, "config").stdout.splitlines()]
    assert ["max_connections", "7", "SOCKETPOOL_MAX_CONNECTIONS"] in lines
    assert ["acquire_timeout", "5.0", "default"] in lines
    assert ["host", "db.example"] in lines
    assert ["pool", "cache"] in lines


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


def test_config_of_an_app_without_pools() -> None:
    result = run(make_app(SOCKETPOOL_DRAIN_TIMEOUT=3), "config")
    assert result.exit_code == 0
    assert "SOCKETPOOL_DRAIN_TIMEOUT" in result.stdout
    assert "The app has no pools" in result.stderr


# bench

QUICK = ("--seconds", "0.02", "--greenlets", "3")


def exchange_once(connection: Any) -> None:
    """An exchange for ``--exchange``, which needs the app's context."""
    assert current_app.name == "app"
    assert connection.is_open
    gevent.sleep(0)


def exchange_badly(connection: Any) -> None:
    raise OSError(f"password={SECRET}")


def exchange_for_ever(connection: Any) -> None:
    gevent.sleep(PATIENCE * 10)


def test_bench_measures_a_pool_of_its_own(backend: Backend) -> None:
    app = make_app(
        SOCKETPOOL_FACTORY=backend.connect,
        SOCKETPOOL_OPTIONS={"host": "db", "port": 1},
        SOCKETPOOL_MAX_CONNECTIONS=2,
        SOCKETPOOL_MAX_WAITING=0,
        SOCKETPOOL_ACQUIRE_TIMEOUT=0,
    )
    found = run_json(app, "bench", *QUICK)
    assert found.pop("opened_per_second") > 0
    assert found.pop("acquired_per_second") > 0
    assert found == {"pool": "default", "address": "db:1", "seconds": 0.02, "greenlets": 3}
    assert backend.most_open == 2
    assert not backend.open
    assert not app.extensions["gsocketpool"].made()


def test_bench_runs_an_exchange(backend: Backend) -> None:
    app = make_app(SOCKETPOOL_POOLS={"only": {"factory": backend.connect}})
    arguments = "bench", *QUICK, "--exchange", "tests.test_commands:exchange_once"
    found = run_json(app, *arguments)
    assert found["pool"] == "only"
    assert found["exchanges_per_second"] > 0
    assert 0 < found["p50_seconds"] <= found["p99_seconds"]
    result = run(app, *arguments)
    assert result.exit_code == 0
    assert [line.split("  ")[0] for line in result.stdout.splitlines()[1:]] == [
        "opened",
        "acquired and released",
        "exchanged",
        "p50",
        "p99",
    ]
    assert not result.stderr


def test_percentiles() -> None:
    times = [float(number) for number in range(200, 0, -1)]
    assert commands._percentile(times, 50) == 100
    assert commands._percentile(times, 99) == 198
    assert commands._percentile([7.0], 99) == 7


def test_bench_of_a_backend_that_refuses() -> None:
    with refusing_address() as refusing:
        app = make_app(SOCKETPOOL_URL=url(refusing))
        assert run_json(app, "bench", *QUICK, status=1)["error"]["type"] == "ConnectionRefusedError"
        result = run(app, "bench", *QUICK)
    assert result.exit_code == 1
    assert "ConnectionRefusedError" in result.stderr


def test_bench_ends_at_an_exchange_that_fails(backend: Backend) -> None:
    app = make_app(SOCKETPOOL_FACTORY=backend.connect)
    arguments = *QUICK, "--exchange", "tests.test_commands:exchange_badly"
    found = run_json(app, "bench", *arguments, status=1)
    assert found["acquired_per_second"] > 0
    assert found["error"] == {"type": "OSError", "message": "password=***"}
    assert not backend.open


def test_bench_ends_though_an_exchange_does_not(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "GRACE", 0.02)
    app = make_app(SOCKETPOOL_FACTORY=backend.connect)
    arguments = *QUICK, "--exchange", "tests.test_commands:exchange_for_ever"
    error = run_json(app, "bench", *arguments, status=1)["error"]
    assert error["message"] == "exchanging: 3 of 3 were still under way 0.02 s after the end"
    assert not backend.open


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Say which pool by --pool: one, two"),
        (["--pool", "three"], "no pool 'three' (pools: one, two)"),
        (["--pool", "one", "--exchange", "tests.nowhere:function"], "'tests.nowhere:function' can't be imported"),
        (["--pool", "one", "--exchange", "tests.scripted:PATIENCE"], "must name a function"),
        (["--pool", "one", "--greenlets", "0"], "--greenlets"),
        (["--pool", "one", "--seconds", "inf"], "--seconds"),
    ],
)
def test_bench_refuses_what_it_can_not_do(backend: Backend, arguments: list[str], complaint: str) -> None:
    pool = {"factory": backend.connect}
    result = run(make_app(SOCKETPOOL_POOLS={"one": pool, "two": pool}), "bench", *arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.split())
    assert not backend.connections


def test_bench_of_an_app_without_pools() -> None:
    result = run(make_app(), "bench")
    assert result.exit_code == 1
    assert "The app has no pools" in result.stderr


# The real command

APP = """
from gevent import monkey
from flask import Flask
from flask_gsocketpool import GSocketPool

app = Flask(__name__)
app.config.from_prefixed_env()
GSocketPool(app)
assert not monkey.saved

def exchange(connection):
    connection.send(b"hello\\n")
    assert connection.recv_until(b"\\n") == b"hello\\n"
"""


def flask(tmp_path: Path, server: LineServer, *arguments: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    (tmp_path / "site_of_tests.py").write_text(APP)
    return subprocess.run(
        [sys.executable, "-X", "dev", "-m", "flask", "--app", "site_of_tests", "socketpool", *arguments],
        cwd=tmp_path,
        env={**os.environ, "FLASK_SOCKETPOOL_URL": f"tcp://127.0.0.1:{server.port}", "TERM": "xterm"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE * 3,
        **streams,
    )


def test_the_flask_command_without_patching(tmp_path: Path, server: LineServer) -> None:
    done = flask(tmp_path, server, "check", stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"127.0.0.1:{server.port}" in done.stdout
    server.stop()
    done = flask(tmp_path, server, "check", "--json", stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["pools"]["default"]["error"]["type"] == "ConnectionRefusedError"
    server.restart()


def test_progress_is_shown_on_a_terminal_alone(tmp_path: Path, server: LineServer) -> None:
    arguments = "bench", "--seconds", "0.2", "--exchange", "site_of_tests:exchange", "--json"
    master, terminal = pty.openpty()
    try:
        done = flask(tmp_path, server, *arguments, stderr=terminal)
        shown = os.read(master, 65536).decode()
    finally:
        os.close(master)
        os.close(terminal)
    assert done.returncode == 0, shown
    assert json.loads(done.stdout)["exchanges_per_second"] > 0
    assert "opening" in shown
    assert "100%" in shown
    done = flask(tmp_path, server, *arguments, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert TcpConnection.__name__ not in done.stdout
