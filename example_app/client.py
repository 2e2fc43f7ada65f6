"""Send many requests to the demo at the same time. A greenlet sends each and compares the answer."""

from __future__ import annotations

import html
import http.client
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import quote

import gevent
import gevent.socket

from example_app.ports import HOST

TIMEOUT = 15
FORM = "application/x-www-form-urlencoded"

#: The statistics of a worker's pools, by the names of the pools.
Pools: TypeAlias = "dict[str, dict[str, Any]]"


class WrongAnswerError(Exception):
    """The answer does not belong to the request."""


class Client:
    """Sends requests, counts them by kind, and records wrong answers.

    :param port: the port of the web app.
    :param checkpoint: called repeatedly while requests are under way. An exception it raises ends the wait.
    """

    def __init__(self, port: int, checkpoint: Callable[[], None]) -> None:
        self._port = port
        self._checkpoint = checkpoint
        self._pools: dict[int, Pools] = {}
        #: The number of requests sent, by kind.
        self.requests: Counter[str] = Counter()
        #: A line for each wrong answer.
        self.problems: list[str] = []
        #: The visit counts that the pages showed.
        self.visits: list[int] = []

    def burst(self, name: str, echoes: int = 0, values: int = 0, pages: int = 0, stats: int = 0) -> None:
        """Send this many requests of each kind, all at the same time. A value takes two: a PUT, then a GET."""
        jobs = [
            *(gevent.spawn(self._do, self._echo, f"{name}, line {number}: ä+%&<b>") for number in range(echoes)),
            *(gevent.spawn(self._do, self._value, f"{name}, value {number}") for number in range(values)),
            *(gevent.spawn(self._do, self._page, f"{name}, page {number}: ö+%&<b>") for number in range(pages)),
            *(gevent.spawn(self._do, self._stats, f"{name}, stats {number}") for number in range(stats)),
        ]
        try:
            while len(gevent.joinall(jobs, timeout=0.1)) < len(jobs):
                self._checkpoint()
        finally:
            gevent.killall(jobs)

    def pools_by_worker(self) -> dict[int, Pools]:
        """Return the pools of the workers that answer now, by process id."""
        self._pools.clear()
        self.burst("pools", stats=20)
        return dict(self._pools)

    def _do(self, task: Callable[[str], None], text: str) -> None:
        try:
            task(text)
        except (OSError, http.client.HTTPException, WrongAnswerError, ValueError) as error:
            self.problems.append(f"{text}: {error!r}")

    def _echo(self, line: str) -> None:
        _require(
            self._request("echo", "GET", f"/echo?text={quote(line)}") == line.encode(), "the reply to another line"
        )

    def _value(self, key: str) -> None:
        path = f"/kv/{quote(key)}"
        # A server that parses this as a form gets another value.
        value = f"key={quote(key)}&".encode() + random.randbytes(random.randrange(20_000))
        _require(self._request("put", "PUT", path, value, expected=204) == b"", "a body")
        _require(self._request("get", "GET", path) == value, "another value")

    def _page(self, line: str) -> None:
        page = self._request("page", "GET", f"/?text={quote(line)}").decode()
        _require(html.escape(line) in page, "a page without the reply")
        visits = re.search(r'id="visits">(\d+)<', page)
        if visits is None:
            raise WrongAnswerError("got a page without a visit count")
        self.visits.append(int(visits[1]))

    def _stats(self, _name: str) -> None:
        answer = json.loads(self._request("pools", "GET", "/pools"))
        _require(set(answer["pools"]) == {"default", "valkey"}, "other pools")
        self._pools[answer["pid"]] = answer["pools"]

    def _request(self, kind: str, method: str, path: str, body: bytes | None = None, expected: int = 200) -> bytes:
        self.requests[kind] += 1
        connection = _HTTPConnection(HOST, self._port, timeout=TIMEOUT)
        try:
            connection.request(method, path, body, {"Connection": "close", "Content-Type": FORM})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        _require(answer.status == expected, f"status {answer.status}: {content[:200]!r}")
        return content


class _HTTPConnection(http.client.HTTPConnection):
    """An HTTP connection that lets other greenlets run while it waits, without monkey patching."""

    def connect(self) -> None:
        self.sock = gevent.socket.create_connection((self.host, self.port), self.timeout)


def _require(is_right: bool, otherwise: str) -> None:
    if not is_right:
        raise WrongAnswerError(f"got {otherwise}")
