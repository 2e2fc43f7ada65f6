"""From ``SOCKETPOOL_*`` keys to the arguments of pools, without an app."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from flask_gsocketpool._target import DEFAULT_TIMEOUT, read_factory, read_import, read_target, type_name
from flask_gsocketpool.exceptions import ConfigurationError
from gsocketpool import InvalidArgumentError
from gsocketpool.connectors import Connector
from gsocketpool.exceptions import shown
from gsocketpool.settings import Settings, check_seconds
from gsocketpool.url import STREAMS

PREFIX = "SOCKETPOOL_"
DEFAULT = "default"

#: Defaults that differ from those of :class:`~gsocketpool.Pool`, which are 0.1.6's. Every worker process has its own
#: pool, and a backend often accepts about 100 connections in total.
DEFAULT_SETTINGS = {"max_connections": 10, "reap_interval": 30}

#: The settings that say what a pool connects to, with their meanings.
TARGETS = {
    "url": "where to connect to: ``tcp://host:port``, ``tls://host:port`` or ``unix:///path``, with options in the"
    f" query, as in ``?timeout=2``. The default ``timeout`` is {DEFAULT_TIMEOUT} s, unless the connection class has its"
    " own default; ``timeout=none`` means no limit. Also the URL of a client library that has a connector, credentials"
    " included: ``postgresql://``, ``valkey://``, ``redis://``, ``mysql://``, ``memcached://``.",
    "factory": "a :class:`~gsocketpool.Connection` class, any callable that returns a connection, a"
    ' :class:`~gsocketpool.connectors.Connector`, or the import name of one: ``"package.module:Name"`` or'
    ' ``"package.module.Name"``. The default is the class or the connector for the URL.',
    "options": "the keyword arguments for the factory, which override those of the URL; or a callable that returns all"
    " of them, called at every open.",
}
#: The settings of :class:`~gsocketpool.Pool`, with their types as text.
SETTINGS = {field.name: str(field.type) for field in fields(Settings)}
#: The connection options that a URL can give, each with an example.
URL_OPTIONS = {
    "host": "tcp://host:port",
    "port": "tcp://host:port",
    "path": "unix:///path",
    "timeout": "?timeout=2",
    "lifetime": "?lifetime=600",
    "server_hostname": "?server_hostname=name",
}
#: The settings for the app as a whole, with their meanings.
APP_WIDE = {
    "pools": "more pools, by name. Each name maps to the keys above, in lower case and without their prefix. A named"
    " pool inherits nothing from the plain keys.",
    "drain_timeout": "how long after SIGTERM the app closes all pools, under the requests that still use them, in"
    " seconds. With the ``post_worker_init`` hook, the time also starts when ``--max-requests`` ends the worker. By"
    " default, pools close only when the requests are done.",
    "request_timeout": "how long all acquires of a request may take together, in seconds, or None for no limit. Also a"
    ' callable that receives the request and returns the time, or its import name: ``"package.module:name"``.',
}

#: Matches a string that names something to import, and no number.
_IMPORT_NAME = re.compile(r":|^[^\W\d]\w*(\.[^\W\d]\w*)+$")

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class PoolConfig:
    """The arguments of one pool: ``Pool(factory, options, **settings)``."""

    # The repr of a factory or of options might show secrets.
    factory: Callable[..., Any] | Connector[Any] = field(repr=False)
    #: The factory's options. For a connector, which has its own, those known here. They include secrets.
    options: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(repr=False)
    settings: Mapping[str, Any]
    #: The configuration key of each setting that was given: ``{"url": "SOCKETPOOL_URL"}``. The others have defaults.
    keys: Mapping[str, str] = field(default_factory=dict, compare=False)
    #: The URL as given. Its query may contain secrets.
    url: str | None = field(default=None, compare=False, repr=False)
    #: Whether the ``timeout`` among the options is the default.
    has_default_timeout: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class AppConfig:
    """The configuration of an app and its pools."""

    pools: Mapping[str, PoolConfig]
    #: How long after SIGTERM all pools are closed, in seconds. None for never.
    drain_timeout: float | None = None
    #: How long all acquires of a request may take together, in seconds, or a callable that returns it for a request.
    #: None for no limit.
    request_timeout: float | Callable[[Any], float | None] | None = None
    #: The configuration key of each setting that was given.
    keys: Mapping[str, str] = field(default_factory=dict, compare=False)


def read_config(config: Mapping[str, Any]) -> dict[str, PoolConfig]:
    """Return the pools that `config` describes, by name. The plain keys describe the pool ``default``.

    :param config: an app's configuration. Keys that don't start with ``SOCKETPOOL_`` are ignored.
    :raises ConfigurationError: for an unknown key, an invalid value or a factory that can't be imported.
    """
    plain = _plain_settings(config)
    named = plain.get("pools")
    for setting in APP_WIDE:
        plain.pop(setting, None)
    pools = {}
    if plain:
        pools[DEFAULT] = _read_pool(plain, DEFAULT, _plain_key)
    if named is not None:
        if not isinstance(named, Mapping):
            raise ConfigurationError(
                f"{PREFIX}POOLS", f"must map pool names to settings, not be of type {type_name(named)}"
            )
        for name, settings in named.items():
            key = f"{PREFIX}POOLS[{shown(name)}]"
            if not isinstance(name, str):
                raise ConfigurationError(key, f"must have a pool name of type str, not {type_name(name)}")
            if not isinstance(settings, Mapping):
                raise ConfigurationError(key, f"must map settings to values, not be of type {type_name(settings)}")
            if name in pools:
                raise ConfigurationError(key, f"is already described by the plain {PREFIX} keys")
            pools[name] = _read_pool(settings, name, partial(_named_key, name))
    return pools


def read_app_config(config: Mapping[str, Any]) -> AppConfig:
    """Return the configuration of an app and its pools.

    :raises ConfigurationError: as :func:`read_config` does.
    """
    plain = _plain_settings(config)
    request_timeout = plain.get("request_timeout")
    if isinstance(request_timeout, str) and _IMPORT_NAME.search(request_timeout):
        request_timeout = read_import(request_timeout, _plain_key("request_timeout"))
    if not callable(request_timeout):
        request_timeout = _read_seconds(
            plain, "request_timeout", ", None for no limit, or a callable that returns one of these"
        )
    drain_timeout = _read_seconds(plain, "drain_timeout", ", or None for never")
    keys = {setting: _plain_key(setting) for setting in APP_WIDE if setting in plain}
    return AppConfig(read_config(config), drain_timeout, request_timeout, keys)


def _plain_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the ``SOCKETPOOL_*`` keys by setting."""
    return {key.removeprefix(PREFIX).lower(): value for key, value in config.items() if key.startswith(PREFIX)}


def _read_seconds(plain: Mapping[str, Any], setting: str, otherwise: str) -> float | None:
    key = _plain_key(setting)
    value = _read_setting(plain.get(setting), "float | None")
    if value is None:
        return None
    try:
        return check_seconds(setting, value, otherwise=otherwise)
    except InvalidArgumentError as error:
        raise ConfigurationError(key, f"must be {error.allowed}, not {shown(plain.get(setting))}") from None


def _plain_key(setting: str) -> str:
    return PREFIX + setting.upper()


def _named_key(pool: str, setting: str) -> str:
    return f"{PREFIX}POOLS[{pool!r}][{shown(setting)}]"


def _read_pool(given: Mapping[str, Any], name: str, key_of: Callable[[str], str]) -> PoolConfig:
    for setting in given:
        if setting not in SETTINGS and setting not in TARGETS:
            if setting in APP_WIDE:
                raise ConfigurationError(key_of(setting), f"applies to the whole app: set {_plain_key(setting)}")
            if _is_option(setting, given):
                raise ConfigurationError(key_of(setting), _option_hint(setting.lower(), key_of))
            known = [*TARGETS, *SETTINGS, *(APP_WIDE if key_of is _plain_key else [])]
            raise ConfigurationError(key_of(setting), f"is not a known key{_suggestion(setting, known, key_of)}")
    if not any(given.get(target) for target in TARGETS):
        raise ConfigurationError(
            key_of(next(iter(given), "url")), f"does not say where to connect to: set {key_of('url')}"
        )
    settings = _read_settings({**DEFAULT_SETTINGS, "name": name, **given}, key_of)
    target = read_target(given, key_of)
    # An empty target is ignored. Of the other settings, any value counts.
    keys = {setting: key_of(setting) for setting, value in given.items() if value or setting not in TARGETS}
    url = given.get("url") or None
    return PoolConfig(target.factory, target.options, settings, keys, url, target.has_default_timeout)


def _is_option(setting: object, given: Mapping[str, Any]) -> bool:
    """Return whether our connection classes, or the factory among `given`, accept an option called `setting`."""
    factories: list[Any] = [*STREAMS.values()]
    with suppress(ConfigurationError):
        factories.append(read_factory(given.get("factory"), ""))
    known: set[str] = set()
    for factory in factories:
        # Some factories have no signature to inspect.
        with suppress(TypeError, ValueError):
            known.update(inspect.signature(factory).parameters)
    return isinstance(setting, str) and setting.lower() in known


def _option_hint(option: str, key_of: Callable[[str], str]) -> str:
    or_url = f" or into {key_of('url')}, as in {URL_OPTIONS[option]}" if option in URL_OPTIONS else ""
    return f"is an option of the connection, not of the pool: put {option!r} into {key_of('options')}{or_url}"


def _suggestion(given: object, known: Collection[str], key_of: Callable[[str], str]) -> str:
    word = given.lower() if isinstance(given, str) else shown(given)
    nearest = [key for key in known if key.startswith(word)] or difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {key_of(nearest[0])}?" if nearest else ""


def _read_settings(given: Mapping[str, Any], key_of: Callable[[str], str]) -> dict[str, Any]:
    settings = {name: _read_setting(value, SETTINGS[name]) for name, value in given.items() if name in SETTINGS}
    try:
        Settings(**settings)
    except InvalidArgumentError as error:
        given_value = given[error.argument]
        raise ConfigurationError(key_of(error.argument), f"must be {error.allowed}, not {shown(given_value)}") from None
    return settings


def _read_setting(value: Any, kind: str) -> Any:
    """Return a string, from the environment, as a value of the type `kind`, or unchanged if it is not one."""
    if kind == "bool" and type(value) is int and value in (0, 1):
        # Flask's from_prefixed_env() reads variables as JSON.
        return bool(value)
    if not isinstance(value, str) or kind.startswith("str"):
        return value
    word = value.strip().lower()
    if kind == "bool":
        return _BOOLEANS.get(word, value)
    if word in ("", "none", "null") and kind.endswith("None"):
        return None
    try:
        return int(word) if kind.startswith("int") else float(word)
    except ValueError:
        return value
