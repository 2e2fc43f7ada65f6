"""A connection sends all that it is given, and receives as much as it is asked for."""

from __future__ import annotations

import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from random import Random
from typing import Any

import gevent
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gsocketpool import ConnectionClosedError, LimitExceededError, PoolError
from tests.support.connections import (
    KINDS,
    exchange,
    outcome,
    reset,
    serving,
    spawn_waiting,
    wait_readable,
    without_switching,
)
from tests.support.connections import no_hanging as no_hanging
from tests.support.scripted import PATIENCE, settle

#: Every way of receiving. Each would be content with b"abc".
RECEIVING: list[tuple[str, tuple[Any, ...]]] = [("recv", ()), ("recv_exactly", (3,)), ("recv_until", (b"c",))]


@contextmanager
def impatient(kind: str, timeout: float) -> Iterator[Any]:
    """An open connection that has little time for anything, with no server at its other end."""
    with serving(kind, timeout=timeout) as (connection, _):
        while not connection.is_connected():
            # On a busy machine the time may be too little to connect.
            with suppress(TimeoutError):
                connection.open()
        yield connection


# Sending


@pytest.mark.parametrize("kind", KINDS)
def test_send_sends_all_to_a_slow_reader(kind: str) -> None:
    # More than the kernel takes by itself.
    message = Random(1).randbytes(20_000_000)
    with exchange(kind) as (connection, peer):
        sender = spawn_waiting(connection.send, message)
        received = bytearray()
        while len(received) < len(message):
            received += peer.recv(200_000)
            gevent.sleep(0)
        assert sender.get(timeout=PATIENCE) is None
        assert received == message
        assert connection.is_reusable(None)


@pytest.mark.parametrize("kind", KINDS)
def test_send_raises_when_the_reader_is_too_slow(kind: str) -> None:
    with impatient(kind, 0.05) as connection:
        with pytest.raises(TimeoutError):
            connection.send(bytes(20_000_000))
        assert not connection.is_reusable(None)


def test_send_raises_when_the_reader_goes_away() -> None:
    with exchange() as (connection, peer):
        sender = spawn_waiting(connection.send, bytes(20_000_000))
        reset(peer)
        assert isinstance(sender.get(timeout=PATIENCE), ConnectionResetError | BrokenPipeError)
        assert not connection.is_reusable(None)


def test_a_connection_is_not_reusable_after_an_interrupted_send() -> None:
    with exchange() as (connection, _):
        sender = spawn_waiting(connection.send, bytes(20_000_000))
        sender.kill()
        assert connection.is_connected()
        assert not connection.is_reusable(None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "data",
    [
        b"bytes",
        b"",
        bytearray(b"a bytearray"),
        memoryview(b"a memoryview"),
        memoryview(b"a part of it")[2:6],
        memoryview(array.array("I", [1, 2, 3])),
    ],
)
def test_send_takes_every_kind_of_bytes(kind: str, data: Any) -> None:
    with exchange(kind) as (connection, peer):
        connection.send(data)
        connection.close()
        received = b""
        while part := peer.recv(100):
            received += part
        assert received == bytes(data)


@pytest.mark.parametrize("data", ["str", None, 5, [1, 2], array.array("B", b"array")])
def test_send_takes_nothing_but_bytes(data: Any) -> None:
    with exchange() as (connection, peer):
        with pytest.raises(TypeError, match=f"bytes, not {type(data).__name__}"):
            connection.send(data)
        assert connection.is_reusable(None)
        connection.send(b"nothing came before this")
        assert peer.recv(100) == b"nothing came before this"


# Receiving


@pytest.mark.parametrize("kind", KINDS)
def test_recv_returns_bytes_as_they_arrive(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        peer.sendall(b"hello")
        assert connection.recv() == b"hello"
        peer.sendall(b"x" * 1025)
        received = b""
        while len(received) < 1025:
            part = connection.recv()
            assert 1 <= len(part) <= 1024
            received += part


@pytest.mark.parametrize("kind", KINDS)
def test_recv_returns_no_more_than_its_size(kind: str) -> None:
    with exchange(kind) as (connection, peer):
        peer.sendall(b"abcdef")
        assert connection.recv(1) == b"a"
        assert connection.recv(2) == b"bc"
        assert connection.recv(size=100) == b"def"


def test_recv_raises_connection_reset_error_after_a_reset() -> None:
    with exchange() as (connection, peer):
        reset(peer)
        with pytest.raises(ConnectionResetError):
            connection.recv()
        assert not connection.is_reusable(None)


def test_recv_exactly_puts_pieces_together() -> None:
    with exchange() as (connection, peer):
        reader = spawn_waiting(connection.recv_exactly, 8)
        for piece in b"ab", b"c", b"defg":
            peer.sendall(piece)
            settle()
        assert not reader.ready()
        peer.sendall(b"hijk")
        assert reader.get(timeout=PATIENCE) == b"abcdefgh"
        assert connection.recv_exactly(3) == b"ijk"


def test_recv_exactly_returns_a_large_message() -> None:
    message = array.array("I", range(500_000)).tobytes()
    with exchange() as (connection, peer):
        sender = gevent.spawn(peer.sendall, message)
        assert connection.recv_exactly(len(message)) == message
        sender.get()


def test_recv_exactly_of_0_bytes_returns_at_once() -> None:
    with exchange() as (connection, _):
        assert without_switching(partial(connection.recv_exactly, 0)) == b""
        assert connection.is_reusable(None)


@pytest.mark.parametrize("already", [0, 3, 5])
def test_recv_exactly_raises_when_the_stream_ends_early(already: int) -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"line\nhello"[: 5 + already])
        peer.close()
        assert connection.recv_until(b"\n") == b"line\n"
        with pytest.raises(ConnectionClosedError, match="ended") as caught:
            connection.recv_exactly(6)
        assert caught.value.partial == b"hello"[:already]
        assert isinstance(caught.value, ConnectionError)
        assert not connection.is_connected()


def test_recv_until_finds_a_delimiter_that_comes_in_pieces() -> None:
    with exchange() as (connection, peer):
        reader = spawn_waiting(connection.recv_until, b"<end>")
        for piece in b"<en<e", b"n", b"d":
            peer.sendall(piece)
            settle()
            assert not reader.ready()
        peer.sendall(b">next")
        assert reader.get(timeout=PATIENCE) == b"<en<end>"
        assert connection.recv_exactly(4) == b"next"


def test_recv_until_returns_one_message_of_several_at_a_time() -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"a\r\n\r\nbc\r\nd\n")
        assert connection.recv_until(b"\r\n") == b"a\r\n"
        assert connection.recv_until(b"\r\n") == b"\r\n"
        assert connection.recv_until(b"\r\n") == b"bc\r\n"
        assert connection.recv_until(b"\n") == b"d\n"
        assert connection.is_reusable(None)


def test_bytes_left_by_recv_until_are_read_by_any_method() -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"a\nbcdefghij\nkl")
        assert connection.recv_until(b"\n") == b"a\n"
        assert connection.recv(2) == b"bc"
        assert connection.recv_exactly(3) == b"def"
        assert connection.recv_until(b"\n") == b"ghij\n"
        assert connection.recv() == b"kl"
        peer.sendall(b"mn")
        assert connection.recv_exactly(2) == b"mn"


def test_recv_until_returns_a_large_message() -> None:
    message = b"x" * 60_000 + b"\n"
    with exchange() as (connection, peer):
        sender = gevent.spawn(peer.sendall, 3 * message)
        for _ in range(3):
            assert connection.recv_until(b"\n") == message
        sender.get()


def test_recv_until_raises_if_no_delimiter_arrives_within_the_limit() -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"abcdefgh\n")
        with pytest.raises(LimitExceededError) as caught:
            connection.recv_until(b"\n", limit=8)
        assert caught.value.limit == 8
        assert isinstance(caught.value, PoolError)
        assert connection.is_connected()
        assert not connection.is_reusable(None)
        # Nothing is lost to who goes on all the same.
        assert connection.recv_until(b"\n", limit=9) == b"abcdefgh\n"


def test_recv_until_does_not_wait_for_more_than_the_limit() -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"abcdefgh")
        with pytest.raises(LimitExceededError):
            connection.recv_until(b"\n", limit=8)
        assert connection.recv_exactly(8) == b"abcdefgh"
        peer.sendall(b"1234567\n")
        assert connection.recv_until(b"\n", limit=8) == b"1234567\n"


def test_recv_until_has_a_limit_by_default() -> None:
    with exchange() as (connection, peer):
        sender = gevent.spawn(outcome, peer.sendall, b"x" * 65536 + b"\n")
        with pytest.raises(LimitExceededError):
            connection.recv_until(b"\n")
        sender.join()


@pytest.mark.parametrize("before", [b"", b"line\r\n"])
@pytest.mark.parametrize("rest", [b"", b"ab\r"])
def test_recv_until_raises_when_the_stream_ends_early(before: bytes, rest: bytes) -> None:
    with exchange() as (connection, peer):
        peer.sendall(before + rest)
        peer.close()
        if before:
            assert connection.recv_until(b"\r\n") == before
        with pytest.raises(ConnectionClosedError, match="ended") as caught:
            connection.recv_until(b"\r\n")
        assert caught.value.partial == rest
        assert not connection.is_connected()
        # What was in the error does not come a second time.
        with pytest.raises(ConnectionClosedError):
            connection.recv()


def send_in_pieces(pieces: list[bytes], peer: Any) -> None:
    for piece in pieces:
        peer.sendall(piece)
        # Until the reader has taken it and waits for more.
        gevent.idle()


@settings(deadline=None, max_examples=80, database=None)
@given(
    pieces=st.lists(st.text("ab\r\n", min_size=1, max_size=9).map(str.encode), max_size=9),
    calls=st.lists(
        st.one_of(
            st.tuples(st.just("recv"), st.integers(1, 12)),
            st.tuples(st.just("recv_exactly"), st.integers(0, 20)),
            st.tuples(st.just("recv_until"), st.sampled_from([b"\n", b"\r\n", b"ab", b"aab"]), st.integers(3, 20)),
        ),
        max_size=12,
    ),
)
@example(pieces=[b"a\nb"], calls=[("recv_until", b"\n", 9), ("recv_until", b"\n", 9), ("recv", 9)])
@example(pieces=[b"a\r", b"\nb\r\n"], calls=[("recv_until", b"\r\n", 9), ("recv_exactly", 1), ("recv", 9)])
def test_any_sequence_of_reads_returns_any_stream_unchanged(pieces: list[bytes], calls: list[tuple[Any, ...]]) -> None:
    stream = b"".join(pieces)
    with serving("tcp", partial(send_in_pieces, pieces), timeout=PATIENCE) as (connection, _):
        connection.open()
        left, has_ended = stream, False
        for name, *arguments in [*calls, *[("recv", 5)] * (len(stream) + 2)]:
            expected: bytes | None = None
            if name == "recv_exactly" and len(left) >= arguments[0]:
                expected = left[: arguments[0]]
            elif name == "recv_until":
                delimiter, limit = arguments
                found = left.find(delimiter, 0, limit)
                if found >= 0:
                    expected = left[: found + len(delimiter)]
                elif len(left) >= limit:
                    with pytest.raises(LimitExceededError):
                        connection.recv_until(delimiter, limit)
                    continue
            elif name == "recv" and not has_ended:
                expected = connection.recv(*arguments)
                assert left.startswith(expected)
                assert len(expected) <= arguments[0]
                has_ended = not expected
                assert has_ended is not bool(left)
                left = left[len(expected) :]
                continue
            if expected is not None:
                assert getattr(connection, name)(*arguments) == expected
                left = left[len(expected) :]
                continue
            with pytest.raises(ConnectionClosedError) as caught:
                getattr(connection, name)(*arguments)
            assert caught.value.partial == left
            left, has_ended = b"", True
        assert not connection.is_connected()


# Both


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "arguments"), [*RECEIVING, ("send", (b"x",))])
def test_a_connection_that_is_not_open_cannot_be_used(kind: str, name: str, arguments: tuple[Any, ...]) -> None:
    with serving(kind) as (connection, _):
        with pytest.raises(ConnectionClosedError, match="not open"):
            getattr(connection, name)(*arguments)
        connection.open()
        connection.close()
        with pytest.raises(ConnectionClosedError, match="not open") as caught:
            getattr(connection, name)(*arguments)
        assert caught.value.partial == b""


@pytest.mark.parametrize(("name", "arguments"), RECEIVING)
def test_close_throws_unread_bytes_away(name: str, arguments: tuple[Any, ...]) -> None:
    with exchange() as (connection, peer):
        peer.sendall(b"\nabc")
        wait_readable(connection)
        assert connection.recv_until(b"\n") == b"\n"
        connection.close()
        with pytest.raises(ConnectionClosedError):
            getattr(connection, name)(*arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "arguments"), RECEIVING)
def test_receiving_raises_when_nothing_arrives_in_time(kind: str, name: str, arguments: tuple[Any, ...]) -> None:
    with impatient(kind, 0.05) as connection:
        with pytest.raises(TimeoutError):
            getattr(connection, name)(*arguments)
        assert connection.is_connected()
        assert not connection.is_reusable(None)


def test_a_connection_is_not_reusable_after_an_interrupted_recv() -> None:
    with exchange() as (connection, _):
        with gevent.Timeout(0.005, False):
            connection.recv()
        assert connection.is_connected()
        assert not connection.is_reusable(None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "arguments"), RECEIVING)
def test_a_blocked_reader_gets_an_error_when_the_connection_is_closed(
    kind: str, name: str, arguments: tuple[Any, ...]
) -> None:
    with exchange(kind) as (connection, peer):
        reader = spawn_waiting(getattr(connection, name), *arguments)
        connection.close()
        assert isinstance(reader.get(timeout=PATIENCE), OSError)
        assert peer.recv(1) == b""


def test_a_blocked_sender_gets_an_error_when_the_connection_is_closed() -> None:
    with exchange() as (connection, _):
        sender = spawn_waiting(connection.send, bytes(20_000_000))
        connection.close()
        assert isinstance(sender.get(timeout=PATIENCE), OSError)
