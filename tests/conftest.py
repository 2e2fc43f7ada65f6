from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from typing import Any

import gevent
import pytest
from gevent.hub import Hub

from gsocketpool import PoolError
from tests.support import patched
from tests.support.databases import conninfo as conninfo
from tests.support.databases import mariadb as mariadb
from tests.support.databases import memcached as memcached
from tests.support.databases import own_servers as own_servers
from tests.support.databases import valkey_url as valkey_url
from tests.support.scripted import Backend, Clock, ScriptedConnector
from tests.support.servers import Server, echo


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    return patched.run_if_marked(pyfuncitem)


def pytest_collection_finish() -> None:
    """Spare each collection of garbage the objects that last as long as the process: some tests collect many times."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    patched.stop(config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a skipped test in CI, where everything is there that a test may need."""
    report = yield
    # An expected failure is reported as skipped, too.
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, in CI: {report.longrepr}"
    return report


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    for event in (backend.opens, backend.checks, backend.closes):
        event.set()


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.torture), 11], ids=["each", "each eleventh"])
def stride(request: pytest.FixtureRequest) -> int:
    """How far apart the places are where a test strikes. The torture takes all places, the suite some of them.

    Where the places come in threes or fours, those that are struck are of every kind: eleven is a prime.
    """
    stride: int = request.param
    return stride


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def no_error_in_the_background(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test during which something in the background died of an error.

    Those that an acquire is meant to raise are passed over: tests let greenlets end by them.
    """
    errors: list[Any] = []

    def note(self: Hub, context: object, kind: type, value: object, traceback: object) -> None:
        if not issubclass(kind, PoolError | OSError):
            errors.append((context, kind, value))

    monkeypatch.setattr(Hub, "print_exception", note)
    yield
    gevent.sleep(0)
    assert not errors


@pytest.fixture(autouse=True)
def no_step_goes_on() -> Iterator[None]:
    """End the steps that hang, after a test that has made them hang: the next test would see what is logged of them."""
    yield
    for greenlet in list(ScriptedConnector.acting):
        # Those of other threads have ended with these.
        if isinstance(greenlet, gevent.Greenlet) and greenlet.parent is gevent.get_hub():
            greenlet.kill(block=False)


@pytest.fixture
def echo_port() -> Iterator[int]:
    """The port of a server on this machine that sends everything back."""
    with Server(echo) as server:
        yield server.port
