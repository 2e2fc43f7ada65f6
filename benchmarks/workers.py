"""The processes that measure: one for each contestant, started when it is first needed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks import predecessor
from benchmarks.contestants import PREDECESSOR

START = f"{predecessor.PATH_SETUP}; from benchmarks.worker import main; main()"


class WorkerError(Exception):
    """A worker could not be started, or has ended. The message says why."""


class Workers:
    """All of them. While one is asked the others wait, and take no time from it."""

    def __init__(self, log: Path) -> None:
        #: Where they write what is not an answer.
        self._log = log.open("a")
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.kill()
            process.communicate()
        self._log.close()

    def measure(self, case: str, contestant: str, effort: float, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What :func:`benchmarks.worker.answer` says.

        :raises WorkerError: if it says nothing.
        """
        process = self._process(contestant)
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"case": case, "contestant": contestant, "effort": effort, "arguments": arguments}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            del self._processes[contestant]
            process.communicate()
            raise WorkerError(f"its process ended with status {process.returncode}, see {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _process(self, contestant: str) -> subprocess.Popen[str]:
        if contestant not in self._processes:
            self._processes[contestant] = subprocess.Popen(
                [_interpreter(contestant), "-I", "-c", START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
        return self._processes[contestant]


def _interpreter(contestant: str) -> str:
    if contestant != PREDECESSOR.name:
        return sys.executable
    try:
        return predecessor.python()
    except subprocess.CalledProcessError as error:
        raise WorkerError(f"no environment for it: {error.stderr.decode().strip()[-300:]}") from None
