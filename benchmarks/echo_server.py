"""A server that sends everything back, over TCP, a Unix socket and TLS: ``python echo_server.py DIRECTORY``.

The directory contains ``certificate.pem`` for TLS. Once the server listens, it prints its addresses as JSON. On SIGHUP
it does what a restart would do: it closes its listeners and all connections, and listens again.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
from typing import Any, ClassVar

HOST = "127.0.0.1"


class Echo(asyncio.Protocol):
    """One connection."""

    open_connections: ClassVar[set[Echo]] = set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.open_connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, error: object) -> None:
        self.open_connections.discard(self)


class Listeners:
    """The three listeners, which keep their addresses over a restart."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, "echo")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(os.path.join(directory, "certificate.pem"))
        self._ports = [0, 0]
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        tcp = await loop.create_server(Echo, HOST, self._ports[0], backlog=500)
        tls = await loop.create_server(Echo, HOST, self._ports[1], ssl=self._context, backlog=500)
        unix = await loop.create_unix_server(Echo, self._path, backlog=500)
        self._servers = [tcp, tls, unix]
        self._ports = [server.sockets[0].getsockname()[1] for server in (tcp, tls)]

    async def restart(self) -> None:
        for server in self._servers:
            server.close()
        for connection in list(Echo.open_connections):
            connection.transport.abort()
        while Echo.open_connections:
            await asyncio.sleep(0)
        await self.start()

    def addresses(self) -> dict[str, Any]:
        tcp, tls = ([HOST, port] for port in self._ports)
        return {"tcp": tcp, "tls": tls, "unix": self._path}


async def main(directory: str) -> None:
    listeners = Listeners(directory)
    await listeners.start()
    loop = asyncio.get_running_loop()
    restarts = []
    loop.add_signal_handler(signal.SIGHUP, lambda: restarts.append(loop.create_task(listeners.restart())))
    print(json.dumps(listeners.addresses()), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
