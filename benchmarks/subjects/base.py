"""The interface between the blows and the pools."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import gevent

#: The phases of a use.
WAITING, EXCHANGING, GIVING_BACK = "waiting", "exchanging", "giving back"
PHASES = (WAITING, EXCHANGING, GIVING_BACK)

#: The length of every third reply, in bytes. A client needs more than one read for it.
LONG = 50_000
#: How long a server may take to start again, in seconds.
START = 20.0


class RefusedError(Exception):
    """The pool has no connection, and lets no caller wait."""


def _no_mark(phase: str) -> None:
    pass


class Subject(ABC):
    """A pool of connections to a server.

    :param server: how to reach the server.
    :param size: the pool's limit.
    :param patience: how long the pool lets a caller wait, in seconds, if the pool has such a setting.
    """

    def __init__(self, server: Mapping[str, Any], size: int, patience: float) -> None:
        self.server = server
        self.size = size
        self.patience = patience
        #: Called at the start of each phase of a use. It neither switches greenlets nor raises.
        self.mark: Callable[[str], None] = _no_mark
        #: How many sessions the server has beside those of the pool.
        self.others = 0

    @abstractmethod
    def open(self) -> None:
        """Make the pool."""

    @abstractmethod
    def lease(self) -> AbstractContextManager[Any]:
        """Return a context manager for one connection: the pool's own, if it has one."""

    def use(self, exchange: Callable[[Any], Any]) -> Any:
        """Acquire a connection, make an exchange and release it, as users do. Return the reply."""
        with self.lease() as connection:
            self.mark(EXCHANGING)
            reply = exchange(connection)
            self.mark(GIVING_BACK)
        return reply

    def word(self, number: int) -> str:
        """Return the right answer to a number."""
        return f"word {number};"

    @abstractmethod
    def ask(self, connection: Any, number: int) -> str:
        """Ask for the word of a number, and return it. Every third reply is long, and takes longer."""

    def ask_held(self, connection: Any, number: int) -> str:
        """Ask with the connection of :meth:`lease`, for pools whose users make exchanges with another object."""
        return self.ask(connection, number)

    @abstractmethod
    def ask_late(self, connection: Any, seconds: float) -> None:
        """Make a request that the server answers after this many seconds."""

    def after_fork(self) -> None:  # noqa: B027
        """Do in a forked child what the pool's documentation demands."""

    # The server, without the pool

    @abstractmethod
    def watch(self) -> None:
        """Connect to the server, without the pool."""

    @abstractmethod
    def sessions(self) -> int:
        """Return how many sessions the server has, including the observer's and others."""

    @abstractmethod
    def process(self) -> int:
        """Return the id of the server's process."""

    def fill(self) -> None:  # noqa: B027
        """Store the replies in the server."""

    def restart(self) -> None:
        """End the server's process, and wait until a new one answers."""
        ended = self.process()
        os.kill(ended, self.ending)
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            gevent.sleep(0.02)
            try:
                self.watch()
                if self.process() != ended:
                    self.fill()
                    return
            except Exception:
                continue
        raise TimeoutError(f"the server did not start again within {START:g} s")

    #: The signal that ends the server.
    ending = signal.SIGKILL
