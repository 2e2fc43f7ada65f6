"""Pools of pymemcache clients for memcached."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from pymemcache import Client, MemcacheError, PooledClient
from pymemcache.client.retrying import RetryingClient

from benchmarks.subjects.base import EXCHANGING, GIVING_BACK, LONG, RefusedError, Subject
from gsocketpool import Pool
from gsocketpool.connectors.pymemcache import PymemcacheConnector

HOST = "127.0.0.1"
#: The number of keys: a multiple of three, because every third has a long value.
KEYS = 90


class Memcached(Subject):
    """A pool of pymemcache clients."""

    def word(self, number: int) -> str:
        return f"word{number % KEYS};"

    def ask(self, connection: Any, number: int) -> str:
        word = self.word(number)
        reply = connection.get(word)
        # With ignore_exc, an error looks like a miss. Here, every key exists.
        if reply is None:
            raise LookupError(word)
        return str(reply.decode())[: len(word)]

    def ask_late(self, connection: Any, seconds: float) -> None:
        # memcached has no slow command.
        self.ask(connection, 0)

    def watch(self) -> None:
        self._observer = Client((HOST, self.server["port"]), default_noreply=False)

    def fill(self) -> None:
        for number in range(KEYS):
            self._observer.set(self.word(number), self.word(number) + "x" * (0 if number % 3 else LONG))

    def sessions(self) -> int:
        return int(self._observer.stats()[b"curr_connections"])

    def process(self) -> int:
        return int(self._observer.stats()[b"pid"])


class Ours(Memcached):
    """gsocketpool."""

    def open(self) -> None:
        connector = PymemcacheConnector(server=(HOST, self.server["port"]))
        self._pool = Pool(connector, max_connections=self.size, acquire_timeout=self.patience)

    def lease(self) -> AbstractContextManager[Any]:
        return self._pool.connection()


class Pymemcache(Memcached):
    """pymemcache's own pool. Its client acquires a connection for each command, and refuses a caller at the limit."""

    def open(self) -> None:
        pooled = PooledClient((HOST, self.server["port"]), max_pool_size=self.size, no_delay=True)
        self._pool = pool = pooled.client_pool
        get, release, destroy = pool.get, pool.release, pool.destroy

        # These also mark the phases of a use.

        def marked_get() -> Any:
            try:
                client = get()
            except RuntimeError as error:
                raise RefusedError from error
            self.mark(EXCHANGING)
            return client

        def marked(give_back: Callable[..., None]) -> Callable[..., None]:
            def marked_give_back(client: Any, silent: bool = True) -> None:
                self.mark(GIVING_BACK)
                give_back(client, silent)

            return marked_give_back

        pool.get, pool.release, pool.destroy = marked_get, marked(release), marked(destroy)
        self._client = RetryingClient(pooled, attempts=3, retry_for=[MemcacheError, OSError])

    def use(self, exchange: Callable[[Any], Any]) -> Any:
        return exchange(self._client)

    def lease(self) -> AbstractContextManager[Any]:
        lease: AbstractContextManager[Any] = self._pool.get_and_release(destroy_on_fail=True)
        return lease
