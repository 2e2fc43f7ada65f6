"""An error that is kept, or raised again, gathers no notes and keeps nothing alive."""

from __future__ import annotations

import gc
import socket
import weakref
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.socket
import pytest

from gsocketpool import Pool, TcpConnection
from tests.support.connections import no_hanging as no_hanging
from tests.support.connections import outcome
from tests.support.scripted import PATIENCE, Backend, ScriptedConnection, eventually, settle

# Errors that are raised again


def notes_of(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def test_an_error_that_is_raised_again_has_the_note_of_each_pool_once(backend: Backend) -> None:
    error = ConnectionRefusedError("down")
    backend.failures += [error] * 6
    pools = [Pool(backend.connect, name=name) for name in ("cache", "queue")]
    for pool in pools * 3:
        assert outcome(pool.acquire) is error
    for pool in pools:
        assert len([note for note in notes_of(error) if repr(pool.name) in note]) == 1
    assert len(notes_of(error)) == 2


def test_an_error_of_connecting_does_not_grow_when_it_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def getaddrinfo(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(gevent.socket, "getaddrinfo", getaddrinfo)
    connection = TcpConnection("backend.test", 1)
    assert outcome(connection.open) is error
    text, notes = str(error), list(notes_of(error))
    for _ in range(3):
        assert outcome(connection.open) is error
    assert str(error) == text
    assert notes_of(error) == notes


# Openings that are cut short


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Switches the garbage collector off."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Socket:
    """Stands in for a socket, which is closed when nothing refers to it any more."""


class Opening(ScriptedConnection):
    """Has its socket in a local variable until it is open, as a client library has in its ``connect()``."""

    sockets: list[weakref.ref[Socket]]

    def open(self) -> None:
        unfinished = Socket()
        self.sockets.append(weakref.ref(unfinished))
        gevent.sleep(2 * PATIENCE)


def opening_pool(backend: Backend, sockets: list[weakref.ref[Socket]], **settings: Any) -> Pool[Any]:
    def connect() -> Opening:
        connection = Opening(backend, {})
        connection.sockets = sockets
        return connection

    return Pool(connect, open_timeout=0.01, max_connections=1, reap_expired_connections=False, **settings)


@pytest.mark.usefixtures("no_collector")
def test_an_opening_cut_short_for_a_caller_keeps_no_socket_alive(backend: Backend) -> None:
    sockets: list[weakref.ref[Socket]] = []
    pool = opening_pool(backend, sockets)
    for number in range(1, 4):
        assert type(outcome(pool.acquire)) is TimeoutError
        settle()
        assert len(sockets) == number
        assert [reference() for reference in sockets] == [None] * number
    pool.close(timeout=0)


@pytest.mark.usefixtures("no_collector")
def test_an_opening_cut_short_in_the_background_keeps_no_socket_alive(backend: Backend) -> None:
    sockets: list[weakref.ref[Socket]] = []
    pool = opening_pool(backend, sockets, min_connections=1)
    eventually(lambda: pool.stats().open_errors)
    settle()
    assert len(sockets) == 1
    assert sockets[0]() is None
    pool.close(timeout=0)
