"""The processes that measure: one for each contestant, started on first use."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from benchmarks import predecessor, processors
from benchmarks.contestants import PREDECESSOR

START = f"{predecessor.PATH_SETUP}; from benchmarks.worker import main; main()"
#: How long an answer may take, in seconds: ten times what the slowest contestant needs for its longest case.
LIMIT = 120.0


class WorkerError(Exception):
    """A worker did not start, exited, or took too long. The message says why."""


class WorkerHangsError(WorkerError):
    """A worker took too long."""


class Workers:
    """All worker processes. While one measures, the others wait without using the processor."""

    def __init__(self, log: Path, limit: float = LIMIT) -> None:
        self._limit = limit
        #: The file for the workers' other output.
        self._log = log.open("a")
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()
        self._log.close()

    def stop(self) -> None:
        """Stop all processes. The next measurement of a contestant starts a new one."""
        for contestant, process in list(self._processes.items()):
            process.kill()
            self._remove(contestant)

    def measure(self, case: str, contestant: str, effort: float, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of :func:`benchmarks.worker.answer` in the contestant's worker.

        :raises WorkerError: if there is no answer in time. The next call starts a new process.
        """
        process = self._process(contestant)
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"case": case, "contestant": contestant, "effort": effort, "arguments": arguments}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=process.stdin, flush=True)
        try:
            line = _read_line(process.stdout, self._limit)
        except TimeoutError:
            process.kill()
            self._remove(contestant)
            raise WorkerHangsError(f"it took longer than {self._limit:g} s") from None
        except EOFError:
            self._remove(contestant)
            raise WorkerError(f"its process ended with status {process.returncode}, see {self._log.name}") from None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _process(self, contestant: str) -> subprocess.Popen[str]:
        if contestant not in self._processes:
            command = [_interpreter(contestant), "-I", "-c", START]
            with processors.for_contestant():
                self._processes[contestant] = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
                )
        return self._processes[contestant]

    def _remove(self, contestant: str) -> None:
        self._processes.pop(contestant).communicate()


def _read_line(pipe: IO[str], limit: float) -> bytes:
    """Read a line, without blocking if only a part of it arrives.

    :raises TimeoutError: if the line is incomplete after `limit` seconds.
    :raises EOFError: if the pipe ends before the line does.
    """
    deadline = time.monotonic() + limit
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([pipe], [], [], max(0, deadline - time.monotonic()))
        if not readable:
            raise TimeoutError
        data = os.read(pipe.fileno(), 65536)
        if not data:
            raise EOFError
        line += data
    return line


def _interpreter(contestant: str) -> str:
    if contestant != PREDECESSOR.name:
        return sys.executable
    try:
        return predecessor.python()
    except subprocess.CalledProcessError as error:
        raise WorkerError(f"no environment for gsocketpool 0.1.6: {error.stderr.decode().strip()[-300:]}") from None
