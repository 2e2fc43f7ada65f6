"""The recipes of the documentation, as they stand there, pass the battery.

psycopg2 talks to PostgreSQL. The servers of the others are peers in this process, which know what their sessions do.
"""

from __future__ import annotations

import functools
import http.client
import importlib.util
import inspect
import io
import re
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import gevent.pool
import gevent.socket
import msgpack
import psycopg2
import psycopg2.extras
import pytest
from gevent.pywsgi import WSGIServer
from gevent.server import StreamServer
from psycopg2 import extensions

from gsocketpool import Pool
from tests.connectors import test_battery as battery
from tests.support import battery_subjects
from tests.support.battery import IDLE, LONG, RUNNING, Relay, Subject, eventually
from tests.support.connections import outcome, without_switching
from tests.support.documents import POSTGRESQL, ROOT, blocks, joined

PAGE = ROOT / "docs" / "clients" / "recipes.rst"

patched = pytest.mark.patched
Servers = dict[str, Any]

#: For the newest Python there is no wheel of it. Everywhere else it must be there.
HAS_THRIFT = sys.version_info < (3, 15) or importlib.util.find_spec("thriftpy2") is not None


def runnable() -> list[str]:
    """The examples of the page that can run here."""
    return [block for block in blocks(PAGE) if HAS_THRIFT or "thrift" not in block.lower()]


@functools.cache
def recipes() -> dict[str, Any]:
    """The classes of the page, without its examples of how to use them."""
    names: dict[str, Any] = {"__name__": "recipes"}
    exec(compile(joined(block for block in runnable() if "class " in block), PAGE.name, "exec"), names)
    return names


# Servers


class RefusedError(Exception):
    """The server has answered with an error."""


class Peer:
    """A server of one protocol, at the same port also when it is started again."""

    #: What serves the connections of a server, for the address of each.
    port = 0

    def __init__(self) -> None:
        #: What each session does, by the port of its client.
        self.activity: dict[int, str] = {}
        #: Whether what hangs goes on.
        self.gate = gevent.event.Event()
        #: What has come that has no reply.
        self.notes: list[str] = []
        self.start()

    @abstractmethod
    def make(self, address: tuple[str, int]) -> Any:
        """Return a server that calls :meth:`serve` for its connections."""

    def start(self) -> None:
        self._server = self.make(("127.0.0.1", self.port))
        self._server.start()
        self.port = self._server.server_port

    def restart(self) -> None:
        self._server.stop(timeout=0)
        self.start()

    @contextmanager
    def session(self, address: tuple[str, int]) -> Iterator[int]:
        port = address[1]
        self.activity[port] = IDLE
        try:
            with suppress(OSError, EOFError):
                yield port
        finally:
            del self.activity[port]

    def act(self, port: int, what: str, word: str) -> str:
        """Do what a request says."""
        self.activity[port] = RUNNING
        try:
            if what == "late":
                gevent.sleep(0.005)
            elif what == "hang":
                self.gate.wait()
            elif what == "fail":
                raise RefusedError(word)
            return word + "x" * (LONG if what == "long" else 0)
        finally:
            self.activity[port] = IDLE


class HttpPeer(Peer):
    def make(self, address: tuple[str, int]) -> Any:
        peer = self

        class Web(WSGIServer):
            def handle(self, sock: Any, address: Any) -> None:
                # Else the rest of a reply waits for the client's kernel.
                sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
                with peer.session(address):
                    super().handle(sock, address)

        return Web(address, self._answer, log=None, error_log=None, spawn=gevent.pool.Pool())

    def _answer(self, environ: Any, start_response: Any) -> Any:
        what, _, word = environ["PATH_INFO"].strip("/").partition("/")
        try:
            reply = self.act(int(environ["REMOTE_PORT"]), what, word).encode()
        except RefusedError:
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return []
        if what == "early":
            start_response("103 Early Hints", [])
            return []
        if what == "long":
            start_response("200 OK", [])
            # In chunks, for its length is not said.
            return iter([reply[:1000], reply[1000:]])
        last = [("Connection", "close")] if what == "last" else []
        start_response("200 OK", [("Content-Length", str(len(reply or b"hello"))), *last])
        return [reply or b"hello"]


#: What the client of the page calls, besides what the tests do.
IDL = """
exception Refused { 1: string why }
service Words {
    string act(1: string what, 2: string word) throws (1: Refused refused)
    i32 add(1: i32 a, 2: i32 b)
    oneway void note(1: string word)
}
service Calculator {
    i32 add(1: i32 a, 2: i32 b)
}
"""


@functools.cache
def idl() -> Any:
    import thriftpy2

    return thriftpy2.load_fp(io.StringIO(IDL), "words_thrift")


class ThriftPeer(Peer):
    def make(self, address: tuple[str, int]) -> Any:
        return StreamServer(address, self._serve, spawn=gevent.pool.Pool())

    def _serve(self, sock: Any, address: Any) -> None:
        from thriftpy2.protocol import TBinaryProtocolFactory
        from thriftpy2.thrift import TException, TProcessor
        from thriftpy2.transport import TBufferedTransportFactory, TSocket

        peer = self

        class Words:
            def act(self, what: str, word: str) -> str:
                try:
                    return peer.act(port, what, word)
                except RefusedError as error:
                    raise idl().Refused(why=word) from error

            def add(self, one: int, other: int) -> int:
                return one + other

            def note(self, word: str) -> None:
                peer.notes.append(word)

        transport = TBufferedTransportFactory().get_transport(TSocket(sock=sock))
        protocol = TBinaryProtocolFactory().get_protocol(transport)
        with self.session(address) as port, suppress(TException):
            while True:
                TProcessor(idl().Words, Words()).process(protocol, protocol)


class MsgpackPeer(Peer):
    def make(self, address: tuple[str, int]) -> Any:
        return StreamServer(address, self._serve, spawn=gevent.pool.Pool())

    def _serve(self, sock: Any, address: Any) -> None:
        unpacker = msgpack.Unpacker()
        with self.session(address) as port:
            while data := sock.recv(65536):
                unpacker.feed(data)
                for _, number, what, words in unpacker:
                    try:
                        result = sum(words) if what == "sum" else self.act(port, what, *words)
                        reply = msgpack.packb((1, number + (what == "another"), None, result))
                    except RefusedError as error:
                        reply = msgpack.packb((1, number, str(error), None))
                    sock.sendall(reply * 2 if what == "twice" else reply)


@functools.cache
def peer(kind: type[Peer]) -> Peer:
    """A peer, which is there until the process ends."""
    return kind()


# Subjects of the battery


class Recipe(Subject):
    """A client of a peer."""

    kind: type[Peer]

    def __init__(self, servers: Servers, **options: Any) -> None:
        super().__init__(servers, **options)
        self.peer = peer(self.kind)
        self.peer.gate.clear()

    @abstractmethod
    def act(self, connection: Any, what: str, word: str) -> str:
        """Have the peer do something, and return its reply."""

    @abstractmethod
    def socket_of(self, connection: Any) -> Any: ...

    @property
    def port(self) -> int:
        return self.peer.port if self.relay is None else self.relay.port

    def make_relay(self, directory: str, piece: int) -> Relay:
        return Relay(("127.0.0.1", self.peer.port), piece=piece)

    def ask(self, connection: Any, word: str) -> str:
        return self.act(connection, "echo", word)

    def ask_long(self, connection: Any, word: str) -> str:
        reply = self.act(connection, "long", word)
        assert len(reply) == LONG + len(word)
        return reply[: len(word)]

    def ask_late(self, connection: Any, word: str) -> str:
        return self.act(connection, "late", word)

    def ask_in_transaction(self, connection: Any, word: str) -> str:
        self.ask(connection, self.word())
        return self.ask(connection, word)

    def written(self) -> int:
        return 0

    def hang(self, connection: Any) -> object:
        return self.act(connection, "hang", "word")

    @contextmanager
    def hanging(self) -> Iterator[Callable[[int], object]]:
        yield lambda count: self.peer.gate.set()
        self.peer.gate.set()

    def fail(self, connection: Any) -> object:
        return self.act(connection, "fail", "word")

    def session(self, connection: Any) -> Any:
        name = self.socket_of(connection).getsockname()
        return (name if self.relay is None else self.relay.names[name])[1]

    def observer(self) -> Any:
        return nullcontext()

    def look(self, observer: Any) -> dict[Any, str]:
        return dict(self.peer.activity)

    def restart(self) -> None:
        self.peer.restart()

    end_all = restart

    def check_next(self, pool: Pool[Any], session: Any = None) -> None:
        with pool.connection() as connection:
            for word in (self.word(), self.word()):
                try:
                    reply = self.ask(connection, word)
                except Exception as error:
                    raise AssertionError(f"the next user got {error!r}") from error
                assert reply == word
            # Only now the peer is known to have accepted it.
            found = self.session(connection)
            assert session in (None, found), f"{session} was not kept"

    def change_password(self, password: str) -> None:
        raise NotImplementedError

    def process(self) -> int:
        raise NotImplementedError

    def processes(self) -> list[int]:
        raise NotImplementedError


class Http(Recipe):
    kind = HttpPeer
    errors = (http.client.HTTPException, OSError)
    refusal = RefusedError

    def factory(self, **steps: Any) -> Any:
        kind = recipes()["HttpConnection"]
        return functools.partial(type("HttpConnection", (kind,), steps), "127.0.0.1", self.port, **self.options)

    def act(self, connection: Any, what: str, word: str) -> str:
        status, _, body = connection.fetch(f"/{what}/{word}")
        if status != 200:
            raise RefusedError(status)
        return str(body.decode())

    def socket_of(self, connection: Any) -> Any:
        return connection.get()


class Thrift(Recipe):
    kind = ThriftPeer

    def __init__(self, servers: Servers, **options: Any) -> None:
        from thriftpy2.thrift import TException

        super().__init__(servers, **options)
        self.errors = (TException, OSError)
        self.refusal = idl().Refused

    def factory(self, **steps: Any) -> Any:
        connector = recipes()["ThriftConnector"](idl().Words, "127.0.0.1", self.port, **self.options)
        for name, step in steps.items():
            setattr(connector, name, step)
        return connector

    def act(self, connection: Any, what: str, word: str) -> str:
        return str(connection.act(what, word))

    def socket_of(self, connection: Any) -> Any:
        return connection._socket.sock


class Msgpack(Recipe):
    kind = MsgpackPeer
    errors = (OSError,)

    def __init__(self, servers: Servers, **options: Any) -> None:
        super().__init__(servers, **options)
        self.refusal = recipes()["RPCError"]

    def factory(self, **steps: Any) -> Any:
        kind = recipes()["RPCPoolClient"]
        return functools.partial(type("RPCPoolClient", (kind,), steps), "127.0.0.1", self.port, **self.options)

    def act(self, connection: Any, what: str, word: str) -> str:
        return str(connection.call(what, word))

    def socket_of(self, connection: Any) -> Any:
        return connection.socket


class Executing(extensions.connection):
    """A connection of psycopg2 with psycopg's ``execute()``."""

    def execute(self, query: str, parameters: Any = None) -> Any:
        cursor = self.cursor()
        cursor.execute(query, parameters)
        return cursor


class Psycopg2(battery_subjects.Postgres):
    errors = (psycopg2.Error,)
    refusal = psycopg2.errors.UndefinedColumn

    def factory(self, **steps: Any) -> Any:
        options = {"options": "-c client_connection_check_interval=100ms", "connection_factory": Executing}
        connector = recipes()["Psycopg2Connector"](self.reached, application_name=self.tag, **options, **self.options)
        for name, step in steps.items():
            setattr(connector, name, step)
        return connector

    @property
    def reached(self) -> str:
        conninfo = str(self.servers["postgres"]["conninfo"])
        return conninfo if self.relay is None else conninfo.replace(self.directory, self.relay_directory)


RECIPES: dict[str, Callable[..., Any]] = {"http": Http, "psycopg2": Psycopg2, "msgpack": Msgpack}
if HAS_THRIFT:
    RECIPES["thrift"] = Thrift
battery_subjects.SUBJECTS["psycopg2"] = Psycopg2
everyone = pytest.mark.parametrize("subject", RECIPES)
of_a_peer = pytest.mark.parametrize("subject", [name for name in RECIPES if name != "psycopg2"])


def made(subject: str, servers: Servers, **options: Any) -> Any:
    return RECIPES[subject](servers, **options)


# Blows


@patched
@everyone
def test_no_request_fails_after_a_restart_with_idle_connections(own_servers: Servers, subject: str) -> None:
    it = made(subject, own_servers)
    with it.pool() as pool:
        pool.fill(4)
        it.restart()
        assert it.failures(pool) == []
        it.check_whole(pool)


@patched
@everyone
@pytest.mark.parametrize("how", battery.INTERRUPTIONS)
def test_the_next_user_sees_nothing_of_an_interruption_at_any_switch(
    own_servers: Servers, subject: str, how: str
) -> None:
    it = made(subject, own_servers)
    with it.relayed(50), it.pool(1) as pool:
        battery.interrupt_everywhere(it, pool, "ask", how)
        it.check_whole(pool)


@patched
@everyone
@pytest.mark.torture
@pytest.mark.parametrize("how", battery.INTERRUPTIONS)
@pytest.mark.parametrize("use", ["ask", "ask_long", "ask_late"])
@pytest.mark.parametrize("piece", [11, 23, 5000])
def test_the_next_user_sees_nothing_of_an_interruption_in_the_middle_of_a_reply(
    own_servers: Servers, subject: str, use: str, how: str, piece: int
) -> None:
    it = made(subject, own_servers)
    with it.relayed(piece if use != "ask_long" else 40_000), it.pool(1) as pool:
        battery.interrupt_everywhere(it, pool, use, how)
        it.check_whole(pool)


@patched
@everyone
def test_a_block_that_continues_after_a_caught_timeout_affects_no_other_user(
    own_servers: Servers, subject: str
) -> None:
    it = made(subject, own_servers)
    with it.pool(1) as pool, it.hanging() as let_go:

        def use() -> None:
            with pool.connection() as connection:
                with gevent.Timeout(0.05, False):
                    it.hang(connection)
                let_go(1)
                word = it.word()
                # It raises, or is the answer; never that to the first.
                with suppress(Exception):
                    assert it.ask(connection, word) == word, "the reply is that to another call"

        assert not isinstance(outcome(use), AssertionError)
        it.check_next(pool)
        it.check_whole(pool)


@patched
@of_a_peer
def test_a_timeout_of_the_client_that_a_block_has_caught_discards_the_connection(
    own_servers: Servers, subject: str
) -> None:
    it = made(subject, own_servers)
    with it.pool(1) as pool, it.hanging() as let_go:
        with pool.connection() as connection:
            # Connecting may take longer.
            it.socket_of(connection).settimeout(0.05)
            assert isinstance(outcome(it.hang, connection), TimeoutError)
        let_go(1)
        it.check_next(pool)
        it.check_whole(pool)
        assert pool.stats().opened == 2


@patched
@everyone
def test_a_call_still_under_way_at_the_end_of_the_block_discards_the_connection(
    own_servers: Servers, subject: str
) -> None:
    it = made(subject, own_servers)
    with it.pool(1) as pool, it.hanging() as let_go:

        def use() -> gevent.Greenlet:
            with pool.connection() as connection:
                other = gevent.spawn(outcome, it.hang, connection)
                eventually(lambda: RUNNING in it.sessions().values())
                return other

        # psycopg2 says at the end of the block that another statement is under way.
        found: Any = outcome(use)
        it.check_next(pool)
        let_go(1)
        assert isinstance(found, gevent.Greenlet | psycopg2.Error), found
        it.check_whole(pool)
        assert pool.stats().opened == 2


@patched
@everyone
def test_an_error_reply_of_the_server_keeps_the_connection(own_servers: Servers, subject: str) -> None:
    it = made(subject, own_servers)
    with it.pool(1) as pool:
        with pool.connection() as connection:
            it.ask(connection, "word")
            session = it.session(connection)
            assert isinstance(outcome(it.fail, connection), it.refusal)
        it.check_next(pool, session)
        assert isinstance(outcome(battery.use_by, it, pool, "fail"), it.refusal)
        it.check_next(pool, session)
        with suppress(LookupError), pool.connection():
            raise LookupError("of the application")
        it.check_next(pool, session)


@patched
@everyone
@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.torture) for seed in range(8)])
def test_kills_and_timeouts_neither_exceed_the_limit_nor_lose_capacity(
    own_servers: Servers, subject: str, seed: int
) -> None:
    battery.interrupt_at_random(made(subject, own_servers), seed)


# HTTP


@patched
@pytest.mark.parametrize("what", ["last", "early"])
def test_http_the_next_user_gets_another_connection_after_a_reply_that_ends_it(own_servers: Servers, what: str) -> None:
    it = made("http", own_servers)
    with it.pool(1) as pool:
        with pool.connection() as connection, suppress(http.client.HTTPException):
            it.act(connection, what, "word")
            assert what == "last"
        it.check_next(pool)
        assert pool.stats().opened == 2


@patched
def test_http_a_client_does_not_connect_again_after_a_reply_that_ends_its_connection(own_servers: Servers) -> None:
    it = made("http", own_servers)
    with it.pool(1) as pool, pool.connection() as connection:
        it.act(connection, "last", "word")
        assert isinstance(outcome(it.ask, connection, "word"), http.client.NotConnected)


# psycopg2


@patched
def test_psycopg2_a_connection_without_a_wait_callback_is_refused(own_servers: Servers) -> None:
    it = made("psycopg2", own_servers)
    recipes()
    callback = extensions.get_wait_callback()
    extensions.set_wait_callback(None)
    try:
        with it.pool(1) as pool:
            error = outcome(pool.acquire)
            assert isinstance(error, RuntimeError)
            assert "set_wait_callback" in str(error)
    finally:
        extensions.set_wait_callback(callback)


@patched
def test_psycopg2_a_call_of_several_statements_waits_cooperatively(own_servers: Servers) -> None:
    it = made("psycopg2", own_servers)
    statements = f"SELECT 1; SELECT pg_advisory_xact_lock_shared({it.number})"
    with it.pool(1) as pool, it.hanging() as let_go, pool.connection() as connection:
        waiting = gevent.spawn(outcome, connection.execute, statements)
        eventually(lambda: RUNNING in it.sessions().values())
        let_go(1)
        waiting.join()
        assert not isinstance(waiting.value, Exception)


@patched
def test_psycopg2_a_block_that_ends_well_commits_and_an_error_rolls_back(own_servers: Servers) -> None:
    it = made("psycopg2", own_servers)
    with it.pool(1) as pool:
        with pool.connection() as connection:
            it._write(connection)
        assert it.written() == 1
        with suppress(LookupError), pool.connection() as connection:
            it._write(connection)
            raise LookupError
        it.check_next(pool)
        assert it.written() == 0
        assert pool.stats().opened == 1


@patched
@pytest.mark.parametrize(
    "what",
    [
        *("transaction", "failed transaction", "advisory lock", "setting"),
        *("autocommit", "isolation", "cursor_factory", "committed by SQL", "prepared"),
    ],
)
def test_psycopg2_the_next_user_finds_nothing_that_a_user_left(own_servers: Servers, what: str) -> None:
    it = made("psycopg2", own_servers)
    if what in it.left_open:
        battery.leave_open(it, what)
        return
    leave = {
        "autocommit": lambda connection: connection.set_session(autocommit=True),
        "isolation": lambda connection: connection.set_session("SERIALIZABLE", readonly=True, deferrable=True),
        "cursor_factory": lambda connection: setattr(connection, "cursor_factory", psycopg2.extras.DictCursor),
        # psycopg2 does not see that its transaction has ended, and would begin no other.
        "committed by SQL": lambda connection: connection.execute("COMMIT"),
        "prepared": prepare,
    }[what]
    with it.pool(1) as pool:
        connection = pool.acquire()
        leave(connection)
        pool.release(connection)
        connection = pool.acquire()
        it._write(connection)
        assert connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
        assert type(connection.execute("SELECT 1")) is extensions.cursor
        pool.release(connection)
        it.check_next(pool)
        assert it.written() == 0


def prepare(connection: Any) -> None:
    # Where prepared transactions are off, the server refuses.
    connection.tpc_begin(connection.xid(1, "one", "two"))
    connection.execute("SELECT 1")
    with suppress(psycopg2.Error):
        connection.tpc_prepare()


@patched
def test_psycopg2_a_statement_that_is_cut_short_ends_on_the_server(own_servers: Servers) -> None:
    it = made("psycopg2", own_servers)
    with it.pool() as pool, it.hanging():
        assert isinstance(outcome(battery.give_up, it, pool, "hang"), gevent.Timeout)
        it.check_none_runs()


@patched
def test_psycopg2_a_block_that_catches_a_timeout_raises_at_its_end_and_commits_nothing(
    own_servers: Servers,
) -> None:
    it = made("psycopg2", own_servers)

    def use() -> None:
        with pool.connection() as connection:
            it._write(connection)
            with gevent.Timeout(0.02, False):
                it.hang(connection)

    with it.pool(1) as pool, it.hanging():
        assert isinstance(outcome(use), psycopg2.InterfaceError)
        it.check_next(pool)
        assert it.written() == 0


@patched
@pytest.mark.parametrize("how", ["close", "discard"])
def test_psycopg2_closing_a_connection_during_a_statement_does_not_block(own_servers: Servers, how: str) -> None:
    it = made("psycopg2", own_servers)
    with it.pool(1) as pool, it.hanging():
        connection = pool.acquire()
        other = gevent.spawn(outcome, it.hang, connection)
        eventually(lambda: RUNNING in it.sessions().values())
        if how == "close":
            pool.close(timeout=0)
        else:
            without_switching(lambda: pool.discard(connection))
        other.join()
        assert isinstance(other.value, psycopg2.Error)
        assert connection.closed


#: Those blows of the battery that need nothing but a subject. The suite strikes one that nothing else comes near.
BLOWS = [
    pytest.param(name, marks=() if "fork_during_an_opening" in name else pytest.mark.torture)
    for name, blow in vars(battery).items()
    if name.startswith("test_") and inspect.signature(blow).parameters.keys() == {"own_servers", "subject"}
]


@patched
@pytest.mark.parametrize("blow", BLOWS)
def test_psycopg2_the_recipe_passes_the_battery(own_servers: Servers, blow: str) -> None:
    getattr(battery, blow)(own_servers, "psycopg2")


# thriftpy2


if HAS_THRIFT:

    @patched
    def test_thrift_a_call_without_a_reply_keeps_the_connection(own_servers: Servers) -> None:
        it = made("thrift", own_servers)
        with it.pool(1) as pool:
            word = it.word()
            with pool.connection() as connection:
                connection.note(word)
            it.check_next(pool)
            assert pool.stats().opened == 1
            assert it.peer.notes[-1] == word


# msgpack-rpc


@patched
@pytest.mark.parametrize("what", ["twice", "another"])
def test_msgpack_a_surplus_reply_discards_the_connection(own_servers: Servers, what: str) -> None:
    it = made("msgpack", own_servers)
    with it.pool(1) as pool:
        with pool.connection() as connection:
            assert isinstance(outcome(it.act, connection, what, "word"), ValueError)
        it.check_next(pool)
        assert pool.stats().opened == 2


@patched
def test_msgpack_an_argument_that_can_not_be_packed_keeps_the_connection(own_servers: Servers) -> None:
    it = made("msgpack", own_servers)
    with it.pool(1) as pool:
        with pool.connection() as connection:
            assert isinstance(outcome(connection.call, "echo", object()), TypeError)
        it.check_next(pool)
        assert pool.stats().opened == 1


# The page


@patched
def test_the_examples_of_the_recipes_run(own_servers: Servers) -> None:
    conninfo = own_servers["postgres"]["conninfo"]
    source = joined(runnable()).replace("monkey.patch_all()", "").replace(POSTGRESQL, conninfo)
    for place, kind in {'"localhost", 9090': ThriftPeer, '"port": 8080': HttpPeer, '"port": 6000': MsgpackPeer}.items():
        assert place in source or not HAS_THRIFT
        source = source.replace(place, re.sub("[0-9]+", str(peer(kind).port), place))
    names: dict[str, Any] = {"__name__": "recipes"}
    with tempfile.TemporaryDirectory() as directory, redirect_stdout(io.StringIO()) as said:
        Path(directory, "calculator.thrift").write_text(IDL)
        source = source.replace('"calculator.thrift"', f'"{directory}/calculator.thrift"')
        exec(compile(source, PAGE.name, "exec"), names)
    thrift = ["3"] if HAS_THRIFT else []
    assert said.getvalue().splitlines() == ["200 b'hello'", "('hello',)", *thrift, "3"]
    pools = [value for value in names.values() if isinstance(value, Pool)]
    assert len(pools) == len(RECIPES)
    for pool in pools:
        assert pool.stats().idle == pool.stats().opened == 1
        pool.close()
