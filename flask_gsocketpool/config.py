"""From ``SOCKETPOOL_*`` keys to the arguments of pools, and every complaint about them. It needs no app."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from functools import partial
from types import ModuleType
from typing import Any

from flask_gsocketpool._redaction import looks_secret
from gsocketpool import (
    InvalidArgumentError,
    PoolError,
    StreamConnection,
    TcpConnection,
)
from gsocketpool.connectors import Connector
from gsocketpool.exceptions import shown
from gsocketpool.settings import Settings, check_seconds
from gsocketpool.url import NO_LIMIT_OPTIONS, STREAMS, InvalidURLError, read_stream_options, read_url

PREFIX = "SOCKETPOOL_"
DEFAULT = "default"

#: Where the defaults of an app's pools differ from those of :class:`~gsocketpool.Pool`, which are those of 0.1.6. Every
#: worker process has a pool of its own, and a backend takes 100 connections or so from all of them.
DEFAULT_SETTINGS = {"max_connections": 10, "reap_interval": 30}
#: Seconds that connections of a URL wait for their backend, unless told otherwise.
DEFAULT_TIMEOUT = 10

#: What says where a pool connects to, and what each of these means.
TARGETS = {
    "url": "where to connect to: ``tcp://host:port``, ``tls://host:port`` or ``unix:///path``, with options in the"
    f" query, as in ``?timeout=2``. Without a ``timeout``, the connections have one of {DEFAULT_TIMEOUT} s, unless"
    " their class has its own; ``timeout=none`` is for no limit. Or the URL of a client library for which there is a"
    " connector, credentials included: ``postgresql://``, ``valkey://``, ``redis://``,"
    " ``mysql://``, ``memcached://``.",
    "factory": "a :class:`~gsocketpool.Connection` class, any callable that returns a connection, a"
    ' :class:`~gsocketpool.connectors.Connector`, or where to import one from: ``"package.module:Name"`` or'
    ' ``"package.module.Name"``. By default the class or the connector that goes with the URL.',
    "options": "the keyword arguments for the factory, which override those of the URL, or a callable that returns all"
    " of them, asked at every open.",
}
#: How many connections and how long: the settings, with their types in words.
SETTINGS = {field.name: str(field.type) for field in fields(Settings)}
#: The options of connections that a URL may give, and how.
URL_OPTIONS = {
    "host": "tcp://host:port",
    "port": "tcp://host:port",
    "path": "unix:///path",
    "timeout": "?timeout=2",
    "lifetime": "?lifetime=600",
    "server_hostname": "?server_hostname=name",
}
#: What is said of the app as a whole, and what it means.
APP_WIDE = {
    "pools": "more pools, by name: each has a mapping with the keys above in lower case and without their prefix. It"
    " takes nothing over from the plain keys.",
    "drain_timeout": "seconds from SIGTERM to the closing of all pools, under the requests that still use them. With"
    " the hook ``post_worker_init`` it counts after ``--max-requests``, too. Not set, nothing is closed before the"
    " requests are done.",
    "request_timeout": "seconds that a request has for all of its acquires together, a callable that gets the request"
    ' and returns them, or None, or where to import one from: ``"package.module:name"``.',
}

#: Whether a string names something to import, and is no number.
_IMPORT_NAME = re.compile(r":|^[^\W\d]\w*(\.[^\W\d]\w*)+$")

WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class ConfigurationError(PoolError, ValueError):
    """The configuration of an app says something that can't be used."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        #: The key, as in ``SOCKETPOOL_URL`` or ``SOCKETPOOL_POOLS['cache']['url']``.
        self.key = key
        #: What is wrong with its value, and what would be right.
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.key} {self.problem}"


@dataclass(frozen=True)
class PoolConfig:
    """What one pool is made of: ``Pool(factory, options, **settings)``."""

    #: Its repr may show anything, and so may that of the options.
    factory: Callable[..., Any] | Connector[Any] = field(repr=False)
    #: Those of the factory. A connector has its own; these are what is known of them, secrets included.
    options: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(repr=False)
    settings: Mapping[str, Any]
    #: The keys that were given and used, by what they are about: ``{"url": "SOCKETPOOL_URL"}``. The rest is by default.
    keys: Mapping[str, str] = field(default_factory=dict, compare=False)
    #: The URL as it was given, with whatever secrets are in its query.
    url: str | None = field(default=None, compare=False, repr=False)
    #: Whether the ``timeout`` among the options is by default.
    has_default_timeout: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class AppConfig:
    """What an app and its pools are told."""

    pools: Mapping[str, PoolConfig]
    #: Seconds after SIGTERM until all pools are closed; None for never.
    drain_timeout: float | None = None
    #: Seconds that a request has for all of its acquires, or what tells them of a request; None for no limit.
    request_timeout: float | Callable[[Any], float | None] | None = None
    #: The keys that were given, by what they are about, as for a pool.
    keys: Mapping[str, str] = field(default_factory=dict, compare=False)


def read_config(config: Mapping[str, Any]) -> dict[str, PoolConfig]:
    """Return the pools that `config` describes, by name. That of the plain keys is called ``default``.

    :param config: an app's configuration; keys that don't start with ``SOCKETPOOL_`` are passed over.
    :raises ConfigurationError: for an unknown key, a wrong value or a factory that can't be imported.
    """
    plain = {key.removeprefix(PREFIX).lower(): value for key, value in config.items() if key.startswith(PREFIX)}
    named = plain.get("pools")
    for setting in APP_WIDE:
        plain.pop(setting, None)
    pools = {}
    if plain:
        pools[DEFAULT] = _read_pool(plain, DEFAULT, _plain_key)
    if named is not None:
        if not isinstance(named, Mapping):
            raise ConfigurationError(f"{PREFIX}POOLS", f"must map names to settings, and is of type {_kind(named)}")
        for name, settings in named.items():
            key = f"{PREFIX}POOLS[{shown(name)}]"
            if not isinstance(name, str):
                raise ConfigurationError(key, f"must have a str for a name, not of type {_kind(name)}")
            if not isinstance(settings, Mapping):
                raise ConfigurationError(key, f"must map settings to values, and is of type {_kind(settings)}")
            if name in pools:
                raise ConfigurationError(key, f"is what the plain {PREFIX} keys describe already")
            pools[name] = _read_pool(settings, name, partial(_named_key, name))
    return pools


def read_app_config(config: Mapping[str, Any]) -> AppConfig:
    """Return everything that `config` says of an app and its pools.

    :raises ConfigurationError: as :func:`read_config` does.
    """
    request_timeout = config.get(_plain_key("request_timeout"))
    if isinstance(request_timeout, str) and _IMPORT_NAME.search(request_timeout):
        request_timeout = _import(request_timeout, _plain_key("request_timeout"))
    if not callable(request_timeout):
        request_timeout = _read_seconds(config, "request_timeout", ", None for no limit, or a callable that tells them")
    drain_timeout = _read_seconds(config, "drain_timeout", ", or None for never")
    keys = {setting: _plain_key(setting) for setting in APP_WIDE if _plain_key(setting) in config}
    return AppConfig(read_config(config), drain_timeout, request_timeout, keys)


def _read_seconds(config: Mapping[str, Any], setting: str, otherwise: str) -> float | None:
    key = _plain_key(setting)
    value = _read_setting(config.get(key), "float | None")
    if value is None:
        return None
    try:
        return check_seconds(setting, value, otherwise=otherwise)
    except InvalidArgumentError as error:
        raise ConfigurationError(key, f"must be {error.allowed}, not {shown(config.get(key))}") from None


def _kind(value: object) -> str:
    """Return what errors say of a value that may have a secret in it."""
    return type(value).__name__


def _plain_key(setting: str) -> str:
    return PREFIX + setting.upper()


def _named_key(pool: str, setting: str) -> str:
    return f"{PREFIX}POOLS[{pool!r}][{shown(setting)}]"


def _read_pool(given: Mapping[str, Any], name: str, key_of: Callable[[str], str]) -> PoolConfig:
    for setting in given:
        if setting not in SETTINGS and setting not in TARGETS:
            if setting in APP_WIDE:
                raise ConfigurationError(key_of(setting), f"is for the app as a whole: set {_plain_key(setting)}")
            if _is_option(setting, given):
                raise ConfigurationError(key_of(setting), _where_options_go(setting.lower(), key_of))
            known = [*TARGETS, *SETTINGS, *(APP_WIDE if key_of is _plain_key else [])]
            raise ConfigurationError(key_of(setting), f"is not a known key{_nearest(setting, known, key_of)}")
    if not any(given.get(target) for target in TARGETS):
        raise ConfigurationError(
            key_of(next(iter(given), "url")), f"says nothing about where to connect to: set {key_of('url')}"
        )
    settings = _read_settings({**DEFAULT_SETTINGS, "name": name, **given}, key_of)
    target = _read_target(given, key_of)
    # A target that is empty is passed over; of the other settings any value counts.
    keys = {setting: key_of(setting) for setting, value in given.items() if value or setting not in TARGETS}
    url = given.get("url") or None
    return PoolConfig(target.factory, target.options, settings, keys, url, target.has_default_timeout)


def _is_option(setting: object, given: Mapping[str, Any]) -> bool:
    """Return whether connections of ours, or of the factory among `given`, take an option called `setting`."""
    factories: list[Any] = [*STREAMS.values()]
    with suppress(ConfigurationError):
        factories.append(_read_factory(given.get("factory"), ""))
    known: set[str] = set()
    for factory in factories:
        # Not every factory tells its signature.
        with suppress(TypeError, ValueError):
            known.update(inspect.signature(factory).parameters)
    return isinstance(setting, str) and setting.lower() in known


def _where_options_go(option: str, key_of: Callable[[str], str]) -> str:
    or_url = f" or into {key_of('url')}, as in {URL_OPTIONS[option]}" if option in URL_OPTIONS else ""
    return f"is an option of the connection, not of the pool: put {option!r} into {key_of('options')}{or_url}"


def _nearest(given: object, known: Collection[str], key_of: Callable[[str], str]) -> str:
    word = given.lower() if isinstance(given, str) else shown(given)
    nearest = [key for key in known if key.startswith(word)] or difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {key_of(nearest[0])}?" if nearest else ""


# The numbers


def _read_settings(given: Mapping[str, Any], key_of: Callable[[str], str]) -> dict[str, Any]:
    settings = {name: _read_setting(value, SETTINGS[name]) for name, value in given.items() if name in SETTINGS}
    try:
        Settings(**settings)
    except InvalidArgumentError as error:
        given_value = given[error.argument]
        raise ConfigurationError(key_of(error.argument), f"must be {error.allowed}, not {shown(given_value)}") from None
    return settings


def _read_setting(value: Any, kind: str) -> Any:
    """Return a string from the environment as a value of the type `kind`, or as it is if it can't be read."""
    if not isinstance(value, str) or kind.startswith("str"):
        return value
    word = value.strip().lower()
    if kind == "bool":
        return WORDS.get(word, value)
    if word in ("", "none", "null") and kind.endswith("None"):
        return None
    try:
        return int(word) if kind.startswith("int") else float(word)
    except ValueError:
        return value


# Where to connect to


@dataclass(frozen=True)
class _Target:
    """Where a pool connects to, and with what."""

    factory: Callable[..., Any] | Connector[Any] = field(repr=False)
    options: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(repr=False)
    has_default_timeout: bool = False


def _read_target(given: Mapping[str, Any], key_of: Callable[[str], str]) -> _Target:
    url, options = given.get("url"), given.get("options") or {}
    if not callable(options) and not isinstance(options, Mapping):
        raise ConfigurationError(key_of("options"), f"must map names to values, and is of type {_kind(options)}")
    factory = _read_factory(given["factory"], key_of("factory")) if given.get("factory") else None
    if url and not (isinstance(url, str) and url.partition("://")[0] in STREAMS):
        return _read_client(url, factory, options, key_of)
    if isinstance(factory, type) and issubclass(factory, Connector):
        if url:
            raise ConfigurationError(key_of("url"), "must be left out: give the connector what it needs by options")
        return _make_connector(factory, options, key_of("options"))
    if isinstance(factory, Connector):
        if options or url:
            key = key_of("options" if options else "url")
            raise ConfigurationError(key, "must be left out: the connector has all that it needs")
        return _Target(factory, {})
    from_url: Mapping[str, Any] = {}
    if url:
        with _complaints_of(key_of("url")):
            from_url = read_stream_options(url)
        factory = factory or STREAMS[url.partition("://")[0]]
    factory = factory or TcpConnection
    if callable(options):
        if from_url:
            raise ConfigurationError(
                key_of("options"),
                f"can't be a callable beside {key_of('url')}: let it return the host and the port, too",
            )
        return _Target(factory, options)
    merged = {**from_url, **options}
    for name in NO_LIMIT_OPTIONS & merged.keys():
        if isinstance(merged[name], str) and merged[name].strip().lower() == "none":
            merged[name] = None
    has_default_timeout = bool(from_url) and "timeout" not in merged and _lacks_timeout(factory)
    if has_default_timeout:
        merged["timeout"] = DEFAULT_TIMEOUT
    _check_options(factory, merged, key_of("url" if from_url and not options else "options"))
    return _Target(factory, merged, has_default_timeout)


def _read_client(url: Any, factory: Any, options: Any, key_of: Callable[[str], str]) -> _Target:
    """Read the URL of a client library, for which there is a connector."""
    key = key_of("url")
    known = {"url": url}
    if factory is not None:
        raise ConfigurationError(
            key, f"chooses a connector: leave out {key_of('factory')}, or leave out {key} and give options"
        )
    try:
        with _complaints_of(key):
            target = read_url(url, _remembering(options, known))
    except ConfigurationError as error:
        hint = f"; for another client library, set {key_of('factory')} to a class or a connector for it"
        raise ConfigurationError(key, f"{error.problem}{hint}") from None
    except ImportError as error:
        raise ConfigurationError(key, f"can't be used: {error}") from error
    except InvalidArgumentError as error:
        is_option = callable(options) or error.argument in options
        raise ConfigurationError(key_of("options") if is_option else key, f"can't be used: {error}") from None
    except TypeError as error:
        raise ConfigurationError(key_of("options"), f"can't be used: {error}") from None
    return _Target(target.factory, known)


def _make_connector(kind: Callable[..., Connector[Any]], options: Any, key: str) -> _Target:
    if callable(options):
        raise ConfigurationError(key, "must map names to values for a connector, each of which may be a callable")
    known: dict[str, Any] = {}
    given: Any = _remembering(options, known)
    try:
        return _Target(kind(**given), known)
    except (InvalidArgumentError, TypeError) as error:
        raise ConfigurationError(key, f"can't be used: {error}") from None


def _remembering(options: Any, known: dict[str, Any]) -> Any:
    """Return the options, which note in `known` what they are, and what their callables return: errors mask that."""
    if callable(options):

        def ask() -> Mapping[str, Any]:
            given: Mapping[str, Any] = options()
            if isinstance(given, Mapping):
                known.update(given)
            return given

        return ask
    known.update(options)
    # Other callables may be passed on, and not called: a row_factory for one.
    return {
        name: _noting(name, value, known) if callable(value) and looks_secret(name) else value
        for name, value in options.items()
    }


def _noting(name: str, ask: Callable[[], Any], known: dict[str, Any]) -> Callable[[], Any]:
    def noted() -> Any:
        known[name] = value = ask()
        return value

    return noted


@contextmanager
def _complaints_of(key: str) -> Iterator[None]:
    try:
        yield
    except InvalidURLError as error:
        raise ConfigurationError(key, error.problem) from None


def _read_factory(given: Any, key: str) -> Any:
    factory = _import(given, key) if isinstance(given, str) else given
    if not callable(factory) and not isinstance(factory, Connector):
        allowed = "must be a class, a callable, a connector or the name of one"
        raise ConfigurationError(key, f"{allowed}, and is {shown(given)}")
    return factory


def _import(given: str, key: str) -> Any:
    try:
        found = import_name(given)
    except Exception as error:
        # Whatever the module raises while it is imported, too.
        raise ConfigurationError(key, f"can't be imported from {given!r}: {error}") from error
    if isinstance(found, ModuleType):
        raise ConfigurationError(key, f"must look like 'package.module:Name', and is {given!r}")
    return found


def import_name(name: str) -> Any:
    """Import and return what `name` names: ``"package.module:Name"`` or ``"package.module.Name"``.

    What the import raises is raised as it is.
    """
    if ":" not in name and "." in name:
        # Given dots only, resolve_name() would hide an ImportError inside the module.
        name = ":".join(name.rsplit(".", 1))
    return pkgutil.resolve_name(name)


def _lacks_timeout(factory: Callable[..., Any]) -> bool:
    """Return whether `factory` takes a ``timeout``, and has no limit of its own without it."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False  # The factory doesn't tell its signature.
    if "timeout" in parameters:
        default = parameters["timeout"].default
        return default is None or default is inspect.Parameter.empty
    # A subclass of ours passes on to it what it does not know.
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return takes_any and isinstance(factory, type) and issubclass(factory, StreamConnection)


def _check_options(factory: Callable[..., Any], options: Mapping[str, Any], key: str) -> None:
    if any(not isinstance(name, str) for name in options):
        raise ConfigurationError(key, "must have str for names")
    try:
        inspect.signature(factory).bind(**options)
    except ValueError:
        return  # The factory doesn't tell its signature.
    except TypeError as error:
        name = getattr(factory, "__name__", repr(factory))
        raise ConfigurationError(key, f"does not fit {name}: {error}") from None
    if factory in STREAMS.values():
        # Ours connect to nothing before they are opened, so they can be made to look at the values.
        try:
            factory(**options)
        except InvalidArgumentError as error:
            raise ConfigurationError(key, f"can't be used: {error}") from None
