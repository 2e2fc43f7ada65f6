"""``flask socketpool check``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from flask_gsocketpool import current_pools
from gsocketpool.testing import FlakyServer
from tests.support.commands import SECRET, make_app, run, run_json, url
from tests.support.scripted import PATIENCE, Backend, Plain, settle
from tests.support.servers import hanging_address, refusing_address, silent_listener


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


def test_check_reports_the_present_and_leaves_the_pools_of_the_app_alone() -> None:
    with FlakyServer() as server:
        app = make_app(SOCKETPOOL_URL=url(server.address))
        assert run(app, "check").exit_code == 0
        with app.app_context(), current_pools["default"].connection():
            server.fail("refuse")
            assert run_json(app, "check", status=1)["ok"] is False
            assert current_pools["default"].stats().opened == 1
        app.extensions["gsocketpool"].close()


def test_check_fails_if_one_pool_fails() -> None:
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


def test_check_is_bounded_if_the_handshake_hangs() -> None:
    with silent_listener() as silent:
        app = make_app(SOCKETPOOL_URL=f"tls://{silent[0]}:{silent[1]}")
        assert run_json(app, "check", "--timeout", "0.05", status=1)["ok"] is False


def test_check_is_bounded_if_closing_hangs(backend: Backend) -> None:
    app = make_app(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_CLOSE_TIMEOUT=1000)
    backend.closes.clear()
    assert run_json(app, "check", "--timeout", "1")["ok"] is True


class Stubborn(Plain):
    """A connection that opens, or closes, when it pleases."""

    def __init__(self, opens: Event, closes: Event) -> None:
        self.opens, self.closes = opens, closes

    def open(self) -> None:
        insist_on(self.opens)
        super().open()

    def close(self) -> None:
        insist_on(self.closes)
        super().close()


def insist_on(event: Event) -> None:
    while not event.is_set():
        with suppress(gevent.Timeout, gevent.GreenletExit):
            event.wait()


@pytest.fixture
def stubborn() -> Iterator[Stubborn]:
    stubborn = Stubborn(Event(), Event())
    yield stubborn
    stubborn.opens.set()
    stubborn.closes.set()
    settle()


def test_check_is_bounded_if_opening_ignores_interruptions(stubborn: Stubborn) -> None:
    app = make_app(SOCKETPOOL_FACTORY=lambda: stubborn)
    error = run_json(app, "check", "--timeout", "0.05", status=1)["pools"]["default"]["error"]
    assert error == {"type": "TimeoutError", "message": "not open, or no answer to a ping, after 0.05 s"}


def test_check_does_not_wait_for_a_close_that_ignores_interruptions(stubborn: Stubborn) -> None:
    stubborn.opens.set()
    app = make_app(SOCKETPOOL_FACTORY=lambda: stubborn)
    assert run_json(app, "check", "--timeout", "1")["ok"] is True
    assert stubborn.is_open, "its descriptor was not taken yet"


@pytest.mark.parametrize("timeout", ["0", "-1", "inf", "nan", "soon"])
def test_check_refuses_a_bad_timeout(backend: Backend, timeout: str) -> None:
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


def test_check_shows_no_control_characters(backend: Backend) -> None:
    app = make_app(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_OPTIONS={"path": "/run/\nsock"})
    backend.failures.append(OSError("\x1b[31mred"))
    (line,) = run(app, "check").stdout.splitlines()[1:]
    assert line.split()[1] == r'"/run/\nsock"'
    assert line.endswith(r'"OSError: \u001b[31mred"')


def test_check_fails_where_opening_raises_an_error_that_is_no_exception() -> None:
    def connect() -> None:
        raise asyncio.CancelledError("no")

    result = run(make_app(SOCKETPOOL_FACTORY=connect), "check")
    assert result.exit_code == 1
    assert "CancelledError: no" in result.stdout


def test_check_fails_for_an_app_without_pools_and_says_why() -> None:
    result = run(make_app(), "check")
    assert result.exit_code == 1
    assert "The app has no pools" in result.stderr
    assert run_json(make_app(), "check", status=1) == {"ok": False, "pools": {}}


def test_check_masks_secrets_that_a_callable_returns(backend: Backend) -> None:
    app = make_app(
        SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_OPTIONS=lambda: {"password": SECRET, "host": "db", "port": 1}
    )
    backend.failures.append(OSError(f"{SECRET} is wrong"))
    found = run_json(app, "check", status=1)["pools"]["default"]
    assert found["error"]["message"] == "*** is wrong"
    assert found["address"] == "db:1"
