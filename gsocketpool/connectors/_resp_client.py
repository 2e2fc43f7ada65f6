"""Mixins for valkey-py and redis-py: a client gets one connection, which tracks the state of its session.

Both libraries descend from the same code, and use the same names inside.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import ModuleType
from typing import Any, ClassVar

from gsocketpool.connection import _sockets

#: The base of a mixin. At run time a class of the library follows it.
_Mixin: Any = object

#: Commands after which the server sends messages at any time.
_STREAMING = {
    *("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"),
    *("MONITOR", "SYNC", "PSYNC"),
}
#: Other commands that change a connection for good.
_IRREVERSIBLE = {"ASKING", "AUTH", "HELLO", "HIMPORT", "QUIT", "READONLY", "READWRITE", "RESET"}
_TRACKED = {"MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH", "SELECT", "CLIENT", "SCRIPT"} | _STREAMING | _IRREVERSIBLE

#: The attributes with the library's name and version, which it sends to the server. They differ between versions.
_CLIENT_INFO = ("driver_info", "lib_name", "lib_version")

#: Subcommands of CLIENT that do not change the connection.
_HARMLESS_CLIENT_SUBCOMMANDS = {
    *("GETNAME", "GETREDIR", "HELP", "ID", "INFO", "KILL", "LIST"),
    *("PAUSE", "TRACKINGINFO", "UNBLOCK", "UNPAUSE"),
}


class Session:
    """The state of one connection's session on the server, as far as the sent commands tell."""

    __slots__ = (
        "_database",
        "_initial_database",
        "_is_tainted",
        "in_multi",
        "is_open",
        "is_streaming",
        "is_watching",
        "read",
        "sent",
    )

    def __init__(self, database: object) -> None:
        self._initial_database = str(database)
        #: Whether the connection was ever open. It is never opened again.
        self.is_open = False
        self._forget()

    def begin(self) -> None:
        """Start tracking: the commands so far were part of connecting."""
        self.is_open = True
        self._forget()

    def _forget(self) -> None:
        #: How many commands were sent and how many replies read.
        self.sent = self.read = 0
        self.in_multi = False
        self.is_watching = False
        #: Whether the server may send messages at any time.
        self.is_streaming = False
        self._is_tainted = False
        self._database = self._initial_database

    @property
    def is_clean(self) -> bool:
        """Whether every reply was read, and DISCARD and UNWATCH would end all that is left open."""
        return (
            self.sent == self.read
            and not (self.is_streaming or self._is_tainted)
            and self._database == self._initial_database
        )

    def taint(self) -> None:
        """Mark the session as changed for good."""
        self._is_tainted = True

    def note_sent(self, command: tuple[Any, ...]) -> None:
        """Count a command that is about to be sent, and update the state if it changes the session."""
        self.sent += 1
        if _is_tracked(command[0]):
            self._track(command)

    def _track(self, command: tuple[Any, ...]) -> None:
        # Like the library, split "CLIENT TRACKING" into two words.
        name, *arguments = [*_words(command[0]), *map(_text, command[1:])]
        if name == "MULTI":
            self.in_multi = True
        elif name in ("EXEC", "DISCARD"):
            # Without MULTI, the server refuses them.
            if self.in_multi:
                self.in_multi = self.is_watching = False
        elif name == "WATCH":
            self.is_watching = True
        elif name == "UNWATCH":
            # In a transaction it is only queued, but the end of the transaction unwatches, too.
            self.is_watching = False
        elif name == "SELECT" and not self.in_multi:
            self._database = arguments[0] if arguments else ""
        elif name in _STREAMING:
            self.is_streaming = True
        elif name == "SCRIPT":
            self._is_tainted = self._is_tainted or arguments[:1] == ["DEBUG"]
        elif name != "CLIENT" or not arguments or arguments[0] not in _HARMLESS_CLIENT_SUBCOMMANDS:
            self._is_tainted = True


class _TrackedConnection(_Mixin):  # type: ignore[misc]
    """Mixin for a connection that opens only once and tracks its session."""

    #: The library's module of errors.
    errors: ClassVar[Any]
    #: The library's ``read_response()``, because super() would take longer.
    library_read_response: ClassVar[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.session = Session(self.db)
        #: Whether the library sends anything when a session starts.
        self._has_greeting = True

    def _connect(self) -> Any:
        if self.session.is_open:
            # The library would reconnect, without what was watched, selected or subscribed.
            raise self.errors.ConnectionError("the connection is lost: acquire another one")
        try:
            return super()._connect()
        except BaseException as error:
            # The library closes the socket, a local variable, only after an OSError.
            _sockets.close_half_open(error)
            raise

    def send_greeting(self) -> None:
        """Send what the library sends on connecting, except what the server keeps through a RESET."""
        send_greeting = getattr(self, self.errors.__name__.partition(".")[0] + "_connect_func")
        if send_greeting is None and not self._has_greeting:
            return
        before = self.session.sent
        # The server keeps the library's name and version, which would take a round trip each.
        kept = {name: getattr(self, name) for name in _CLIENT_INFO if hasattr(self, name)}
        for name in kept:
            setattr(self, name, None)
        try:
            if send_greeting is None:
                self.on_connect()
            else:
                send_greeting(self)
        finally:
            for name, value in kept.items():
                setattr(self, name, value)
        self._has_greeting = self.session.sent > before

    def ensure_silent(self) -> None:
        """Raise if the connection is dead, or has an unread reply that would pass for that of the next command.

        The pool checks this before it hands a connection out, but not before a reset.
        """
        if not _sockets.is_silent(self._sock):
            raise self.errors.ConnectionError("the connection is lost, or has an unexpected reply")

    # Every command passes through one of the next three methods.

    def send_command(self, *args: Any, check_health: bool = True, **_: Any) -> None:
        packed = self._command_packer.pack(*args)
        self.session.note_sent(args)
        self.send_packed_command(packed, check_health)

    def pack_command(self, *args: Any) -> Any:
        packed = super().pack_command(*args)
        self.session.note_sent(args)
        return packed

    def pack_commands(self, commands: Iterable[tuple[Any, ...]]) -> Any:
        commands = list(commands)
        packed = super().pack_commands(commands)
        for command in commands:
            self.session.note_sent(command)
        return packed

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            # A call with stars takes longer.
            response = self.library_read_response(*args, **kwargs) if args or kwargs else self.library_read_response()
        except self.errors.ResponseError as error:
            self.session.read += 1
            # The server has become a replica. In a transaction, only the text of another error says so.
            if isinstance(error, self.errors.ReadOnlyError) or "READONLY" in str(error):
                self.session.taint()
            raise
        self.session.read += 1
        return response


class _SingleConnectionPool(_Mixin):  # type: ignore[misc]
    """Mixin for the library's pool, which gives the same connection to everything that a client makes."""

    # The library's attributes are in a dict, which a pool shares with its replacement.
    __slots__ = ("checked_out", "connection")

    errors: ClassVar[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: None once the block has ended.
        self.connection: Any = self.make_connection()
        #: How many objects hold the connection. Between commands, these are pipelines and pubsub objects.
        self.checked_out = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.connection!r}>"

    def __del__(self) -> None:
        # The library's __del__() uses attributes that this pool does not have.
        pass

    def replacement(self) -> Any:
        """Return a new pool that takes over the connection of this one."""
        new: Any = object.__new__(type(self))
        new.__dict__ = self.__dict__
        new.connection = self.connection
        new.checked_out = self.checked_out
        self.connection = None
        return new

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        connection = self.connection
        if connection is None:
            raise self.errors.ConnectionError("its block has ended, and the connection was given back")
        if connection.session.is_streaming and connection._sock is not None:
            # The next message would pass for the command's reply.
            raise self.errors.ResponseError("the connection has a subscription or MONITOR on it, and takes no commands")
        self.checked_out += 1
        return connection

    def release(self, connection: Any) -> None:
        self.checked_out -= 1

    def disconnect(self, inuse_connections: bool = True) -> None:
        if self.connection is not None:
            self.connection.disconnect()


@functools.cache
def connection_class(library: ModuleType, library_class: Any) -> Any:
    attributes = {"errors": library.exceptions, "library_read_response": library_class.read_response}
    return type(library_class.__name__, (_TrackedConnection, library_class), attributes)


@functools.cache
def pool_class(library: ModuleType) -> Any:
    return type("ConnectionPool", (_SingleConnectionPool, library.ConnectionPool), {"errors": library.exceptions})


def has_unread(parser: Any) -> bool:
    """Return whether a parser of the library has buffered unread bytes."""
    # Not can_read(), which also reads from the socket and may switch.
    reader = getattr(parser, "_reader", None)
    if reader is not None:  # pragma: no cover - for hiredis and libvalkey, which not every test run has
        return bool(reader.has_data())
    return bool(parser._buffer.unread_bytes())


@functools.lru_cache(1024)
def _is_tracked(name: Any) -> bool:
    return not _TRACKED.isdisjoint(_words(name)[:1])


def _words(name: Any) -> list[str]:
    return _text(name).split()


def _text(argument: Any) -> str:
    if isinstance(argument, memoryview):
        argument = argument.tobytes()
    return (argument.decode("latin-1") if isinstance(argument, bytes) else str(argument)).upper()
