"""Pools of redis-py connections to Valkey."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from redis import BlockingConnectionPool, Redis

from benchmarks.subjects.base import EXCHANGING, GIVING_BACK, LONG, Subject
from gsocketpool import Pool
from gsocketpool.connectors.redis import RedisConnector

HOST = "127.0.0.1"
#: A script that keeps the server busy for some tenths of a millisecond.
SLOW = "for i = 1, 20000 do end return ARGV[1] .. string.rep('x', ARGV[2])"


class Valkey(Subject):
    """A pool of redis-py connections."""

    def ask(self, connection: Any, number: int) -> str:
        word = self.word(number)
        reply = connection.echo(word) if number % 3 else connection.eval(SLOW, 0, word, LONG)
        return str(reply.decode())[: len(word)]

    def ask_late(self, connection: Any, seconds: float) -> None:
        connection.blpop("nothing", seconds)

    def watch(self) -> None:
        self._observer = Redis(host=HOST, port=self.server["port"], single_connection_client=True)

    def sessions(self) -> int:
        return len(self._observer.client_list())

    def process(self) -> int:
        return int(self._observer.info("server")["process_id"])


class Ours(Valkey):
    """gsocketpool."""

    def open(self) -> None:
        connector = RedisConnector(host=HOST, port=self.server["port"])
        self._pool = Pool(connector, max_connections=self.size, acquire_timeout=self.patience)

    def lease(self) -> AbstractContextManager[Any]:
        return self._pool.connection()


class RedisPy(Valkey):
    """redis-py's own pool. Its client acquires a connection for each command."""

    def open(self) -> None:
        subject = self

        class MarkedPool(BlockingConnectionPool):
            """A pool that also marks the phases of a use."""

            def get_connection(self, *arguments: Any, **options: Any) -> Any:
                connection = super().get_connection(*arguments, **options)
                subject.mark(EXCHANGING)
                return connection

            def release(self, connection: Any) -> None:
                subject.mark(GIVING_BACK)
                super().release(connection)

        self._pool = MarkedPool(
            host=HOST,
            port=self.server["port"],
            max_connections=self.size,
            timeout=self.patience,
            health_check_interval=1,
            # A client with its default pool retries like this. With another pool, it does not unless told so.
            retry=Redis().get_retry(),
        )
        self._client = Redis(connection_pool=self._pool)

    def use(self, exchange: Callable[[Any], Any]) -> Any:
        return exchange(self._client)

    @contextmanager
    def lease(self) -> Iterator[Any]:
        connection = self._pool.get_connection()
        try:
            yield connection
        finally:
            self._pool.release(connection)

    def ask_held(self, connection: Any, number: int) -> str:
        connection.send_command("ECHO", self.word(number))
        return str(connection.read_response().decode())
