"""A server that sends every line back: ``python -m example_app.echo [port]``.

It prints the port it listens on: by default 2000, or the next free port if 2000 is taken. On SIGTERM or Ctrl-C it
stops, and prints, as JSON, how many connections it had and how they ended.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Group
from gevent.server import StreamServer

from example_app.ports import HOST, first_free

PORT = 2000
#: How long a stopping server still reads, to notice clients that have left, in seconds.
LINGER = 0.2


class EchoServer:
    """Echoes lines, and counts its connections and how they ended."""

    def __init__(self, port: int) -> None:
        self._handlers = Group()
        self._server = StreamServer((HOST, port), self._handle, spawn=self._handlers.spawn)
        #: Connections accepted.
        self.connections = 0
        #: Connections that the client closed cleanly.
        self.closed = 0
        #: Connections that broke.
        self.reset = 0
        #: Connections that were still open when the server stopped.
        self.cut = 0

    def start(self) -> None:
        """Start to listen.

        :raises OSError: if the port is not available.
        """
        self._server.start()

    def stop(self) -> None:
        """Stop listening, and close the connections that are still open."""
        self._server.close()
        self._handlers.join(timeout=LINGER)
        self._handlers.kill()

    def summary(self) -> dict[str, int]:
        """Return the counts so far."""
        return {
            "connections": self.connections,
            "closed": self.closed,
            "reset": self.reset,
            "cut": self.cut,
        }

    def _handle(self, client: Any, _address: Any) -> None:
        self.connections += 1
        try:
            with client.makefile("rb") as lines:
                # A longer line comes, and is echoed, in pieces.
                while piece := lines.readline(65536):
                    client.sendall(piece)
            self.closed += 1
        except OSError:
            self.reset += 1
        except gevent.GreenletExit:
            self.cut += 1


def main(arguments: list[str]) -> int:
    """Run the server until a signal stops it, and return the exit status."""
    if len(arguments) > 1 or not all(argument.isdecimal() for argument in arguments):
        print("usage: python -m example_app.echo [port]", file=sys.stderr)
        return 2
    port = int(arguments[0]) if arguments else first_free(PORT)
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, stop.set)
    server = EchoServer(port)
    try:
        server.start()
    except (OSError, OverflowError) as error:
        print(f"can't listen on port {port}: {error}", file=sys.stderr)
        return 1
    print(f"listening on {HOST}:{port}", flush=True)
    stop.wait()
    server.stop()
    print(json.dumps(server.summary()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
