"""PING and GET, all with hiredis' parser and over TCP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import hiredis
from redis import BlockingConnectionPool, Redis

from benchmarks.throughput import Prepare
from gsocketpool import Pool, TcpConnection

HOST = "127.0.0.1"
KEY, VALUE = "key", b"a value of twenty-one"

#: What is done for a PING and for a GET.
Both: TypeAlias = tuple[Prepare, Prepare]
#: Does a command, given its words, and returns the reply.
Command: TypeAlias = Callable[..., Any]


class HiredisConnection(TcpConnection):
    """What has to be written to use hiredis with gsocketpool."""

    def open(self) -> None:
        super().open()
        self._reader = hiredis.Reader()

    def command(self, *words: str | bytes) -> Any:
        self.send(hiredis.pack_command(words))
        while (reply := self._reader.gets()) is False:
            data = self.recv(65536)
            if not data:
                raise ConnectionError("the server has closed the connection")
            self._reader.feed(data)
        return reply


@contextmanager
def pooled(port: int, size: int) -> Iterator[Both]:
    """gsocketpool."""
    with Pool(HiredisConnection, {"host": HOST, "port": port}, max_connections=size) as pool:

        def command(*words: str) -> Any:
            with pool.connection() as connection:
                return connection.command(*words)

        yield _both(lambda: command)


@contextmanager
def dedicated(port: int, size: int) -> Iterator[Both]:
    """The same connections, one for each greenlet."""
    connections = []

    def connect() -> Command:
        connection = HiredisConnection(HOST, port)
        connection.open()
        connections.append(connection)
        return connection.command

    yield _both(connect)
    for connection in connections:
        connection.close()


@contextmanager
def redis_client(port: int, size: int) -> Iterator[Both]:
    """redis-py, as it is used."""
    with _redis_pool(port, size) as pool:
        client = Redis(connection_pool=pool)
        yield (lambda: client.ping), (lambda: lambda: client.get(KEY))


@contextmanager
def redis_pool(port: int, size: int) -> Iterator[Both]:
    """redis-py's pool and its connections, without the client over them."""
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
def _redis_pool(port: int, size: int) -> Iterator[Any]:
    # RESP2, as all of them speak here.
    pool = BlockingConnectionPool(host=HOST, port=port, max_connections=size, protocol=2)
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
    """Sets what is read later."""
    with Pool(HiredisConnection, {"host": HOST, "port": port}) as pool, pool.connection() as connection:
        connection.command("SET", KEY, VALUE)
