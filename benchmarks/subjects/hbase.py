"""Pools of happybase connections to HBase's Thrift interface. A stand-in of a few lines replaces HBase."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import happybase
from happybase.connection import Hbase
from thriftpy2.protocol import TBinaryProtocol
from thriftpy2.thrift import TClient
from thriftpy2.transport import TBufferedTransport, TSocket

from benchmarks.subjects.base import LONG, Subject
from gsocketpool import Pool
from gsocketpool.connectors import Connector

HOST = "127.0.0.1"
COLUMN = b"f:v"
#: The keys with a special meaning to the stand-in.
SESSIONS, PROCESS, LATE = "sessions", "process", "late"


class HappybaseConnector(Connector[Any]):
    """The connector that a user would write for happybase."""

    def __init__(self, port: int) -> None:
        self._port = port

    def connect(self) -> Any:
        connection = happybase.Connection(HOST, self._port, autoconnect=False)
        connection.exchanges = 0
        # happybase's own transport is written in Cython, and hides its socket.
        connection.socket = TSocket(HOST, self._port)
        connection.transport = TBufferedTransport(connection.socket)
        connection.client = TClient(Hbase, TBinaryProtocol(connection.transport, decode_response=False))
        connection.open()
        request = connection.client._req

        def counting(*args: Any, **options: Any) -> Any:
            connection.exchanges += 1
            reply = request(*args, **options)
            # Not in a finally: after an error, the reply may still come.
            connection.exchanges -= 1
            return reply

        connection.client._req = counting
        return connection

    def is_settled(self, connection: Any) -> bool:
        return True

    def is_reusable(self, connection: Any, error: BaseException | None) -> bool:
        return not connection.exchanges

    def peek_target(self, connection: Any) -> Any:
        return connection.socket.sock or -1


class HBase(Subject):
    """A pool of happybase connections."""

    def ask(self, connection: Any, number: int) -> str:
        word = self.word(number)
        return _read(connection, f"{word} and {0 if number % 3 else LONG}")[: len(word)]

    def ask_late(self, connection: Any, seconds: float) -> None:
        _read(connection, f"{LATE} and {seconds}")

    def watch(self) -> None:
        self._observer = happybase.Connection(HOST, self.server["port"])

    def sessions(self) -> int:
        return int(_read(self._observer, SESSIONS))

    def process(self) -> int:
        return int(_read(self._observer, PROCESS))


def _read(connection: Any, key: str) -> str:
    value: bytes = connection.table("table").row(key.encode())[COLUMN]
    return value.decode()


class Ours(HBase):
    """gsocketpool."""

    def open(self) -> None:
        connector = HappybaseConnector(self.server["port"])
        self._pool = Pool(connector, max_connections=self.size, acquire_timeout=self.patience)

    def lease(self) -> AbstractContextManager[Any]:
        return self._pool.connection()


class Happybase(HBase):
    """happybase's own pool."""

    def open(self) -> None:
        self._pool = happybase.ConnectionPool(self.size, host=HOST, port=self.server["port"])

    def lease(self) -> AbstractContextManager[Any]:
        lease: AbstractContextManager[Any] = self._pool.connection(timeout=self.patience)
        return lease
