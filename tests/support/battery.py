"""A subject of the battery: a way to pool connections to a real server, under names that all subjects share."""

from __future__ import annotations

import os
import signal
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import Any
from uuid import uuid4

import gevent
import gevent.event
import gevent.socket

from gsocketpool import Pool, PoolEvents, PoolExhaustedError
from tests.support import scripted
from tests.support.connections import outcome
from tests.support.processes import is_stopped
from tests.support.scripted import PATIENCE
from tests.support.servers import Server

#: Gives up before a test in the patched process is ended.
eventually = partial(scripted.eventually, patience=0.6 * PATIENCE)

#: Longer than any test takes: what waits for it must be cut short.
FOR_EVER = 600
#: What a session may be doing, as the server says.
IDLE, OPEN, RUNNING = "idle", "has something open", "runs something"
#: A reply of some switches.
LONG = 300_000


class Relay:
    """Stands between clients and a server, and sends replies on in pieces.

    :param upstream: where the server listens.
    :param path: where to listen, if that is no TCP port.
    """

    def __init__(self, upstream: Any, path: str | None = None, piece: int = 65536) -> None:
        self._upstream = upstream
        self._piece = piece
        self._server = Server(self._relay, path=path)
        self._gate = gevent.event.Event()
        self._gate.set()
        self.port = self._server.port
        #: The server's names of the clients, by their own names.
        self.names: dict[Any, Any] = {}

    def __enter__(self) -> Relay:
        self._server.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.stop()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """A block in which nothing gets through for those that are connected now. Others are relayed as usual."""
        gate, self._gate = self._gate, gevent.event.Event()
        gate.clear()
        self._gate.set()
        try:
            yield
        finally:
            gate.set()

    def _relay(self, peer: Any) -> None:
        gate = self._gate
        family = gevent.socket.AF_UNIX if isinstance(self._upstream, str) else gevent.socket.AF_INET
        with closing(gevent.socket.socket(family)) as upstream:
            upstream.connect(self._upstream)
            if peer.family == gevent.socket.AF_INET:
                self.names[peer.getpeername()] = upstream.getsockname()
                peer.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
            there = gevent.spawn(self._pass_on, gate, peer, upstream, 65536)
            try:
                self._pass_on(gate, upstream, peer, self._piece)
            finally:
                there.kill()

    def _pass_on(self, gate: Any, source: Any, target: Any, piece: int) -> None:
        with suppress(OSError):
            while data := source.recv(piece):
                gate.wait()
                target.sendall(data)
                # Longer than a turn of the event loop, or else the pieces would be read at once.
                if len(data) == piece:
                    gevent.sleep(0.001)
        with suppress(OSError):
            target.shutdown(gevent.socket.SHUT_WR)


class Sessions(PoolEvents):
    """Knows which sessions a pool has given up, as far as it has told."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._known: dict[int, tuple[Any, Any]] = {}
        self.given_up: set[Any] = set()

    def opened(self, pool: Any, connection: Any) -> None:
        session = self._subject.session(connection)
        # With the connection, so that no other one has the same id().
        self._known[id(connection)] = (session, connection)
        self.given_up.discard(session)

    def closed(self, pool: Any, connection: Any, reason: str) -> None:
        self.given_up.add(self._known.pop(id(connection))[0])


class Subject(ABC):
    """Pools of one kind, and the server's own view of their sessions."""

    #: The errors of the client library.
    errors: tuple[type[Exception], ...]
    #: The error that :meth:`fail` raises.
    refusal: type[Exception]
    #: What a user can leave open: how, whether it is still there, and the pool's ``reset`` that ends it.
    left_open: dict[str, tuple[Callable[[Any], object], Callable[[Any], bool], str]]

    def __init__(self, servers: dict[str, Any], **options: Any) -> None:
        self.servers = servers
        self.options = options
        self.relay: Relay | None = None
        #: Returns the password of the user ``rotating``, which the pools log in as if this is set.
        self.password: Callable[[], str] | None = None
        #: Sessions have this name, and rows and keys, too.
        self.tag = f"battery{uuid4().hex}"

    # Making pools

    @contextmanager
    def pool(self, limit: int = 4, *, steps: dict[str, Any] | None = None, **settings: Any) -> Iterator[Pool[Any]]:
        """A pool, after whose end the server must show none of its sessions, nor any of them running before.

        :param steps: what to do instead of the usual, by the names of steps of a connector or a connection.
        """
        usual = {"name": self.tag, "reap_interval": 3600, "acquire_timeout": PATIENCE}
        with Pool(self.factory(**(steps or {})), max_connections=limit, **{**usual, **settings}) as pool:
            yield pool
            self.check_none_runs()
        eventually(lambda: not self.sessions(), self.sessions)

    @abstractmethod
    def factory(self, **steps: Any) -> Any: ...

    @contextmanager
    def relayed(self, piece: int = 65536) -> Iterator[Relay]:
        """Have the pools that are made within this block reach the server by a relay."""
        with tempfile.TemporaryDirectory() as directory, self.make_relay(directory, piece) as self.relay:
            yield self.relay
            self.relay = None

    @abstractmethod
    def make_relay(self, directory: str, piece: int) -> Relay: ...

    # What a user does

    @abstractmethod
    def ask(self, connection: Any, word: str) -> str:
        """Exchange a word. The reply is that word."""

    @abstractmethod
    def ask_long(self, connection: Any, word: str) -> str:
        """Exchange a word with a reply that is long. Return the word in it."""

    @abstractmethod
    def ask_late(self, connection: Any, word: str) -> str:
        """Exchange a word with a reply that comes some milliseconds later."""

    @abstractmethod
    def ask_in_transaction(self, connection: Any, word: str) -> str:
        """Exchange a word within a transaction that writes twice."""

    @abstractmethod
    def written(self) -> int:
        """Return how many writes of transactions have come about, and take them back."""

    @abstractmethod
    def hang(self, connection: Any) -> object:
        """Begin an exchange that lasts until :meth:`let_go`."""

    @contextmanager
    def hanging(self) -> Iterator[Callable[[int], object]]:
        """A block in which :meth:`hang` hangs. It gets what lets so many of those go on."""
        raise NotImplementedError
        yield

    @abstractmethod
    def fail(self, connection: Any) -> object:
        """Have the server answer with an error."""

    # What the server knows

    @abstractmethod
    def session(self, connection: Any) -> Any:
        """Return the server's name for a connection's session, without an exchange."""

    @abstractmethod
    def observer(self) -> Any:
        """A context manager for a session that no pool has."""

    @abstractmethod
    def look(self, observer: Any) -> dict[Any, str]:
        """Return what each session of the pools does, as the server says."""

    def sessions(self) -> dict[Any, str]:
        with self.observer() as observer:
            return self.look(observer)

    def end_present(self) -> None:
        """Have an administrator end the sessions that there are at present."""
        raise NotImplementedError

    def end_all(self) -> None:
        """Have an administrator end all sessions, also one that is just logging in and can't be found yet."""

        def are_over() -> bool:
            self.end_present()
            return not self.sessions()

        eventually(are_over)

    @abstractmethod
    def change_password(self, password: str) -> None:
        """Set the password of the user ``rotating``."""

    @abstractmethod
    def process(self) -> int:
        """Return the number of the server's process, the first if there are several."""

    @abstractmethod
    def processes(self) -> list[int]:
        """Return the numbers of all processes of the server, the first first."""

    def restart(self) -> None:
        """End the server, and wait until another one answers."""
        before = self.process()
        os.kill(before, self.ending)
        eventually(lambda: outcome(self.process) not in (before, None) and isinstance(outcome(self.sessions), dict))

    ending: signal.Signals

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """A block in which the server does nothing, and its kernel accepts connections."""
        processes = self.processes()
        signal_all(processes, signal.SIGSTOP)
        try:
            eventually(lambda: all(map(is_stopped, processes)))
            yield
        finally:
            signal_all(processes, signal.SIGCONT)

    # What must hold

    def word(self) -> str:
        return uuid4().hex

    def check_next(self, pool: Pool[Any], session: Any = None) -> None:
        """Check that the next user of a connection sees nothing of those before.

        :param session: the session that it must get, if one is given.
        """
        with pool.connection() as connection:
            found = self.session(connection)
            assert session in (None, found), f"{session} was not kept"
            # MariaDB sends a reply before it shows that it is done.
            eventually(lambda: self.sessions()[found] is not RUNNING, lambda: "the next user's session runs something")
            state = self.sessions()[found]
            assert state is IDLE, f"the next user's session {state}"
            for word in (self.word(), self.word()):
                try:
                    reply = self.ask(connection, word)
                except Exception as error:
                    raise AssertionError(f"the next user got {error!r}") from error
                assert reply == word

    def check_whole(self, pool: Pool[Any]) -> None:
        """Check that as many connections as there may be can be used at once, and that the server shows no other."""
        limit = pool.stats().max_connections
        eventually(lambda: not (pool.stats().in_use or pool.stats().waiting or pool.stats().resetting), pool.stats)
        with ExitStack() as stack:
            taken = [stack.enter_context(pool.connection()) for _ in range(limit)]
            for connection in taken:
                word = self.word()
                assert self.ask(connection, word) == word
            with suppress(PoolExhaustedError):
                pool.acquire(timeout=0)
                raise AssertionError("there was one more than the limit")
            found = {self.session(connection) for connection in taken}
            assert len(found) == limit
            # What is being closed may be shown for a while.
            eventually(lambda: self.sessions().keys() == found, self.sessions)
        self.check_none_runs()

    def check_none_runs(self) -> None:
        """Wait until the server shows that no session runs anything, or has anything open."""
        eventually(lambda: set(self.sessions().values()) <= {IDLE}, self.sessions)

    def failures(self, pool: Pool[Any], requests: int = 40, greenlets: int = 8) -> list[object]:
        """Return the errors of requests that are made at once by some greenlets."""

        def request(number: int) -> None:
            for _ in range(requests // greenlets):
                word = self.word()
                with pool.connection() as connection:
                    assert self.ask(connection, word) == word

        found = [gevent.spawn(outcome, request, number) for number in range(greenlets)]
        gevent.joinall(found, raise_error=True)
        return [one.value for one in found if one.value is not None]


def signal_all(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        # That of a session that has just ended may be gone.
        with suppress(ProcessLookupError):
            os.kill(process, number)
