"""The common part of the connectors for valkey-py and redis-py."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qs, urlsplit

from gsocketpool.connectors._base import Connector
from gsocketpool.connectors._resp_client import connection_class, has_unread, pool_class
from gsocketpool.connectors._urls import HIDDEN, QUOTED, is_ambiguous
from gsocketpool.exceptions import InvalidArgumentError

C = TypeVar("C")

#: The arguments that are refused, and why.
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

#: The arguments that are themselves callables, and are not called for a value.
_CALLABLES = {"command_packer", "parser_class", "redis_connect_func", "valkey_connect_func"}

#: The arguments that errors and reprs may show.
_DISPLAYABLE = ("host", "port", "db", "unix_socket_path", "path")


class RespConnector(Connector[C]):
    """Base class for connectors whose clients have one connection each.

    :param url: the server's URL, or a callable that returns it, called for each connection. None for the library's
        defaults, or if `options` name the server.
    :param options: arguments of the library's client, which override those of the URL. Each may be a callable that
        returns the value, called for each connection.
    """

    #: The library and its client class.
    _library: ClassVar[Any]
    _client_class: ClassVar[Any]
    #: The library's names for URL schemes.
    _schemes: ClassVar[dict[str, str]]
    #: Arguments for every client.
    _arguments: ClassVar[dict[str, Any]] = {}

    def __init__(self, url: str | Callable[[], str] | None = None, **options: Any) -> None:
        if url is not None and not isinstance(url, str) and not callable(url):
            raise InvalidArgumentError("url", type(url), "a URL, a callable that returns one, or None")
        for name, value in options.items():
            _require_allowed(name, _displayed(name, value))
            if name not in self._argument_names(url is not None):
                allowed = f"left out ({self._name()} has no such argument)"
                raise InvalidArgumentError(name, _displayed(name, value), allowed)
        self._url = url
        self._options = options
        if not callable(url) and not any(map(_is_callable, options.items())):
            # Fail early if the arguments are wrong.
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
            # The library closes it only after its own errors.
            connection.disconnect()
            raise
        connection.session.begin()
        return client

    def is_settled(self, connection: C) -> bool:
        """Return whether the connection is not in a transaction and watches no keys."""
        session = _connection(connection).session
        return not (session.in_multi or session.is_watching)

    def reset(self, connection: C) -> None:
        """Discard the transaction, or unwatch the keys."""
        inner = _connection(connection)
        inner.ensure_silent()
        inner.send_command("DISCARD" if inner.session.in_multi else "UNWATCH")
        inner.read_response()

    def reset_session(self, connection: C) -> None:
        """Reset the session on the server, and start a new one as the library does when it connects."""
        inner = _connection(connection)
        inner.ensure_silent()
        inner.send_command("RESET")
        inner.read_response()
        inner.send_greeting()
        inner.session.begin()

    def is_reusable(self, connection: C, error: BaseException | None) -> bool:
        """Return whether nothing is left open that :meth:`reset` can't end, whatever the error was.

        Afterwards, pipelines and other objects made in the block raise the library's ``ConnectionError``.
        """
        pool: Any = connection.connection_pool  # type: ignore[attr-defined]
        inner = pool.connection
        if pool.checked_out or inner._sock is None or not inner.session.is_clean or has_unread(inner._parser):
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
        in_url = _query_names(url)
        for name in in_url:
            _require_allowed(name, HIDDEN)
        library = self._library
        refusal = None
        try:
            client = self._library_client(url, options)
            library_pool = client.connection_pool
            given = library_pool.connection_kwargs
            client.connection_pool = pool_class(library)(
                connection_class(library, library_pool.connection_class),
                **{
                    **given,
                    # In the library, those of the URL win.
                    **{name: value for name, value in options.items() if url is not None and name in given},
                    **self._arguments,
                    "retry": library.retry.Retry(library.backoff.NoBackoff(), 0),
                    "retry_on_error": [],
                },
            )
            client.auto_close_connection_pool = False
        except UnboundLocalError:
            # valkey-py's answer to a protocol that is no number.
            refusal = "protocol"
        except (TypeError, ValueError, self._base_error()) as error:
            refusal = str(error)
        if refusal is not None:
            # Outside the except clause: the library's error may quote the password, and must not be the context.
            raise self._rejection(refusal, url, options, in_url)
        made: C = client
        return made

    def _rejection(self, refusal: str, url: object, options: dict[str, Any], in_url: list[str]) -> InvalidArgumentError:
        """Return the error for arguments that the library refuses. It names the argument that the refusal names."""
        name = next((name for name in [*options, *in_url] if name in refusal), "options" if url is None else "url")
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
    """Return the connection of a client."""
    return client.connection_pool.connection


def _is_callable(option: tuple[str, Any]) -> bool:
    """Return whether an option's value is a callable that returns the actual value."""
    name, value = option
    return callable(value) and name not in _CALLABLES


def _require_allowed(name: str, shown: object) -> None:
    if name in _UNSUPPORTED:
        raise InvalidArgumentError(name, shown, f"left out ({_UNSUPPORTED[name]})")


def _displayed(name: str, value: object) -> object:
    """Return an argument's value if errors may show it; otherwise its type."""
    return value if name in (*_DISPLAYABLE, "protocol") or value is None or isinstance(value, bool) else type(value)


def _query_names(url: object) -> list[str]:
    """Return the names of the arguments in the query of a URL."""
    return list(parse_qs(urlsplit(url).query)) if isinstance(url, str) else []


def _redacted_url(url: object) -> str:
    """Return a URL without credentials and query."""
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
