"""Requests to the demo, many at the same time: each is sent by a greenlet of its own and knows its right answer."""

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
    """An answer was not that of its request."""


class Client:
    """Sends requests, counts them by kind, and notes what was wrong with the answers.

    :param port: where the web application is.
    :param checkpoint: called again and again while something is waited for; what it raises is raised.
    """

    def __init__(self, port: int, checkpoint: Callable[[], None]) -> None:
        self._port = port
        self._checkpoint = checkpoint
        self._pools: dict[int, Pools] = {}
        #: How many requests were sent, by kind.
        self.requests: Counter[str] = Counter()
        #: What was wrong.
        self.problems: list[str] = []
        #: The visits that the pages told.
        self.visits: list[int] = []

    def burst(self, name: str, echoes: int = 0, values: int = 0, pages: int = 0, glances: int = 0) -> None:
        """Sends so many requests of each kind, all at the same time; for a value it is a PUT and then a GET."""
        jobs = [
            *(gevent.spawn(self._do, self._echo, f"{name}, line {number}: ä+%&<b>") for number in range(echoes)),
            *(gevent.spawn(self._do, self._value, f"{name}, value {number}") for number in range(values)),
            *(gevent.spawn(self._do, self._page, f"{name}, page {number}: ö+%&<b>") for number in range(pages)),
            *(gevent.spawn(self._do, self._glance, f"{name}, glance {number}") for number in range(glances)),
        ]
        try:
            while len(gevent.joinall(jobs, timeout=0.1)) < len(jobs):
                self._checkpoint()
        finally:
            gevent.killall(jobs)

    def look_at_pools(self) -> dict[int, Pools]:
        """Returns the pools of the workers that answer now, by the numbers of their processes."""
        self._pools.clear()
        self.burst("looking", glances=20)
        return dict(self._pools)

    def _do(self, task: Callable[[str], None], text: str) -> None:
        try:
            task(text)
        except (OSError, http.client.HTTPException, WrongAnswerError, ValueError) as error:
            self.problems.append(f"{text}: {error!r}")

    def _echo(self, line: str) -> None:
        _require(self._request("echo", "GET", f"/echo?text={quote(line)}") == line.encode(), "another line")

    def _value(self, key: str) -> None:
        path = f"/kv/{quote(key)}"
        # Whoever takes this for a form loses it.
        value = f"key={quote(key)}&".encode() + random.randbytes(random.randrange(20_000))
        _require(self._request("put", "PUT", path, value, expected=204) == b"", "a body")
        _require(self._request("get", "GET", path) == value, "another value")

    def _page(self, line: str) -> None:
        page = self._request("page", "GET", f"/?text={quote(line)}").decode()
        _require(html.escape(line) in page, "a page without the reply")
        visits = re.search(r'id="visits">(\d+)<', page)
        if visits is None:
            raise WrongAnswerError("got a page without a count")
        self.visits.append(int(visits[1]))

    def _glance(self, _name: str) -> None:
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
    """One that lets other greenlets run while it waits, without the standard library being patched."""

    def connect(self) -> None:
        self.sock = gevent.socket.create_connection((self.host, self.port), self.timeout)


def _require(is_right: bool, otherwise: str) -> None:
    if not is_right:
        raise WrongAnswerError(f"got {otherwise}")
