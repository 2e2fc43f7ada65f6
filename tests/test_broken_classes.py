"""A torture finds each connection class that is broken, whatever its seed, and blames none that is not."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import partial
from typing import Any

import gevent
import gevent.socket
import pytest

from gsocketpool import Connection, ConnectionClosedError, TcpConnection
from gsocketpool.testing import FlakyServer, TortureError, torture

SEEDS = range(8)
#: Seconds for an exchange: more than a loaded machine needs, and less than a torture has for a round.
TIMEOUT = 0.1


def run(kind: type[Any], seed: int, rounds: int, greenlets: int = 8, forks: int = 1) -> None:
    with FlakyServer() as server:
        connect = partial(kind, server.host, server.port, timeout=TIMEOUT)
        torture(connect, seed=seed, rounds=rounds, greenlets=greenlets, forks=forks, server=server)


def check_caught(kind: type[Any], rounds: int, greenlets: int = 8) -> None:
    for seed in SEEDS:
        try:
            run(kind, seed, rounds, greenlets)
        except TortureError:
            continue
        raise AssertionError(f"{kind.__name__} is not caught with seed {seed}")


# Over a connection of ours


class KeepsEveryConnection(TcpConnection):
    def is_reusable(self, error: BaseException | None) -> bool:
        return self.is_connected()

    def is_usable(self) -> bool:
        return self.is_connected()


class KeepsAfterEveryErrorAndLooksOnlyBeforeUse(TcpConnection):
    def is_reusable(self, error: BaseException | None) -> bool:
        return self.is_connected()


class KeepsAfterAKill(TcpConnection):
    def is_reusable(self, error: BaseException | None) -> bool:
        return self.is_connected() and (error is None or isinstance(error, gevent.GreenletExit))

    def is_usable(self) -> bool:
        return self.is_connected()


class SwallowsKills(TcpConnection):
    def recv_until(self, delimiter: bytes, limit: int = 65536) -> bytes:
        while True:
            with suppress(gevent.GreenletExit):
                return super().recv_until(delimiter, limit)


class KeepsAfterATimeout(TcpConnection):
    def is_reusable(self, error: BaseException | None) -> bool:
        return self.is_connected() and (error is None or isinstance(error, OSError))


class LeavesASurplusUnreadAndDoesNotLook(TcpConnection):
    def is_usable(self) -> bool:
        return self.is_connected()

    def recv_until(self, delimiter: bytes, limit: int = 65536) -> bytes:
        line = b""
        while not line.endswith(delimiter):
            byte = self.recv(1)
            if not byte:
                raise OSError("the stream has ended")
            line += byte
        return line


class MakesAnErrorOfATimeoutThatIsNotItsOwn(TcpConnection):
    def recv_until(self, delimiter: bytes, limit: int = 65536) -> bytes:
        try:
            return super().recv_until(delimiter, limit)
        except gevent.Timeout:
            raise OSError("it took too long") from None


# In a forked child


class GoesOnWithItsParentsSocket(TcpConnection):
    def abort(self) -> None:
        pass


class ShutsItsParentsSocketDown(TcpConnection):
    is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True
        with suppress(OSError), socket.socket(fileno=os.dup(self.socket.fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)

    def is_connected(self) -> bool:
        return not self.is_aborted and super().is_connected()


class KeepsItsParentsSocketOpen(TcpConnection):
    is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True

    def is_connected(self) -> bool:
        return not self.is_aborted and super().is_connected()

    def send(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_aborted:
            raise ConnectionClosedError
        super().send(data)


# Over a socket of its own


class Guarded(Connection):
    """Knows whether an exchange is half done."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self.address = host, port
        self.timeout = timeout
        self.sock: Any = None
        self.unread = b""
        self.is_half_done = False

    def open(self) -> None:
        self.unread, self.is_half_done = b"", False
        self.sock = gevent.socket.create_connection(self.address, self.timeout)

    def close(self) -> None:
        sock, self.sock = self.sock, None
        sock.close()

    def get(self) -> Any:
        return self.sock

    def is_connected(self) -> bool:
        return self.sock is not None

    def is_reusable(self, error: BaseException | None) -> bool:
        return error is None and self.is_connected() and not self.unread and not self.is_half_done

    def send(self, data: bytes) -> None:
        self.is_half_done = True
        self.sock.sendall(data)

    def recv_until(self, delimiter: bytes) -> bytes:
        while delimiter not in self.unread:
            data = self.sock.recv(4096)
            if not data:
                raise OSError("the stream has ended")
            self.unread += data
        line, _, self.unread = self.unread.partition(delimiter)
        self.is_half_done = False
        return line + delimiter


class ForgetsAnExchangeThatWasGivenUpInTheBlock(Guarded):
    def is_reusable(self, error: BaseException | None) -> bool:
        return error is None and self.is_connected()


# Those that are not broken


class TakesItsTimeToSayGoodbye(TcpConnection):
    def close(self) -> None:
        gevent.sleep(0.001)
        super().close()


class Client:
    """A client of a library's: its socket is open from its making until nobody refers to it."""

    def __init__(self, address: tuple[str, int], timeout: float) -> None:
        self.sock = gevent.socket.create_connection(address, timeout)

    def __del__(self) -> None:
        if hasattr(self, "sock"):
            self.sock.close()


class HasAHalfOpenClientInALocal(Guarded):
    def open(self) -> None:
        self.unread, self.is_half_done = b"", False
        client = Client(self.address, self.timeout)
        # As long as a library speaks to its server.
        for _ in range(20):
            gevent.sleep(0)
        self.sock, self.client = client.sock, client


@pytest.mark.parametrize(
    "kind",
    [
        KeepsEveryConnection,
        KeepsAfterEveryErrorAndLooksOnlyBeforeUse,
        KeepsAfterAKill,
        SwallowsKills,
    ],
)
def test_a_broken_class_is_caught(kind: type[Any]) -> None:
    check_caught(kind, rounds=2000 if kind is KeepsAfterAKill else 600)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="a fault of the server is over before it has spoiled an answer or two"
)
@pytest.mark.parametrize(
    "kind",
    [
        KeepsAfterATimeout,
        LeavesASurplusUnreadAndDoesNotLook,
        ForgetsAnExchangeThatWasGivenUpInTheBlock,
    ],
)
def test_a_class_that_hands_on_a_strangers_reply_is_caught(kind: type[Any]) -> None:
    check_caught(kind, rounds=300)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="an error counts as what was thrown if it was raised because of that, also where it hides that on purpose",
)
def test_a_class_that_makes_an_error_of_what_was_thrown_is_caught() -> None:
    check_caught(MakesAnErrorOfATimeoutThatIsNotItsOwn, rounds=100)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="what a child does to its parent's connections is seen by chance only"
)
@pytest.mark.parametrize(
    "kind",
    [GoesOnWithItsParentsSocket, ShutsItsParentsSocketDown, KeepsItsParentsSocketOpen],
)
def test_a_class_that_does_harm_in_a_child_is_caught(kind: type[Any]) -> None:
    check_caught(kind, rounds=60, greenlets=3)


@pytest.mark.parametrize("kind", [TcpConnection, Guarded, TakesItsTimeToSayGoodbye])
def test_a_class_that_is_not_broken_is_not_blamed(kind: type[Any]) -> None:
    for seed in SEEDS:
        run(kind, seed, rounds=40)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="the torture keeps what it has thrown, and with it the frame that the half-open client is in",
)
def test_a_class_with_a_half_open_client_in_a_local_is_not_blamed() -> None:
    for seed in SEEDS:
        with gevent.Timeout(3, AssertionError("the torture waits for a socket to be closed that it keeps itself")):
            run(HasAHalfOpenClientInALocal, seed, rounds=60, forks=0)
