"""No output shows a password, wherever a pool gets it from."""

from __future__ import annotations

import logging
import re
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import gevent
import pytest

from flask_gsocketpool.config import AppConfig, read_app_config, read_config
from flask_gsocketpool.health import blueprint
from gsocketpool import Pool, PoolError, PoolNotReadyError, TcpConnection
from gsocketpool.connectors.psycopg import PsycopgConnector
from gsocketpool.connectors.pymysql import PyMySQLConnector
from gsocketpool.connectors.redis import RedisConnector
from gsocketpool.connectors.valkey import ValkeyConnector
from gsocketpool.url import read_url
from tests.support.commands import make_app, run
from tests.support.scripted import PATIENCE
from tests.support.servers import refusing_address

SECRET = "hunter2"

CONNECTORS: dict[str, Any] = {
    "postgresql": PsycopgConnector,
    "valkey": ValkeyConnector,
    "redis": RedisConnector,
    "mysql": PyMySQLConnector,
}

#: Where the password comes from: what stands before the host in the URL, and the options.
SOURCES: dict[str, tuple[str, Any]] = {
    "the URL": (f"app:{SECRET}@", {}),
    "an option": ("app@", {"password": SECRET}),
    "an option's callable": ("app@", {"password": lambda: SECRET}),
    "a callable": ("app@", lambda: {"password": SECRET}),
}


def shown_by(thing: object) -> Iterator[str]:
    """What the repr and the text of a thing show; of an error also its notes, and those that it came from."""
    yield repr(thing)
    yield str(thing)
    if isinstance(thing, BaseException):
        yield from traceback.format_exception(thing)
        yield from getattr(thing, "__notes__", ())
        if isinstance(thing, PoolError):
            yield from map(repr, vars(thing).values())
        # Those that a traceback leaves out, too.
        for origin in (thing.__cause__, thing.__context__):
            if origin is not None:
                yield from shown_by(origin)


def check_hidden(*things: object) -> None:
    for thing in things:
        for text in shown_by(thing):
            assert SECRET not in text, text


def error_of(act: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        act()
    return caught.value


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Fail a test that logs the secret, in the line or in anything that goes with it."""
    caplog.set_level(logging.DEBUG)
    yield caplog
    check_hidden(
        caplog.text, *(error for record in caplog.records if record.exc_info for error in record.exc_info[1:2])
    )


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("scheme", CONNECTORS)
def test_a_pool_whose_backend_is_down_shows_no_password(scheme: str, source: str) -> None:
    credentials, options = SOURCES[source]
    with refusing_address() as (host, port):
        url = f"{scheme}://{credentials}{host}:{port}/0"
        target = read_url(url, options)
        pool = Pool.from_url(url, options, min_connections=1, acquire_timeout=PATIENCE)
        check_hidden(target, target.factory, pool, pool.settings, pool.stats())
        assert pool.name == CONNECTORS[scheme].__name__
        check_hidden(error_of(pool.acquire), error_of(lambda: pool.ping(timeout=PATIENCE)))
        late = error_of(lambda: pool.wait_ready(timeout=0.01))
        assert isinstance(late, PoolNotReadyError)
        check_hidden(late, error_of(lambda: pool.acquire(timeout=0)))
        pool.close()
        check_hidden(pool)


def config_of(scheme: str, source: str, host: str, port: int) -> dict[str, Any]:
    credentials, options = SOURCES[source]
    return {"SOCKETPOOL_URL": f"{scheme}://{credentials}{host}:{port}/0", "SOCKETPOOL_OPTIONS": options}


def dataclasses_in(config: AppConfig) -> list[object]:
    return [config, *config.pools.values(), *(pool.factory for pool in config.pools.values())]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("scheme", CONNECTORS)
def test_an_app_shows_no_password(scheme: str, source: str) -> None:
    with refusing_address() as (host, port):
        config = config_of(scheme, source, host, port)
        check_hidden(*dataclasses_in(read_app_config(config)))
        check_app(make_app(**config))


def check_app(app: Any) -> None:
    """What operators and load balancers see."""
    app.register_blueprint(blueprint, url_prefix="/health")
    for arguments in (["check"], ["config"], ["bench", "--seconds", "0.01"]):
        for more in ([], ["--json"]):
            result = run(app, *arguments, *more)
            check_hidden(result.output, result.stdout, result.stderr, *([result.exception] if result.exception else []))
            assert ("***" in result.output) or arguments != ["config"] or "password" not in result.output
    for path in ("ready", "pools", "live"):
        check_hidden(app.test_client().get(f"/health/{path}").text)
    app.extensions["gsocketpool"].close()


@contextmanager
def quoting_server(scheme: str) -> Iterator[tuple[str, int]]:
    """A backend that refuses the password and quotes it. A thread: neither library lets greenlets run here."""

    def serve(peer: socket.socket) -> None:
        with peer, suppress(OSError):
            if scheme != "postgresql":
                while received := peer.recv(4096):
                    words = re.sub(rb"[*$]\d+\r\n", b"", received).split()
                    peer.sendall(b"-ERR unknown command, with args " + b" ".join(words) + b"\r\n")
                return
            while len(peer.recv(4096)) == 8:
                # It is asked for encryption first.
                peer.sendall(b"N")
            peer.sendall(b"R\0\0\0\x08\0\0\0\x03")
            password = peer.recv(4096)[5:-1]
            fields = b"SFATAL\0C28P01\0M" + b"no such password: " + password + b"\0\0"
            peer.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)

    def accept() -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                peer.settimeout(PATIENCE)
                threading.Thread(target=serve, args=[peer], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(PATIENCE)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("scheme", ["postgresql", "valkey"])
def test_secrets_that_a_backend_quotes_are_masked_for_operators_and_load_balancers(
    scheme: str, source: str, log: pytest.LogCaptureFixture
) -> None:
    with quoting_server(scheme) as (host, port):
        app = make_app(**config_of(scheme, source, host, port))
        assert "***" in run(app, "check").output
        check_app(app)
    # The libraries' own words are the application's to log.
    log.clear()


#: What is wrong, with a password in it or beside it.
WRONG: list[tuple[Any, Any]] = [
    (f"postgresql://app:{SECRET}@[db", {}),
    (f"postgresql://app:{SECRET}/x@db:port", {}),
    (f"postgresql+{SECRET}://db", {}),
    (f"valkey+{SECRET}://db", {}),
    (f"amqp+{SECRET}://db", {}),
    (f"valkey://app:{SECRET}@db:port", {}),
    (f"valkey://app:{SECRET}@[db", {}),
    (f"valkey://app:{SECRET}/x@db", {}),
    (f"postgresql://app:12/{SECRET}@db", {}),
    (f"postgresql://app:12?{SECRET}@db", {}),
    (f"valkey://app:12/{SECRET}@db", {}),
    (f"valkey://app:12?{SECRET}@db", {}),
    (f"valkey://app:12#{SECRET}@db", {}),
    (f"valkey://app@db/0?hots={SECRET}", {}),
    (f"valkey://app@db/0?max_connections={SECRET}", {}),
    (f"tcp://app:12?{SECRET}@db:1", {}),
    (f"redis://app:12?{SECRET}=34@db:6379/0", {}),
    (f"mysql://app:12?{SECRET}=34@db", {}),
    (f"postgresql://app:12?{SECRET}=34@db", {}),
    (f"memcached://app:12?{SECRET}=34@db", {}),
    (f"tcp://app:12?{SECRET}=34@db:1", {}),
    (f"tls://app:{SECRET}@db:1", {}),
    ("postgresql://app@db", {"pasword": SECRET}),
    ("postgresql://app@db", {"password": [SECRET]}),
    ("postgresql://app@db", {"password": SECRET.encode(), "port": 1}),
    ("valkey://app@db", {"pasword": SECRET}),
    ("valkey://app@db", {"password": SECRET, "protocol": 4}),
    ("valkey://app@db", {"password": SECRET, "retry": SECRET}),
    ("valkey://app@db", {"password": SECRET, "credential_provider": SECRET}),
    ("tcp://db:1", {"password": SECRET}),
    ("tcp://db:1", [("password", SECRET)]),
    ("tcp://db:1", f"password={SECRET}"),
    ("postgresql://app@db", [("password", SECRET)]),
    ({"password": SECRET}, {}),
]


@pytest.mark.parametrize(("url", "options"), WRONG)
def test_errors_about_a_url_show_no_password(url: Any, options: Any) -> None:
    check_hidden(error_of(lambda: read_config({"SOCKETPOOL_URL": url, "SOCKETPOOL_OPTIONS": options})))
    check_hidden(error_of(lambda: use(Pool.from_url(url, options))))
    # What callables return is known when a connection is opened.
    check_hidden(error_of(lambda: use(Pool.from_url(url, lambda: options))))
    if isinstance(options, Mapping) and isinstance(url, str):
        asked: dict[str, Any] = {name: lambda value=value: value for name, value in options.items()}
        check_hidden(error_of(lambda: use(Pool.from_url(url, asked))))


class Refusing(TcpConnection):
    def __init__(self, host: str, port: int, password: str = "") -> None:
        super().__init__(host, port)


@pytest.mark.parametrize(
    "config",
    [
        {"SOCKETPOOL_FACTORY": partial(Refusing, password=SECRET), "SOCKETPOOL_OPTIONS": {"hots": "db"}},
        {"SOCKETPOOL_REQUEST_TIMEOUT": f"postgresql://app:{SECRET}@db"},
        {"SOCKETPOOL_DRAIN_TIMEOUT": f"postgresql://app:{SECRET}@db"},
        {"SOCKETPOOL_MAX_CONNECTIONS": f"postgresql://app:{SECRET}@db"},
        {"SOCKETPOOL_FACTORY": f"postgresql://app:{SECRET}@db"},
    ],
)
def test_errors_about_a_key_show_no_password(config: dict[str, Any]) -> None:
    error = error_of(lambda: read_app_config({"SOCKETPOOL_URL": "tcp://db:1", **config}))
    assert SECRET not in str(error)
    assert SECRET not in repr(error)


def use(pool: Pool[Any]) -> None:
    try:
        with gevent.Timeout(PATIENCE):
            pool.acquire(timeout=0.1)
    finally:
        pool.close(timeout=0)


@pytest.mark.parametrize("options", [{"password": SECRET}, [("password", SECRET)], lambda: f"password={SECRET}"])
def test_an_error_about_options_of_the_wrong_type_does_not_show_them(options: Any) -> None:
    connector = ValkeyConnector("valkey://db")
    factories: Mapping[str, Any] = {"a connector": connector, "a class": Pool}
    for factory in factories.values():
        check_hidden(error_of(lambda factory=factory: use(Pool(factory, options))))
