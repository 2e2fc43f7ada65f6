"""Errors and log lines of the extension name the cause, the app and the pool, and what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask

from flask_gsocketpool import ConfigurationError, GSocketPool, current_pool, current_pools
from flask_gsocketpool.gunicorn import post_worker_init
from gsocketpool import PoolExhaustedError
from tests.support.processes import run_python
from tests.support.scripted import PATIENCE, Backend, eventually

TOO_LONG = 1000


def make_app(factory: Callable[..., Any], **config: Any) -> Flask:
    app = Flask("shop")
    app.config.update(SOCKETPOOL_FACTORY=factory, SOCKETPOOL_MAX_CONNECTIONS=1, **config)
    GSocketPool(app)
    return app


# The time of a request


def error_in_a_request(app: Flask, **acquire: Any) -> str:
    """Return what the error says of a request that acquires a second connection, twice, where there is one."""

    @app.get("/")
    def view() -> str:
        for _ in range(2):
            with pytest.raises(PoolExhaustedError) as caught:
                current_pool.acquire(**acquire)
            said.append(str(caught.value))
        return "done"

    said: list[str] = []
    with app.app_context():
        pool: Any = current_pool._get_current_object()  # type: ignore[attr-defined]
    held = pool.acquire()
    assert app.test_client().get("/").text == "done"
    pool.release(held)
    return "\n".join(said)


@pytest.mark.parametrize("given", [0.03, lambda request: 0.03], ids=["seconds", "callable"])
def test_an_error_names_a_used_up_request_timeout_with_its_seconds(backend: Backend, given: Any) -> None:
    app = make_app(backend.connect, SOCKETPOOL_REQUEST_TIMEOUT=given, SOCKETPOOL_ACQUIRE_TIMEOUT=TOO_LONG)
    while_waiting, from_the_beginning = error_in_a_request(app).splitlines()
    for said in while_waiting, from_the_beginning:
        assert "SOCKETPOOL_REQUEST_TIMEOUT" in said
        assert re.search(r"\b0\.03\b", said)


def test_an_error_does_not_name_a_request_timeout_that_is_not_used_up(backend: Backend) -> None:
    app = make_app(backend.connect, SOCKETPOOL_REQUEST_TIMEOUT=TOO_LONG)
    assert "SOCKETPOOL_REQUEST_TIMEOUT" not in error_in_a_request(app, timeout=0.001)


# The hook of a worker


def start_worker(wsgi: Any) -> None:
    """Run the hook, as gunicorn does, for a worker that serves `wsgi`."""
    worker = SimpleNamespace(wsgi=wsgi, pid=os.getpid(), alive=False, timeout=30, notify=lambda: None)
    post_worker_init(worker, timeout=0.05)


def test_the_hook_for_a_plain_app_says_to_register_the_extension(caplog: pytest.LogCaptureFixture) -> None:
    start_worker(Flask("shop"))
    (record,) = caplog.records
    assert "GSocketPool(app)" in record.getMessage()
    assert "shop" in record.getMessage()


# The log


def answer_503(app: Flask, times: int = 1) -> None:
    """Let requests fail that need a connection where all are in use."""

    @app.get("/")
    def view() -> str:
        with current_pool.connection(timeout=0):
            return ""

    with app.app_context(), current_pool.connection():
        for _ in range(times):
            assert app.test_client().get("/").status_code == 503


def forget_a_connection(app: Flask) -> None:
    @app.get("/forget")
    def forget() -> str:
        current_pool.acquire()
        return "forgotten"

    assert app.test_client().get("/forget").text == "forgotten"


def fill_in_vain(app: Flask) -> None:
    start_worker(app)
    with app.app_context():
        current_pool.close()


@pytest.mark.parametrize(
    ("complaint", "complain"),
    [
        ("answered 503", answer_503),
        ("has not given back", forget_a_connection),
        ("is not filled", fill_in_vain),
    ],
    ids=["503", "not given back", "not filled"],
)
def test_each_log_line_names_its_app_and_pool(
    backend: Backend, caplog: pytest.LogCaptureFixture, complaint: str, complain: Callable[[Flask], None]
) -> None:
    app = make_app(backend.connect, SOCKETPOOL_MIN_CONNECTIONS=1 if complain is fill_in_vain else 0)
    if complain is fill_in_vain:
        backend.failures += [OSError("down")] * 100
    complain(app)
    said = [record.getMessage() for record in caplog.records if complaint in record.getMessage()]
    assert len(said) == 1
    assert "'default'" in said[0]
    assert "shop" in said[0]


def test_successive_requests_answered_503_are_logged_once(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    answer_503(make_app(backend.connect), times=5)
    assert sum("answered 503" in record.getMessage() for record in caplog.records) == 1


def test_requests_answered_503_are_logged_once_for_each_pool(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    pools = {name: {"factory": backend.connect, "max_connections": 1} for name in ("cache", "search")}
    app = make_app(backend.connect, SOCKETPOOL_POOLS=pools)

    @app.get("/<name>")
    def view(name: str) -> str:
        with current_pools[name].connection(timeout=0):
            return ""

    with app.app_context(), current_pools["cache"].connection(), current_pools["search"].connection():
        for name in ("cache", "search") * 3:
            assert app.test_client().get(f"/{name}").status_code == 503
    cache, search = (record.getMessage() for record in caplog.records)
    assert "'cache'" in cache
    assert "'search'" in search


def test_successive_failures_to_fill_a_pool_are_logged_once(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(backend.connect, SOCKETPOOL_MIN_CONNECTIONS=1)
    backend.failures += [OSError("down")] * 100
    with app.app_context():
        eventually(lambda: current_pool.stats().open_errors >= 3)
        current_pool.close()
    assert sum("down" in record.getMessage() for record in caplog.records) == 1


def log_of(program: str) -> tuple[list[str], list[str]]:
    """Return what a program writes to its standard output and error. Its `ask()` has an app answer 503."""
    prelude = """
import time
late = [0.0]
class Late:
    def __init__(self, clock): self.clock = clock
    def __call__(self): return self.clock() + late[0]
# Before anything is imported that reads the time.
time.monotonic, time.time = Late(time.monotonic), Late(time.time)
import logging, os
from flask import Flask
from gsocketpool import Connection
from flask_gsocketpool import GSocketPool, current_pool
class Nowhere(Connection):
    is_open = False
    def open(self): self.is_open = True
    def close(self): self.is_open = False
    def is_connected(self): return self.is_open
app = Flask("shop")
app.config.update(SOCKETPOOL_FACTORY=Nowhere, SOCKETPOOL_MAX_CONNECTIONS=1)
GSocketPool(app)
@app.get("/")
def view():
    with current_pool.connection(timeout=0):
        return ""
def ask(times=1):
    with app.app_context(), current_pool.connection():
        for _ in range(times):
            assert app.test_client().get("/").status_code == 503
"""
    done = run_python(prelude + program, patience=3 * PATIENCE)
    # No assertion, for it is no promise that is broken then.
    if done.returncode or "Traceback" in done.stderr:
        raise RuntimeError(done.stderr)
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_a_log_line_has_its_time_and_level_if_logging_is_not_configured() -> None:
    _, errors = log_of("ask()")
    (line,) = errors
    assert re.match(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\] WARNING in \w+: .*answered 503", line)


def test_a_configuration_of_logging_is_left_alone() -> None:
    _, errors = log_of("""
logging.basicConfig(format="%(name)s says: %(message)s")
ask()
""")
    (line,) = errors
    assert line.startswith("gsocketpool says: ")
    assert "answered 503" in line


def test_log_lines_that_were_held_back_are_counted_in_the_next_one() -> None:
    lines, _ = log_of("""
handler = logging.StreamHandler(os.fdopen(1, "w", closefd=False))
logging.basicConfig(handlers=[handler], format="%(message)s")
ask(5)
late[0] = 11
ask()
""")
    assert len(lines) == 2
    first, second = lines
    # Those that were held back, or all since the first line, or all there were.
    assert re.search(r"\b[456]\b", second)
    assert not re.search(r"\b[456]\b", first)


# The configuration


def refusal(**config: Any) -> ConfigurationError:
    app = Flask("shop")
    app.config.update({f"SOCKETPOOL_{key}": value for key, value in config.items()})
    with pytest.raises(ConfigurationError) as caught:
        GSocketPool(app)
    return caught.value


@pytest.mark.parametrize("option", ["timeout", "host", "port"])
def test_a_connection_option_among_the_keys_is_refused_with_its_proper_place(option: str) -> None:
    key = option.upper()
    error = refusal(URL="tcp://localhost:2000", **{key: "1"})
    assert error.key == f"SOCKETPOOL_{key}"
    assert "connection" in error.problem
    assert "SOCKETPOOL_OPTIONS" in error.problem
    named = refusal(POOLS={"cache": {"url": "tcp://localhost:2000", option: "1"}})
    assert named.key == f"SOCKETPOOL_POOLS['cache'][{option!r}]"
    assert "connection" in named.problem
    assert "SOCKETPOOL_POOLS['cache']['options']" in named.problem


@pytest.mark.parametrize(
    "url",
    [
        "amqp://localhost:6379/0",
        "amqp://:hunter2@localhost:6379/0",
        "mongodb://localhost/shop",
        "mongodb://me:hunter2@localhost/shop",
    ],
)
def test_a_url_of_an_unknown_client_library_is_refused_with_the_key_to_set_instead(url: str) -> None:
    error = refusal(URL=url)
    assert error.key == "SOCKETPOOL_URL"
    assert "hunter2" not in str(error)
    assert url.partition(":")[0] in error.problem
    assert re.search(r"\bset SOCKETPOOL_(?!URL\b)[A-Z]+", error.problem)
