"""Any input gives a result, or an error of this package that names what was wrong."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from hypothesis import example
from hypothesis import strategies as st

from flask_gsocketpool import ConfigurationError
from flask_gsocketpool.config import PoolConfig, read_config
from gsocketpool import (
    InvalidArgumentError,
    Pool,
    PoolError,
    PoolExhaustedError,
    TcpConnection,
    TlsConnection,
    UnixConnection,
)
from gsocketpool.settings import Settings
from tests.support.connections import exchange
from tests.support.connections import no_hanging as no_hanging
from tests.support.properties import fuzzed
from tests.support.scripted import PATIENCE, Plain, numbers

NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.sampled_from([0.0, -0.0, 5e-324, 1e-9, 1e300, 1.7e308, math.inf, math.nan, 2**31, 2**63, 10**400]),
)
#: Letters that mean something in a URL, in JSON or to C, and such as are not what they look like.
HURTING = st.text(st.sampled_from("[]%:/?#@&=;\\{}\",'0 19axÄß\u0660\u2100\u200d\ud800\0\t\r\n.-_+~*"), max_size=25)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, HURTING, st.text(max_size=5), st.binary(max_size=5))
JUNK = st.one_of(
    PLAIN,
    st.recursive(
        PLAIN,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.one_of(HURTING, NUMBERS), inner, max_size=3),
        max_leaves=6,
    ),
    st.builds(object),
    st.sampled_from(
        [int, dict, len, Plain, Settings, TcpConnection, TlsConnection, UnixConnection, Ellipsis, b"", "1"]
    ),
    st.sampled_from(
        ["none", "true", "1e999", "-1", "1_0", "0x1", "9" * 5000, "nan", "٣", "tests.support.scripted:Plain", ":"]
    ),
)

# Configuration

URLS = st.one_of(
    st.builds("{}://{}".format, st.sampled_from(["tcp", "tls", "unix", "TCP", "", "tcp:"]), HURTING),
    st.builds(
        "{}://{}:{}{}".format,
        st.sampled_from(["tcp", "tls"]),
        st.one_of(st.sampled_from(["h", "[::1]", "[", "[::1", "[v1.x]", "[::1%eth0]", "ß", "%00", "a..b"]), HURTING),
        st.one_of(st.integers(-1, 70000), HURTING),
        st.one_of(st.just(""), st.builds("?{}={}".format, st.sampled_from(["timeout", "port", "x"]), HURTING)),
    ),
    st.builds("unix:///{}?timeout={}".format, HURTING, st.one_of(NUMBERS.map(str), HURTING)),
)
KEYS = [*Settings.__dataclass_fields__, "url", "factory", "options"]
OPTIONS = st.dictionaries(
    st.sampled_from(["host", "port", "path", "timeout", "lifetime", "ssl_context", "server_hostname", "self"]),
    JUNK,
    max_size=4,
)
VALUES = st.one_of(JUNK, URLS, OPTIONS)
POOL = st.dictionaries(st.one_of(st.sampled_from(KEYS), HURTING), VALUES, max_size=3)


def result_or_error(call: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Return what a call returns, or the error of this package's that it raises. Any other error fails the test."""
    try:
        return call(*given, **named)
    except PoolError as error:
        return error


def check_config(config: dict[str, Any]) -> None:
    pools = result_or_error(read_config, config)
    if isinstance(pools, PoolError):
        assert isinstance(pools, ConfigurationError)
        assert str(pools).startswith(pools.key)
        # Options that are missing are missed there.
        assert any(pools.key.startswith(key.upper()) for key in [*config, "SOCKETPOOL_OPTIONS"])
        return
    for pool in pools.values():
        assert isinstance(pool, PoolConfig)
        assert callable(pool.factory)
        Settings(**pool.settings)


@fuzzed(st.sampled_from(KEYS), VALUES)
@example("max_connections", 10**400)
@example("reap_interval", 10**400)
def test_any_value_of_a_key_is_accepted_or_refused_by_name(key: str, value: Any) -> None:
    check_config({"SOCKETPOOL_URL": "tcp://localhost:1", f"SOCKETPOOL_{key.upper()}": value})


@fuzzed(st.dictionaries(st.one_of(st.sampled_from(KEYS).map(str.upper), HURTING), VALUES, max_size=4))
def test_any_key_is_accepted_or_refused_by_name(config: dict[str, Any]) -> None:
    check_config({f"SOCKETPOOL_{key}": value for key, value in config.items()})


@fuzzed(st.one_of(JUNK, st.dictionaries(st.one_of(HURTING, NUMBERS), st.one_of(POOL, JUNK), max_size=2)))
def test_any_value_of_the_pools_key_is_accepted_or_refused_by_name(pools: Any) -> None:
    check_config({"SOCKETPOOL_POOLS": pools})


@fuzzed(st.sampled_from([TcpConnection, TlsConnection, UnixConnection, Plain, int, len]), st.one_of(OPTIONS, JUNK))
def test_any_value_of_the_options_key_is_accepted_or_refused_by_name(factory: Any, options: Any) -> None:
    check_config({"SOCKETPOOL_FACTORY": factory, "SOCKETPOOL_OPTIONS": options})


@fuzzed(URLS, examples=300)
@example("tcp://h:1?timeout=" + "[" * 100_000)
@example("tcp://h:1?timeout=" + "9" * 5000)
@example("tcp://[::1%25eth0]:1")
@example("tcp://\u2100.example:1")
def test_any_url_is_accepted_or_refused_by_name(url: str) -> None:
    check_config({"SOCKETPOOL_URL": url})


# Arguments


def check_call(argument: str, call: Callable[..., Any], **arguments: Any) -> Any:
    """The outcome of a call; where that is a complaint, it has to be about `argument`."""
    outcome = result_or_error(call, **arguments)
    if isinstance(outcome, InvalidArgumentError):
        assert outcome.argument == argument
        assert str(outcome).startswith(f"{argument} must be ")
    return outcome


@fuzzed(st.sampled_from([*Settings.__dataclass_fields__, "factory", "options"]), JUNK)
@example("max_connections", 10**400)
@example("acquire_timeout", 10**400)
@example("max_lifetime", 10**400)
@example("open_timeout", 10**400)
@example("close_timeout", 1.7e308)
@example("reap_interval", 1.7e308)
@example("reap_interval", 5e-324)
@example("max_lifetime", 5e-324)
@example("name", "\ud800")
def test_any_argument_of_a_pool_is_accepted_or_refused_by_name(argument: str, value: Any) -> None:
    if argument in ("initial_connections", "min_connections") and isinstance(value, int) and value > 3:
        # That many would really be opened, if max_connections allows it.
        arguments = {"max_connections": 3, argument: value}
    else:
        arguments = {argument: value}
    pool = check_call(argument, Pool, **{"factory": Plain, **arguments})
    if isinstance(pool, PoolError):
        return
    if argument in ("factory", "options"):
        # What these raise, or return, is theirs.
        return
    with pool:
        for _ in range(2):
            with contextlib.suppress(PoolError), pool.connection():
                with contextlib.suppress(PoolError), pool.connection(timeout=0):
                    pass
                pool.resize(max(pool.stats().max_connections, 1))
        repr(pool)
        assert pool.stats().in_use == 0


@fuzzed(JUNK)
@example(10**400)
@example(1.7e308)
@example(5e-324)
def test_any_timeout_of_an_acquire_is_accepted_or_refused_by_name(timeout: Any) -> None:
    """At once, and having to wait."""
    with Pool[Any](Plain, max_connections=1) as pool:
        outcome = check_call("timeout", pool.acquire, timeout=timeout)
        held = pool.acquire() if isinstance(outcome, PoolError) else outcome
        assert numbers(pool) == (1, 0, 0, 0)
        gevent.spawn(pool.release, held)
        second = check_call("timeout", pool.acquire, timeout=timeout)
        assert isinstance(second, InvalidArgumentError | PoolExhaustedError) or second is held
        gevent.sleep(0)
        if second is held:
            pool.release(held)
        assert numbers(pool) == (0, 1, 0, 0)


@fuzzed(JUNK)
@example(10**400)
@example(2**63)
def test_any_retry_of_an_acquire_is_accepted_or_refused_by_name(retry: Any) -> None:
    with Pool(Plain, max_connections=1) as pool:
        outcome = check_call("retry", pool.acquire, retry=retry)
        held = pool.acquire() if isinstance(outcome, PoolError) else outcome
        gevent.spawn(pool.release, held)
        second = check_call("retry", pool.acquire, retry=retry)
        gevent.sleep(0)
        if second is held:
            pool.release(held)
        assert numbers(pool) == (0, 1, 0, 0)


@fuzzed(JUNK)
@example(10**400)
def test_any_limit_of_resize_is_accepted_or_refused_by_name(limit: Any) -> None:
    with Pool(Plain, max_connections=2) as pool:
        first, second = pool.acquire(), pool.acquire()
        outcome = check_call("max_connections", pool.resize, max_connections=limit)
        if outcome is not None:
            assert pool.stats().max_connections == 2
        assert numbers(pool) == (2, 0, 0, 0)
        pool.release(first)
        pool.release(second)
        # One more than there are has to be opened.
        taken = [pool.acquire() for _ in range(min(pool.stats().max_connections, 3))]
        for connection in taken:
            pool.release(connection)


@fuzzed(JUNK)
@example(10**400)
@example(1.7e308)
@example(math.inf)
def test_any_timeout_of_close_and_wait_ready_is_accepted_or_refused_by_name(timeout: Any) -> None:
    pool = Pool(Plain, min_connections=1)
    outcome = check_call("timeout", pool.wait_ready, timeout=timeout)
    if outcome is None:
        assert numbers(pool) == (0, 1, 0, 0)
    held = pool.acquire()
    gevent.spawn(pool.release, held)
    outcome = check_call("timeout", pool.close, timeout=timeout)
    if outcome is not None:
        assert isinstance(outcome, InvalidArgumentError)
        gevent.sleep(0)
        assert numbers(pool) == (0, 1, 0, 0), "a call that is refused does nothing"
        pool.close()
    assert not held.is_open


@fuzzed(st.one_of(JUNK, st.builds(Plain)))
def test_giving_back_any_other_object_is_refused(connection: Any) -> None:
    with Pool(Plain) as pool:
        pool.release(pool.acquire())
        before = pool.stats()
        for method in (pool.release, pool.discard, pool.detach, pool.drop):
            assert isinstance(check_call("connection", method, connection=connection), PoolError)
        assert pool.stats() == before


class Unspeakable:
    """It can't be shown in an error."""

    def __repr__(self) -> str:
        raise ValueError("no")


# An integer of so many digits can't be shown either, from Python 3.11 on.
@pytest.mark.parametrize("value", [Unspeakable(), 10**5000], ids=["object", "digits"])
def test_a_value_without_a_repr_is_refused_by_name(value: Any) -> None:
    pool: Pool[Any] = Pool(Plain)
    for argument, call in {
        "max_connections": lambda: Pool(Plain, max_connections=value),
        "timeout": lambda: pool.acquire(timeout=value),
        "host": lambda: TcpConnection(value, 1),
    }.items():
        check_call(argument, call)
    assert isinstance(result_or_error(pool.release, value), PoolError)
    for config in (
        {"MAX_CONNECTIONS": value, "URL": "tcp://h:1"},
        {"OPTIONS": {"host": value, "port": 1}},
        {"FACTORY": value},
        {"POOLS": {value: {"url": "tcp://h:1"}}},
        {"POOLS": {"a": {value: 1, "url": "tcp://h:1"}}},
    ):
        check_config({f"SOCKETPOOL_{key}": given for key, given in config.items()})


# Reading


@fuzzed(JUNK, st.binary(min_size=1, max_size=40), examples=30)
@example(10**400, b"abc")
@example(b"", b"abc")
def test_reading_with_an_argument_of_any_value_loses_no_byte(argument: Any, stream: bytes) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("size", {"method": "recv", "size": argument}),
        ("size", {"method": "recv_exactly", "size": argument}),
        ("delimiter", {"method": "recv_until", "delimiter": argument}),
        ("limit", {"method": "recv_until", "delimiter": b"\n", "limit": argument}),
    ]
    for name, call in calls:
        with exchange(timeout=PATIENCE) as (connection, peer):
            peer.sendall(stream)
            peer.close()
            method = getattr(connection, call.pop("method"))
            outcome = check_call(name, method, **call)
            if isinstance(outcome, bytes):
                rest = stream.removeprefix(outcome)
                assert len(rest) == len(stream) - len(outcome)
            else:
                # The end of the stream came before what was asked for, or there was too much before it.
                rest = getattr(outcome, "partial", b"")
                assert rest in (b"", stream)
                rest = b"" if rest else stream
            if connection.is_connected():
                assert rest == b"" or connection.recv_exactly(len(rest)) == rest
                assert connection.recv() == b""


@pytest.mark.parametrize("size", [2**62, 2**63, 10**400], ids=["large", "larger", "largest"])
@pytest.mark.parametrize("name", ["recv", "recv_exactly"])
def test_a_size_larger_than_any_memory_loses_no_byte(name: str, size: int) -> None:
    """As a peer may have it that sends the size of its message first."""
    with exchange(timeout=PATIENCE) as (connection, peer):
        peer.sendall(b"abc")
        peer.close()
        outcome = check_call("size", getattr(connection, name), size=size)
        if size > 2**62:
            assert isinstance(outcome, InvalidArgumentError)
            outcome = connection.recv()
        assert getattr(outcome, "partial", outcome) == b"abc"
