"""``flask socketpool bench``."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from flask import current_app

from flask_gsocketpool.cli import bench
from tests.support.commands import SECRET, make_app, run, run_json, url
from tests.support.scripted import PATIENCE, Backend
from tests.support.servers import refusing_address

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
    # Each of the greenlets may have one that is being closed.
    assert 2 <= backend.most_open <= 5
    assert not backend.open
    assert not app.extensions["gsocketpool"].started()


def test_bench_runs_an_exchange_and_shows_its_percentiles(backend: Backend) -> None:
    app = make_app(SOCKETPOOL_POOLS={"only": {"factory": backend.connect}})
    arguments = "bench", *QUICK, "--exchange", f"{__name__}:exchange_once"
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


def test_percentiles_are_taken_from_the_sorted_times() -> None:
    # The times that the command prints are real ones, which no test can foresee.
    times = [float(number) for number in range(200, 0, -1)]
    assert bench._percentile(times, 50) == 100
    assert bench._percentile(times, 99) == 198
    assert bench._percentile([7.0], 99) == 7


def test_bench_reports_a_backend_that_refuses_connections() -> None:
    with refusing_address() as refusing:
        app = make_app(SOCKETPOOL_URL=url(refusing))
        assert run_json(app, "bench", *QUICK, status=1)["error"]["type"] == "ConnectionRefusedError"
        result = run(app, "bench", *QUICK)
    assert result.exit_code == 1
    assert "ConnectionRefusedError" in result.stderr


def test_bench_shows_no_control_characters(backend: Backend) -> None:
    app = make_app(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_OPTIONS={"path": "/run/\nsock"})
    backend.failures += [OSError("\x1b[31mred")] * 3
    result = run(app, "bench", *QUICK)
    assert result.stdout == "pool 'default' to \"/run/\\nsock\", 3 greenlets, 0.02 s each\n"
    assert result.stderr == '"OSError: \\u001b[31mred"\n'


def test_bench_ends_at_the_first_exchange_that_fails(backend: Backend) -> None:
    app = make_app(SOCKETPOOL_FACTORY=backend.connect)
    arguments = *QUICK, "--exchange", f"{__name__}:exchange_badly"
    found = run_json(app, "bench", *arguments, status=1)
    assert found["acquired_per_second"] > 0
    assert found["error"] == {"type": "OSError", "message": "password=***"}
    assert not backend.open


def test_bench_ends_even_if_an_exchange_hangs(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "GRACE", 0.02)
    app = make_app(SOCKETPOOL_FACTORY=backend.connect)
    arguments = *QUICK, "--exchange", f"{__name__}:exchange_for_ever"
    error = run_json(app, "bench", *arguments, status=1)["error"]
    assert error["message"] == "exchanging: 3 of 3 greenlets were still working 0.02 s after the end"
    assert not backend.open


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Choose a pool with --pool: one, two"),
        (["--pool", "three"], "no pool 'three' (pools: one, two)"),
        (["--pool", "one", "--exchange", "tests.nowhere:function"], "'tests.nowhere:function' can't be imported"),
        (["--pool", "one", "--exchange", "tests.support.scripted:PATIENCE"], "must name a function"),
        (["--pool", "one", "--greenlets", "0"], "--greenlets"),
        (["--pool", "one", "--seconds", "inf"], "--seconds"),
    ],
)
def test_bench_refuses_bad_arguments(backend: Backend, arguments: list[str], complaint: str) -> None:
    pool = {"factory": backend.connect}
    result = run(make_app(SOCKETPOOL_POOLS={"one": pool, "two": pool}), "bench", *arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.split())
    assert not backend.connections


def test_bench_fails_for_an_app_without_pools() -> None:
    result = run(make_app(), "bench")
    assert result.exit_code == 1
    assert "The app has no pools" in result.stderr
