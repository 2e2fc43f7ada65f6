"""The connector for pymemcache, for memcached."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeAlias
from urllib.parse import unquote

import gevent.socket

try:
    import pymemcache
    import pymemcache.client.base
except ImportError as _error:
    raise ImportError("PymemcacheConnector needs pymemcache: pip install 'gsocketpool[pymemcache]'") from _error

from gsocketpool.connection import _sockets
from gsocketpool.connectors import Connector, _urls
from gsocketpool.exceptions import InvalidArgumentError

PymemcacheClient: TypeAlias = "pymemcache.client.base.Client"

_Base: Any = pymemcache.client.base.Client

_KNOWN = set(inspect.signature(_Base.__init__).parameters) - {"self"}
#: Arguments that a URL can't hold.
_OBJECTS = {"server", "serde", "serializer", "deserializer", "socket_module", "socket_keepalive", "tls_context"}
#: Arguments that are text. All others are a number, true or false.
_TEXTS = {"key_prefix", "encoding"}

#: Writes wait for a reply; otherwise another connection might read before the write arrives.
_DEFAULTS: dict[str, Any] = {"default_noreply": False, "no_delay": True, "socket_module": gevent.socket}

#: The attributes of a client that callers can change, and that later calls use.
_SETTINGS = ("key_prefix", "default_noreply", "ignore_exc", "serde", "allow_unicode_keys", "encoding")
_get_settings: Callable[[PymemcacheClient], tuple[Any, ...]] = attrgetter(*_SETTINGS)


def _exchange(method: Any) -> Any:
    """Decorate a method that makes an exchange, to track whether one is in progress."""

    @functools.wraps(method)
    def wrapper(self: _Client, *args: Any, **options: Any) -> Any:
        self._exchanges += 1
        try:
            return method(self, *args, **options)
        except Exception:
            # If anything was sent, pymemcache has closed the connection.
            raise
        except BaseException:
            self.close()
            raise
        finally:
            self._exchanges -= 1

    return wrapper


class _Client(_Base):  # type: ignore[misc]
    """A client that knows whether an exchange is in progress, and never reconnects by itself.

    It also notes whether its settings may have changed, because comparing all of them after each use would take longer.
    """

    #: Its settings when it was connected.
    _initial_settings: tuple[Any, ...]
    _may_have_changed = False
    #: How many exchanges are in progress.
    _exchanges = 0

    _fetch_cmd = _exchange(_Base._fetch_cmd)
    _store_cmd = _exchange(_Base._store_cmd)
    _misc_cmd = _exchange(_Base._misc_cmd)

    def open(self) -> None:
        super()._connect()
        self._initial_settings = _get_settings(self)
        self._may_have_changed = False

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _SETTINGS:
            super().__setattr__("_may_have_changed", True)

    def _connect(self) -> None:
        raise pymemcache.exceptions.MemcacheUnexpectedCloseError("the connection is closed: acquire another one")

    def __setitem__(self, key: Any, value: Any) -> None:
        # pymemcache's own does not wait for the reply.
        self.set(key, value)

    def __delitem__(self, key: Any) -> None:
        self.delete(key)


class PymemcacheConnector(Connector[PymemcacheClient]):
    """Lets a pool handle pymemcache's clients: ``Pool(PymemcacheConnector("memcached://127.0.0.1:11211"))``.

    Writes wait for their replies unless `options` say otherwise. Waits are cooperative even without monkey patching.

    :param url: ``memcached://host:port`` or ``memcached:///path/of/the/socket``, with other arguments in its query,
        such as ``?timeout=1``; or a callable that returns it, called for each new connection. None if `options` have a
        ``server``.
    :param options: arguments of ``pymemcache.Client``, which override those of the URL.
    :raises InvalidArgumentError: for arguments that ``pymemcache.Client`` would refuse. It never shows a secret.
    """

    def __init__(self, url: str | Callable[[], str] | None = None, **options: Any) -> None:
        for name in options:
            if name not in _KNOWN:
                allowed = "left out: pymemcache.Client has no such argument"
                raise InvalidArgumentError(name, _urls.HIDDEN, allowed)
        self._url = url
        self._options = options
        if not callable(url):
            self._make_client()

    def __repr__(self) -> str:
        server = "" if callable(self._url) else repr(self._make_client().server)
        return f"{type(self).__name__}({server})"

    def connect(self) -> PymemcacheClient:
        """Return an open client."""
        client = self._make_client()
        try:
            client.open()
        except BaseException as error:
            _sockets.close_half_open(error)
            raise
        return client

    def is_settled(self, connection: PymemcacheClient) -> bool:
        """Return whether the client's attributes are those of :meth:`connect`.

        There is nothing else: memcached has neither transactions nor sessions.
        """
        return not connection._may_have_changed or _get_settings(connection) == connection._initial_settings

    def is_reusable(self, connection: PymemcacheClient, error: BaseException | None) -> bool:
        """Return whether the connection is open and no exchange is in progress, whatever error has left the block."""
        return connection.sock is not None and not connection._exchanges

    def peek_target(self, connection: PymemcacheClient) -> Any:
        """Return the socket; -1 if the connection is closed."""
        sock = connection.sock
        return -1 if sock is None else sock

    def ping(self, connection: PymemcacheClient) -> None:
        """Ask for the server's version."""
        connection.version()

    def _make_client(self) -> _Client:
        """Return a client that is not connected yet."""
        url = self._url() if callable(self._url) else self._url
        given = {} if url is None and not callable(self._url) else _parse_url(url)
        arguments = {**_DEFAULTS, "server": ("127.0.0.1", 11211), **given, **self._options}
        try:
            return _Client(**arguments)
        except (TypeError, ValueError, AttributeError, SystemError) as error:
            wrong = next((name for name in [*self._options, *given] if name in str(error).replace(" ", "_")), "server")
        # Outside the except clause: a server may be a URL with a password, which the error quotes.
        raise InvalidArgumentError(wrong, type(arguments[wrong]), "a value that pymemcache.Client accepts")


def _parse_url(url: Any) -> dict[str, Any]:
    """Return the arguments in a URL."""
    split = _urls.split(url)
    # memcached has no login here. A URL with both a host and a path, or neither, is ambiguous.
    if (
        split is None
        or split[0].scheme != "memcached"
        or "@" in split[0].netloc
        or bool(split[0].hostname) == bool(split[0].path.strip("/"))
    ):
        allowed = "a URL like memcached://host:11211 or memcached:///path/of/the/socket, without credentials"
        raise InvalidArgumentError("url", _urls.HIDDEN, allowed)
    parts, port = split
    server = (parts.hostname, port or 11211) if parts.hostname else unquote(parts.path)
    return {"server": server, **_urls.read_query(parts.query, _TEXTS, _KNOWN - _OBJECTS - _TEXTS)}
