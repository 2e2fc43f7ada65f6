"""A backend that does as it is told, and helpers to look at greenlets without sleeping."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import gevent
from gevent.event import Event

from gsocketpool import Connection, Pool
from gsocketpool.connectors import Connector

#: Seconds after which a test that waits for something gives up.
PATIENCE = 10.0


class Backend:
    """Makes connections, can be told to fail or stall, and knows every connection it has made."""

    def __init__(self) -> None:
        self.connections: list[ScriptedConnection] = []
        #: Errors for the next openings, one each.
        self.failures: list[BaseException] = []
        #: While this is not set, opening, checking and closing stall.
        self.opens, self.checks, self.closes = Event(), Event(), Event()
        for event in (self.opens, self.checks, self.closes):
            event.set()
        #: What the check answers, or raises if it is an exception.
        self.answer: Any = True
        self.most_open = 0

    def connect(self, **options: Any) -> ScriptedConnection:
        """A factory of connections with the checks that every connection has."""
        return self.add(ScriptedConnection(self, options))

    def connect_checked(self, **options: Any) -> ScriptedConnection:
        """A factory of connections that are asked whether they are usable, which may stall."""
        return self.add(CheckedConnection(self, options))

    def add(self, connection: ScriptedConnection) -> ScriptedConnection:
        """Know a connection, of a subclass for one, as one of this backend's, and return it."""
        self.connections.append(connection)
        return connection

    @property
    def open(self) -> list[ScriptedConnection]:
        """The connections that are open at present."""
        return [connection for connection in self.connections if connection.is_open]


class ScriptedConnection(Connection):
    """Equal to every other one, and without a hash."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, backend: Backend, options: dict[str, Any]) -> None:
        self.backend = backend
        self.options = options
        self.number = len(backend.connections)
        self.is_open = False
        self.closings = 0
        self.says_expired = False

    def __eq__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<connection {self.number}>"

    def open(self) -> None:
        self.backend.opens.wait()
        if self.backend.failures:
            raise self.backend.failures.pop(0)
        self.is_open = True
        self.backend.most_open = max(self.backend.most_open, len(self.backend.open))

    def close(self) -> None:
        self.closings += 1
        self.backend.closes.wait()
        self.is_open = False

    def get(self) -> None:
        return None

    def is_connected(self) -> bool:
        return self.is_open

    def is_expired(self) -> bool:
        return self.says_expired

    def abort(self) -> None:
        self.is_open = False


class CheckedConnection(ScriptedConnection):
    def is_usable(self) -> bool:
        self.backend.checks.wait()
        if isinstance(self.backend.answer, BaseException):
            raise self.backend.answer
        return bool(self.backend.answer)


class Foreign:
    """A connection to nowhere, of a class that is not derived from ours."""

    is_open = False

    def open(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False

    def is_connected(self) -> bool:
        return self.is_open


class Plain(Foreign, Connection):
    """A connection to nowhere, which has nothing to do with an event loop, so that any thread may use it."""

    number = 0

    def abort(self) -> None:
        self.is_open = False


class Clock:
    """A clock that stands still until it is told how late it is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def pool(self, *args: Any, **settings: Any) -> Pool[Any]:
        """A pool that goes by this clock."""
        return Pool(*args, clock=self, **settings)


def end_event_loop() -> None:
    """End the event loop of this thread, as gevent asks a thread to do before it ends.

    With libuv it is left to the collector: gevent would wait for ever there if a greenlet sleeps.
    """
    hub = gevent.get_hub()
    if not type(hub.loop).__module__.startswith("gevent.libuv"):
        hub.destroy(destroy_loop=True)


def settle() -> None:
    """Let every greenlet run until it waits for something."""
    for _ in range(10):
        gevent.sleep(0)


def eventually(
    condition: Callable[[], object], shown: str | Callable[[], object] = "", patience: float = PATIENCE
) -> None:
    """Wait until a condition is true, for `patience` seconds.

    :param shown: what to say if it does not come true.
    """
    with gevent.Timeout(patience, False):
        while not condition():
            gevent.sleep(0.002)
        return
    raise AssertionError(f"it has not come true: {shown() if callable(shown) else shown}")


def numbers(pool: Pool[Any]) -> tuple[int, int, int, int]:
    """(in use, idle, opening, waiting)"""
    stats = pool.stats()
    return stats.in_use, stats.idle, stats.opening, stats.waiting


def spawn_acquire(pool: Pool[Any], **arguments: Any) -> gevent.Greenlet:
    """A greenlet that acquires a connection, and has run until it waits or has it."""
    greenlet = gevent.spawn(pool.acquire, **arguments)
    settle()
    return greenlet


class Client:
    """A client that knows nothing of pools. Equal to every other one, and without a hash."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_open = True
        #: Whether something was begun and not completed.
        self.is_begun = False

    def __eq__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<client {self.number}>"

    def begin(self) -> None:
        """Leave something open."""
        self.is_begun = True


class ScriptedConnector(Connector[Client]):
    """Takes every step, notes it, and does as it is told.

    :param acts: by the name of a step, what it does instead of the usual, given the client.
    """

    #: The greenlets in the middle of a step that is not the usual one, of all connectors.
    acting: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    def __init__(self, **acts: Callable[[Client], Any]) -> None:
        self.acts = acts
        self.clients: list[Client] = []
        #: The steps that were taken, those that are asked at any time left out.
        self.steps: list[str] = []

    @property
    def open(self) -> list[Client]:
        """The clients that are open at present."""
        return [client for client in self.clients if client.is_open]

    def connect(self) -> Client:
        client = Client(len(self.clients))
        self.clients.append(client)
        self._usually("connect", client, lambda: None)
        return client

    def is_settled(self, connection: Client) -> bool:
        return self._answer("is_settled", connection, lambda: not connection.is_begun)

    def complete(self, connection: Client) -> None:
        self._do("complete", connection, lambda: setattr(connection, "is_begun", False))

    def reset(self, connection: Client) -> None:
        self._do("reset", connection, lambda: setattr(connection, "is_begun", False))

    def reset_session(self, connection: Client) -> None:
        self._do("reset_session", connection, lambda: None)

    def is_reusable(self, connection: Client, error: BaseException | None) -> bool:
        return self._answer("is_reusable", connection, lambda: error is None)

    def peek_target(self, connection: Client) -> Any:
        return self._usually("peek_target", connection, lambda: None)

    def close(self, connection: Client) -> None:
        self._do("close", connection, lambda: setattr(connection, "is_open", False))

    def abort(self, connection: Client) -> None:
        self._do("abort", connection, lambda: setattr(connection, "is_open", False))

    def cancel(self, connection: Client) -> None:
        self._do("cancel", connection, lambda: None)

    def ping(self, connection: Client) -> None:
        self._do("ping", connection, lambda: None)

    def _do(self, step: str, client: Client, usual: Callable[[], object]) -> None:
        self.steps.append(step)
        self._usually(step, client, usual)

    def _answer(self, step: str, client: Client, usual: Callable[[], bool]) -> bool:
        answer: bool = self._usually(step, client, usual)
        return answer

    def _usually(self, step: str, client: Client, usual: Callable[[], Any]) -> Any:
        act = self.acts.get(step)
        if act is None:
            return usual()
        caller = gevent.getcurrent()
        self.acting.add(caller)
        try:
            return act(client)
        finally:
            self.acting.discard(caller)


def raising(error: BaseException) -> Callable[[Client], Any]:
    """An act of a step that raises."""

    def act(client: Client) -> None:
        raise error

    return act


class Untold:
    """An answer that raises an error when it is asked whether it is true."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __bool__(self) -> bool:
        raise self.error
