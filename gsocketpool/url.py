"""Reads URLs: returns the factory or connector, and its options, for a pool."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from gsocketpool.connection import StreamConnection, TcpConnection, TlsConnection, UnixConnection
from gsocketpool.connectors import Connector
from gsocketpool.connectors._urls import is_ambiguous
from gsocketpool.exceptions import InvalidArgumentError, PoolError

#: The built-in connection classes, by scheme.
STREAMS: dict[str, type[StreamConnection]] = {"tcp": TcpConnection, "tls": TlsConnection, "unix": UnixConnection}

#: Where to import each connector from, by driver.
DRIVERS = {
    "psycopg": "gsocketpool.connectors.psycopg:PsycopgConnector",
    "valkey": "gsocketpool.connectors.valkey:ValkeyConnector",
    "redis": "gsocketpool.connectors.redis:RedisConnector",
    "pymysql": "gsocketpool.connectors.pymysql:PyMySQLConnector",
    "pymemcache": "gsocketpool.connectors.pymemcache:PymemcacheConnector",
}

#: The drivers for each scheme of a client library, the default first; ``scheme+driver://`` chooses another.
CLIENTS: dict[str, tuple[str, ...]] = {
    "postgresql": ("psycopg",),
    "postgres": ("psycopg",),
    "valkey": ("valkey", "redis"),
    "valkeys": ("valkey", "redis"),
    "redis": ("redis", "valkey"),
    "rediss": ("redis", "valkey"),
    "mysql": ("pymysql",),
    "mariadb": ("pymysql",),
    "memcached": ("pymemcache",),
}

#: Options of the built-in connections in which ``none`` means no limit.
NO_LIMIT_OPTIONS = {"timeout", "lifetime"}

#: A scheme that is safe to show: it can't be a part of a password.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}")

Options = Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None


class InvalidURLError(PoolError, ValueError):
    """A URL can't be used to connect. The message shows no credentials."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        #: What is wrong with the URL, and what is allowed.
        self.problem = problem

    def __str__(self) -> str:
        return f"url {self.problem}"


@dataclass(frozen=True)
class Target:
    """The arguments for ``Pool(factory, options)``."""

    factory: Callable[..., Any] | Connector[Any]
    #: Not in the repr, because they may hold secrets.
    options: Options = field(repr=False)


def read_url(url: str, options: Options = None) -> Target:
    """Return the arguments to make a pool from a URL, and from options that override it.

    :param url: ``tcp://host:port``, ``tls://host:port`` or ``unix:///path``, or the URL of a client library that has a
        connector, such as ``postgresql://`` or ``redis://``; ``scheme+driver://`` chooses one of several libraries.
    :param options: keyword arguments for the connection or the connector, or a callable that returns them, called for
        every new connection.
    :raises InvalidURLError: if the URL can't be used.
    :raises InvalidArgumentError: if a connector can't use its URL or its options.
    :raises ImportError: if the client library is not installed; the message names the extra to install.
    """
    if not isinstance(url, str):
        raise InvalidURLError(f"must be a str, and is of type {type(url).__name__}")
    if options is not None and not isinstance(options, Mapping) and not callable(options):
        raise InvalidArgumentError("options", type(options), "a mapping of keyword arguments or a callable")
    scheme, colon, rest = url.partition("://")
    name, _, driver = scheme.partition("+")
    if not colon or not _SCHEME.fullmatch(scheme) or name not in (*STREAMS, *CLIENTS):
        # Not what follows a plus, which may be a part of a password.
        given = f", not {name}://" if colon and not driver and _SCHEME.fullmatch(scheme) else ""
        known = ", ".join(f"{known}://" for known in (*STREAMS, *CLIENTS))
        raise InvalidURLError(f"must start with one of {known}{given}")
    if name in STREAMS:
        if driver:
            raise InvalidURLError(f"has no choice of drivers: write {name}://")
        return _stream(name, url, options)
    drivers = CLIENTS[name]
    if driver and driver not in drivers:
        choices = ", ".join(f"{name}+{one}://" for one in drivers)
        raise InvalidURLError(f"must start with one of {name}://, {choices}")
    return Target(_connector(driver or drivers[0], f"{name}://{rest}", options), None)


def _stream(scheme: str, url: str, options: Options) -> Target:
    given = read_stream_options(url)
    if not callable(options):
        return Target(STREAMS[scheme], {**given, **(options or {})})
    get_options: Callable[[], Mapping[str, Any]] = options
    return Target(STREAMS[scheme], lambda: {**given, **get_options()})


def _connector(driver: str, url: str, options: Options) -> Connector[Any]:
    kind: Any = pkgutil.resolve_name(DRIVERS[driver])
    if not callable(options):
        made: Connector[Any] = kind(url, **(options or {}))
        return made
    get_options: Callable[[], Mapping[str, Any]] = options

    class Dynamic(kind):  # type: ignore[misc]
        """Reads the options anew for each connection."""

        def connect(self) -> Any:
            latest = kind(url, **get_options())
            connection = latest.connect()
            # The connector's other methods use the options, too.
            self.__dict__.update(latest.__dict__)
            return connection

    # For logs, and for the pool's name.
    Dynamic.__name__ = Dynamic.__qualname__ = kind.__name__
    Dynamic.__module__ = kind.__module__
    dynamic: Connector[Any] = Dynamic(url)
    return dynamic


def read_stream_options(url: str) -> dict[str, Any]:
    """Return the connection options in a ``tcp://``, ``tls://`` or ``unix://`` URL.

    :raises InvalidURLError: if the URL can't be used.
    """
    # First, because the errors below may show a part of the URL.
    if "@" in url.partition("?")[0] or ("@" in url and is_ambiguous(url)):
        raise InvalidURLError("must not contain credentials; pass them in the options, and write any other @ as %40")
    parts, port, why = None, None, ""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        parts, why = None, f": {error}"
    if parts is None:
        # The reason shows a part of the URL, possibly of a password with a ? in it. Raised out of the except clause, so
        # that the ValueError is not even the context.
        raise InvalidURLError("can't be used" if "@" in url else f"can't be used{why}")
    if parts.fragment:
        raise InvalidURLError("must not have a fragment (#...)")
    options: dict[str, Any]
    if parts.scheme == "unix":
        if parts.netloc or not parts.path.strip("/"):
            raise InvalidURLError(f"must look like unix:///path/of/the/socket, and is {_shown(parts)!r}")
        options = {"path": parts.path}
    else:
        if not parts.hostname or port is None or parts.path.strip("/"):
            raise InvalidURLError(f"must look like {parts.scheme}://host:port, and is {_shown(parts)!r}")
        options = {"host": parts.hostname, "port": port}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in options:
            raise InvalidURLError(f"sets {name!r} twice")
        is_no_limit = name in NO_LIMIT_OPTIONS and value.strip().lower() == "none"
        options[name] = None if is_no_limit else _read_option(value)
    return options


def _shown(url: SplitResult) -> str:
    """Return a URL without its query, which may hold secrets or be the end of one."""
    return "***" if "@" in url.query else url._replace(query="").geturl()


def _read_option(value: str) -> Any:
    # As Flask reads environment variables: as JSON if possible.
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
