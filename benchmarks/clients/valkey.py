"""PING and GET over TCP, with the parser of hiredis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import hiredis
from redis import BlockingConnectionPool, Redis

from benchmarks.throughput import Prepare
from gsocketpool import Connection, Pool, TcpConnection
from gsocketpool.connectors import Connector
from gsocketpool.connectors.redis import RedisConnector
from gsocketpool.connectors.valkey import ValkeyConnector

HOST = "127.0.0.1"
KEY, VALUE = "key", b"a value of twenty-one"

#: The actions for a PING and for a GET.
Both: TypeAlias = tuple[Prepare, Prepare]
#: Sends the words of a command, and returns the reply.
Command: TypeAlias = Callable[..., Any]


class HiredisConnection(TcpConnection):
    """The connection class that a user would write for hiredis."""

    def open(self) -> None:
        super().open()
        self._reader = hiredis.Reader()

    def command(self, *words: str | bytes) -> Any:
        self.send(hiredis.pack_command(words))
        while (reply := self._reader.gets()) is False:
            data = self.recv(65536)
            if not data:
                raise ConnectionError("the server closed the connection")
            self._reader.feed(data)
        return reply


@contextmanager
def pooled(port: int, size: int) -> Iterator[Both]:
    """Measure gsocketpool."""
    with Pool(HiredisConnection, {"host": HOST, "port": port}, max_connections=size) as pool:

        def command(*words: str) -> Any:
            with pool.connection() as connection:
                return connection.command(*words)

        yield _both(lambda: command)


@contextmanager
def dedicated(port: int, size: int) -> Iterator[Both]:
    """Measure the same connections, one for each greenlet."""
    connections = []

    def connect() -> Command:
        connection = HiredisConnection(HOST, port)
        connection.open()
        connections.append(connection)
        return connection.command

    yield _both(connect)
    for connection in connections:
        connection.close()


class RedisConnection(Connection):
    """The connection class that a user would write for redis-py."""

    client: Any = None

    def __init__(self, port: int) -> None:
        self._port = port

    def open(self) -> None:
        self.client = Redis(host=HOST, port=self._port, protocol=2, single_connection_client=True)

    def close(self) -> None:
        self.client.close()

    def is_connected(self) -> bool:
        return self.client is not None and self.client.connection is not None and self.client.connection.is_connected

    def get(self) -> Any:
        return self.client.connection._sock

    def ping(self) -> Any:
        with self.exchange():
            return self.client.ping()

    def read(self, key: str) -> Any:
        with self.exchange():
            return self.client.get(key)


@contextmanager
def by_hand(port: int, size: int) -> Iterator[Both]:
    """Measure gsocketpool with redis-py's clients, wrapped by hand."""
    with Pool(RedisConnection, {"port": port}, max_connections=size) as pool:

        def ping() -> object:
            with pool.connection() as connection:
                return connection.ping()

        def get() -> object:
            with pool.connection() as connection:
                return connection.read(KEY)

        yield (lambda: ping), (lambda: get)


@contextmanager
def _connector(connector: Connector[Any], size: int, reset: str) -> Iterator[Both]:
    with Pool(connector, max_connections=size, reset=reset) as pool:

        def ping() -> object:
            with pool.connection() as client:
                return client.ping()

        def get() -> object:
            with pool.connection() as client:
                return client.get(KEY)

        yield (lambda: ping), (lambda: get)


def redis_connector(port: int, size: int, reset: str = "unsettled") -> AbstractContextManager[Both]:
    """Measure gsocketpool with its connector for redis-py."""
    return _connector(RedisConnector(host=HOST, port=port, protocol=2), size, reset)


def redis_connector_resetting(port: int, size: int) -> AbstractContextManager[Both]:
    """Measure the same with a reset after each use."""
    return redis_connector(port, size, "always")


def valkey_connector(port: int, size: int, reset: str = "unsettled") -> AbstractContextManager[Both]:
    """Measure gsocketpool with its connector for valkey-py."""
    return _connector(ValkeyConnector(host=HOST, port=port, protocol=2), size, reset)


def valkey_connector_resetting(port: int, size: int) -> AbstractContextManager[Both]:
    """Measure the same with a reset after each use."""
    return valkey_connector(port, size, "always")


@contextmanager
def redis_client(
    port: int, size: int, pool_class: type[BlockingConnectionPool] = BlockingConnectionPool
) -> Iterator[Both]:
    """Measure redis-py as users use it."""
    with _redis_pool(port, size, pool_class) as pool:
        client = Redis(connection_pool=pool)
        yield (lambda: client.ping), (lambda: lambda: client.get(KEY))


class ResettingPool(BlockingConnectionPool):
    """The pool class that a user would write to have redis-py reset each session after each use."""

    def release(self, connection: Any) -> None:
        connection.send_command("RESET")
        connection.read_response()
        # The session needs no new setup: the server keeps the library's name and version, and RESP2 is the default.
        super().release(connection)


def redis_client_resetting(port: int, size: int) -> AbstractContextManager[Both]:
    """Measure redis-py with a reset after each use."""
    return redis_client(port, size, ResettingPool)


@contextmanager
def redis_pool(port: int, size: int) -> Iterator[Both]:
    """Measure redis-py's pool and its connections, without the client."""
    with _redis_pool(port, size) as pool:

        def command(*words: str) -> Any:
            connection = pool.get_connection()
            try:
                connection.send_command(*words)
                return connection.read_response()
            finally:
                pool.release(connection)

        yield _both(lambda: command)


@contextmanager
def _redis_pool(
    port: int, size: int, pool_class: type[BlockingConnectionPool] = BlockingConnectionPool
) -> Iterator[Any]:
    # RESP2, like all the others here.
    pool = pool_class(host=HOST, port=port, max_connections=size, protocol=2)
    yield pool
    pool.disconnect()


def _both(prepare: Callable[[], Command]) -> Both:
    def ping() -> Callable[[], object]:
        command = prepare()
        return lambda: command("PING")

    def get() -> Callable[[], object]:
        command = prepare()
        return lambda: command("GET", KEY)

    return ping, get


def fill(port: int) -> None:
    """Store the value that GET reads."""
    with Pool(HiredisConnection, {"host": HOST, "port": port}) as pool, pool.connection() as connection:
        connection.command("SET", KEY, VALUE)
