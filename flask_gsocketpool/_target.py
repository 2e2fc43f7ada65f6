"""From ``url``, ``factory`` and ``options`` to what a pool is made from: a factory or connector, and its options."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from flask_gsocketpool._redaction import looks_secret, masked_text
from flask_gsocketpool.exceptions import ConfigurationError
from gsocketpool import InvalidArgumentError, StreamConnection, TcpConnection
from gsocketpool.connectors import Connector
from gsocketpool.exceptions import shown
from gsocketpool.url import NO_LIMIT_OPTIONS, STREAMS, InvalidURLError, read_stream_options, read_url

#: The timeout of connections that a URL describes, in seconds, unless a timeout is given.
DEFAULT_TIMEOUT = 10


@dataclass(frozen=True)
class Target:
    """What a pool connects to, and with what options."""

    factory: Callable[..., Any] | Connector[Any] = field(repr=False)
    options: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(repr=False)
    has_default_timeout: bool = False


def read_target(given: Mapping[str, Any], key_of: Callable[[str], str]) -> Target:
    """Return the target that the settings `given` describe.

    :param key_of: returns the configuration key of a setting, for errors.
    :raises ConfigurationError: if the URL, the factory or the options can't be used.
    """
    url, options = given.get("url"), given.get("options") or {}
    if not callable(options) and not isinstance(options, Mapping):
        raise ConfigurationError(key_of("options"), f"must map names to values, not be of type {type_name(options)}")
    factory = read_factory(given["factory"], key_of("factory")) if given.get("factory") else None
    if url and not (isinstance(url, str) and url.partition("://")[0] in STREAMS):
        return _read_client_url(url, factory, options, key_of)
    if isinstance(factory, type) and issubclass(factory, Connector):
        if url:
            raise ConfigurationError(
                key_of("url"), f"must be left out: pass the connector's arguments in {key_of('options')}"
            )
        return _make_connector(factory, options, key_of("options"))
    if isinstance(factory, Connector):
        if options or url:
            key = key_of("options" if options else "url")
            raise ConfigurationError(key, "must be left out: the connector already has its options")
        return Target(factory, {})
    from_url: Mapping[str, Any] = {}
    if url:
        with _url_errors_name(key_of("url")):
            from_url = read_stream_options(url)
        factory = factory or STREAMS[url.partition("://")[0]]
    factory = factory or TcpConnection
    if callable(options):
        if from_url:
            raise ConfigurationError(
                key_of("options"),
                f"can't be a callable if {key_of('url')} is set: have the callable return the host and port, too",
            )
        return Target(factory, options)
    merged = {**from_url, **options}
    for name in NO_LIMIT_OPTIONS & merged.keys():
        if isinstance(merged[name], str) and merged[name].strip().lower() == "none":
            merged[name] = None
    has_default_timeout = bool(from_url) and "timeout" not in merged and _lacks_timeout(factory)
    if has_default_timeout:
        merged["timeout"] = DEFAULT_TIMEOUT
    _check_options(factory, merged, key_of("url" if from_url and not options else "options"))
    return Target(factory, merged, has_default_timeout)


def _read_client_url(url: Any, factory: Any, options: Any, key_of: Callable[[str], str]) -> Target:
    """Read the URL of a client library that has a connector."""
    key = key_of("url")
    recorded = {"url": url}
    if factory is not None:
        raise ConfigurationError(
            key, f"chooses a connector: leave out {key_of('factory')}, or leave out {key} and give options"
        )
    try:
        with _url_errors_name(key):
            target = read_url(url, _recording(options, recorded))
    except ConfigurationError as error:
        hint = f"; for another client library, set {key_of('factory')} to a class or a connector for it"
        raise ConfigurationError(key, f"{error.problem}{hint}") from None
    except ImportError as error:
        raise ConfigurationError(key, f"can't be used: {error}") from error
    except InvalidArgumentError as error:
        is_option = callable(options) or error.argument in options
        raise _unusable(key_of("options") if is_option else key, error, recorded) from None
    except TypeError as error:
        raise _unusable(key_of("options"), error, recorded) from None
    return Target(target.factory, recorded)


def _make_connector(kind: Callable[..., Connector[Any]], options: Any, key: str) -> Target:
    if callable(options):
        raise ConfigurationError(key, "must map names to values for a connector; each value may be a callable")
    recorded: dict[str, Any] = {}
    given: Any = _recording(options, recorded)
    try:
        return Target(kind(**given), recorded)
    except (InvalidArgumentError, TypeError) as error:
        raise _unusable(key, error, recorded) from None


def _unusable(key: str, error: Exception, options: Mapping[str, Any]) -> ConfigurationError:
    """Return the error for options that a connection or connector refuses. Secrets in them are masked."""
    return ConfigurationError(key, f"can't be used: {masked_text(str(error), options)}")


def _recording(options: Any, recorded: dict[str, Any]) -> Any:
    """Return `options` such that their values, and those that their callables return, end up in `recorded`.

    Errors mask the secrets among them.
    """
    if callable(options):

        def call_and_record() -> Mapping[str, Any]:
            given: Mapping[str, Any] = options()
            if isinstance(given, Mapping):
                recorded.update(given)
            return given

        return call_and_record
    recorded.update(options)
    # The client may keep other callables without calling them, such as a row_factory.
    return {
        name: _recording_value(name, value, recorded) if callable(value) and looks_secret(name) else value
        for name, value in options.items()
    }


def _recording_value(name: str, value: Callable[[], Any], recorded: dict[str, Any]) -> Callable[[], Any]:
    def call_and_record() -> Any:
        recorded[name] = result = value()
        return result

    return call_and_record


@contextmanager
def _url_errors_name(key: str) -> Iterator[None]:
    """Turn an :exc:`InvalidURLError` into a :exc:`ConfigurationError` for `key`."""
    try:
        yield
    except InvalidURLError as error:
        raise ConfigurationError(key, error.problem) from None


def read_factory(given: Any, key: str) -> Any:
    """Return a factory or a connector, imported if `given` is a string.

    :raises ConfigurationError: if it can't be imported, or is neither callable nor a connector.
    """
    factory = read_import(given, key) if isinstance(given, str) else given
    if not callable(factory) and not isinstance(factory, Connector):
        raise ConfigurationError(
            key, f"must be a class, a callable, a connector, or the import name of one, not {shown(given)}"
        )
    return factory


def read_import(given: str, key: str) -> Any:
    """Import and return what `given` names.

    :raises ConfigurationError: if that fails, or `given` names a module.
    """
    try:
        found = import_name(given)
    except Exception as error:
        # The module may raise any exception while it is imported.
        raise ConfigurationError(key, f"can't be imported from {given!r}: {error}") from error
    if isinstance(found, ModuleType):
        raise ConfigurationError(key, f"must look like 'package.module:Name', and {given!r} is a module")
    return found


def import_name(name: str) -> Any:
    """Import and return what `name` names: ``"package.module:Name"`` or ``"package.module.Name"``.

    Exceptions of the import pass through unchanged.
    """
    if ":" not in name and "." in name:
        # Without a colon, resolve_name() would hide an ImportError raised inside the module.
        name = ":".join(name.rsplit(".", 1))
    return pkgutil.resolve_name(name)


def type_name(value: object) -> str:
    """Return the type's name, for errors about a value that may contain a secret."""
    return type(value).__name__


def _lacks_timeout(factory: Callable[..., Any]) -> bool:
    """Return whether `factory` accepts a ``timeout``, and has no default for it."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False  # The factory has no signature to inspect.
    if "timeout" in parameters:
        default = parameters["timeout"].default
        return default is None or default is inspect.Parameter.empty
    # A subclass of StreamConnection passes unknown keyword arguments on to it.
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return takes_any and isinstance(factory, type) and issubclass(factory, StreamConnection)


def _check_options(factory: Callable[..., Any], options: Mapping[str, Any], key: str) -> None:
    if any(not isinstance(name, str) for name in options):
        raise ConfigurationError(key, "must have names of type str")
    try:
        inspect.signature(factory).bind(**options)
    except ValueError:
        return  # The factory has no signature to inspect.
    except TypeError as error:
        # Not its repr, which may show secrets.
        name = getattr(factory, "__name__", type_name(factory))
        raise ConfigurationError(key, f"does not fit {name}: {error}") from None
    if factory in STREAMS.values():
        # The constructors of our own classes check their arguments, and connect to nothing.
        try:
            factory(**options)
        except InvalidArgumentError as error:
            raise _unusable(key, error, options) from None
