"""A backend that echoes lines, in threads: a fork does not copy them, and a blocked event loop does not stop them."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from typing import Any

import pytest

from gsocketpool import Pool, TcpConnection


class Line(TcpConnection):
    def exchange(self, text: bytes) -> bytes:
        self.send(text + b"\n")
        return self.recv_until(b"\n")[:-1]


class LineServer:
    """Echoes lines, and can be restarted. It is in threads, which a fork does not copy."""

    def __init__(self) -> None:
        self.listen(0)

    def listen(self, port: int) -> None:
        clients: list[socket.socket] = []

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                clients.append(self.connection)
                for line in self.rfile:
                    self.wfile.write(line * (2 if line == b"twice\n" else 1))

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, request: object, address: object) -> None:
                """The client has gone, or this server is being stopped."""

        self.clients = clients
        self.server = Server(("127.0.0.1", port), Handler)
        self.port: int = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.005,))
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        for client in self.clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def restart(self) -> None:
        self.stop()
        self.listen(self.port)


@pytest.fixture
def server() -> Any:
    server = LineServer()
    yield server
    server.stop()


def line_pool(server: LineServer, **settings: Any) -> Pool[Line]:
    return Pool(Line, {"host": "127.0.0.1", "port": server.port}, **settings)
