"""What the blows know about a pool, whoever wrote it."""

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

#: The length of every third reply, for which a client waits more than once.
LONG = 50_000
#: Seconds that a server may take to start again.
START = 20.0


class RefusedError(Exception):
    """The pool lets no caller wait, and has no connection."""


def _no_mark(phase: str) -> None:
    pass


class Subject(ABC):
    """A pool at a server.

    :param server: what is known of it.
    :param size: the pool's limit.
    :param patience: seconds that the pool lets a caller wait, where it can be told so.
    """

    def __init__(self, server: Mapping[str, Any], size: int, patience: float) -> None:
        self.server = server
        self.size = size
        self.patience = patience
        #: Called at the beginning of each phase of a use. It neither switches nor raises.
        self.mark: Callable[[str], None] = _no_mark
        #: How many sessions the server has besides those of the pool.
        self.others = 0

    @abstractmethod
    def open(self) -> None:
        """Make the pool."""

    @abstractmethod
    def lease(self) -> AbstractContextManager[Any]:
        """Return a block with one connection: the pool's own, where it has one."""

    def use(self, exchange: Callable[[Any], Any]) -> Any:
        """Take a connection, exchange something and give it back, as users do. Return what was exchanged."""
        with self.lease() as connection:
            self.mark(EXCHANGING)
            reply = exchange(connection)
            self.mark(GIVING_BACK)
        return reply

    def word(self, number: int) -> str:
        """Return what the server must answer to a number."""
        return f"word {number};"

    @abstractmethod
    def ask(self, connection: Any, number: int) -> str:
        """Ask for the word of a number, and return it. For every third number the reply is long and takes longer."""

    def ask_held(self, connection: Any, number: int) -> str:
        """Ask by what :meth:`lease` gives, where that is not what users exchange by."""
        return self.ask(connection, number)

    @abstractmethod
    def ask_late(self, connection: Any, seconds: float) -> None:
        """Have the server take its time."""

    def after_fork(self) -> None:  # noqa: B027
        """Do in a forked child what the pool's documentation says."""

    # The server, which is asked past the pool

    @abstractmethod
    def watch(self) -> None:
        """Connect to the server, past the pool."""

    @abstractmethod
    def sessions(self) -> int:
        """Return how many sessions the server has, the observer's and other ones included."""

    @abstractmethod
    def process(self) -> int:
        """Return the number of the server's process."""

    def fill(self) -> None:  # noqa: B027
        """Store in the server what is asked for later."""

    def restart(self) -> None:
        """End the server's process. Return when another one answers."""
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
        raise TimeoutError("the server has not started again")

    #: The signal that ends the server.
    ending = signal.SIGKILL
