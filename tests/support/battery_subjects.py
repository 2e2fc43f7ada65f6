"""The subjects of the battery, and a control."""

from __future__ import annotations

import random
import signal
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import redis
import valkey

from gsocketpool import TcpConnection
from gsocketpool.connectors.psycopg import PsycopgConnector
from gsocketpool.connectors.redis import RedisConnector
from gsocketpool.connectors.valkey import ValkeyConnector
from tests.support.battery import IDLE, LONG, OPEN, RUNNING, Relay, Subject

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

    def reached(self) -> tuple[str, dict[str, Any]]:
        """Return a connection string, and what else to connect with."""
        conninfo = self.servers["postgres"]["conninfo"]
        if self.relay is not None:
            conninfo = conninfo.replace(self.directory, self.relay_directory)
        options = {"application_name": self.tag, **self.options}
        if self.password is not None:
            options.update(user="rotating", password=self.password)
        return conninfo, options

    def factory(self, **steps: Any) -> Any:
        conninfo, options = self.reached()
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
        # Without autocommit, it is the pool that commits.
        with connection.transaction() if connection.autocommit else nullcontext():
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

    def end_present(self) -> None:
        with self.observer() as observer:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
            observer.execute(query, [self.tag])

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

    def end_present(self) -> None:
        with self.observer() as observer:
            observer.client_kill_filter(_type="normal", skipme=True)

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

    def __init__(self, servers: dict[str, Any], **options: Any) -> None:
        super().__init__(servers, **options)
        # Another database costs the connection, whatever the pool resets.
        self.left_open["database"] = (*self.left_open["database"][:2], "unsettled")

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
