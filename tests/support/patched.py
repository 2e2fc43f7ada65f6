"""Tests that need a process which gevent has patched from its beginning.

pytest's own process is not patched. A test with the mark ``patched`` runs in a process beside it, which is kept for all
of them. Its arguments go there as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
import traceback
import warnings
from contextlib import suppress
from typing import IO, Any

import pytest

from tests.support.scripted import PATIENCE

BEGINNING = "from gevent import monkey; monkey.patch_all(); from tests.support.patched import serve; serve()"

CHILD = pytest.StashKey["Child"]()


class Child:
    """The process, which is started when it is first needed."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._process: subprocess.Popen[str] | None = None

    def run(self, module: str, name: str, arguments: dict[str, Any], seconds: float) -> str | None:
        """Return the traceback of a test that has failed, or takes longer than that; None if it has passed."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", BEGINNING],
                cwd=self._root,
                env={**os.environ, "PYTHONPATH": self._root},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        requests.write(json.dumps([module, name, arguments, seconds]) + "\n")
        requests.flush()
        # It bounds each test by itself, unless something blocks all of it.
        if not select.select([answers], [], [], 3 * seconds)[0]:
            self.kill()
            return f"the process of {name}() does not answer: something has blocked it"
        answer = answers.readline()
        if not answer:
            self.kill()
            return f"the process of {name}() has died"
        failure: str | None = json.loads(answer)
        return failure

    def stop(self) -> None:
        """Let the process come to its end, where coverage saves what it has measured."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=PATIENCE)
            self.kill()

    def kill(self) -> None:
        """End the process at once."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def serve() -> None:
    """Run one test after the other, in the process of a :class:`Child`."""
    # gevent forks to start a process, and Python warns of that beside threads, such as those that resolve names.
    warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
    # What tests print must not be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    for request in sys.stdin:
        answer(json.loads(request), answers)


def answer(request: list[Any], answers: IO[str]) -> None:
    import gevent

    module, name, arguments, seconds = request
    failure = None
    try:
        with gevent.Timeout(seconds):
            getattr(importlib.import_module(module), name)(**arguments)
    except BaseException:
        failure = traceback.format_exc()
    print(json.dumps(failure), file=answers, flush=True)


def run_if_marked(item: pytest.Function) -> bool | None:
    """Run a test in the other process if it is marked. None leaves that to pytest."""
    if item.get_closest_marker("patched") is None:
        return None
    child = item.config.stash.setdefault(CHILD, Child(str(item.config.rootpath)))
    # Fixtures for all tests are no arguments of this one.
    arguments = {name: item.funcargs[name] for name in item._fixtureinfo.argnames}
    # The machine may be a busy one, and a torture is long.
    seconds = PATIENCE if item.get_closest_marker("torture") is None else 6 * PATIENCE
    failure = child.run(item.module.__name__, item.function.__name__, arguments, seconds)
    if failure is not None:
        pytest.fail(failure, pytrace=False)
    return True


def stop(config: pytest.Config) -> None:
    """End the other process, if there is one."""
    child = config.stash.get(CHILD, None)
    if child is not None:
        child.stop()
