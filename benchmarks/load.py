"""Send requests to a web server, with wrk if it is installed, or else with a small client of our own."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import ExitStack

import gevent.socket

from benchmarks.exchanges import MESSAGE
from benchmarks.throughput import rate

#: How many HTTP connections request pages, each one page after another.
CLIENTS = 20


def client() -> str:
    """Return the name of the client that :func:`ask` uses."""
    return "wrk" if shutil.which("wrk") else "a client over gevent"


def ask(port: int, seconds: float) -> float:
    """Request the page ``/`` repeatedly for this many seconds, and return the requests per second.

    :raises RuntimeError: if an answer is wrong.
    """
    if shutil.which("wrk"):
        return _wrk(port, seconds)
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for _ in range(CLIENTS)]
        return rate(lambda: clients.pop().ask, CLIENTS, seconds)


def _wrk(port: int, seconds: float) -> float:
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{max(1, round(seconds))}s", f"http://127.0.0.1:{port}/"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(output)
    requests = re.search(r"Requests/sec: +([\d.]+)", output)
    if requests is None:
        raise RuntimeError(output)
    return float(requests[1])


class Client:
    """One HTTP connection."""

    def __init__(self, port: int) -> None:
        self._socket = gevent.socket.create_connection(("127.0.0.1", port), timeout=15)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def ask(self) -> None:
        """Request the page ``/``."""
        self._socket.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(MESSAGE):
            data = self._socket.recv(4096)
            if not data:
                raise ConnectionResetError("the web server closed the connection")
            answer += data
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(answer.decode(errors="replace"))
