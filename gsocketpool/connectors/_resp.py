"""What the connectors for valkey-py and redis-py share: the libraries have one ancestor, and the same names inside."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qs, urlsplit

from gsocketpool.connection import _sockets
from gsocketpool.connectors._base import Connector
from gsocketpool.connectors._urls import QUOTED, is_ambiguous
from gsocketpool.exceptions import InvalidArgumentError

C = TypeVar("C")

#: The base of a mixin: at run time it comes before one of the library's classes.
_Mixin: Any = object

#: The arguments that are refused, and what to do instead.
_UNSUPPORTED = {
    "connection_pool": "each client has one connection, and the pool hands out clients",
    "max_connections": "it is an argument of the pool",
    "single_connection_client": "each client has one connection",
    **dict.fromkeys(
        ["retry", "retry_on_timeout", "retry_on_error"],
        "a lost connection is discarded: acquire another one to try again",
    ),
    **dict.fromkeys(
        [
            *("cache", "cache_config", "cache_enabled", "client_cache"),
            *("maint_notifications_config", "oss_cluster_maint_notifications_handler"),
        ],
        "the pool can't check an idle connection that gets messages at any time",
    ),
}

#: The arguments that are callable in themselves, and not asked for a value.
_CALLABLES = {"command_packer", "parser_class", "redis_connect_func", "valkey_connect_func"}

#: The arguments that errors and reprs may show.
_DISPLAYABLE = ("host", "port", "db", "unix_socket_path", "path")

#: The commands after which a connection gets messages that no command has asked for.
_STREAMING = {
    *("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"),
    *("MONITOR", "SYNC", "PSYNC"),
}
#: Other commands after which a connection is not as it was made.
_IRREVERSIBLE = {"ASKING", "AUTH", "HELLO", "HIMPORT", "QUIT", "READONLY", "READWRITE", "RESET"}
_TRACKED = {"MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH", "SELECT", "CLIENT", "SCRIPT"} | _STREAMING | _IRREVERSIBLE

#: What the libraries, each in its way, tell a server of themselves.
_CLIENT_INFO = ("driver_info", "lib_name", "lib_version")

#: What CLIENT may do without changing the connection.
_HARMLESS_CLIENT_SUBCOMMANDS = {
    *("GETNAME", "GETREDIR", "HELP", "ID", "INFO", "KILL", "LIST"),
    *("PAUSE", "TRACKINGINFO", "UNBLOCK", "UNPAUSE"),
}


class RespConnector(Connector[C]):
    """Hands out clients of a library, each with one connection of its own.

    :param url: where the server is, or a callable that returns it, which is asked at each connect. None for the
        library's defaults, or what the options say.
    :param options: arguments of the library's client. Each may be a callable, which is asked at each connect.
    """

    #: The library, and its client's class.
    _library: ClassVar[Any]
    _client_class: ClassVar[Any]
    #: The names that the library has for the schemes of URLs.
    _schemes: ClassVar[dict[str, str]]
    #: The arguments that every client gets.
    _arguments: ClassVar[dict[str, Any]] = {}

    def __init__(self, url: str | Callable[[], str] | None = None, **options: Any) -> None:
        if url is not None and not isinstance(url, str) and not callable(url):
            raise InvalidArgumentError("url", type(url), "a URL, a callable that returns one, or None")
        for name, value in options.items():
            _require_allowed(name, value)
            if name not in self._argument_names(url is not None):
                allowed = f"left out ({self._name()} has no such argument)"
                raise InvalidArgumentError(name, _displayed(name, value), allowed)
        self._url = url
        self._options = options
        if not callable(url) and not any(map(_is_callable, options.items())):
            # What can be known to be wrong is wrong at once.
            self._make_client()

    def __repr__(self) -> str:
        shown = [] if self._url is None else [repr(_redacted_url(self._url))]
        shown += [
            f"{name}={value!r}" for name, value in self._options.items() if name in _DISPLAYABLE and not callable(value)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def connect(self) -> C:
        """Return a client whose connection is open."""
        client = self._make_client()
        connection = _connection(client)
        try:
            connection.connect()
        except BaseException:
            # The library closes it for errors of its own only.
            connection.disconnect()
            raise
        connection.session.begin()
        return client

    def is_settled(self, connection: C) -> bool:
        """Return whether the connection is neither in a transaction nor watches keys."""
        session = _connection(connection).session
        return not (session.in_multi or session.is_watching)

    def reset(self, connection: C) -> None:
        """End the transaction, or the watching of keys."""
        inner = _connection(connection)
        inner.ensure_silent()
        inner.send_command("DISCARD" if inner.session.in_multi else "UNWATCH")
        inner.read_response()

    def reset_session(self, connection: C) -> None:
        """Let the server forget the session, and begin another one as the library does when it connects."""
        inner = _connection(connection)
        inner.ensure_silent()
        inner.send_command("RESET")
        inner.read_response()
        inner.send_greeting()
        inner.session.begin()

    def is_reusable(self, connection: C, error: BaseException | None) -> bool:
        """Return whether nothing is known to be left but what :meth:`reset` mends, whatever the error was.

        From then on, pipelines and the like that the block has made raise the library's ``ConnectionError``.
        """
        pool: Any = connection.connection_pool  # type: ignore[attr-defined]
        inner = pool.connection
        if pool.checked_out or inner._sock is None or not inner.session.is_clean or _has_unread(inner._parser):
            return False
        connection.connection_pool = pool.replacement()  # type: ignore[attr-defined]
        return True

    def peek_target(self, connection: C) -> Any:
        """Return the socket; -1 if the connection is lost."""
        sock = _connection(connection)._sock
        return -1 if sock is None else sock

    def close(self, connection: C) -> None:
        """Close the connection."""
        _connection(connection).disconnect()

    def ping(self, connection: C) -> None:
        """Send PING, and wait for the answer."""
        connection.ping()  # type: ignore[attr-defined]

    # Making clients

    @classmethod
    def _name(cls) -> str:
        return f"{cls._library.__name__}.{cls._client_class.__name__}"

    @classmethod
    @functools.cache
    def _argument_names(cls, by_url: bool) -> set[str]:
        """Return the names of the arguments that the library takes. With a URL, they go to its connections."""
        module = cls._library.connection
        kinds = [module.Connection, module.SSLConnection, module.UnixDomainSocketConnection]
        classes = {one for kind in kinds for one in kind.__mro__} if by_url else {cls._client_class}
        signatures = [inspect.signature(one.__init__) for one in classes if "__init__" in vars(one)]
        return {
            parameter.name
            for signature in signatures
            for parameter in signature.parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD and parameter.name != "self"
        }

    def _make_client(self) -> C:
        """Return a client whose connection is still closed."""
        url = self._url() if callable(self._url) else self._url
        if isinstance(url, str) and is_ambiguous(url):
            raise InvalidArgumentError("url", _redacted_url(url), QUOTED)
        options = {name: value() if _is_callable((name, value)) else value for name, value in self._options.items()}
        asked = _query_names(url)
        for name in asked:
            _require_allowed(name, None)
        library = self._library
        refusal = None
        try:
            client = self._library_client(url, options)
            theirs = client.connection_pool
            client.connection_pool = _pool_class(library)(
                _connection_class(library, theirs.connection_class),
                **{
                    **theirs.connection_kwargs,
                    **self._arguments,
                    "retry": library.retry.Retry(library.backoff.NoBackoff(), 0),
                    "retry_on_error": [],
                },
            )
            client.auto_close_connection_pool = False
        except (TypeError, ValueError, self._base_error()) as error:
            refusal = str(error)
        if refusal is not None:
            # Here, for the library's error may quote a part of the password: it must not be the context of ours.
            raise self._rejection(refusal, url, options, asked)
        made: C = client
        return made

    def _rejection(self, refusal: str, url: object, options: dict[str, Any], asked: list[str]) -> InvalidArgumentError:
        """Return the error for what the library has refused, which names the argument that its text names."""
        name = next((name for name in [*options, *asked] if name in refusal), "options" if url is None else "url")
        if name in options:
            return InvalidArgumentError(name, _displayed(name, options[name]), f"valid for {self._name()}")
        if url is None:
            return InvalidArgumentError(name, sorted(options), f"valid for {self._name()}")
        schemes = ", ".join(f"{scheme}://" for scheme in self._schemes)
        allowed = f"a valid URL of {schemes}" if name == "url" else f"valid in a URL for {self._name()}"
        return InvalidArgumentError(name, _redacted_url(url), allowed)

    def _library_client(self, url: object, options: dict[str, Any]) -> Any:
        if url is None:
            return self._client_class(**options, **self._arguments)
        if not isinstance(url, str):
            raise TypeError("no URL")
        scheme, separator, rest = url.partition("://")
        return self._client_class.from_url(
            self._schemes[scheme.lower()] + separator + rest if scheme.lower() in self._schemes else "",
            **options,
            **self._arguments,
        )

    @classmethod
    def _base_error(cls) -> type[Exception]:
        """Return the base class of the library's errors: its name differs between the libraries."""
        base: type[Exception] = cls._library.exceptions.ConnectionError.__base__
        return base


def _connection(client: Any) -> Any:
    """Return the one connection of a client of ours."""
    return client.connection_pool.connection


class _Session:
    """What the server knows of one connection beyond what it was made with."""

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
        #: Whether the connection was open once. It is never opened again.
        self.is_open = False
        self._forget()

    def begin(self) -> None:
        """Forget what connecting has changed: from here on, changes are the user's."""
        self.is_open = True
        self._forget()

    def _forget(self) -> None:
        #: How many commands were sent, and replies read.
        self.sent = self.read = 0
        self.in_multi = False
        self.is_watching = False
        #: Whether messages come that no command has asked for.
        self.is_streaming = False
        self._is_tainted = False
        self._database = self._initial_database

    @property
    def is_clean(self) -> bool:
        """Whether every reply is read, and nothing is left open that DISCARD and UNWATCH would not end."""
        return (
            self.sent == self.read
            and not (self.is_streaming or self._is_tainted)
            and self._database == self._initial_database
        )

    def taint(self) -> None:
        """Note what nothing mends."""
        self._is_tainted = True

    def track(self, command: tuple[Any, ...]) -> None:
        """Note a command that is about to be sent."""
        self.sent += 1
        if not _is_tracked(command[0]):
            return
        # The library, too, takes "CLIENT TRACKING" for two words.
        name, *arguments = [*_words(command[0]), *map(_text, command[1:])]
        if name == "MULTI":
            self.in_multi = True
        elif name in ("EXEC", "DISCARD"):
            # Without MULTI the server refuses them.
            if self.in_multi:
                self.in_multi = self.is_watching = False
        elif name == "WATCH":
            self.is_watching = True
        elif name == "UNWATCH":
            # In a transaction it is queued, and the end of that does the same.
            self.is_watching = False
        elif name == "SELECT" and not self.in_multi:
            self._database = arguments[0] if arguments else ""
        elif name in _STREAMING:
            self.is_streaming = True
        elif name == "SCRIPT":
            self._is_tainted = self._is_tainted or arguments[:1] == ["DEBUG"]
        elif name != "CLIENT" or not arguments or arguments[0] not in _HARMLESS_CLIENT_SUBCOMMANDS:
            self._is_tainted = True


class _Connection(_Mixin):  # type: ignore[misc]
    """Opens once, and notes what goes over it. Comes before a connection class of the library's."""

    #: The library's module of errors.
    errors: ClassVar[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.session = _Session(self.db)
        #: Whether the library has something to say to a server that has reset the session.
        self._has_greeting = True

    def _connect(self) -> Any:
        if self.session.is_open:
            # The next command would go on without what was watched, selected or subscribed.
            raise self.errors.ConnectionError("the connection is lost: acquire another one")
        try:
            return super()._connect()
        except BaseException as error:
            # The library closes its socket after an OSError only, and it keeps it in a local variable.
            _sockets.close_half_open(error)
            raise

    def send_greeting(self) -> None:
        """Send what the library sends when it has connected, but for what the server has kept through a RESET."""
        send_greeting = getattr(self, self.errors.__name__.partition(".")[0] + "_connect_func")
        if send_greeting is None and not self._has_greeting:
            return
        before = self.session.sent
        # The names of the library and its version, which would take a round trip each.
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
        """Raise if the connection is dead, or has a reply to read that would pass for that of the next command.

        Before a connection is handed out, the pool looks; before a reset, only this does.
        """
        if not _sockets.is_silent(self._sock):
            raise self.errors.ConnectionError("the connection is lost, or has an unexpected reply")

    # Whatever is sent was packed by one of the next two methods.

    def pack_command(self, *args: Any) -> Any:
        packed = super().pack_command(*args)
        self.session.track(args)
        return packed

    def pack_commands(self, commands: Iterable[tuple[Any, ...]]) -> Any:
        commands = list(commands)
        packed = super().pack_commands(commands)
        for command in commands:
            self.session.track(command)
        return packed

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        self.send_packed_command(self.pack_command(*args), check_health=kwargs.get("check_health", True))

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            response = super().read_response(*args, **kwargs)
        except self.errors.ResponseError as error:
            self.session.read += 1
            # The server is a replica by now. Inside of a transaction, that is said in the text of another error.
            if isinstance(error, self.errors.ReadOnlyError) or "READONLY" in str(error):
                self.session.taint()
            raise
        self.session.read += 1
        return response


class _Pool(_Mixin):  # type: ignore[misc]
    """Has one connection, and gives it to everything that a client makes. Comes before the library's pool."""

    errors: ClassVar[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: None once the block has ended.
        self.connection: Any = self.make_connection()
        #: How many hold the connection. Between commands, these are pipelines and pubsub objects.
        self.checked_out = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.connection!r}>"

    def __del__(self) -> None:
        # The library's looks at connections that this pool has none of.
        pass

    def replacement(self) -> _Pool:
        """Return a pool that has the connection instead of this one."""
        new = object.__new__(type(self))
        new.__dict__ = self.__dict__.copy()
        self.connection = None
        return new

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        connection = self.connection
        if connection is None:
            raise self.errors.ConnectionError("its block has ended, and the connection was given back")
        if connection.session.is_streaming and connection._sock is not None:
            # The next message would pass for the reply.
            raise self.errors.ResponseError("the connection has a subscription or MONITOR on it, and takes no commands")
        self.checked_out += 1
        return connection

    def release(self, connection: Any) -> None:
        self.checked_out -= 1

    def disconnect(self, inuse_connections: bool = True) -> None:
        if self.connection is not None:
            self.connection.disconnect()


@functools.cache
def _connection_class(library: ModuleType, theirs: type) -> Any:
    return type(theirs.__name__, (_Connection, theirs), {"errors": library.exceptions})


@functools.cache
def _pool_class(library: ModuleType) -> Any:
    return type("ConnectionPool", (_Pool, library.ConnectionPool), {"errors": library.exceptions})


def _has_unread(parser: Any) -> bool:
    """Return whether a parser of the library's has read more than one reply."""
    # The library's own can_read() asks the socket as well, and may switch.
    reader = getattr(parser, "_reader", None)
    if reader is not None:
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


def _is_callable(option: tuple[str, Any]) -> bool:
    """Return whether an option is a callable that returns the value."""
    name, value = option
    return callable(value) and name not in _CALLABLES


def _require_allowed(name: str, value: object) -> None:
    if name in _UNSUPPORTED:
        raise InvalidArgumentError(name, _displayed(name, value), f"left out ({_UNSUPPORTED[name]})")


def _displayed(name: str, value: object) -> object:
    """Return what an error may show of an argument's value."""
    return value if name in (*_DISPLAYABLE, "protocol") or value is None or isinstance(value, bool) else type(value)


def _query_names(url: object) -> list[str]:
    """Return the names that a URL gives arguments for."""
    try:
        return list(parse_qs(urlsplit(url).query)) if isinstance(url, str) else []
    except ValueError:
        return []


def _redacted_url(url: object) -> str:
    """Return as much of a URL as may be shown."""
    if not isinstance(url, str) or is_ambiguous(url):
        return "..."
    scheme = url.partition("://")[0] if "://" in url else ""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        address = host + ("" if parts.port is None else f":{parts.port}") + parts.path
    except ValueError:
        address = "..."
    return f"{scheme}://{address}" if scheme.isalnum() else "..."
