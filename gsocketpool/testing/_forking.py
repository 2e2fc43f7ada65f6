"""Forks a process, linked to its parent by pipes."""

from __future__ import annotations

import os
import time
import warnings

import gevent.os

from gsocketpool.connection._sockets import READABLE, new_poll


class PipeEnd:
    """One end of a pair of pipes between a parent and its child."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        #: All bytes received so far.
        self.received = b""
        #: Whether the other process has closed its end.
        self.is_at_end = False

    def send(self, data: bytes) -> None:
        os.write(self._writing, data)

    def poll(self, timeout: float = 0.0) -> None:
        """Receive what is there or comes within `timeout` seconds. This blocks the whole process and never switches."""
        poll = new_poll()
        poll.register(self._reading, READABLE)
        if poll.poll(timeout * 1000):
            data = os.read(self._reading, 65536)
            self.received += data
            self.is_at_end = not data

    def wait_for(self, size: int, timeout: float) -> None:
        """Block the whole process until `size` bytes have come in all, for up to `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while len(self.received) < size and not self.is_at_end and (left := deadline - time.monotonic()) > 0:
            self.poll(left)

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


def fork() -> tuple[int, PipeEnd]:
    """Fork. Return the child's process id, 0 in the child, and the pipes to the other process."""
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    with warnings.catch_warnings():
        # Python warns about a fork in a process with threads, which gevent uses to resolve names.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = gevent.os.fork_gevent()
    of_parent, of_child = PipeEnd(from_child, to_child), PipeEnd(from_parent, to_parent)
    if child == 0:
        of_parent.close()
        return child, of_child
    of_child.close()
    return child, of_parent
