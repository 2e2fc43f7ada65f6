"""Requests to a web server: by wrk where it is installed, else by a small client of our own."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass

import gevent.socket

from benchmarks.exchanges import MESSAGE
from benchmarks.throughput import rate

#: HTTP connections, each of which asks for one page after another.
CLIENTS = 20


@dataclass(frozen=True)
class Load:
    """What came of it."""

    #: Requests a second.
    rate: float
    #: Milliseconds that 99 % of the requests took at the most; None if that is not known.
    p99: float | None = None


def client() -> str:
    """What :func:`ask` uses."""
    return "wrk" if shutil.which("wrk") else "a client over gevent"


def ask(port: int, seconds: float) -> Load:
    """Asks for the page ``/`` for so long.

    :raises RuntimeError: if an answer is none.
    """
    if shutil.which("wrk"):
        return _wrk(port, seconds)
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for _ in range(CLIENTS)]
        return Load(rate(lambda: clients.pop().ask, CLIENTS, seconds))


def _wrk(port: int, seconds: float) -> Load:
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{max(1, round(seconds))}s", "--latency", f"http://127.0.0.1:{port}/"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(output)
    requests = re.search(r"Requests/sec: +([\d.]+)", output)
    p99 = re.search(r" 99% +([\d.]+)(us|ms|s)\b", output)
    if requests is None or p99 is None:
        raise RuntimeError(output)
    return Load(float(requests[1]), float(p99[1]) * {"us": 0.001, "ms": 1, "s": 1000}[p99[2]])


class Client:
    """One HTTP connection."""

    def __init__(self, port: int) -> None:
        self._socket = gevent.socket.create_connection(("127.0.0.1", port), timeout=15)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def ask(self) -> None:
        """Asks for the page ``/``."""
        self._socket.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(MESSAGE):
            data = self._socket.recv(4096)
            if not data:
                raise ConnectionResetError("the web server has closed the connection")
            answer += data
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(answer.decode(errors="replace"))
