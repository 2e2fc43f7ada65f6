"""A server that sends every line back: ``python -m example_app.echo [port]``.

Without an argument it listens on port 2000, or on the next free one if that is taken, and prints which.
On SIGTERM or Ctrl-C it stops, and prints as JSON how many connections it had and how they ended.
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
#: Seconds in which, when the server is told to stop, it still notices that its clients have left.
LAST_LOOK = 0.2


class EchoServer:
    """Echoes lines, and keeps count of its connections and of how they ended."""

    def __init__(self, port: int) -> None:
        self._handlers = Group()
        self._server = StreamServer((HOST, port), self._handle, spawn=self._handlers.spawn)
        #: Connections that have come.
        self.connections = 0
        #: Connections that the client has closed.
        self.orderly = 0
        #: Connections that broke.
        self.reset = 0
        #: Connections that were still open when the server was stopped.
        self.cut = 0

    def start(self) -> None:
        """Starts to listen.

        :raises OSError: if the port can't be had.
        """
        self._server.start()

    def stop(self) -> None:
        """Stops listening, and closes the connections that are left."""
        self._server.close()
        self._handlers.join(timeout=LAST_LOOK)
        self._handlers.kill()

    def summary(self) -> dict[str, int]:
        """Returns the counts so far."""
        return {
            "connections": self.connections,
            "orderly": self.orderly,
            "reset": self.reset,
            "cut": self.cut,
        }

    def _handle(self, client: Any, _address: Any) -> None:
        self.connections += 1
        try:
            with client.makefile("rb") as lines:
                # A longer line is echoed in pieces, which come to the same.
                while piece := lines.readline(65536):
                    client.sendall(piece)
            self.orderly += 1
        except OSError:
            self.reset += 1
        except gevent.GreenletExit:
            self.cut += 1


def main(arguments: list[str]) -> int:
    """Runs the server until it is told to stop, and returns the status to exit with."""
    if len(arguments) > 1 or not all(argument.isdecimal() for argument in arguments):
        print("usage: python -m example_app.echo [port]", file=sys.stderr)
        return 2
    port = int(arguments[0]) if arguments else first_free(PORT)
    told_to_stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, told_to_stop.set)
    server = EchoServer(port)
    try:
        server.start()
    except (OSError, OverflowError) as error:
        print(f"can't listen on port {port}: {error}", file=sys.stderr)
        return 1
    print(f"listening on {HOST}:{port}", flush=True)
    told_to_stop.wait()
    server.stop()
    print(json.dumps(server.summary()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
