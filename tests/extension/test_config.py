"""Configuration keys become pools, and a wrong key or value is refused by name."""

from __future__ import annotations

import math
import ssl
from typing import Any

import pytest
from flask import Flask

from flask_gsocketpool import ConfigurationError, GSocketPool
from flask_gsocketpool.config import DEFAULT_SETTINGS, PoolConfig, read_app_config, read_config
from gsocketpool import PoolError, TcpConnection, TlsConnection, UnixConnection
from gsocketpool.settings import Settings

URL = "tcp://localhost:2000"


def default(**config: Any) -> PoolConfig:
    return read_config({f"SOCKETPOOL_{key}": value for key, value in config.items()})["default"]


class Options:
    """A factory whose arguments are plain to see."""

    def __init__(self, host: str, port: int, password: str | None = None) -> None:
        pass


def test_a_config_without_keys_makes_no_pools() -> None:
    assert read_config({}) == {}
    assert read_config({"DEBUG": True, "POOLS": 1}) == {}


@pytest.mark.parametrize(
    ("url", "factory", "options"),
    [
        ("tcp://localhost:2000", TcpConnection, {"host": "localhost", "port": 2000, "timeout": 10}),
        ("tcp://[::1]:2000/", TcpConnection, {"host": "::1", "port": 2000, "timeout": 10}),
        (
            "tcp://10.0.0.1:1?timeout=2.5&lifetime=null",
            TcpConnection,
            {"host": "10.0.0.1", "port": 1, "timeout": 2.5, "lifetime": None},
        ),
        (
            "tls://example.org:443?server_hostname=www.example.org",
            TlsConnection,
            {"host": "example.org", "port": 443, "server_hostname": "www.example.org", "timeout": 10},
        ),
        ("unix:///run/backend.sock", UnixConnection, {"path": "/run/backend.sock", "timeout": 10}),
        ("unix:///run/backend.sock?timeout=3", UnixConnection, {"path": "/run/backend.sock", "timeout": 3}),
    ],
)
def test_a_url_sets_the_factory_and_its_options(url: str, factory: type, options: dict[str, Any]) -> None:
    pool = default(URL=url)
    assert pool.factory is factory
    assert pool.options == options
    assert pool.settings == {**DEFAULT_SETTINGS, "name": "default"}


def test_a_tcp_connection_is_the_default_factory() -> None:
    pool = default(OPTIONS={"host": "h", "port": 1})
    assert pool.factory is TcpConnection


@pytest.mark.parametrize("factory", [Options, f"{__name__}:Options"])
def test_a_factory_gets_the_options_of_the_url_and_of_the_key(factory: Any) -> None:
    pool = default(FACTORY=factory, URL=URL, OPTIONS={"password": "secret"})
    assert pool.factory is Options
    assert pool.options == {"host": "localhost", "port": 2000, "password": "secret"}


def test_options_override_the_url() -> None:
    assert default(URL=URL, OPTIONS={"port": 3000}).options == {"host": "localhost", "port": 3000, "timeout": 10}


class Patient(TcpConnection):
    """A subclass with a timeout of its own."""

    def __init__(self, host: str, port: int, timeout: float = 60) -> None:
        super().__init__(host, port, timeout=timeout)


class Required(TcpConnection):
    def __init__(self, host: str, port: int, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)


class PassesOn(TcpConnection):
    def __init__(self, password: str = "", **options: Any) -> None:
        super().__init__(**options)


def connect_with(**options: Any) -> Options:
    return Options(**options)


@pytest.mark.parametrize(
    ("factory", "timeout"),
    [
        pytest.param(Required, 10, id="asks for it"),
        pytest.param(PassesOn, 10, id="passes it on"),
        pytest.param(Patient, None, id="its own"),
        pytest.param(Options, None, id="none"),
        pytest.param(connect_with, None, id="does not tell"),
        pytest.param(dict, None, id="without a signature"),
    ],
)
def test_a_factory_that_would_wait_for_ever_gets_a_default_timeout(factory: Any, timeout: float | None) -> None:
    pool = default(URL=URL, FACTORY=factory)
    assert isinstance(pool.options, dict)
    assert pool.options.get("timeout") == timeout
    assert pool.has_default_timeout is (timeout is not None)


@pytest.mark.parametrize("word", ["none", "None", " NONE "])
def test_a_connection_may_have_no_limits(word: str) -> None:
    options = {"host": "localhost", "port": 2000, "timeout": None, "lifetime": None}
    assert default(URL=URL, OPTIONS={"timeout": word, "lifetime": word}).options == options
    assert default(URL=f"{URL}?timeout={word}&lifetime={word}").options == options


def test_no_other_option_is_read_as_none() -> None:
    assert default(FACTORY=PassesOn, URL=f"{URL}?password=none").options["password"] == "none"  # type: ignore[index]


def test_options_without_a_url_are_left_alone() -> None:
    assert default(OPTIONS={"host": "h", "port": 1}).options == {"host": "h", "port": 1}


def test_options_may_be_a_callable() -> None:
    def options() -> dict[str, Any]:
        return {"host": "localhost", "port": 2000}

    assert default(OPTIONS=options).options is options


def test_a_factory_may_be_any_callable_with_any_options() -> None:
    pool = default(FACTORY=lambda **options: None, OPTIONS={"whatever": 1})
    assert pool.options == {"whatever": 1}


def test_an_ssl_context_may_be_given_as_an_option() -> None:
    context = ssl.create_default_context()
    assert default(URL="tls://localhost:2000", OPTIONS={"ssl_context": context}).options["ssl_context"] is context


VALUES = {
    "initial_connections": 1,
    "max_connections": 7,
    "reap_expired_connections": False,
    "reap_interval": 2.5,
    "name": "called",
    "min_connections": 2,
    "max_waiting": 3,
    "acquire_timeout": 1.5,
    "open_timeout": 2.0,
    "close_timeout": 3.0,
    "max_opening": 4,
    "max_lifetime": 100.0,
    "idle_timeout": 10.0,
    "leak_threshold": 20.0,
    "reset": "always",
    "reset_timeout": 3.0,
    "ping_timeout": 2.0,
    "keepalive_interval": 50.0,
}


def test_every_argument_of_a_pool_has_a_key() -> None:
    assert set(VALUES) == set(Settings.__dataclass_fields__)
    assert default(URL=URL, **{key.upper(): value for key, value in VALUES.items()}).settings == VALUES
    strings = {key.upper(): str(value) for key, value in VALUES.items()}
    assert default(URL=URL, **strings).settings == VALUES


@pytest.mark.parametrize(
    ("word", "meaning"),
    # Flask reads variables of the environment as JSON, which makes numbers of some.
    [("yes", True), ("On", True), ("1", True), (1, True), ("FALSE", False), ("0", False), (0, False)],
)
def test_a_boolean_may_be_given_as_a_word(word: Any, meaning: bool) -> None:
    assert default(URL=URL, REAP_EXPIRED_CONNECTIONS=word).settings["reap_expired_connections"] is meaning


@pytest.mark.parametrize("word", ["", "none", "None", "null", " none "])
def test_none_may_be_given_as_a_word(word: str) -> None:
    assert default(URL=URL, ACQUIRE_TIMEOUT=word).settings["acquire_timeout"] is None
    assert default(URL=URL, MAX_WAITING=word).settings["max_waiting"] is None


def test_only_keys_with_a_value_are_recorded() -> None:
    empty = {"URL": "", "OPTIONS": {}}
    assert default(FACTORY=dict, MAX_WAITING=0, ACQUIRE_TIMEOUT="", **empty).keys == {
        "factory": "SOCKETPOOL_FACTORY",
        "max_waiting": "SOCKETPOOL_MAX_WAITING",
        "acquire_timeout": "SOCKETPOOL_ACQUIRE_TIMEOUT",
    }
    assert set(default(URL=URL, FACTORY="").keys) == {"url"}


def test_keys_for_the_app_may_be_in_lower_case_like_all_others() -> None:
    config = read_app_config({"SOCKETPOOL_url": URL, "SOCKETPOOL_drain_timeout": 5, "SOCKETPOOL_request_timeout": 6})
    assert (config.drain_timeout, config.request_timeout) == (5, 6)
    assert set(config.keys) == {"drain_timeout", "request_timeout"}


def test_named_pools_are_configured_beside_the_default_pool() -> None:
    pools = read_config(
        {
            "SOCKETPOOL_URL": URL,
            "SOCKETPOOL_POOLS": {
                "cache": {"url": "unix:///run/cache", "max_connections": "20"},
                "search": {"factory": Options, "options": {"host": "h", "port": 1}, "name": "Search"},
            },
        }
    )
    assert list(pools) == ["default", "cache", "search"]
    assert pools["cache"] == PoolConfig(
        UnixConnection,
        {"path": "/run/cache", "timeout": 10},
        {**DEFAULT_SETTINGS, "max_connections": 20, "name": "cache"},
    )
    assert pools["search"].settings == {**DEFAULT_SETTINGS, "name": "Search"}


def test_the_default_pool_may_be_a_named_one() -> None:
    assert list(read_config({"SOCKETPOOL_POOLS": {"default": {"url": URL}}})) == ["default"]


def test_every_key_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {
        "URL": URL,
        "MAX_CONNECTIONS": "12",
        "OPTIONS__timeout": "2.5",
        "ACQUIRE_TIMEOUT": "none",
        "REAP_EXPIRED_CONNECTIONS": "false",
        "DRAIN_TIMEOUT": "20",
        "POOLS__cache__url": "tcp://localhost:6379",
        "POOLS__cache__factory": f"{__name__}:Options",
        "POOLS__cache__options__password": "secret",
        "POOLS__cache__max_connections": "20",
    }.items():
        monkeypatch.setenv(f"FLASK_SOCKETPOOL_{key}", value)
    app = Flask("app")
    app.config.from_prefixed_env()
    pools = read_config(app.config)
    assert read_app_config(app.config).drain_timeout == 20
    assert pools["default"].options == {"host": "localhost", "port": 2000, "timeout": 2.5}
    assert pools["default"].settings == {
        **DEFAULT_SETTINGS,
        "max_connections": 12,
        "acquire_timeout": None,
        "reap_expired_connections": False,
        "name": "default",
    }
    assert pools["cache"] == PoolConfig(
        Options,
        {"host": "localhost", "port": 6379, "password": "secret"},
        {**DEFAULT_SETTINGS, "max_connections": 20, "name": "cache"},
    )


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        # Unknown keys.
        (
            {"URL": URL, "MAX_CONECTIONS": 5},
            "_MAX_CONECTIONS is not a known key; did you mean SOCKETPOOL_MAX_CONNECTIONS?",
        ),
        ({"URL": URL, "POOL": {}}, "_POOL is not a known key; did you mean SOCKETPOOL_POOLS?"),
        ({"URL": URL, "ZZZ": 1}, "_ZZZ is not a known key"),
        (
            {"POOLS": {"a": {"url": URL, "max_conn": 1}}},
            "_POOLS['a']['max_conn'] is not a known key; did you mean SOCKETPOOL_POOLS['a']['max_connections']?",
        ),
        (
            {"POOLS": {"a": {"URL": URL}}},
            "_POOLS['a']['URL'] is not a known key; did you mean SOCKETPOOL_POOLS['a']['url']?",
        ),
        ({"POOLS": {"a": {1: 2}}}, "_POOLS['a'][1] is not a known key"),
        # Options of the connection.
        (
            {"URL": URL, "TIMEOUT": 1},
            "_TIMEOUT is an option of the connection, not of the pool: put 'timeout' into SOCKETPOOL_OPTIONS"
            " or into SOCKETPOOL_URL, as in ?timeout=2",
        ),
        ({"HOST": "h", "PORT": 1}, "_HOST is an option of the connection"),
        ({"URL": "unix:///x", "PATH": "/x"}, "_PATH is an option of the connection"),
        ({"URL": URL, "LIFETIME": 1}, "_LIFETIME is an option of the connection"),
        ({"URL": URL, "SSL_CONTEXT": 1}, "_SSL_CONTEXT is an option of the connection"),
        ({"URL": URL, "SERVER_HOSTNAME": "h"}, "_SERVER_HOSTNAME is an option of the connection"),
        ({"POOLS": {"a": {"TIMEOUT": 1}}}, "_POOLS['a']['TIMEOUT'] is an option of the connection"),
        (
            {"URL": URL, "FACTORY": f"{__name__}:Options", "PASSWORD": "x"},
            "_PASSWORD is an option of the connection, not of the pool: put 'password' into SOCKETPOOL_OPTIONS",
        ),
        ({"URL": URL, "PASSWORD": "x"}, "_PASSWORD is not a known key"),
        ({"FACTORY": "tests.support.raising:Name", "PASSWORD": "x"}, "_PASSWORD is not a known key"),
        # Wrong numbers.
        ({"URL": URL, "MAX_CONNECTIONS": 0}, "_MAX_CONNECTIONS must be a whole number of at least 1, not 0"),
        ({"URL": URL, "MAX_CONNECTIONS": "many"}, "_MAX_CONNECTIONS must be a whole number of at least 1, not 'many'"),
        ({"URL": URL, "MAX_CONNECTIONS": "none"}, "_MAX_CONNECTIONS must be a whole number of at least 1, not 'none'"),
        ({"URL": URL, "MAX_CONNECTIONS": "1.5"}, "_MAX_CONNECTIONS must be a whole number of at least 1, not '1.5'"),
        (
            {"URL": URL, "ACQUIRE_TIMEOUT": "-1"},
            "_ACQUIRE_TIMEOUT must be a number of seconds of at least 0, or None for no limit, not '-1'",
        ),
        (
            {"URL": URL, "ACQUIRE_TIMEOUT": "nan"},
            "_ACQUIRE_TIMEOUT must be a number of seconds of at least 0, or None for no limit, not 'nan'",
        ),
        (
            {"URL": URL, "REAP_EXPIRED_CONNECTIONS": "maybe"},
            "_REAP_EXPIRED_CONNECTIONS must be True or False, not 'maybe'",
        ),
        ({"URL": URL, "NAME": 5}, "_NAME must be a str or None, not 5"),
        (
            {"URL": URL, "MIN_CONNECTIONS": 9, "MAX_CONNECTIONS": 8},
            "_MIN_CONNECTIONS must be at most max_connections (8), not 9",
        ),
        (
            {"POOLS": {"a": {"url": URL, "idle_timeout": 0}}},
            "_POOLS['a']['idle_timeout'] must be a number of seconds above 0, or None for no limit, not 0",
        ),
        # The app's as a whole.
        (
            {"POOLS": {"a": {"url": URL, "drain_timeout": 5}}},
            "_POOLS['a']['drain_timeout'] applies to the whole app: set SOCKETPOOL_DRAIN_TIMEOUT",
        ),
        ({"URL": URL, "DRAIN": 5}, "_DRAIN is not a known key; did you mean SOCKETPOOL_DRAIN_TIMEOUT?"),
        # Nothing to connect to.
        ({"MAX_CONNECTIONS": 5}, "_MAX_CONNECTIONS does not say where to connect to: set SOCKETPOOL_URL"),
        (
            {"POOLS": {"a": {}}},
            "_POOLS['a']['url'] does not say where to connect to: set SOCKETPOOL_POOLS['a']['url']",
        ),
        # Wrong factories.
        ({"FACTORY": "no.such:Thing"}, "_FACTORY can't be imported from 'no.such:Thing': No module named 'no'"),
        ({"FACTORY": ".mod:Name"}, "_FACTORY can't be imported from '.mod:Name': "),
        (
            {"FACTORY": "tests.support.raising:Name"},
            "_FACTORY can't be imported from 'tests.support.raising:Name': not today",
        ),
        (
            {"FACTORY": f"{__name__}:No"},
            f"_FACTORY can't be imported from '{__name__}:No': module",
        ),
        (
            {"FACTORY": "tests.support.broken.Name"},
            "_FACTORY can't be imported from 'tests.support.broken.Name': No module named 'gone'",
        ),
        ({"FACTORY": "Name"}, "_FACTORY can't be imported from 'Name': No module named 'Name'"),
        (
            {"FACTORY": __name__},
            f"_FACTORY must look like 'package.module:Name', and '{__name__}' is a module",
        ),
        (
            {"FACTORY": f"{__name__}:URL"},
            "_FACTORY must be a class, a callable, a connector, or the import name of one, not ",
        ),
        ({"FACTORY": 5}, "_FACTORY must be a class, a callable, a connector, or the import name of one, not 5"),
        # Wrong options.
        ({"OPTIONS": [1]}, "_OPTIONS must map names to values, not be of type list"),
        ({"OPTIONS": {1: 2}}, "_OPTIONS must have names of type str"),
        ({"OPTIONS": {"host": "h"}}, "_OPTIONS does not fit TcpConnection: missing a required argument: 'port'"),
        (
            {"OPTIONS": {"host": "h", "port": 0}},
            "_OPTIONS can't be used: port must be a whole number of at least 1, not 0",
        ),
        (
            {"OPTIONS": {"host": "h", "port": 99999}},
            "_OPTIONS can't be used: port must be a whole number from 1 to 65535",
        ),
        ({"URL": URL, "OPTIONS": dict}, "_OPTIONS can't be a callable if SOCKETPOOL_URL is set"),
        ({"FACTORY": Options, "URL": "unix:///x"}, "_URL does not fit Options: "),
        # Wrong URLs.
        ({"URL": 5}, "_URL must be a str, and is of type int"),
        (
            {"URL": "amqp://localhost:1"},
            "_URL must start with one of tcp://, tls://, unix://, postgresql://, postgres://, valkey://, valkeys://,"
            " redis://, rediss://, mysql://, mariadb://, memcached://, not amqp://; for another client library, set"
            " SOCKETPOOL_FACTORY to a class or a",
        ),
        (
            {"POOLS": {"a": {"url": "postgresql+x://me:secret@h/b"}}},
            "_POOLS['a']['url'] must start with one of postgresql://, postgresql+psycopg://;",
        ),
        ({"URL": "localhost:2000"}, "_URL must start with one of tcp://, tls://, unix://, "),
        ({"URL": "//localhost"}, "_URL must start with one of tcp://, tls://, unix://, "),
        ({"URL": "tcp://localhost"}, "_URL must look like tcp://host:port, and is 'tcp://localhost'"),
        ({"URL": "tcp://:2000"}, "_URL must look like tcp://host:port, and is 'tcp://:2000'"),
        ({"URL": "tcp://h:1/path"}, "_URL must look like tcp://host:port, and is 'tcp://h:1/path'"),
        ({"URL": "tls://h?password=x"}, "_URL must look like tls://host:port, and is 'tls://h'"),
        ({"URL": "tcp://h:port"}, "_URL can't be used: Port could not be cast to integer value as 'port'"),
        ({"URL": "tcp://h:70000"}, "_URL can't be used: Port out of range 0-65535"),
        ({"URL": "tcp://h:0"}, "_URL can't be used: port must be a whole number of at least 1, not 0"),
        ({"URL": "tcp://[::1:1"}, "_URL can't be used: "),
        ({"URL": "unix://host/path"}, "_URL must look like unix:///path/of/the/socket, and is 'unix://host/path'"),
        ({"URL": "unix://"}, "_URL must look like unix:///path/of/the/socket, and is 'unix:"),
        ({"URL": "tcp://user:pass@h:1"}, "_URL must not contain credentials; pass them in the options"),
        ({"URL": "tcp://h:1#x"}, "_URL must not have a fragment (#...)"),
        ({"URL": "tcp://h:1?timeout=1&timeout=2"}, "_URL sets 'timeout' twice"),
        ({"URL": "tcp://h:1?host=other"}, "_URL sets 'host' twice"),
        (
            {"URL": "tcp://h:1?tiemout=1"},
            "_URL does not fit TcpConnection: got an unexpected keyword argument 'tiemout'",
        ),
        (
            {"URL": "tcp://h:1?timeout=soon"},
            "_URL can't be used: timeout must be a number of seconds of at least 0, not 'soon'",
        ),
        # Wrong pools.
        ({"POOLS": {5: {"url": URL}}}, "_POOLS[5] must have a pool name of type str, not int"),
        ({"POOLS": ["a"]}, "_POOLS must map pool names to settings, not be of type list"),
        ({"POOLS": {"a": URL}}, "_POOLS['a'] must map settings to values, not be of type str"),
        (
            {"URL": URL, "POOLS": {"default": {"url": URL}}},
            "_POOLS['default'] is already described by the plain SOCKETPOOL_ keys",
        ),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_invalid_keys_are_refused_with_a_reason(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_config({f"SOCKETPOOL_{key}": value for key, value in config.items()})
    assert str(caught.value).startswith(f"SOCKETPOOL{complaint}")
    assert str(caught.value).startswith(caught.value.key)
    assert isinstance(caught.value, PoolError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("given", "seconds"), [(20, 20), (0.5, 0.5), ("2.5", 2.5), (None, None), ("none", None)])
def test_the_drain_timeout_belongs_to_the_app_and_to_no_pool(given: Any, seconds: float | None) -> None:
    config = {"SOCKETPOOL_DRAIN_TIMEOUT": given}
    assert read_app_config(config).drain_timeout == seconds
    assert read_config(config) == {}
    assert read_config({**config, "SOCKETPOOL_URL": URL})["default"].settings == {**DEFAULT_SETTINGS, "name": "default"}


def test_the_drain_timeout_is_off_by_default() -> None:
    assert read_app_config({"SOCKETPOOL_URL": URL, "DRAIN_TIMEOUT": 5}).drain_timeout is None


@pytest.mark.parametrize("given", [0, -1, True, "soon", math.inf, math.nan, "inf", [5]])
def test_a_bad_drain_timeout_is_refused(given: Any) -> None:
    app = Flask("app")
    app.config.update(SOCKETPOOL_URL=URL, SOCKETPOOL_DRAIN_TIMEOUT=given)
    with pytest.raises(ConfigurationError) as caught:
        GSocketPool(app)
    assert caught.value.key == "SOCKETPOOL_DRAIN_TIMEOUT"
    assert caught.value.problem == f"must be a number of seconds above 0, or None for never, not {given!r}"


def test_no_configuration_error_shows_a_secret() -> None:
    for config in (
        {"URL": "tcp://user:hunter2@h:1"},
        {"URL": "tcp://h?password=hunter2"},
        {"URL": URL, "OPTIONS": {"password": "hunter2"}},
        {"OPTIONS": ["hunter2"]},
        {"POOLS": '{"cache":{"options":{"password":"hunter2"}},}'},
        {"POOLS": {"cache": '{"options":{"password":"hunter2"},}'}},
        {"URL": {"password": "hunter2"}},
        {"URL": "tcp://user:hunter2/x@host:1"},
        {"URL": "tcp://user:hunter2#x@host:1"},
        {"URL": "tcp://user:12/hunter2@host:1"},
        {"URL": "tcp://user:hunter2?x@host:1"},
        {"URL": "tcp://hunter2?x@host:1"},
        {"URL": "unix://user:hunter2?x@host"},
        {"URL": "amqp://:hunter2@host:1/0"},
        {"URL": "amqp://host:1/0?password=hunter2"},
        {"URL": "redis://:hunter2@host:1/0", "OPTIONS": {"retry": 3}},
        {"URL": "redis://:hunter2@host:1/0", "FACTORY": Options},
        {"URL": "postgresql+hunter2://host:1/0"},
        {"URL": "me:hunter2://x@host"},
        {"URL": "hunter2@x://host"},
        {"URL": URL, "PASSWORD": "hunter2", "FACTORY": Options},
        {"URL": "tcp:user:hunter2@host"},
        {"URL": "hunter2@host:1000"},
    ):
        with pytest.raises(ConfigurationError) as caught:
            read_config({f"SOCKETPOOL_{key}": value for key, value in config.items()})
        assert "hunter2" not in str(caught.value)
