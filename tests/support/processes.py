"""Forked children, and Python programs in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import gevent.os

from tests.support.documents import ROOT
from tests.support.scripted import PATIENCE


def is_stopped(process: int) -> bool:
    """Return whether SIGSTOP has stopped a process, or it has ended. On a busy machine, this takes a moment."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return True
    # The name before it may contain anything. A process that has ended is shown as a zombie if its parent is stopped.
    return status.rpartition(")")[2].split()[0] in ("T", "Z")


def in_child(act: Callable[[], Any], fork: Callable[[], int] = os.fork) -> Any:
    """Return what a call in a forked child returns, as JSON knows it. What it raises fails the test."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # From Python 3.12 on there is a warning because the resolver has threads. The child does not use them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = fork()
    if child == 0:
        try:
            # Ends a child that hangs, whatever it waits for.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(2 * PATIENCE))
            try:
                answer = {"returned": act()}
            except BaseException:
                answer = {"raised": traceback.format_exc()}
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = json.loads(pipe.read() or '{"raised": "the child hangs"}')
    os.waitpid(child, 0)
    assert "raised" not in answer, answer["raised"]
    return answer["returned"]


def in_gevents_child(act: Callable[[], Any]) -> None:
    """Call something in a child that is forked as gevent forks. What it raises fails the test."""

    def act_in_time() -> None:
        with gevent.Timeout(PATIENCE):
            act()

    in_child(act_in_time, fork=gevent.os.fork)


def run_python(
    program: str, *arguments: str, options: list[str] | None = None, patience: float = 2 * PATIENCE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a Python program that can import the packages and the tests.

    :param arguments: of the program.
    :param options: of Python.
    :param environment: variables to set.
    """
    return subprocess.run(
        [sys.executable, *(options or []), "-c", program, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=patience,
    )
