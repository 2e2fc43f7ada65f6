"""The examples for Celery, APScheduler and Flask-Sock run, with stand-ins for these libraries."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import gevent
import pytest

from gsocketpool.testing import FlakyServer
from tests.support.documents import DOCS, FLASK, blocks, examples, module_of_the_guide


@contextmanager
def importable(**modules: dict[str, Any]) -> Iterator[None]:
    """Let a block import these modules, which have the attributes given."""
    made = {}
    for name, attributes in modules.items():
        made[name.replace("__", ".")] = module = ModuleType(name)
        vars(module).update(attributes)
    with mock.patch.dict(sys.modules, made):
        yield


def example(page: Path, word: str) -> str:
    (found,) = [block for block in blocks(page) if word in block]
    return found


def run(source: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    names = {"__name__": "example"} if names is None else names
    exec(compile(source, "example", "exec"), names)
    return names


def guide(port: int) -> dict[str, Any]:
    """Return what is in ``module.py``."""
    return run(module_of_the_guide().replace("2000", str(port)))


def unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def close_pools(app: Any) -> None:
    for pool in app.extensions["gsocketpool"].values():
        pool.close()


def test_the_example_for_celery_runs(echo_port: int) -> None:
    stand_in = SimpleNamespace(task=unchanged)
    with importable(celery={"Celery": lambda *args, **options: stand_in}, module=guide(echo_port)):
        names = run(example(DOCS / "flask" / "servers.rst", "from celery"))
    assert names["ask"]("hello") == "hello\n"
    close_pools(names["flask_app"])


def test_the_example_for_flask_sock_runs(echo_port: int) -> None:
    stand_in = SimpleNamespace(route=lambda path: unchanged)
    names = run(examples(FLASK).replace("2000", str(echo_port)))
    with importable(flask_sock={"Sock": lambda app: stand_in}):
        run(example(DOCS / "flask" / "streaming.rst", "from flask_sock"), names)
    sent: list[str] = []
    client = SimpleNamespace(receive=mock.Mock(side_effect=["hello", EOFError]), send=sent.append)
    with names["app"].app_context(), pytest.raises(EOFError):
        names["chat"](client)
    assert sent == ["hello\n"]
    close_pools(names["app"])


class Scheduler:
    """Runs each job once."""

    def __init__(self) -> None:
        self._jobs: list[Callable[[], None]] = []

    def scheduled_job(self, trigger: str, *, seconds: float) -> Callable[[Callable[[], None]], Callable[[], None]]:
        def note(job: Callable[[], None]) -> Callable[[], None]:
            self._jobs.append(job)
            return job

        return note

    def start(self) -> gevent.Greenlet[[], None]:
        return gevent.spawn(lambda: gevent.joinall([gevent.spawn(job) for job in self._jobs], raise_error=True))

    def shutdown(self) -> None:
        pass


@pytest.mark.patched
def test_the_example_for_apscheduler_runs() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with (
        FlakyServer() as server,
        # The standard output of this process belongs to :mod:`tests.support.patched`.
        redirect_stdout(io.StringIO()) as printed,
        importable(
            apscheduler={},
            apscheduler__schedulers={},
            apscheduler__schedulers__gevent={"GeventScheduler": Scheduler},
            module=guide(server.port),
        ),
    ):
        try:
            names = run(example(DOCS / "flask" / "servers.rst", "from apscheduler"))
        finally:
            signal.signal(signal.SIGTERM, before)
        close_pools(names["app"])
    assert printed.getvalue() == "b'refresh\\n'\n"
