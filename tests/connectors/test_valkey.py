"""The connectors for valkey-py and redis-py, step by step, with a real server."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import re
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.hub
import gevent.select
import gevent.socket
import gevent.ssl
import pytest
import redis
import valkey

from benchmarks.servers import valkey_server
from gsocketpool import InvalidArgumentError, Pool
from gsocketpool.connectors.redis import RedisConnector
from gsocketpool.connectors.valkey import ValkeyConnector
from tests.support.connections import no_hanging as no_hanging
from tests.support.connections import outcome, without_switching
from tests.support.connectors import connected, error_without
from tests.support.internals import is_readable, is_silent
from tests.support.processes import run_python
from tests.support.scripted import PATIENCE, eventually
from tests.support.servers import (
    Server,
    authority_pem,
    hanging_address,
    open_sockets,
    refusing_address,
    server_context,
    silent_listener,
)
from tests.support.switches import Switches, greenlets_there_are


@dataclass
class Library:
    """A client library, and one of its parsers."""

    module: Any
    connector: Any
    options: dict[str, Any] = field(default_factory=dict)

    def at(self, server: Any, **options: Any) -> Any:
        """A connector for a server of the tests."""
        return self.connector(f"valkey://127.0.0.1:{server.port}", **self.options, **options)

    @property
    def error(self) -> Any:
        return self.module.exceptions


def libraries() -> Iterator[Any]:
    for module, connector, parser in ((valkey, ValkeyConnector, "libvalkey"), (redis, RedisConnector, "hiredis")):
        python: Any = module._parsers._RESP2Parser
        yield pytest.param(Library(module, connector, {"parser_class": python}), id=module.__name__)
        if importlib.util.find_spec(parser) is not None:
            yield pytest.param(Library(module, connector), id=parser)


def default_context() -> ssl.SSLContext:
    context: ssl.SSLContext = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    return context


LIBRARIES = list(libraries())


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A library that waits as it does where gevent has patched Python."""
    found: Library = request.param
    monkeypatch.setattr(found.module.connection, "socket", gevent.socket)
    patched = {"SSLContext": gevent.ssl.SSLContext, "create_default_context": default_context}
    monkeypatch.setattr(found.module.connection, "ssl", SimpleNamespace(**{**vars(ssl), **patched}))
    return found


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory = tmp_path_factory.mktemp("valkey")
    with valkey_server(data_dir=directory, databases=4) as server:
        yield server


@pytest.fixture
def connector(library: Library, server: Any) -> Any:
    return library.at(server)


@pytest.fixture
def client(connector: Any) -> Iterator[Any]:
    with connected(connector) as client:
        client.flushall()
        yield client


@pytest.fixture
def other(connector: Any) -> Iterator[Any]:
    """Another client of the same server."""
    with connected(connector) as client:
        yield client


def names(client: Any, name: str) -> list[Any]:
    return [one for one in client.client_list() if one["name"] == name]


# Connecting


def test_a_client_works_and_leaves_no_socket_when_it_is_closed(connector: Any, other: Any) -> None:
    before = open_sockets()
    client = connector.connect()
    assert isinstance(client, connector._client_class)
    assert client.set("key", "value")
    assert client.get("key") == b"value"
    connector.ping(client)
    connector.close(client)
    assert open_sockets() == before
    connector.close(client)


def test_every_object_that_a_client_makes_uses_its_one_connection(library: Library, server: Any, other: Any) -> None:
    connector = library.at(server, client_name="alone")
    with connected(connector) as client:
        pipe = client.pipeline()
        pipe.set("one", 1).get("one")
        assert pipe.execute() == [True, b"1"]
        assert client.transaction(lambda pipe: (pipe.multi(), pipe.incr("one")), "one") == [2]
        with client.lock("lock", timeout=10):
            assert client.exists("lock")
        assert client.register_script("return 7")() == 7
        assert len(names(other, "alone")) == 1
        assert connector.is_reusable(client, None)
        pubsub = client.pubsub()
        pubsub.subscribe("channel")
        assert len(names(other, "alone")) == 1


@pytest.mark.parametrize("scheme", ["valkey", "redis", "Valkey"])
def test_a_url_may_have_either_scheme(library: Library, server: Any, scheme: str) -> None:
    with connected(library.connector(f"{scheme}://127.0.0.1:{server.port}/2")) as client:
        assert client.client_info()["db"] == 2


def test_a_client_connects_over_a_unix_socket(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with valkey_server(data_dir=tmp_path / "data", unixsocket=str(path)) as server:
        assert server.is_running()
        for connector in (
            library.connector(f"unix://{path}?db=1"),
            library.connector(unix_socket_path=str(path), db=1),
        ):
            with connected(connector) as client:
                assert client.client_info()["db"] == 1
                assert connector.is_reusable(client, None)


def relaying(server: Any, piece: int = 65536) -> Callable[[Any], None]:
    """Relay a peer's requests to the real server, and send the replies back in pieces."""

    def relay(peer: Any) -> None:
        with gevent.socket.create_connection(("127.0.0.1", server.port)) as upstream:
            upstream.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)

            def there() -> None:
                with suppress(OSError):
                    while data := peer.recv(65536):
                        upstream.sendall(data)
                with suppress(OSError):
                    upstream.shutdown(gevent.socket.SHUT_WR)

            sender = gevent.spawn(there)
            try:
                while data := upstream.recv(piece):
                    peer.sendall(data)
                    gevent.sleep(0)
            finally:
                sender.kill()

    return relay


@pytest.mark.parametrize("scheme", ["valkeys", "rediss"])
def test_a_client_connects_over_tls_and_verifies_the_certificate(library: Library, server: Any, scheme: str) -> None:
    with Server(relaying(server), tls=server_context("localhost")) as secure:
        connector = library.connector(f"{scheme}://localhost:{secure.port}", ssl_ca_data=authority_pem())
        with connected(connector) as client:
            assert client.echo("hello") == b"hello"
            assert is_silent(connector.peek_target(client))
            assert connector.is_reusable(client, None)
        connector = library.connector(f"{scheme}://localhost:{secure.port}")
        with pytest.raises(library.error.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            connector.connect()


def test_a_connector_takes_the_arguments_of_its_client(library: Library, server: Any) -> None:
    connector = library.connector(host="127.0.0.1", port=server.port, db=3, decode_responses=True, protocol=3)
    with connected(connector) as client:
        client.set("key", "value")
        assert client.get("key") == "value"
        assert client.client_info()["db"] == 3
        assert client.client_info()["resp"] == "3"
        assert connector.is_reusable(client, None)
        assert connector.is_settled(client)


def test_options_override_all_that_the_url_says(library: Library, server: Any, other: Any) -> None:
    other.execute_command("ACL", "SETUSER", "app", "reset", "on", ">new", "+@all", "~*", "&*")
    connector = library.connector(
        "valkey://other:old@127.0.0.1:1/1?client_name=first&protocol=2&decode_responses=no",
        host="localhost",
        port=server.port,
        username="app",
        password=lambda: "new",
        db=lambda: 3,
        client_name="second",
        protocol=3,
        decode_responses=True,
        **library.options,
    )
    with connected(connector) as client:
        info = client.client_info()
        assert (info["user"], info["db"], info["name"], info["resp"]) == ("app", 3, "second", "3")
        assert client.acl_whoami() == "app"


def test_options_override_the_url_of_a_pool_also_if_a_callable_returns_them(server: Any) -> None:
    url = f"redis://:wrong@127.0.0.1:{server.port}/1"
    for options in ({"db": 3, "password": None}, lambda: {"db": 3, "password": None}):
        with Pool.from_url(url, options) as pool, pool.connection() as client:
            assert client.client_info()["db"] == 3


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("valkey", valkey.Valkey),
        ("redis", redis.Redis),
        ("valkey+redis", redis.Redis),
        ("redis+valkey", valkey.Valkey),
    ],
)
def test_a_pool_can_be_made_from_a_url_and_options(server: Any, scheme: str, kind: type) -> None:
    databases = iter([1, 2])
    url = f"{scheme}://127.0.0.1:{server.port}"
    with Pool.from_url(url, {"db": 3}) as pool, pool.connection() as client:
        assert type(client) is kind
        assert client.client_info()["db"] == 3
    with Pool.from_url(url, lambda: {"db": next(databases)}) as pool:
        for number in (1, 2):
            for _ in range(2):
                with pool.connection() as client:
                    assert client.client_info()["db"] == number
            pool.drain()
        assert pool.stats().opened == 2


def test_callables_are_called_at_each_connect(library: Library, server: Any, other: Any) -> None:
    passwords = iter(["first", "second"])
    databases = iter([1, 2])
    asked = library.connector(
        lambda: f"valkey://127.0.0.1:{server.port}",
        username="app",
        password=lambda: next(passwords),
        db=lambda: next(databases),
    )
    for number, password in enumerate(["first", "second"], 1):
        other.execute_command("ACL", "SETUSER", "app", "reset", "on", ">" + password, "+@all", "~*", "&*")
        with connected(asked) as client:
            assert client.client_info()["db"] == number
            assert client.acl_whoami() in ("app", b"app")


def test_a_failed_connect_raises_the_error_of_the_library_at_once(library: Library) -> None:
    before = open_sockets()
    refused = pytest.raises(library.error.ConnectionError, match="refused")
    with refusing_address() as (host, port), gevent.Timeout(1), refused:
        library.connector(host=host, port=port).connect()
    assert open_sockets() <= before


@pytest.mark.parametrize("address", [hanging_address, silent_listener], ids=["connecting", "greeting"])
@pytest.mark.parametrize("scheme", ["valkey", "valkeys"])
@pytest.mark.parametrize("error", [gevent.Timeout(), gevent.GreenletExit()], ids=["timeout", "kill"])
def test_an_interrupted_connect_leaves_no_socket(
    library: Library, address: Any, scheme: str, error: BaseException
) -> None:
    with address() as (host, port):
        before = open_sockets()
        caught: list[BaseException] = []

        def open_it() -> None:
            try:
                library.connector(f"{scheme}://{host}:{port}", client_name="name").connect()
            except BaseException as error:
                # With it, its frames live on, and the library's local variables.
                caught.append(error)

        opener = gevent.spawn(open_it)
        eventually(lambda: len(open_sockets()) == len(before) + 1)
        # A little further: into the handshake, if there is one.
        gevent.sleep(0.02)
        opener.kill(error)
        assert caught == [error]
        assert open_sockets() == before
        opener.join()


def test_a_failed_login_leaves_no_socket(library: Library, server: Any) -> None:
    before = open_sockets()
    connector = library.at(server, password="wrong", username="unknown")
    with pytest.raises(library.error.AuthenticationError) as caught:
        connector.connect()
    assert "wrong" not in str(caught.value)
    assert open_sockets() == before


def test_an_error_of_the_connect_function_of_the_caller_leaves_no_socket(library: Library, server: Any) -> None:
    before = open_sockets()
    connector = library.at(server, **{f"{library.module.__name__}_connect_func": lambda connection: 1 / 0})
    # The error is kept, and its frames.
    with pytest.raises(ZeroDivisionError) as caught:
        connector.connect()
    assert open_sockets() == before, caught


def test_a_client_starts_no_thread_and_no_greenlet(connector: Any) -> None:
    threads = threading.active_count()
    greenlets = set(greenlets_there_are())
    with connected(connector) as client:
        client.set("key", "value")
        assert threading.active_count() == threads
        assert set(greenlets_there_are()) <= greenlets


# What is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_connections", 10),
        ("connection_pool", object()),
        ("single_connection_client", True),
        ("retry", object()),
        ("retry_on_error", [OSError]),
        ("retry_on_timeout", True),
    ],
)
def test_an_argument_that_defeats_the_pool_is_refused_with_its_name(library: Library, name: str, value: object) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{name} must be left out") as caught:
        library.connector(**{name: value})
    assert caught.value.argument == name


def test_an_argument_in_the_url_that_defeats_the_pool_is_refused_too(library: Library) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^retry_on_timeout must be left out .*, not '\*\*\*'$"):
        library.connector("valkey://localhost?retry_on_timeout=true")
    with pytest.raises(InvalidArgumentError, match=r"^max_connections must be left out"):
        library.connector("valkey://localhost?max_connections=3")
    asked = library.connector(lambda: "valkey://localhost?max_connections=3")
    with pytest.raises(InvalidArgumentError, match=r"^max_connections must be left out"):
        asked.connect()


@pytest.mark.parametrize(
    ("url", "options", "argument"),
    [
        (7, {}, "url"),
        ("", {}, "url"),
        ("localhost", {}, "url"),
        ("http://localhost", {}, "url"),
        ("valkey://localhost:port", {}, "url"),
        ("valkey://localhost?protocol=4", {}, "protocol"),
        ("valkey://localhost?protocol=x", {}, "protocol"),
        ("valkey://localhost", {"hots": "there"}, "hots"),
        ("valkey://localhost?hots=there", {}, "hots"),
        ("valkey://localhost", {"ssl_ca_certs": "file"}, "ssl_ca_certs"),
        (None, {"hots": "there"}, "hots"),
        (None, {"protocol": 4}, "protocol"),
        (None, {"protocol": "x"}, "protocol"),
        (None, {"port": "port"}, "port"),
    ],
)
def test_a_bad_argument_is_refused_with_its_name(
    library: Library, url: Any, options: dict[str, Any], argument: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        library.connector(url, **options)
    assert caught.value.argument == argument


def test_a_bad_value_from_a_callable_is_refused_when_it_is_called(library: Library) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^url"):
        library.connector(lambda: "http://localhost").connect()
    with pytest.raises(InvalidArgumentError, match=r"^url"):
        library.connector(lambda: b"valkey://localhost", db=1).connect()
    with pytest.raises(InvalidArgumentError, match=r"^protocol"):
        library.connector(protocol=lambda: 4).connect()


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        (f"valkey://user:{SECRET}@localhost:1/2", {}),
        (f"valkey://localhost:1/2?password={SECRET}", {}),
        ("valkey://localhost:1/2", {"password": SECRET}),
        (None, {"host": "localhost", "port": 1, "db": 2, "password": SECRET, "protocol": 9}),
        (f"valkey://:{SECRET}/x@localhost:1", {}),
        (f"http://user:{SECRET}@localhost", {}),
        (None, {"pasword": SECRET}),
    ],
)
def test_no_password_is_shown(library: Library, url: str | None, options: dict[str, Any]) -> None:
    connector: Any = None

    def fail() -> None:
        nonlocal connector
        connector = library.connector(url, **options)
        connector.connect()

    with pytest.raises((InvalidArgumentError, library.error.ConnectionError)) as caught:
        fail()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in f"{caught.value!r} {connector!r}"


# The end of a block


def raw(*commands: str) -> Callable[[Any], None]:
    def use(client: Any) -> None:
        for command in commands:
            client.execute_command(*command.split())

    return use


@pytest.mark.parametrize(
    "use",
    [
        raw("SET key value", "GET key"),
        raw("SELECT 3", "SELECT 0"),
        raw("CLIENT GETNAME", "CLIENT ID", "CLIENT LIST"),
        raw("SCRIPT EXISTS any"),
        raw("MULTI", "SET key value", "EXEC"),
        raw("WATCH key", "UNWATCH"),
        raw("WATCH key", "MULTI", "UNWATCH", "EXEC"),
        lambda client: client.pipeline().set("key", "value").execute(),
        lambda client: client.pipeline(transaction=False).set("key", "value").execute(),
        lambda client: client.transaction(lambda pipe: pipe.multi(), "key"),
        lambda client: client.close(),
    ],
)
@pytest.mark.parametrize("error", [None, ValueError("the application's"), gevent.Timeout(), gevent.GreenletExit()])
def test_a_settled_connection_is_reusable_after_any_error(
    connector: Any, client: Any, use: Callable[[Any], object], error: BaseException | None
) -> None:
    use(client)
    assert connector.is_settled(client)
    assert without_switching(lambda: connector.is_reusable(client, error)) is True
    assert client.echo("hello") == b"hello"


def test_a_connection_is_reusable_after_an_error_reply(library: Library, connector: Any, client: Any) -> None:
    client.set("text", "text")
    for fail in (
        lambda: client.incr("text"),
        lambda: client.execute_command("NO SUCH COMMAND"),
        lambda: client.pipeline().incr("text").execute(),
        lambda: client.pipeline(transaction=False).incr("text").get("text").execute(),
        lambda: client.pipeline().execute_command("NO SUCH COMMAND").execute(),
    ):
        with pytest.raises(library.error.ResponseError) as caught:
            fail()
        assert connector.is_reusable(client, caught.value)
    with pytest.raises(library.error.DataError) as refused:
        client.set("key", object())
    assert connector.is_reusable(client, refused.value)
    with pytest.raises(library.error.DataError) as refused:
        client.pipeline().set("key", object()).execute()
    assert connector.is_reusable(client, refused.value)
    assert client.get("text") == b"text"


def refused_exec(client: Any) -> None:
    client.execute_command("WATCH", "key")
    with suppress(valkey.ResponseError, redis.ResponseError):
        client.execute_command("EXEC")


@pytest.mark.parametrize(
    ("use", "left"),
    [
        (raw("MULTI"), (True, False)),
        (raw("multi"), (True, False)),
        (raw("MULTI", "SET key value"), (True, False)),
        (raw("WATCH key"), (False, True)),
        (raw("WATCH key", "MULTI"), (True, True)),
        (raw("WATCH key", "MULTI", "UNWATCH"), (True, True)),
        (lambda client: client.execute_command(b"WATCH", "key"), (False, True)),
        (refused_exec, (False, True)),
    ],
)
def test_reset_ends_unfinished_work(
    connector: Any, client: Any, other: Any, use: Callable[[Any], object], left: tuple[bool, bool]
) -> None:
    def state() -> tuple[bool, bool]:
        (info,) = (one for one in other.client_list() if one["id"] == number)
        return "x" in info["flags"], info["watch"] != "0"

    number = str(client.client_id())
    use(client)
    assert connector.is_reusable(client, None)
    assert connector.is_settled(client) is False
    assert state() == left
    connector.reset(client)
    assert state() == (False, False)
    assert connector.is_settled(client)
    assert client.get("key") is None


def exhausted(client: Any) -> None:
    client.set_response_callback("ECHO", lambda answer: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        client.pipeline(transaction=False).echo("one").echo("two").execute()


def unanswered(client: Any) -> None:
    connection = client.connection_pool.get_connection()
    connection.send_command("BLPOP", "nothing", 1)
    client.connection_pool.release(connection)


def packed_and_unanswered(client: Any) -> None:
    connection = client.connection_pool.get_connection()
    connection.send_packed_command(connection.pack_command("BLPOP", "nothing", 1))
    client.connection_pool.release(connection)


def subscribed_by_hand(client: Any) -> None:
    connection = client.connection_pool.get_connection()
    connection.send_command("SUBSCRIBE", "channel")
    connection.read_response(push_request=True)
    client.connection_pool.release(connection)


def subscribed(name: str) -> Callable[[Any], object]:
    def use(client: Any) -> None:
        client.kept = client.pubsub()
        getattr(client.kept, name)("channel")

    return use


def monitored(client: Any) -> None:
    client.kept = client.monitor()
    client.kept.__enter__()


def of_a_pipeline_that_lives(client: Any) -> None:
    client.kept = client.pipeline()
    client.kept.watch("key")


def of_a_pubsub_that_lives(client: Any) -> None:
    client.kept = client.pubsub()
    client.kept.ping()
    client.kept.parse_response()


def interleaved(client: Any) -> None:
    """A greenlet that the block has started is still waiting for a reply at its end."""
    client.kept = gevent.spawn(outcome, client.blpop, "nothing", 1)
    gevent.sleep(0)


@pytest.mark.parametrize(
    "use",
    [
        raw("SELECT 3"),
        raw("select 3"),
        raw("SELECT 3", "MULTI", "SELECT 0", "DISCARD"),
        raw("CLIENT TRACKING ON"),
        raw("CLIENT NO-EVICT ON"),
        raw("CLIENT SETNAME other"),
        raw("SCRIPT DEBUG NO"),
        raw("AUTH default any"),
        raw("HELLO 2"),
        raw("RESET"),
        raw("QUIT"),
        lambda client: client.execute_command("CLIENT TRACKING", "ON"),
        lambda client: client.execute_command(b"CLIENT TRACKING", b"ON"),
        lambda client: client.pipeline(transaction=False).execute_command("SELECT", 1).execute(),
        lambda client: client.connection_pool.get_connection().send_command("CLIENT", "REPLY", "OFF"),
        unanswered,
        packed_and_unanswered,
        lambda client: client.connection_pool.disconnect(),
        exhausted,
        subscribed("subscribe"),
        subscribed("psubscribe"),
        subscribed("ssubscribe"),
        subscribed("unsubscribe"),
        subscribed_by_hand,
        monitored,
        of_a_pipeline_that_lives,
        of_a_pubsub_that_lives,
        interleaved,
    ],
)
def test_a_connection_with_work_that_no_reset_can_end_is_not_reusable(
    connector: Any, client: Any, use: Callable[[Any], object]
) -> None:
    use(client)
    assert without_switching(lambda: connector.is_reusable(client, None)) is False


def test_a_client_with_a_subscription_refuses_other_commands(library: Library, client: Any, other: Any) -> None:
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe("channel")
    other.publish("channel", "news")
    with pytest.raises(library.error.ResponseError, match="subscription"):
        client.get("key")
    messages = (message for message in pubsub.listen() if message["type"] == "message")
    assert next(messages)["data"] == b"news"


@contextmanager
def replica(client: Any) -> Iterator[None]:
    with refusing_address() as (host, port):
        client.replicaof(host, port)
        try:
            yield
        finally:
            client.replicaof("NO", "ONE")


def test_a_connection_to_a_server_that_became_a_replica_is_not_reusable_after_a_write(
    library: Library, connector: Any, client: Any, other: Any
) -> None:
    script = client.register_script("return redis.call('SET', 'key', 'value')")
    assert script()
    failures: list[Callable[[Any], object]] = [
        lambda client: client.set("key", "value"),
        lambda client: client.pipeline().set("key", "value").execute(),
        lambda client: script(client=client),
    ]
    with replica(other):
        for fail in failures:
            with connected(connector) as fresh:
                assert fresh.get("key") == b"value"
                assert connector.is_reusable(fresh, None)
                with suppress(library.error.ResponseError):
                    fail(fresh)
                assert not connector.is_reusable(fresh, None)
    with connected(connector) as fresh:
        fresh.execute_command("MULTI")
        fresh.execute_command("SET", "key", "value")
        # This is another error, whose text names the first.
        aborted = pytest.raises(library.error.ExecAbortError, match="READONLY")
        with replica(other), aborted:
            fresh.execute_command("EXEC")
        assert not connector.is_reusable(fresh, None)


# A lost connection


def lose(client: Any, other: Any) -> None:
    other.client_kill_filter(_id=client.client_id())


def test_a_lost_connection_is_not_opened_again(library: Library, connector: Any, client: Any, other: Any) -> None:
    lose(client, other)
    before = open_sockets()
    with pytest.raises(library.error.ConnectionError):
        client.get("key")
    assert len(open_sockets()) == len(before) - 1
    attempts: list[Callable[[], object]] = [
        lambda: client.get("key"),
        lambda: client.pipeline().get("key").execute(),
        lambda: client.transaction(lambda pipe: pipe.multi(), "key"),
        lambda: client.pubsub().subscribe("channel"),
        lambda: connector.ping(client),
    ]
    for attempt in attempts:
        with pytest.raises(library.error.ConnectionError, match="lost"):
            attempt()
    assert not connector.is_reusable(client, None)
    assert is_readable(connector.peek_target(client))


def test_a_connection_lost_during_a_watch_ends_the_transaction(
    library: Library, connector: Any, client: Any, other: Any
) -> None:
    def change(pipe: Any) -> None:
        lose(pipe, other)
        pipe.multi()
        pipe.set("key", "value")

    with pytest.raises(library.error.ConnectionError):
        client.transaction(change, "key")
    assert other.get("key") is None


def test_a_dead_idle_connection_is_not_silent_and_can_not_be_reset(
    library: Library, connector: Any, client: Any, other: Any
) -> None:
    assert not is_readable(connector.peek_target(client).fileno())
    lose(client, other)
    eventually(lambda: not is_silent(connector.peek_target(client)))
    with pytest.raises(library.error.ConnectionError, match="is lost, or has an unexpected reply"):
        connector.reset(client)


def test_a_connection_with_a_surplus_reply_is_not_reusable(library: Library, server: Any) -> None:
    def doubling(peer: Any) -> None:
        with gevent.socket.create_connection(("127.0.0.1", server.port)) as upstream:
            while data := peer.recv(65536):
                upstream.sendall(data)
                answer = upstream.recv(65536)
                peer.sendall(answer * 2 if b"ECHO" in data else answer)

    with Server(doubling) as double:
        connector = library.at(double)
        with connected(connector) as client:
            assert connector.is_reusable(client, None)
            assert client.echo("hello") == b"hello"
            # The second reply is in the library's buffer: the socket has nothing to read.
            assert is_silent(connector.peek_target(client))
            assert not connector.is_reusable(client, None)


def test_abort_sends_nothing_to_the_server(connector: Any, client: Any, other: Any) -> None:
    number = client.client_id()
    duplicate = connector.peek_target(client).dup()
    try:
        without_switching(lambda: connector.abort(client))
        with suppress(connector._library.exceptions.ConnectionError):
            client.get("key")
        connector.close(client)
        # As a parent's socket would be.
        assert number in [int(one["id"]) for one in other.client_list()]
        duplicate.sendall(b"PING\r\n")
        assert duplicate.recv(100) == b"+PONG\r\n"
    finally:
        duplicate.close()


# What outlives its block


def test_objects_made_in_a_block_can_not_be_used_after_it(library: Library, connector: Any, client: Any) -> None:
    pipe = client.pipeline()
    pipe.set("key", "one")
    watching = client.pipeline()
    pubsub = client.pubsub()
    assert connector.is_reusable(client, None)
    for attempt in (pipe.execute, lambda: watching.watch("key"), lambda: pubsub.subscribe("channel")):
        with pytest.raises(library.error.ConnectionError, match="block has ended"):
            attempt()
    assert client.get("key") is None
    assert connector.is_reusable(client, None)


def test_a_pipeline_that_is_collected_late_sends_nothing(connector: Any, client: Any) -> None:
    pipe = client.pipeline()
    pipe.watch("key")
    pipe.itself = pipe
    assert not connector.is_reusable(client, None)
    connector.close(client)
    before = open_sockets()
    del pipe
    gc.collect()
    assert open_sockets() == before


# A session from scratch


@pytest.mark.parametrize("protocol", [2, 3])
def test_reset_session_restores_the_state_of_a_new_session(
    library: Library, server: Any, other: Any, protocol: int
) -> None:
    other.execute_command("ACL", "SETUSER", "app", "reset", "on", ">word", "+@all", "~*", "&*")
    connector = library.connector(
        *("valkey://127.0.0.1",),
        port=server.port,
        username="app",
        password="word",
        db=2,
        client_name="mine",
        protocol=protocol,
    )
    with connected(connector) as client:
        client.select(1)
        client.client_setname("other")
        client.execute_command("WATCH", "key")
        names = {name: client.client_info()[name] for name in ("lib-name", "lib-ver")}
        client.execute_command("MULTI")
        number = connector.peek_target(client).fileno()
        connector.reset_session(client)
        info = client.client_info()
        assert {name: info[name] for name in names} == names
        assert names["lib-name"].startswith(library.module.__name__)
        assert (info["db"], info["name"], info["user"], info["watch"]) == (2, "mine", "app", "0")
        assert int(info["resp"]) == protocol
        assert connector.peek_target(client).fileno() == number
        assert connector.is_settled(client)
        assert connector.is_reusable(client, None)
        assert client.echo("hello") == b"hello"


# Interruptions, at every switch


def get(client: Any) -> object:
    return client.get("key")


def pipeline(client: Any) -> object:
    with client.pipeline(transaction=False) as pipe:
        return pipe.get("key").incr("number").get("key").execute()


def transaction(client: Any) -> object:
    return client.transaction(lambda pipe: (pipe.get("key"), pipe.multi(), pipe.incr("number"), pipe.get("key")), "key")


def pipeline_without_a_block(client: Any) -> object:
    pipe = client.pipeline()
    pipe.watch("key")
    pipe.multi()
    return pipe.get("key").incr("number").execute()


def by_hand(client: Any) -> object:
    client.execute_command("WATCH", "key")
    client.execute_command("MULTI")
    client.execute_command("GET", "key")
    return client.execute_command("EXEC")


def pubsub(client: Any) -> object:
    with client.pubsub() as pubsub:
        pubsub.subscribe("channel")
        return pubsub.parse_response()


def blocking(client: Any) -> object:
    return client.blpop("nothing", 0.02)


def lock(client: Any) -> object:
    # What an interruption has left locked is tried again soon.
    with client.lock("lock", timeout=10, sleep=0.001):
        return client.get("key")


def much(client: Any) -> object:
    # More than the kernel takes at once, so that sending is interrupted, too.
    return client.set("much", b"x" * 5_000_000)


def play(connector: Any, client: Any, use: Callable[[Any], object], at: int | None, error: Any) -> tuple[int, Any]:
    """Use a client, with an error thrown at the end of a slice. Return the number of slices, and what was raised."""
    slices = 0
    raised: list[BaseException] = []

    def use_it() -> None:
        try:
            use(client)
        except BaseException as error:
            raised.append(error)

    def throw() -> None:
        if not user.ready():
            user.throw(error)

    def before_slice(number: int, target: Any) -> None:
        nonlocal slices
        if target is user:
            if slices == at:
                gevent.hub.get_hub().loop.run_callback(throw)
            slices += 1

    user = gevent.Greenlet(use_it)
    with Switches(greenlets_there_are() - {user}, before_slice).following():
        user.start()
        user.join()
    return slices, raised[0] if raised else None


USES = [get, pipeline, transaction, pipeline_without_a_block, by_hand, pubsub, blocking, lock, much]


def interruptions() -> Iterator[Any]:
    """Every use with every library and error. The suite has each use once, and each library with each error."""
    cases = list(itertools.product(LIBRARIES, (gevent.Timeout(), gevent.GreenletExit())))
    for number, use in enumerate(USES):
        for place, (library, error) in enumerate(cases):
            marks = [] if place == number % len(cases) else [pytest.mark.torture]
            name = f"{use.__name__}-{library.id}-{type(error).__name__}"
            yield pytest.param(use, *library.values, error, marks=marks, id=name)


@pytest.mark.parametrize(("use", "library", "error"), list(interruptions()), indirect=["library"])
def test_the_next_user_gets_its_own_replies_after_an_interruption(
    library: Library, server: Any, other: Any, use: Callable[[Any], object], error: BaseException
) -> None:
    other.flushall()
    other.set("key", "value" * 10)
    # Replies come in pieces, so that there are switches in the middle of them.
    with Server(relaying(server, piece=20)) as relay:
        connector = library.at(relay)
        with connected(connector) as client:
            slices, raised = play(connector, client, use, None, error)
            assert raised is None
        assert slices > 1
        thrown = 0
        for at in range(min(slices, 40)):
            other.delete("lock")
            with connected(connector) as client:
                _, raised = play(connector, client, use, at, error)
                assert raised in (None, error)
                thrown += raised is error
                if not connector.is_reusable(client, raised):
                    continue
                assert use is not pubsub
                if not connector.is_settled(client):
                    connector.reset(client)
                assert client.echo("hello") == b"hello"
                assert client.echo("again") == b"again"
        assert thrown > 0


def test_a_connection_is_reusable_after_an_interruption_between_exchanges(connector: Any, client: Any) -> None:
    timeout = gevent.Timeout()
    client.set("key", "value")
    gevent.spawn(gevent.kill, gevent.getcurrent(), timeout)
    with pytest.raises(gevent.Timeout):
        gevent.sleep(PATIENCE)
    assert connector.is_reusable(client, timeout)
    assert client.get("key") == b"value"


# The package


@pytest.mark.parametrize("name", ["valkey", "redis"])
def test_importing_the_connector_without_its_library_says_what_to_install(name: str) -> None:
    said = error_without(name, f"gsocketpool.connectors.{name}")
    assert said.endswith(f"ImportError: {name.title()}Connector needs {name}: pip install 'gsocketpool[{name}]'")


PATCHED = """
from gevent import monkey; monkey.patch_all()
import gevent
from gsocketpool.connectors.{name} import {kind}
connector = {kind}("valkey://127.0.0.1:{port}")
clients = [connector.connect() for _ in range(2)]
with gevent.Timeout({patience}):
    waiting = gevent.spawn(clients[0].blpop, "patched", 0)
    gevent.sleep(0)
    clients[1].rpush("patched", "one")
    print(waiting.get())
for client in clients:
    assert connector.is_reusable(client, None)
    connector.close(client)
"""


@pytest.mark.parametrize(("name", "kind"), [("valkey", "ValkeyConnector"), ("redis", "RedisConnector")])
def test_a_client_in_a_patched_python_lets_other_greenlets_run_while_it_waits(
    server: Any, name: str, kind: str
) -> None:
    script = PATCHED.format(name=name, kind=kind, port=server.port, patience=PATIENCE)
    run = run_python(script, options=["-W", "error"])
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(r"\(?\[?b'patched', b'one'\]?\)?\n", run.stdout)
