"""The subjects of the battery: ways to pool connections to a real server, under names that they all have in common."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import gevent
import gevent.event
import gevent.socket
import psycopg
import redis
import valkey

from gsocketpool import Pool, PoolEvents, PoolExhaustedError, TcpConnection
from gsocketpool.connectors.psycopg import PsycopgConnector
from gsocketpool.connectors.redis import RedisConnector
from gsocketpool.connectors.valkey import ValkeyConnector
from tests.connections import outcome
from tests.scripted import PATIENCE
from tests.servers import Server

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

    @abstractmethod
    def end_all(self) -> None:
        """Have an administrator end all sessions."""

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
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)

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


def eventually(condition: Callable[[], Any], shown: Callable[[], object] = str) -> None:
    """Wait until a condition is true, for a while."""
    with gevent.Timeout(PATIENCE * 0.6, False):
        while not condition():
            gevent.sleep(0.005)
        return
    raise AssertionError(f"it has not come true: {shown()}")


# PostgreSQL


class Postgres(Subject):
    errors = (psycopg.Error,)
    refusal = psycopg.errors.UndefinedColumn
    ending = signal.SIGINT
    connector_class: type[PsycopgConnector] = PsycopgConnector

    def __init__(self, servers: dict[str, Any], **options: Any) -> None:
        super().__init__(servers, **options)
        self.directory = servers["postgres"]["directory"]
        self.number = random.SystemRandom().randrange(2**31)
        with self.observer() as observer:
            observer.execute("CREATE TABLE IF NOT EXISTS battery (tag text)")
        self.left_open = {
            "transaction": (self._write, self._is_written, "unsettled"),
            "failed transaction": (self._write_and_fail, self._is_written, "unsettled"),
            "advisory lock": (
                lambda connection: connection.execute("SELECT pg_advisory_lock(%s)", [self.number + 1]),
                lambda connection: not self._lock_is_free(),
                "always",
            ),
            "setting": (
                lambda connection: connection.execute("SET search_path = nowhere"),
                lambda connection: connection.execute("SHOW search_path").fetchone() == ("nowhere",),
                "always",
            ),
        }

    def factory(self, **steps: Any) -> Any:
        conninfo = self.servers["postgres"]["conninfo"]
        if self.relay is not None:
            conninfo = conninfo.replace(self.directory, self.relay_directory)
        options = {"application_name": self.tag, **self.options}
        if self.password is not None:
            options.update(user="rotating", password=self.password)
        connector = self.connector_class(conninfo, **options)
        for name, step in steps.items():
            setattr(connector, name, step)
        return connector

    def make_relay(self, directory: str, piece: int) -> Relay:
        self.relay_directory = directory
        name = ".s.PGSQL.5432"
        return Relay(f"{self.directory}/{name}", f"{directory}/{name}", piece)

    def ask(self, connection: Any, word: str) -> str:
        (reply,) = connection.execute("SELECT %s", [word]).fetchone()
        return str(reply)

    def ask_long(self, connection: Any, word: str) -> str:
        (reply,) = connection.execute("SELECT %s || repeat('x', %s)", [word, LONG]).fetchone()
        assert len(reply) == LONG + len(word)
        return str(reply[: len(word)])

    def ask_late(self, connection: Any, word: str) -> str:
        (reply,) = connection.execute("SELECT %s FROM pg_sleep(0.005)", [word]).fetchone()
        return str(reply)

    def ask_in_transaction(self, connection: Any, word: str) -> str:
        with connection.transaction():
            self._write(connection)
            reply = self.ask(connection, word)
            self._write(connection)
        return reply

    def written(self) -> int:
        with self.observer() as observer:
            return int(observer.execute("DELETE FROM battery WHERE tag = %s", [self.tag]).rowcount)

    def _write(self, connection: Any) -> None:
        if connection.autocommit and not connection.pgconn.transaction_status:
            connection.execute("BEGIN")
        connection.execute("INSERT INTO battery VALUES (%s)", [self.tag])

    def _write_and_fail(self, connection: Any) -> None:
        self._write(connection)
        with suppress(self.refusal):
            self.fail(connection)

    def _is_written(self, connection: Any) -> bool:
        (found,) = connection.execute("SELECT count(*) FROM battery WHERE tag = %s", [self.tag]).fetchone()
        return bool(found)

    def _lock_is_free(self) -> bool:
        with self.observer() as observer:
            (answer,) = observer.execute("SELECT pg_try_advisory_lock(%s)", [self.number + 1]).fetchone()
            return bool(answer)

    def hang(self, connection: Any) -> object:
        return connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", [self.number])

    @contextmanager
    def hanging(self) -> Iterator[Callable[[int], object]]:
        with self.observer() as observer:
            observer.execute("SELECT pg_advisory_lock(%s)", [self.number])
            yield lambda count: observer.execute("SELECT pg_advisory_unlock(%s)", [self.number])

    def fail(self, connection: Any) -> object:
        return connection.execute("SELECT nothing")

    def session(self, connection: Any) -> Any:
        return connection.info.backend_pid

    @contextmanager
    def observer(self) -> Iterator[Any]:
        with closing(psycopg.connect(self.servers["postgres"]["conninfo"], autocommit=True)) as observer:
            yield observer

    def look(self, observer: Any) -> dict[Any, str]:
        query = "SELECT pid, state FROM pg_stat_activity WHERE application_name = %s"
        names = {"idle": IDLE, "active": RUNNING}
        return {pid: names.get(state, OPEN) for pid, state in observer.execute(query, [self.tag])}

    def end_all(self) -> None:
        with self.observer() as observer:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
            observer.execute(query, [self.tag])
        eventually(lambda: not self.sessions())

    def change_password(self, password: str) -> None:
        with self.observer() as observer:
            if not observer.execute("SELECT 1 FROM pg_roles WHERE rolname = 'rotating'").fetchone():
                observer.execute("CREATE ROLE rotating LOGIN")
            observer.execute(f"ALTER ROLE rotating PASSWORD '{password}'")

    def process(self) -> int:
        return int(Path(self.directory, "data", "postmaster.pid").read_text().split()[0])

    def processes(self) -> list[int]:
        first = self.process()
        others = []
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if int((directory / "stat").read_text().rpartition(")")[2].split()[1]) == first:
                    others.append(int(directory.name))
        return [first, *others]


class CarelessConnector(PsycopgConnector):
    """Keeps everything, and takes everything for settled. The battery must find it out."""

    def is_settled(self, connection: Any) -> bool:
        return True

    def is_reusable(self, connection: Any, error: BaseException | None) -> bool:
        return True


class Careless(Postgres):
    connector_class = CarelessConnector


# Valkey


class ValkeySubject(Subject):
    """What those at the Valkey server have in common. They execute commands by :meth:`run`."""

    ending = signal.SIGKILL

    def __init__(self, servers: dict[str, Any], **options: Any) -> None:
        super().__init__(servers, **options)
        self.host, self.port = servers["valkey"]["host"], servers["valkey"]["port"]
        self.left_open = {
            "MULTI": (self._multi, self._is_queued, "unsettled"),
            "WATCH": (lambda connection: self.run(connection, "WATCH", self.tag), self._watches, "unsettled"),
            "database": (
                lambda connection: self.run(connection, "SELECT", "2"),
                lambda connection: "db=2" in self._text(self.run(connection, "CLIENT", "INFO")),
                "always",
            ),
        }

    @abstractmethod
    def run(self, connection: Any, *words: str) -> Any:
        """Execute a command."""

    @staticmethod
    def _text(reply: Any) -> str:
        if isinstance(reply, dict):
            return " ".join(f"{name}={value}" for name, value in reply.items())
        return reply.decode() if isinstance(reply, bytes) else str(reply)

    def make_relay(self, directory: str, piece: int) -> Relay:
        return Relay((self.host, self.port), piece=piece)

    @property
    def reached_port(self) -> int:
        return self.port if self.relay is None else self.relay.port

    def ask(self, connection: Any, word: str) -> str:
        return self._text(self.run(connection, "ECHO", word))

    def ask_long(self, connection: Any, word: str) -> str:
        reply = self._text(self.run(connection, "ECHO", word + "x" * LONG))
        assert len(reply) == LONG + len(word)
        return reply[: len(word)]

    def ask_late(self, connection: Any, word: str) -> str:
        self.run(connection, "BLPOP", f"{self.tag}-nothing", "0.005")
        return self.ask(connection, word)

    def ask_in_transaction(self, connection: Any, word: str) -> str:
        self._multi(connection)
        self.run(connection, "ECHO", word)
        self._write(connection)
        return self._text(self.run(connection, "EXEC")[1])

    def _multi(self, connection: Any) -> None:
        self.run(connection, "MULTI")
        self._write(connection)

    def _write(self, connection: Any) -> None:
        self.run(connection, "RPUSH", self.tag, "written")

    def written(self) -> int:
        with self.observer() as observer:
            count = observer.llen(self.tag)
            observer.delete(self.tag)
            return int(count)

    def _is_queued(self, connection: Any) -> bool:
        return self._text(self.run(connection, "ECHO", "word")) == "QUEUED"

    def _watches(self, connection: Any) -> bool:
        return "watch=0" not in self._text(self.run(connection, "CLIENT", "INFO"))

    def hang(self, connection: Any) -> object:
        return self.run(connection, "BLPOP", f"{self.tag}-waits", "0")

    @contextmanager
    def hanging(self) -> Iterator[Callable[[int], object]]:
        def let_go(count: int) -> None:
            with self.observer() as observer:
                observer.rpush(f"{self.tag}-waits", *range(count))

        yield let_go

    def fail(self, connection: Any) -> object:
        with self.observer() as observer:
            observer.set(f"{self.tag}-text", "text")
        return self.run(connection, "LPUSH", f"{self.tag}-text", "wrong")

    def session(self, connection: Any) -> Any:
        name = self.socket_of(connection).getsockname()
        if self.relay is not None:
            name = self.relay.names[name]
        return "{}:{}".format(*name)

    @abstractmethod
    def socket_of(self, connection: Any) -> Any: ...

    @contextmanager
    def observer(self) -> Iterator[Any]:
        connector = ValkeyConnector(host=self.host, port=self.port, client_name="observer")
        client = connector.connect()
        try:
            yield client
        finally:
            connector.close(client)

    def look(self, observer: Any) -> dict[Any, str]:
        # No other test has connections there at the same time. A reset takes the name from a session for a moment.
        return {one["addr"]: _activity(one) for one in observer.client_list() if one["name"] != "observer"}

    def end_all(self) -> None:
        with self.observer() as observer:
            observer.client_kill_filter(_type="normal", skipme=True)
        eventually(lambda: not self.sessions())

    def change_password(self, password: str) -> None:
        with self.observer() as observer:
            everything = ("+@all", "~*", "&*")
            observer.execute_command("ACL", "SETUSER", "rotating", "on", "resetpass", f">{password}", *everything)

    def process(self) -> int:
        with self.observer() as observer:
            return int(observer.info("server")["process_id"])

    def processes(self) -> list[int]:
        return [self.process()]


def _activity(client: dict[str, str]) -> str:
    if "b" in client["flags"]:
        return RUNNING
    return OPEN if "x" in client["flags"] or client["watch"] != "0" else IDLE


class Library(ValkeySubject):
    """A client library's clients."""

    connector_class: Any

    def factory(self, **steps: Any) -> Any:
        options = {"client_name": self.tag, "host": self.host, "port": self.reached_port, **self.options}
        if self.password is not None:
            options.update(username="rotating", password=self.password)
        connector = self.connector_class(**options)
        for name, step in steps.items():
            setattr(connector, name, step)
        return connector

    def run(self, connection: Any, *words: str) -> Any:
        return connection.execute_command(*words)

    def socket_of(self, connection: Any) -> Any:
        return connection.connection_pool.connection._sock


class Valkey(Library):
    errors = (valkey.ValkeyError,)
    refusal = valkey.ResponseError
    connector_class = ValkeyConnector


class Redis(Library):
    errors = (redis.RedisError,)
    refusal = redis.ResponseError
    connector_class = RedisConnector


class RespError(Exception):
    """The server has answered with an error."""


class RespConnection(TcpConnection):
    """A connection whose protocol is written by hand, as a user would."""

    def __init__(
        self,
        host: str,
        port: int,
        client_name: str,
        password: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(host, port, lifetime=None)
        self._client_name = client_name
        self._password = password
        self.is_in_multi = self.watches = False

    def open(self) -> None:
        super().open()
        self._greet()

    def _greet(self) -> None:
        self.is_in_multi = self.watches = False
        if self._password is not None:
            self.run("AUTH", "rotating", self._password())
        self.run("CLIENT", "SETNAME", self._client_name)

    def run(self, *words: str) -> Any:
        if words[0] == "MULTI":
            self.is_in_multi = True
        elif words[0] == "WATCH":
            self.watches = True
        with self.exchange():
            parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
            self.send(f"*{len(parts)}\r\n{''.join(parts)}".encode())
            reply = self._read()
        # An error is an answer, and leaves the exchange complete.
        if isinstance(reply, RespError):
            raise reply
        if words[0] in ("EXEC", "DISCARD"):
            self.is_in_multi = self.watches = False
        elif words[0] == "UNWATCH" and not self.is_in_multi:
            self.watches = False
        return reply

    def _read(self) -> Any:
        line = self.recv_until(b"\r\n")[:-2]
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            return RespError(rest.decode())
        if kind == b"*":
            return [self._read() for _ in range(int(rest))]
        if kind == b"$" and int(rest) >= 0:
            return self.recv_exactly(int(rest) + 2)[:-2]
        return None if kind == b"$" else rest

    def is_reusable(self, error: BaseException | None) -> bool:
        # exchange() tells what an error has cut short.
        return super().is_reusable(None)

    def is_settled(self) -> bool:
        return not (self.is_in_multi or self.watches)

    def reset(self) -> None:
        self.run("DISCARD" if self.is_in_multi else "UNWATCH")

    def reset_session(self) -> None:
        self.run("RESET")
        self._greet()

    def ping(self) -> None:
        self.run("PING")


class ByHand(ValkeySubject):
    errors = (RespError, OSError)
    refusal = RespError

    def factory(self, **steps: Any) -> Any:
        kind = type("RespConnection", (RespConnection,), steps)
        return partial(kind, self.host, self.reached_port, self.tag, self.password)

    def run(self, connection: Any, *words: str) -> Any:
        return connection.run(*words)

    def socket_of(self, connection: Any) -> Any:
        return connection.socket


SUBJECTS: dict[str, Callable[..., Subject]] = {
    "psycopg": Postgres,
    "psycopg-autocommit": partial(Postgres, autocommit=True),
    "valkey": Valkey,
    "redis": Redis,
    "by-hand": ByHand,
    "careless": Careless,
}
