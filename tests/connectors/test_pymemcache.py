"""The connector for pymemcache, on a real memcached."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest
from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheError, MemcacheIllegalInputError, MemcacheUnexpectedCloseError
from pymemcache.serde import pickle_serde

from gsocketpool import InvalidArgumentError, Pool
from gsocketpool.connectors.pymemcache import PymemcacheConnector
from tests.support.connections import no_hanging as no_hanging
from tests.support.connectors import connected, error_without
from tests.support.databases import RestartableServer
from tests.support.documents import ROOT, blocks, joined
from tests.support.internals import is_readable, is_silent
from tests.support.scripted import PATIENCE, eventually
from tests.support.servers import (
    Server,
    client_context,
    hanging_address,
    open_sockets,
    refusing_address,
    server_context,
)


class AppError(Exception):
    """An application's error."""


@pytest.fixture
def connector(memcached: RestartableServer) -> PymemcacheConnector:
    return PymemcacheConnector(f"memcached://127.0.0.1:{memcached.port}")


@pytest.fixture
def client(connector: PymemcacheConnector) -> Iterator[Any]:
    with connected(connector) as client:
        client.flush_all()
        yield client


@pytest.fixture
def pool(connector: PymemcacheConnector) -> Iterator[Pool[Any]]:
    with Pool(connector, max_connections=2) as pool:
        yield pool


def two_idle(pool: Pool[Any]) -> list[Any]:
    with pool.connection() as one, pool.connection() as two:
        return [one, two]


# Exchanges


def test_a_client_works_and_leaves_no_socket_when_it_is_closed(connector: PymemcacheConnector) -> None:
    before = open_sockets()
    with connected(connector) as client:
        assert isinstance(client, Client)
        assert client.set("key", b"value")
        assert client.get("key") == b"value"
        assert client.gets_many(["key", "other"]).keys() == {"key"}
        assert client.incr("number", 1) is None
        assert client.stats()[b"curr_connections"] >= 1
        connector.ping(client)
        assert connector.is_reusable(client, None)
        assert connector.is_settled(client)
        assert not is_readable(connector.peek_target(client).fileno())
    assert open_sockets() == before
    connector.close(client)
    assert connector.peek_target(client) == -1


def test_a_write_waits_for_its_reply_unless_the_caller_wants_none(
    client: Any, connector: PymemcacheConnector, memcached: RestartableServer
) -> None:
    for write in (
        lambda: client.set("key", b"1"),
        lambda: client.__setitem__("key", b"2"),
        lambda: client.__delitem__("key"),
        lambda: client.set_many({"key": b"3"}),
        lambda: client.delete("key"),
    ):
        with memcached.stopped():
            writing = gevent.spawn(write)
            gevent.sleep(0.01)
            assert not writing.ready()
        writing.get()
    assert client.get("key") is None
    with connected(PymemcacheConnector(port_of(memcached), default_noreply=True)) as quick, memcached.stopped():
        quick["key"] = b"4"


def port_of(memcached: RestartableServer) -> str:
    return f"memcached://127.0.0.1:{memcached.port}"


ACTS: list[Callable[[Any], object]] = [
    lambda client: client.get("key"),
    lambda client: client.set("key", b"value"),
    lambda client: client.delete("key"),
    lambda client: client.stats(),
    lambda client: client.set("key", b"x" * 8_000_000),
]


@pytest.mark.parametrize("act", ACTS, ids=["get", "set", "delete", "stats", "a write"])
@pytest.mark.parametrize("error", [gevent.Timeout(), gevent.GreenletExit()], ids=["timeout", "kill"])
def test_a_connection_is_not_reusable_after_an_exchange_that_was_cut_short(
    client: Any,
    connector: PymemcacheConnector,
    memcached: RestartableServer,
    act: Callable[[Any], object],
    error: BaseException,
) -> None:
    caught = []

    def use() -> None:
        try:
            act(client)
        except BaseException as error:
            caught.append(error)

    with memcached.stopped():
        greenlet = gevent.spawn(use)
        gevent.sleep(0.01)
        # Another greenlet is at work with it.
        assert not connector.is_reusable(client, None)
        greenlet.kill(error)
    assert caught == [error]
    assert not connector.is_reusable(client, None)
    # It does not connect again either: it would be one too many.
    with pytest.raises(MemcacheUnexpectedCloseError):
        client.get("key")
    assert not connector.is_reusable(client, None)


def test_a_connection_is_not_reusable_after_a_timeout_of_pymemcache(memcached: RestartableServer) -> None:
    connector = PymemcacheConnector(f"{port_of(memcached)}?timeout=0.05")
    with connected(connector) as client, memcached.stopped():
        with pytest.raises(TimeoutError) as raised:
            client.get("key")
        assert not connector.is_reusable(client, raised.value)


@pytest.mark.parametrize("error", [None, AppError(), gevent.Timeout(1), OSError()])
def test_a_connection_is_reusable_after_an_error_between_exchanges(
    client: Any, connector: PymemcacheConnector, error: BaseException | None
) -> None:
    with pytest.raises(MemcacheIllegalInputError):
        client.get("two words")
    assert client.get("key") is None
    assert connector.is_reusable(client, error)


def test_a_connection_is_not_reusable_after_an_error_reply(client: Any, connector: PymemcacheConnector) -> None:
    with pytest.raises(MemcacheError):
        client.set("key", b"x" * 2_000_000)
    assert not connector.is_reusable(client, None)


def test_the_next_command_does_not_read_an_error_that_no_caller_waited_for(client: Any) -> None:
    client.set("key", b"x" * 2_000_000, noreply=True)
    assert client.get("key") is None
    assert client.set("key", b"value")
    assert client.get("key") == b"value"


@pytest.mark.parametrize("end", ["quit", "close"])
def test_a_closed_client_is_not_reusable(client: Any, connector: PymemcacheConnector, end: str) -> None:
    getattr(client, end)()
    assert not connector.is_reusable(client, None)


# In a pool


def test_the_next_user_reads_its_own_reply_after_a_timeout_caught_in_a_block(
    pool: Pool[Any], memcached: RestartableServer
) -> None:
    with pool.connection() as first:
        first.set_many({"theirs": b"theirs", "mine": b"mine"})
        with memcached.stopped(), pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
            first.get("theirs")
    with pool.connection() as second:
        assert second is not first
        assert second.get("mine") == b"mine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key_prefix", b"mine:"),
        ("default_noreply", True),
        ("ignore_exc", True),
        ("serde", pickle_serde),
        ("allow_unicode_keys", True),
        ("encoding", "utf-8"),
    ],
)
def test_an_attribute_that_a_caller_changes_does_not_reach_the_next_one(
    pool: Pool[Any], name: str, value: object
) -> None:
    with pool.connection() as first:
        setattr(first, name, value)
    with pool.connection() as second:
        given = getattr(second, name)
        assert given != value
        setattr(second, name, value)
        second.set("key", b"value")
        setattr(second, name, given)
    with pool.connection() as third:
        assert third is second
    eventually(lambda: first.sock is None)
    assert sum(pool.stats().discarded.values()) == 1


def test_a_connection_that_died_while_idle_is_not_handed_out(pool: Pool[Any], memcached: RestartableServer) -> None:
    two_idle(pool)
    memcached.restart()
    for client in two_idle(pool):
        assert client.get("key") is None
    assert pool.stats().discarded == {"unusable": 2}


def test_a_connection_that_dies_in_use_is_discarded(pool: Pool[Any], memcached: RestartableServer) -> None:
    def use() -> None:
        with pool.connection() as dying:
            memcached.restart()
            dying.get("key")

    with pytest.raises((MemcacheUnexpectedCloseError, OSError)):
        use()
    eventually(lambda: pool.size == 0)
    with pool.connection() as client:
        assert client.get("key") is None


def test_a_ping_fails_after_a_restart_of_the_server(
    client: Any, connector: PymemcacheConnector, memcached: RestartableServer
) -> None:
    memcached.restart()
    with pytest.raises((MemcacheUnexpectedCloseError, OSError)):
        connector.ping(client)


def test_abort_leaves_the_connection_to_the_parent_process(client: Any, connector: PymemcacheConnector) -> None:
    with closing(gevent.socket.socket(fileno=os.dup(client.sock.fileno()))) as parents:
        connector.abort(client)
        connector.close(client)
        parents.sendall(b"version\r\n")
        assert parents.recv(100).startswith(b"VERSION")


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_leaves_the_connections_of_its_parent_alone(pool: Pool[Any]) -> None:
    two_idle(pool)
    with pool.connection() as used:
        used.set("key", b"value")
        child = os.fork()
        if not child:
            status = 1
            try:
                with gevent.Timeout(PATIENCE), pool.connection() as own:
                    status = int(own is used or own.get("key") != b"value")
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert used.get("key") == b"value"
    assert [client.get("key") for client in two_idle(pool)] == [b"value"] * 2
    assert pool.stats().opened == 2


# Connecting


def test_a_pool_can_be_made_from_a_url_and_a_callable_of_options(memcached: RestartableServer) -> None:
    url = f"{port_of(memcached)}?key_prefix=mine:&timeout=2.5&no_delay=false"
    with Pool.from_url(url, options=lambda: {"allow_unicode_keys": True}, max_connections=1) as pool:
        for _ in range(2):
            with pool.connection() as client:
                client.set("schlüssel", b"value")
                assert client.get("schlüssel") == b"value"
                assert (client.timeout, client.no_delay, client.key_prefix) == (2.5, False, b"mine:")
        assert pool.stats().opened == 1


def test_a_callable_url_is_called_at_each_connect(memcached: RestartableServer) -> None:
    with refusing_address() as (host, port):
        urls = [f"memcached://{host}:{port}", port_of(memcached)]
        connector = PymemcacheConnector(lambda: urls.pop(0))
        with pytest.raises(ConnectionRefusedError):
            connector.connect()
        with connected(connector) as client:
            assert client.version()


def answer_version(peer: Any) -> None:
    while peer.recv(100):
        peer.sendall(b"VERSION 1\r\n")


def test_a_client_connects_over_a_unix_socket_and_over_tls(tmp_path: Path) -> None:
    with Server(answer_version, path=f"{tmp_path}/a socket") as server:
        with connected(PymemcacheConnector(f"memcached://{tmp_path}/a%20socket")) as client:
            assert client.version() == b"1"
        assert server.accepted == 1
    with Server(answer_version, tls=server_context("localhost")) as server:
        connector = PymemcacheConnector(f"memcached://localhost:{server.port}", tls_context=client_context())
        with connected(connector) as client:
            assert client.version() == b"1"
            assert isinstance(connector.peek_target(client), gevent.ssl.SSLSocket)
            assert is_silent(connector.peek_target(client))


@pytest.mark.parametrize("error", [gevent.Timeout(), gevent.GreenletExit()], ids=["timeout", "kill"])
def test_an_interrupted_connect_leaves_no_socket(error: BaseException) -> None:
    with hanging_address() as (host, port):
        before = open_sockets()
        caught: list[object] = []

        def open_it() -> None:
            try:
                PymemcacheConnector(f"memcached://{host}:{port}").connect()
            except BaseException as error:
                caught.append(error)

        opener = gevent.spawn(open_it)
        eventually(lambda: len(open_sockets()) == len(before) + 1)
        opener.kill(error)
        assert caught == [error]
        assert open_sockets() == before


# The documentation


def test_the_examples_of_the_guide_run(memcached: RestartableServer, capsys: pytest.CaptureFixture[str]) -> None:
    source = joined(blocks(ROOT / "docs" / "clients" / "memcached.rst")).replace("11211", str(memcached.port))
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(source, "memcached.rst", "exec"), names)
    assert capsys.readouterr().out == "b'hello'\n"
    names["pool"].close()


# Bad input


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("url", {"url": "http://host"}),
        ("url", {"url": "memcached://"}),
        ("url", {"url": "memcached://host/path"}),
        ("url", {"url": "memcached://host:port"}),
        ("url", {"url": "memcached://me:hunter2@host"}),
        ("url", {"url": b"memcached://host"}),
        ("timeout", {"url": "memcached://host?timeout=soon"}),
        ("serde", {"url": "memcached://host?serde=json"}),
        ("nothing", {"nothing": 1}),
        ("password", {"password": "hunter2"}),
        ("server", {"server": 1}),
        ("server", {"server": "memcached://me:hunter2@host:port"}),
        ("key_prefix", {"key_prefix": 1}),
        ("socket_keepalive", {"socket_keepalive": True}),
    ],
)
def test_a_bad_argument_is_refused_with_its_name(argument: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{argument} must be ") as raised:
        PymemcacheConnector(**arguments)
    assert raised.value.argument == argument
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))
    assert "hunter2" not in repr(raised.value)


def test_the_repr_shows_the_server() -> None:
    assert repr(PymemcacheConnector()) == "PymemcacheConnector(('127.0.0.1', 11211))"
    assert repr(PymemcacheConnector("memcached:///a/socket")) == "PymemcacheConnector('/a/socket')"
    assert repr(PymemcacheConnector(lambda: "memcached://host")) == "PymemcacheConnector()"
    assert repr(PymemcacheConnector(server="host:1")) == "PymemcacheConnector(('host', 1))"


def test_importing_the_connector_without_pymemcache_says_what_to_install() -> None:
    said = error_without("pymemcache", "gsocketpool.connectors.pymemcache")
    assert said.endswith("PymemcacheConnector needs pymemcache: pip install 'gsocketpool[pymemcache]'")
