"""The hooks for gunicorn.conf.py, called for made-up workers and in real ones."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_gsocketpool import GSocketPool, current_pool, current_pools
from flask_gsocketpool.gunicorn import _apps_of, post_worker_init, worker_exit
from gsocketpool import InvalidArgumentError, PoolClosedError
from tests.support import gunicorn as gunicorn_support
from tests.support.documents import ROOT, blocks
from tests.support.gunicorn import Start, gunicorns, results
from tests.support.internals import after_fork
from tests.support.scripted import Backend, eventually, numbers

pytestmark = pytest.mark.servers

TOO_LONG = 1000


def make_app(backend: Backend, name: str = "site", **config: Any) -> Flask:
    site = Flask(name)
    site.config.update(SOCKETPOOL_FACTORY=backend.connect, **config)
    GSocketPool(site)
    return site


@pytest.fixture
def site(backend: Backend) -> Iterator[Flask]:
    site = make_app(backend, SOCKETPOOL_MIN_CONNECTIONS=2)
    yield site
    site.extensions["gsocketpool"].close()


class Worker(SimpleNamespace):
    """What the hooks see of a worker of gunicorn's."""

    def __init__(self, wsgi: Any, **more: Any) -> None:
        super().__init__(**{"wsgi": wsgi, "pid": os.getpid(), "timeout": 15, "alive": False, "notified": 0, **more})

    def notify(self) -> None:
        self.notified += 1


def pool_numbers(site: Flask, name: str = "default") -> tuple[int, int, int, int]:
    with site.app_context():
        return numbers(current_pools[name])


# Filling


def test_post_worker_init_makes_and_fills_all_pools(backend: Backend) -> None:
    more = {
        "warm": {"factory": backend.connect, "initial_connections": 3},
        "cold": {"factory": backend.connect},
    }
    site = make_app(backend, SOCKETPOOL_MIN_CONNECTIONS=2, SOCKETPOOL_POOLS=more)
    worker = Worker(site)
    post_worker_init(worker)
    assert worker.notified
    assert len(backend.open) == 5
    assert pool_numbers(site) == (0, 2, 0, 0)
    assert pool_numbers(site, "warm") == (0, 3, 0, 0)
    assert pool_numbers(site, "cold") == (0, 0, 0, 0)
    worker_exit(None, worker)
    assert not backend.open


def test_post_worker_init_fills_pools_that_were_made_before_the_fork(backend: Backend) -> None:
    site = make_app(backend, SOCKETPOOL_INITIAL_CONNECTIONS=3)
    with site.app_context():
        # A fork leaves this of the pool of an app that was used in the master.
        after_fork(current_pool._get_current_object())  # type: ignore[attr-defined]
        assert current_pool.size == 0
    post_worker_init(Worker(site))
    assert pool_numbers(site) == (0, 3, 0, 0)
    post_worker_init(Worker(site))
    assert pool_numbers(site) == (0, 3, 0, 0)


@pytest.mark.parametrize("setting", ["MIN", "INITIAL"])
def test_a_pool_that_can_not_be_filled_is_logged_and_the_worker_starts(
    backend: Backend, caplog: pytest.LogCaptureFixture, setting: str
) -> None:
    config: dict[str, Any] = {f"SOCKETPOOL_{setting}_CONNECTIONS": 1}
    site = make_app(backend, **config)
    backend.failures += [OSError("down")] * 10
    post_worker_init(Worker(site), timeout=0.05)
    said = caplog.records[-1].getMessage()
    assert "pool 'default' is not filled, but the worker starts anyway: " in said
    assert "down" in said
    backend.failures.clear()
    with site.app_context(), current_pool.connection() as connection:
        assert connection.is_open


@pytest.mark.parametrize("setting", ["MIN", "INITIAL"])
@pytest.mark.parametrize("bound", [{"timeout": 0.05}, {"of_worker": 0.05}], ids=["argument", "gunicorn"])
def test_post_worker_init_waits_no_longer_than_its_timeout_for_a_silent_backend(
    backend: Backend, caplog: pytest.LogCaptureFixture, setting: str, bound: dict[str, float]
) -> None:
    config: dict[str, Any] = {f"SOCKETPOOL_{setting}_CONNECTIONS": 1, "SOCKETPOOL_OPEN_TIMEOUT": TOO_LONG}
    site = make_app(backend, **config)
    backend.opens.clear()
    with gevent.Timeout(TOO_LONG / 100):
        post_worker_init(Worker(site, timeout=bound.get("of_worker", 0)), timeout=bound.get("timeout", TOO_LONG))
    (record,) = caplog.records
    assert "pool 'default' is not filled" in record.getMessage()
    # It goes on meanwhile.
    backend.opens.set()
    with site.app_context(), current_pool.connection() as connection:
        assert connection.number == 0
    site.extensions["gsocketpool"].close()


def test_a_timeout_of_the_client_is_logged_as_the_reason_why_a_pool_is_not_filled(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_app(backend, SOCKETPOOL_INITIAL_CONNECTIONS=1)
    backend.failures.append(gevent.Timeout(1))
    post_worker_init(Worker(site))
    assert "pool 'default' is not filled" in caplog.text
    assert "'Timeout'" in caplog.text


def test_the_log_shows_no_secret(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    site = make_app(backend, SOCKETPOOL_INITIAL_CONNECTIONS=1)
    backend.failures.append(OSError("password=hunter2 is wrong"))
    post_worker_init(Worker(site))
    assert "is not filled" in caplog.text
    assert "hunter2" not in caplog.text


def test_an_app_found_twice_behind_middleware_counts_once(backend: Backend) -> None:
    site = make_app(backend)

    class Middleware:
        def __init__(self, app: Flask) -> None:
            self.app = self.wsgi_app = app

        def __call__(self, environ: Any, start_response: Any) -> Any:
            return self.app(environ, start_response)

    # The hooks would do all that they do to one app twice, and it would not show.
    assert _apps_of(Worker(Middleware(site))) == [site]


def test_post_worker_init_refuses_a_bad_timeout(site: Flask) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout"):
        post_worker_init(Worker(site), timeout=-1)


def test_post_worker_init_fills_no_pool_in_a_worker_with_threads(
    site: Flask, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    threaded = type("ThreadWorker", (Worker,), {"__module__": "gunicorn.workers.gthread"})
    post_worker_init(threaded(site))
    assert not backend.connections
    assert "gthread" in caplog.text


# Finding the app


def through_a_decorator(site: Flask) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        return site(*arguments)

    wrapped.__wrapped__ = site  # type: ignore[attr-defined]
    return wrapped


class Hostile:
    """Has a property that fails, and one thing after another within itself."""

    def __init__(self, site: Flask) -> None:
        self.wsgi = site

    def __call__(self) -> None:
        pass

    @property
    def app(self) -> Any:
        raise LookupError

    @property
    def application(self) -> Any:
        return Hostile(self.wsgi)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda site: site,
        lambda site: ProxyFix(site),
        lambda site: ProxyFix(ProxyFix(site.wsgi_app)),
        lambda site: DispatcherMiddleware(Flask("front"), {"/there": ProxyFix(site)}),
        through_a_decorator,
        Hostile,
    ],
    ids=["bare", "middleware", "middleware within", "mounted", "decorator", "hostile"],
)
def test_the_hooks_find_an_app_behind_middleware(site: Flask, backend: Backend, wrap: Callable[[Flask], Any]) -> None:
    worker = Worker(wrap(site))
    post_worker_init(worker)
    assert len(backend.open) == 2
    worker_exit(None, worker)
    assert not backend.open


def test_a_hidden_app_can_be_passed_to_the_hooks(
    site: Flask, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(lambda *arguments: site(*arguments))
    post_worker_init(worker)
    assert "no Flask app with pools was found behind <function" in caplog.text
    assert "post_worker_init(worker, app=...)" in caplog.text
    worker_exit(None, worker)
    assert not backend.connections
    post_worker_init(worker, app=site)
    assert len(backend.open) == 2
    worker_exit(None, worker, app=site)
    assert not backend.open


def test_an_app_without_the_extension_is_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    front, shop = Flask("front"), Flask("shop")
    post_worker_init(Worker(DispatcherMiddleware(front, {"/shop": shop})))
    post_worker_init(Worker(lambda *arguments: shop(*arguments)), app=shop)
    of_both, of_shop = (record.getMessage() for record in caplog.records)
    assert of_both.endswith("is not registered on app 'front', app 'shop': call GSocketPool(app)")
    assert of_shop.endswith("is not registered on app 'shop': call GSocketPool(app)")
    worker_exit(None, Worker(shop))


def test_an_object_with_every_attribute_is_not_taken_for_an_app(caplog: pytest.LogCaptureFixture) -> None:
    class Endless:
        def __getattr__(self, name: str) -> Endless:
            return Endless()

        def __call__(self) -> None:
            pass

    post_worker_init(Worker(Endless()))
    assert "no Flask app with pools" in caplog.text


# Closing


def test_the_master_closes_nothing_for_a_worker_that_has_exited(site: Flask, backend: Backend) -> None:
    worker = Worker(site)
    post_worker_init(worker)
    worker.pid += 1
    worker_exit(None, worker)
    assert len(backend.open) == 2


def test_a_worker_that_could_not_load_its_app_closes_nothing(site: Flask) -> None:
    worker = Worker(site)
    del worker.wsgi
    worker_exit(None, worker)


def test_worker_exit_may_be_called_twice(site: Flask, backend: Backend) -> None:
    worker = Worker(site)
    post_worker_init(worker)
    for _ in range(2):
        worker_exit(None, worker)
    assert [connection.closings for connection in backend.connections] == [1, 1]


def test_the_drain_timeout_starts_when_a_worker_ends_itself(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    site = make_app(backend, SOCKETPOOL_DRAIN_TIMEOUT=0.01)
    worker = Worker(site)
    post_worker_init(worker)
    with site.app_context():
        current_pool.acquire()
        # As gunicorn does after max_requests. It sends no signal then.
        worker.alive = False
        eventually(lambda: not backend.open)
        with pytest.raises(PoolClosedError):
            current_pool.acquire()
    assert "closing connections in use, 0.01 s after the worker began to stop: " in caplog.text


# In real workers

HOOKS = """
import flask_gsocketpool.gunicorn as hooks

def size():
    from flask_gsocketpool import current_pool
    from tests.support.gunicorn_app import app
    with app.app_context():
        try:
            return repr(current_pool)
        except OSError as error:
            return repr(error)

def post_worker_init(worker):
    hooks.post_worker_init(worker, timeout={timeout})
    print("starts with", size(), flush=True)

def worker_exit(server, worker):
    hooks.worker_exit(server, worker)
    print("ends with", size(), flush=True)
"""


@pytest.fixture
def lines() -> Iterator[gunicorn_support.Backend]:
    with gunicorn_support.Backend() as lines:
        yield lines


@pytest.fixture
def start(lines: gunicorn_support.Backend, tmp_path: Path) -> Iterator[Start]:
    with gunicorns(tmp_path, lines) as start:
        yield start


def written(directory: Path, text: str) -> tuple[str, str]:
    (directory / "hooks.py").write_text(text)
    return "--config", str(directory / "hooks.py")


@pytest.mark.parametrize("how", [[], pytest.param(["--preload"], marks=pytest.mark.torture)], ids=["plain", "preload"])
def test_importing_the_hooks_into_the_configuration_is_enough(
    lines: gunicorn_support.Backend, start: Start, tmp_path: Path, how: list[str]
) -> None:
    config = written(tmp_path, "from flask_gsocketpool.gunicorn import _apps_of, post_worker_init, worker_exit\n")
    gunicorn = start("--workers", "2", *config, *how, SOCKETPOOL_MIN_CONNECTIONS=2, SOCKETPOOL_INITIAL_CONNECTIONS=3)
    lines.wait_until(lambda: sum(seen.texts == ["hello"] for seen in lines.seen) == 6, "both workers fill their pools")
    workers = gunicorn.workers(2)
    assert {pid for seen in lines.seen for pid in seen.pids} == workers
    gunicorn.send_signal(signal.SIGTERM)
    assert gunicorn.wait_for_exit() == 0
    lines.wait_until_ended(workers)
    assert all(seen.has_ended_well for seen in lines.seen), lines
    # Gunicorn reads its configuration before gevent patches anything, so it matters what that imports.
    assert "Warning" not in gunicorn.log
    assert "Traceback" not in gunicorn.log


@pytest.mark.parametrize("hook", ["post_worker_init", "worker_exit"])
def test_each_hook_works_without_the_other(
    lines: gunicorn_support.Backend, start: Start, tmp_path: Path, hook: str
) -> None:
    config = written(tmp_path, f"from flask_gsocketpool.gunicorn import {hook}\n")
    gunicorn = start("--workers", "1", *config, SOCKETPOOL_INITIAL_CONNECTIONS=3)
    if hook == "post_worker_init":
        # No request has come.
        lines.wait_until(lambda: [seen.texts for seen in lines.seen] == [["hello"]] * 3, "the worker fills its pool")
    else:
        gunicorn.wait_for_log("(Booting worker)")
        assert not lines.seen
    workers = gunicorn.workers(1)
    gunicorn.send_signal(signal.SIGTERM)
    assert gunicorn.wait_for_exit() == 0
    lines.wait_until_ended(workers)
    assert all(seen.has_ended_well for seen in lines.seen), lines
    assert "Traceback" not in gunicorn.log


def test_the_configuration_in_the_guide_fills_and_closes_the_pools(
    lines: gunicorn_support.Backend, start: Start, tmp_path: Path
) -> None:
    (text,) = [block for block in blocks(ROOT / "docs" / "flask" / "deployment.rst") if "worker_class" in block]
    gunicorn = start(*written(tmp_path, text), SOCKETPOOL_MIN_CONNECTIONS=1)
    lines.wait_until(lambda: sum(seen.texts == ["hello"] for seen in lines.seen) == 4, "its workers fill their pools")
    workers = gunicorn.workers(4)
    gunicorn.send_signal(signal.SIGTERM)
    assert gunicorn.wait_for_exit() == 0
    lines.wait_until_ended(workers)
    assert all(seen.has_ended_well for seen in lines.seen), lines
    assert "Warning" not in gunicorn.log
    assert "Traceback" not in gunicorn.log


@pytest.mark.parametrize("how", [pytest.param([], marks=pytest.mark.torture), ["--preload"]], ids=["plain", "preload"])
def test_a_worker_starts_with_full_pools_and_ends_with_closed_ones(
    lines: gunicorn_support.Backend, start: Start, tmp_path: Path, how: list[str]
) -> None:
    config = written(tmp_path, HOOKS.format(timeout=gunicorn_support.PATIENCE))
    used = {"USE_POOL_AT_IMPORT": "true"} if how else {}
    gunicorn = start("--workers", "1", *config, *how, SOCKETPOOL_INITIAL_CONNECTIONS=3, **used)
    assert ", 3 idle" in gunicorn.wait_for_log(r"starts with (.*)")
    (worker,) = gunicorn.workers(1)
    os.kill(worker, signal.SIGTERM)
    assert "closed" in gunicorn.wait_for_log(r"ends with (.*)")
    lines.wait_until_ended([worker])
    assert all(seen.has_ended_well for seen in lines.seen_of([worker])), lines
    assert all(seen.is_open for seen in lines.seen_of([gunicorn.pid])), lines
    assert bool(lines.seen_of([gunicorn.pid])) is bool(used)
    gunicorn.send_signal(signal.SIGTERM)
    assert gunicorn.wait_for_exit() == 0


@pytest.mark.parametrize("setting", ["MIN", "INITIAL"])
def test_a_worker_starts_even_if_its_backend_is_down(start: Start, tmp_path: Path, setting: str) -> None:
    config = written(tmp_path, HOOKS.format(timeout=0.2))
    with socket.socket() as closed:
        # Bound, and deaf.
        closed.bind(("127.0.0.1", 0))
        gunicorn = start(
            *("--workers", "1", *config),
            **{f"SOCKETPOOL_{setting}_CONNECTIONS": 1},
            SOCKETPOOL_URL=f"tcp://127.0.0.1:{closed.getsockname()[1]}",
        )
        # That is the view's answer: the worker is there.
        assert gunicorn.ask("anything").status == 500
    assert "pool 'default' is not filled, but the worker starts anyway" in gunicorn.log
    assert "Connection refused" in gunicorn.log


def test_a_worker_starts_even_if_its_backend_does_not_answer(
    lines: gunicorn_support.Backend, start: Start, tmp_path: Path
) -> None:
    config = written(tmp_path, HOOKS.format(timeout=0.2))
    with lines.holding("hello"):
        gunicorn = start("--workers", "1", *config, SOCKETPOOL_INITIAL_CONNECTIONS=1)
        gunicorn.wait_for_log("(is still opening its initial connections)")
        asking = gunicorn.begin_to_ask("text")
        lines.wait_until_held(1)
    assert [answer.text for answer in results(asking)] == ["text"]
