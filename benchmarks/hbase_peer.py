"""A stand-in for HBase's Thrift server: ``python hbase_peer.py PORT``.

It has one table, in which the value of each row is its key. A few keys have a special meaning.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import os
import sys
import time
from pathlib import Path
from typing import Any

# Python put the directory of this file here; the imports need its parent.
sys.path[0] = str(Path(__file__).parents[1])

from happybase.connection import Hbase
from Hbase_thrift import TCell, TRowResult
from thriftpy2.protocol import TBinaryProtocolFactory
from thriftpy2.server import TThreadedServer
from thriftpy2.thrift import TProcessor
from thriftpy2.transport import TBufferedTransportFactory, TServerSocket

from benchmarks.subjects.hbase import COLUMN, HOST, LATE, PROCESS, SESSIONS


class Table:
    """The calls that clients can make."""

    def __init__(self) -> None:
        self.sessions = 0

    def getRowWithColumns(self, table: Any, row: Any, columns: Any, attributes: Any) -> list[Any]:  # noqa: N802
        key, _, number = (row.decode() if isinstance(row, bytes) else row).partition(" and ")
        if key == LATE:
            time.sleep(float(number))
        value = {SESSIONS: str(self.sessions), PROCESS: str(os.getpid())}.get(key, key)
        if key not in (SESSIONS, PROCESS, LATE):
            value += "x" * int(number)
            # A real server takes some time for a long reply.
            time.sleep(0.0005 if int(number) else 0)
        return [TRowResult(row=row, columns={COLUMN: TCell(value=value.encode(), timestamp=1)})]


class Server(TThreadedServer):
    """A Thrift server that counts its sessions."""

    def __init__(self, port: int) -> None:
        self.table = Table()
        transport = TServerSocket(HOST, port, backlog=500)
        super().__init__(
            TProcessor(Hbase, self.table),
            transport,
            iprot_factory=TBinaryProtocolFactory(),
            itrans_factory=TBufferedTransportFactory(),
        )
        self.daemon = True

    def handle(self, client: Any) -> None:
        self.table.sessions += 1
        try:
            super().handle(client)
        finally:
            self.table.sessions -= 1


if __name__ == "__main__":
    Server(int(sys.argv[1])).serve()
