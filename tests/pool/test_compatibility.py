"""What users of gsocketpool 0.1.6 rely on."""

from __future__ import annotations

import importlib
import inspect
import time
from typing import Any
from unittest.mock import Mock, create_autospec

import gevent
import pytest

from gsocketpool import Connection, ConnectionNotFoundError, Pool, PoolExhaustedError, TcpConnection
from tests.support.internals import reaper_of
from tests.support.scripted import PATIENCE, Backend, eventually, numbers, settle


def test_modules_export_the_names_of_0_1_6() -> None:
    names = {
        "gsocketpool": ["Connection", "TcpConnection", "Pool", "PoolExhaustedError", "ConnectionNotFoundError"],
        "gsocketpool.pool": ["Pool", "PoolExhaustedError", "ConnectionNotFoundError"],
        "gsocketpool.connection": ["Connection", "TcpConnection"],
        "gsocketpool.exceptions": ["PoolExhaustedError", "ConnectionNotFoundError"],
    }
    for module, attributes in names.items():
        for attribute in attributes:
            assert hasattr(importlib.import_module(module), attribute)


def test_arguments_keep_the_order_and_the_defaults_of_0_1_6() -> None:
    first = list(inspect.signature(Pool).parameters.items())[:6]
    assert [(name, parameter.default) for name, parameter in first][1:] == [
        ("options", None),
        ("initial_connections", 0),
        ("max_connections", 200),
        ("reap_expired_connections", True),
        ("reap_interval", 180),
    ]
    parameters = inspect.signature(TcpConnection).parameters
    assert list(parameters) == ["host", "port", "lifetime", "timeout"]
    assert (parameters["lifetime"].default, parameters["timeout"].default) == (600, None)


def test_the_first_example_of_0_1_6_runs(echo_port: int) -> None:
    options = {"host": "localhost", "port": echo_port}
    pool = Pool(TcpConnection, options)
    with pool.connection() as conn:
        conn.send(b"hello")
        assert conn.recv() == b"hello"
        assert conn.get() is conn.socket
        conn.socket.sendall(b"raw")
        assert conn.recv(size=2) + conn.recv(1024) == b"raw"
    pool.close()


def test_a_pool_takes_all_arguments_by_position(echo_port: int) -> None:
    pool = Pool(TcpConnection, {"host": "127.0.0.1", "port": echo_port}, 1, 2, False, 60)
    assert pool.size == 1
    assert reaper_of(pool) is None
    conn = pool.acquire()
    assert pool.acquire(10) is not conn
    with pytest.raises(PoolExhaustedError):
        pool.acquire(0)
    pool.close(timeout=0)


def test_each_retry_allows_a_tenth_of_a_second_of_waiting(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1)
    held = pool.acquire(retry=0)
    with pytest.raises(PoolExhaustedError):
        pool.acquire(retry=0)
    began = time.monotonic()
    with pytest.raises(PoolExhaustedError) as caught:
        pool.acquire(retry=1)
    assert caught.value.timeout == 0.1
    assert 0.09 < time.monotonic() - began < PATIENCE
    gevent.spawn_later(0, pool.release, held)
    assert pool.acquire(retry=1) is held


def test_retries_do_not_bound_opening(backend: Backend) -> None:
    """There was a place, and opening a connection took the time it took."""
    pool = Pool(backend.connect, max_connections=1)
    backend.opens.clear()
    caller = gevent.spawn(pool.acquire, retry=0)
    gevent.sleep(0.01)
    backend.opens.set()
    assert caller.get(timeout=PATIENCE) is backend.connections[0]


@pytest.mark.parametrize("retry", [-1, 0.5, "1"])
def test_bad_retries_are_refused(backend: Backend, retry: Any) -> None:
    with pytest.raises(ValueError, match="retry must be a whole number of at least 0"):
        Pool(backend.connect).acquire(retry=retry)


def test_a_pool_does_not_open_a_connection_that_is_open_already(backend: Backend) -> None:
    """Some subclasses return one from _create_connection()."""

    class Own(Pool[Any]):
        def _create_connection(self) -> Any:
            connection = self._factory(**self._options)
            connection.is_open = connection.options["opened"]
            return connection

    opened = Own(backend.connect, {"opened": True})
    backend.failures.append(AssertionError("opened twice"))
    assert opened.acquire().is_open
    backend.failures.clear()
    assert Own(backend.connect, {"opened": False}).acquire().is_open


def test_a_subclass_may_extend_create_connection(backend: Backend) -> None:
    class Greeting(Pool[Any]):
        def _create_connection(self) -> Any:
            connection = super()._create_connection()
            assert connection.is_open
            connection.options["greeted"] = True
            return connection

    pool = Greeting(backend.connect, initial_connections=1)
    assert pool.acquire().options == {"greeted": True}


class RpcClient:
    """Its open() and close() assert that they make sense."""

    __slots__ = ("_host", "_lifetime", "_port", "_socket")

    def __init__(self, host: str, port: int, timeout: float | None = None, lifetime: float | None = None) -> None:
        self._host = host
        self._port = port
        self._lifetime = lifetime
        self._socket: Any = None

    def open(self) -> None:
        assert self._socket is None, "The connection has already been established"
        self._socket = gevent.socket.create_connection((self._host, self._port))

    def close(self) -> None:
        assert self._socket is not None, "Attempt to close an unopened socket"
        self._socket.close()
        self._socket = None

    def is_connected(self) -> bool:
        return bool(self._socket)

    def call(self, data: bytes) -> bytes:
        self._socket.sendall(data)
        reply: bytes = self._socket.recv(1024)
        return reply


class RpcPoolClient(RpcClient, Connection):
    __slots__ = ()

    def is_expired(self) -> bool:
        # True for ever with the default lifetime.
        return not self._lifetime or time.time() > self._lifetime

    def fail(self) -> None:
        """What call() does when the backend is down: reconnect() swallows the error, and the client stays closed."""
        self._port = 1
        self.reconnect()
        raise OSError("lost")


def test_a_client_like_the_one_of_mprpc_still_works(echo_port: int, caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(RpcPoolClient, {"host": "127.0.0.1", "port": echo_port})
    with pool.connection() as client:
        assert client.call(b"one") == b"one"
    with pool.connection() as again:
        assert again is client, "that it says it is expired is the reaper's business alone"
        assert again.call(b"two") == b"two"
    pool.drop_expired()
    assert not client.is_connected()
    assert numbers(pool) == (0, 0, 0, 0)

    with pool.connection() as client, pytest.raises(OSError, match="lost"):
        client.fail()
    assert "could not reconnect" in caplog.text
    assert numbers(pool) == (0, 0, 0, 0), "closed by its own reconnect(), it is not kept"
    with pool.connection() as client:
        assert client.call(b"three") == b"three"
    pool.close()


def test_reconnect_closes_an_open_connection_and_opens_it() -> None:
    for connected in (True, False):
        connection = Connection()
        connection.open, connection.close = Mock(), Mock()  # type: ignore[method-assign]
        connection.is_connected = Mock(return_value=connected)  # type: ignore[method-assign]
        connection.reconnect()
        assert connection.close.call_count == connected
        connection.open.assert_called_once_with()


# Mocks answer everything with something true


@pytest.mark.parametrize("made", [Mock(), Mock(spec=Connection), create_autospec(TcpConnection, instance=True)])
def test_a_mock_is_reused(made: Any) -> None:
    pool = Pool(Mock(return_value=made))
    for timeout in (None, 0):
        assert pool.acquire(timeout=timeout) is made
        pool.release(made)
    assert pool.size == 1
    assert pool.stats().discarded == {}


def test_a_factory_may_return_the_same_mock_for_every_initial_connection() -> None:
    factory = Mock()
    pool = Pool(factory, initial_connections=10)
    assert factory.call_count == 10
    assert pool.size == 10
    for _ in range(10):
        assert pool.acquire() is factory.return_value
    for _ in range(10):
        pool.release(factory.return_value)
    with pytest.raises(ConnectionNotFoundError):
        pool.release(factory.return_value)


def test_mocks_can_be_acquired_and_released() -> None:
    mocks = [Mock(), Mock()]
    pool = Pool(Mock(side_effect=mocks), initial_connections=0)
    assert pool.size == 0
    first = pool.acquire()
    assert first is mocks[0]
    first.open.assert_called_once_with()
    assert pool.size == 1
    second = pool.acquire()
    assert second is mocks[1]
    pool.release(first)
    assert pool.acquire() is first
    pool.release(second)
    pool.release(first)
    assert pool.size == 2
    with pytest.raises(ConnectionNotFoundError):
        pool.release(first)
    with pytest.raises(ConnectionNotFoundError):
        pool.release(Mock())


def test_a_mock_is_discarded_after_an_error() -> None:
    pool = Pool(Mock())
    with pytest.raises(ValueError, match="in a block"), pool.connection() as connection:
        raise ValueError("in a block")
    settle()
    connection.close.assert_called_once_with()
    assert pool.size == 0


def test_an_object_without_is_expired_does_not_expire() -> None:
    pool = Pool(Mock(return_value=Mock(spec=["open", "close", "is_connected"])))
    pool.release(pool.acquire())
    pool.drop_expired()
    assert pool.size == 1


def test_an_idle_mock_can_be_dropped_once() -> None:
    pool = Pool(Mock())
    connection = pool.acquire()
    with pytest.raises(ConnectionNotFoundError):
        pool.drop(connection)
    pool.release(connection)
    pool.drop(connection)
    connection.close.assert_called_once_with()
    with pytest.raises(ConnectionNotFoundError):
        pool.drop(connection)


def test_drop_expired_closes_expired_mocks_only() -> None:
    mocks = [Mock(), Mock(), Mock()]
    for mock, expired in zip(mocks, (True, False, True), strict=True):
        mock.is_expired.return_value = expired
    pool = Pool(Mock(side_effect=mocks), initial_connections=3)
    pool.drop_expired()
    assert [mock.close.call_count for mock in mocks] == [1, 0, 1]
    assert pool.acquire() is mocks[1]


def test_the_reaper_drops_expired_connections() -> None:
    mock = Mock()
    mock.is_expired.return_value = False
    pool = Pool(Mock(return_value=mock), reap_interval=0.005)
    pool.release(pool.acquire())
    gevent.sleep(0.02)
    assert pool.size == 1
    mock.is_expired.return_value = True
    eventually(lambda: mock.close.called)
    mock.close.assert_called_once_with()
    assert pool.size == 0


def test_deleting_a_pool_closes_its_idle_connection() -> None:
    mock = Mock()
    pool = Pool(Mock(return_value=mock))
    pool.release(pool.acquire())
    del pool
    settle()
    mock.close.assert_called_once_with()
