"""Real gunicorn processes and their backend.

That is a backend that sees how it is treated, and a gunicorn in processes of its own.

The backend runs in a thread of the test process, gunicorn in a process group that is ended with the test.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from gunicorn.config import KNOWN_SETTINGS

from tests.support import scripted
from tests.support.documents import ROOT

#: Seconds that anything may take before it counts as never happening, also on a busy machine.
PATIENCE = 40

eventually = partial(scripted.eventually, patience=PATIENCE)


class End(Enum):
    """How a connection has ended, as the backend sees it."""

    NOT_YET = "still open"
    FIN = "closed by the client"
    RESET = "reset by the client"
    OURS = "closed by the backend"


@dataclass
class Seen:
    """What the backend has seen of one connection."""

    lines: list[tuple[int, str]] = field(default_factory=list)
    end: End = End.NOT_YET

    @property
    def pids(self) -> set[int]:
        """The processes that have written to it."""
        return {pid for pid, _ in self.lines}

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.lines]

    @property
    def is_open(self) -> bool:
        return self.end is End.NOT_YET

    @property
    def has_ended_well(self) -> bool:
        """Whether it was closed on purpose: with a goodbye, and not just because its process ended."""
        return self.end is End.FIN and self.texts[-1:] == ["bye"]


class Session(asyncio.Protocol):
    """The backend's side of one connection."""

    transport: asyncio.Transport

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._unread = b""
        self.seen = Seen()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._backend._begins(self)

    def data_received(self, data: bytes) -> None:
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            pid, _, text = line.decode().partition(":")
            self._backend._reads(self, int(pid), text)

    def eof_received(self) -> None:
        self._backend._ends(self, End.FIN)

    def connection_lost(self, error: Exception | None) -> None:
        self._backend._ends(self, End.OURS if error is None else End.RESET)

    def answer(self, text: str) -> None:
        if self.seen.is_open:
            self.transport.write(f"{text}\n".encode())


class Backend:
    """A server on the loopback interface for lines like ``pid:text``. It answers each with ``text``.

    It never answers ``bye``, and some not while it is :meth:`holding` them.
    """

    def __init__(self) -> None:
        #: Every connection there was, the oldest first.
        self.seen: list[Seen] = []
        #: How many connections each process has had open at the same time, at most.
        self.peaks: Counter[int] = Counter()
        self._changed = threading.Condition()
        self._sessions: set[Session] = set()
        self._held: list[tuple[Session, str]] = []
        self._holds: str | None = None

    def __enter__(self) -> Backend:
        # It never listens: it keeps the port from other processes while the listener is away.
        self._placeholder = self._bind(0)
        self.port: int = self._placeholder.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._in_loop(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._in_loop(self._close, abruptly=False)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._placeholder.close()

    def __repr__(self) -> str:
        return "\n".join(["the backend has seen:", *map(str, self.seen)])

    # For tests

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Return when `condition`, which must depend on this backend alone, holds."""
        with self._changed:
            if not self._changed.wait_for(condition, PATIENCE):
                raise AssertionError(f"{what}: not within {PATIENCE} s; {self}")

    def wait_until_ended(self, pids: Iterable[int]) -> None:
        """Return when no connection of these processes is open any more."""
        wanted = set(pids)
        self.wait_until(lambda: not any(seen.is_open for seen in self.seen_of(wanted)), "their connections end")

    def seen_of(self, pids: Iterable[int]) -> list[Seen]:
        """The connections that any of these processes has written to."""
        wanted = set(pids)
        return [seen for seen in self.seen if seen.pids & wanted]

    def takers(self, text: str) -> set[int]:
        """The processes that have sent `text`."""
        return {pid for seen in self.seen for pid, sent in seen.lines if sent == text}

    @contextmanager
    def holding(self, start: str = "slow") -> Iterator[None]:
        """Within this block no answer is given to texts that start with `start`; they get it at its end."""
        self._holds = start
        try:
            yield
        finally:
            self._in_loop(self._release)

    def held(self) -> Counter[int]:
        """Return how many lines wait for the block :meth:`holding` to end, by process."""
        return Counter(session.seen.lines[-1][0] for session, _ in self._held)

    def wait_until_held(self, count: int) -> None:
        self.wait_until(lambda: len(self._held) >= count, f"{count} lines wait")

    def restart(self, abruptly: bool) -> None:
        """Close the listener and every connection, or reset the connections, and then listen on the port again."""
        self._in_loop(self._close, abruptly)
        self._in_loop(self._listen)

    # In the event loop

    def _in_loop(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        async def call() -> None:
            result = function(*arguments, **keywords)
            if result is not None:
                await result

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE)

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(lambda: Session(self), sock=self._bind(self.port), backlog=500)

    def _bind(self, port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(("127.0.0.1", port))
        return bound

    async def _close(self, abruptly: bool) -> None:
        self._server.close()
        for session in self._sessions:
            if abruptly:
                linger = struct.pack("ii", 1, 0)
                session.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            session.transport.abort()
        while self._sessions:
            await asyncio.sleep(0)

    def _release(self) -> None:
        with self._changed:
            self._holds = None
            held, self._held = self._held, []
        for session, text in held:
            session.answer(text)

    def _begins(self, session: Session) -> None:
        with self._changed:
            self.seen.append(session.seen)
            self._sessions.add(session)
            self._changed.notify_all()

    def _reads(self, session: Session, pid: int, text: str) -> None:
        with self._changed:
            session.seen.lines.append((pid, text))
            now_open = sum(seen.is_open for seen in self.seen_of([pid]))
            self.peaks[pid] = max(self.peaks[pid], now_open)
            if self._holds is not None and text.startswith(self._holds):
                self._held.append((session, text))
            elif text != "bye":
                session.answer(text)
            self._changed.notify_all()

    def _ends(self, session: Session, end: End) -> None:
        with self._changed:
            if session.seen.is_open:
                session.seen.end = end
            if end is not End.FIN:
                self._sessions.discard(session)
            self._changed.notify_all()


@dataclass
class Answer:
    """What came of one request to echo a text."""

    asked: str
    status: int | None = None
    text: str = ""
    worker: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def is_right(self) -> bool:
        return self.status == 200 and self.text == self.asked


def wrong(answers: Iterable[Answer]) -> list[Answer]:
    """Return the answers that are not right."""
    return [answer for answer in answers if not answer.is_right]


class Gunicorn:
    """A gunicorn with gevent workers that serves tests/support/gunicorn_app.py on a free port.

    :param directory: for its log.
    :param backend: what the app's default pool connects to.
    :param arguments: for gunicorn's command line.
    :param config: the app's configuration; what is not a str is written as JSON would be.
    """

    def __init__(self, directory: Path, backend: Backend, *arguments: str, **config: str | float) -> None:
        self._directory = directory
        self._log = directory / "gunicorn.log"
        self._arguments = [
            *("--worker-class", "gevent", "--bind", "127.0.0.1:0", "--log-level", "info", "--timeout", "120"),
            *("--graceful-timeout", "60", *_no_control_socket(), *arguments, "tests.support.gunicorn_app:app"),
        ]
        config = {
            # Whatever a test has the backend hold is held for as long as that takes.
            "SOCKETPOOL_URL": f"tcp://127.0.0.1:{backend.port}?timeout=none",
            "SOCKETPOOL_MAX_CONNECTIONS": 200,
            "SOCKETPOOL_FACTORY": "tests.support.gunicorn_app:PoliteConnection",
            "SOCKETPOOL_ACQUIRE_TIMEOUT": PATIENCE,
            "SOCKETPOOL_OPEN_TIMEOUT": PATIENCE,
            **config,
        }
        ours = ("FLASK_", "GUNICORN_", "WEB_CONCURRENCY", "PYTHONPATH")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            **{f"FLASK_{key}": str(value) for key, value in config.items()},
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }

    def __enter__(self) -> Gunicorn:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", *self._arguments],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._clients = ThreadPoolExecutor(100)
        try:
            self.port = int(self.wait_for_log(r"Listening at: http://127\.0\.0\.1:(\d+)"))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        # macOS does not permit it when the whole group is dead, but not yet waited for.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._clients.shutdown()

    # Its processes

    @property
    def pid(self) -> int:
        """The master's."""
        return self._process.pid

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the master."""
        self._process.send_signal(number)

    def wait_for_exit(self, seconds: float = PATIENCE) -> int:
        """Return the master's exit status."""
        return self._process.wait(seconds)

    def wait_until_deaf(self) -> None:
        """Return when no process accepts connections any more."""
        eventually(self._refuses, "gunicorn stops to listen")

    def _refuses(self) -> bool:
        with socket.socket() as client:
            try:
                client.connect(("127.0.0.1", self.port))
            except ConnectionRefusedError:
                return True
        return False

    # What it says

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for_log(self, pattern: str) -> str:
        """Return the first group of `pattern`, as soon as something in the log matches."""
        found: list[str] = []

        def look() -> bool:
            running = self._process.poll() is None
            found[:] = re.findall(pattern, self.log)
            assert found or running, f"gunicorn has ended:\n{self.log}"
            return bool(found)

        eventually(look, f"{pattern} is in the log")
        return found[0]

    def exited_workers(self) -> set[int]:
        """Those that are about to exit, or already have."""
        return {int(pid) for pid in re.findall(r"Worker exiting \(pid: (\d+)\)", self.log)}

    # Requests, each on an HTTP connection of its own

    def ask(self, text: str, view: str = "echo") -> Answer:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            client.request("GET", f"/{view}/{text}", headers={"Connection": "close"})
            with client.getresponse() as response:
                body = response.read().decode()
                headers = dict(response.getheaders())
                return Answer(text, response.status, body, int(headers.get("X-Worker", 0)), headers)
        except (OSError, http.client.HTTPException) as error:
            return Answer(text, error=error)
        finally:
            client.close()

    def begin_to_ask(self, *texts: str, view: str = "echo") -> list[Future[Answer]]:
        """Ask all at the same time, in the background."""
        return [self._clients.submit(self.ask, text, view) for text in texts]

    def ask_all(self, *texts: str) -> list[Answer]:
        """Ask all at the same time."""
        return results(self.begin_to_ask(*texts))

    def workers(self, count: int) -> set[int]:
        """Return the workers when so many of them have used their pools."""
        workers: set[int] = set()

        def meet() -> bool:
            answers = self.ask_all(*(f"meet-{number}" for number in range(4)))
            assert not wrong(answers)
            workers.update(answer.worker for answer in answers)
            return len(workers) >= count

        eventually(meet, f"{count} workers answer")
        return workers

    @contextmanager
    def being_asked(self, clients: int = 3) -> Iterator[list[Answer]]:
        """Ask all the time within this block. Yield the list to which the answers are added."""
        answers: list[Answer] = []
        enough = threading.Event()

        def ask(client: int) -> None:
            number = 0
            while not enough.is_set():
                number += 1
                answers.append(self.ask(f"client-{client}-request-{number}"))

        asking = [self._clients.submit(ask, client) for client in range(clients)]
        try:
            yield answers
        finally:
            enough.set()
        results(asking)


Start = Callable[..., Gunicorn]


@contextmanager
def gunicorns(directory: Path, backend: Backend) -> Iterator[Start]:
    """Yield a function that starts a :class:`Gunicorn`, whose log is shown if the test fails."""
    with ExitStack() as stack:

        def start(*arguments: str, **config: str | float) -> Gunicorn:
            gunicorn = Gunicorn(directory, backend, *arguments, **config)
            stack.callback(lambda: sys.stdout.write(gunicorn.log))
            return stack.enter_context(gunicorn)

        yield start


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend


@pytest.fixture
def start(backend: Backend, tmp_path: Path) -> Iterator[Start]:
    with gunicorns(tmp_path, backend) as start:
        yield start


def slow(count: int) -> list[str]:
    """Return texts that a backend does not answer while it is holding."""
    return [f"slow-{number}" for number in range(count)]


def results(futures: Iterable[Future[Any]]) -> list[Any]:
    return [future.result(2 * PATIENCE) for future in futures]


def _no_control_socket() -> list[str]:
    # Only recent versions have one, in a place that all of a user's servers share.
    option = "--no-control-socket"
    return [option] if any(option in (setting.cli or ()) for setting in KNOWN_SETTINGS) else []
