"""A torture finds each broken connection class, whatever its seed, and blames no sound one."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

import gevent
import gevent.socket
import pytest

from gsocketpool import Connection, ConnectionClosedError, TcpConnection
from gsocketpool.testing import FlakyServer, TortureError, torture
from tests.support.internals import TORTURE_GRACE, TORTURE_HANG

SEEDS = range(8)
#: Each costs seconds, so the suite tries one, and the torture all.
FEW = SEEDS[:1]
#: Seconds for an exchange: more than a loaded machine needs, and less than a torture has for a round.
TIMEOUT = 0.2

STRANGER = "a reply reached the wrong caller"
HIDDEN = "was thrown, and"
LEFT_OPEN = "a socket is still open"
IN_CHILD = "in a forked process"
READ_IN_CHILD = "a forked process read a reply meant for its parent"
FAILED_IN_PARENT = "an exchange failed at a fork"
OPEN_IN_CHILD = "a forked process keeps a socket of its parent open"


def run(
    kind: type[Any], seed: int, rounds: int = 1000, greenlets: int = 8, forks: int = 1, timeout: float = TIMEOUT
) -> None:
    with FlakyServer() as server:
        connect = partial(kind, server.host, server.port, timeout=timeout)
        torture(connect, seed=seed, rounds=rounds, greenlets=greenlets, forks=forks, server=server)


@pytest.fixture(
    params=[pytest.param(FEW, id="one seed"), pytest.param(SEEDS, id="all seeds", marks=pytest.mark.torture)]
)
def seeds(request: pytest.FixtureRequest) -> Iterable[int]:
    found: Iterable[int] = request.param
    return found


def check_caught(kind: type[Any], told: str, seeds: Iterable[int], **arguments: int) -> None:
    for seed in seeds:
        with pytest.raises(TortureError) as caught:
            run(kind, seed, **arguments)
        assert any(told in failure for failure in caught.value.failures), (seed, caught.value.failures)


# Over a connection of ours


class KeepsEveryConnection(TcpConnection):
    def is_reusable(self, error: BaseException | None) -> bool:
        return self.is_connected()

    def is_usable(self) -> bool:
        return self.is_connected()


class KeepsAfterEveryErrorAndLooksOnlyBeforeUse(TcpConnection):
    def is_reusable(self, error: BaseException | None) -> bool:
        return self.is_connected()


class KeepsAfterErrorsIfNothingIsUnread(TcpConnection):
    def is_reusable(self, error: BaseException | None) -> bool:
        return self.is_connected() and not self._unread


class ForgetsWhatIsUnreadAndInDoubt(TcpConnection):
    def is_reusable(self, error: BaseException | None) -> bool:
        self._unread = bytearray()
        return error is None and self.is_connected()


class TakesTheSocketOfAnother(TcpConnection):
    opened: ClassVar[list[Any]] = []

    def open(self) -> None:
        super().open()
        others = [other for other in self.opened if other.is_connected()]
        if others and len(self.opened) % 3 == 0:
            self._sock.close()
            self._sock = others[-1]._sock
        self.opened.append(self)


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


class TakesAKillForTheEndOfTheStream(TcpConnection):
    def recv_until(self, delimiter: bytes, limit: int = 65536) -> bytes:
        try:
            return super().recv_until(delimiter, limit)
        except gevent.GreenletExit:
            raise ConnectionClosedError("the stream has ended") from None


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


class ShutsItsParentsSocketDownAndClosesItsCopy(ShutsItsParentsSocketDown):
    def abort(self) -> None:
        super().abort()
        TcpConnection.abort(self)


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


class KeepsACopyOfItsParentsSocketOpen(TcpConnection):
    def abort(self) -> None:
        with suppress(OSError):
            os.dup(self.socket.fileno())
        super().abort()


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


class SharesItsBufferWithAllOthers(Guarded):
    #: By the server's address: each torture here has a server of its own.
    buffers: ClassVar[defaultdict[tuple[str, int], bytes]] = defaultdict(bytes)

    def recv_until(self, delimiter: bytes) -> bytes:
        while delimiter not in self.buffers[self.address]:
            data = self.sock.recv(4096)
            if not data:
                raise OSError("the stream has ended")
            self.buffers[self.address] += data
        line, _, self.buffers[self.address] = self.buffers[self.address].partition(delimiter)
        self.is_half_done = False
        return line + delimiter


#: Sockets that a class has left open. Without this, the garbage collector would close them.
left_open: list[Any] = []


class ClosesInNameOnly(Guarded):
    def close(self) -> None:
        left_open.append(self.sock)
        self.sock = None


class LeavesItsSocketOpenWhenItsGoodbyeIsInterrupted(Guarded):
    def close(self) -> None:
        sock, self.sock = self.sock, None
        left_open.append(sock)
        for _ in range(5):
            gevent.sleep(0)
        sock.close()

    def abort(self) -> None:
        pass


class Connecting(Guarded):
    def open(self) -> None:
        self.unread, self.is_half_done = b"", False
        sock = gevent.socket.socket()
        left_open.append(sock)
        sock.settimeout(self.timeout)
        self.connect(sock)
        self.sock = sock

    def connect(self, sock: Any) -> None:
        raise NotImplementedError


class LeavesItsSocketOpenWhenOpeningIsInterrupted(Connecting):
    def connect(self, sock: Any) -> None:
        try:
            sock.connect(self.address)
            gevent.sleep(0)
        except OSError:
            sock.close()
            raise


class LeavesItsSocketOpenWhenConnectingTimesOut(Connecting):
    def connect(self, sock: Any) -> None:
        try:
            sock.connect(self.address)
        except TimeoutError:
            raise
        except BaseException:
            sock.close()
            raise


# Those that are not broken


class TakesItsTimeToSayGoodbye(TcpConnection):
    def close(self) -> None:
        gevent.sleep(0.001)
        super().close()


class Client:
    """A client of a library's: its socket is open until the last reference to the client is gone."""

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
    ("kind", "told"),
    [
        (KeepsEveryConnection, STRANGER),
        (KeepsAfterEveryErrorAndLooksOnlyBeforeUse, STRANGER),
        (KeepsAfterErrorsIfNothingIsUnread, STRANGER),
        (KeepsAfterAKill, STRANGER),
        (KeepsAfterATimeout, STRANGER),
        (LeavesASurplusUnreadAndDoesNotLook, STRANGER),
        (ForgetsWhatIsUnreadAndInDoubt, STRANGER),
        (ForgetsAnExchangeThatWasGivenUpInTheBlock, STRANGER),
        (SharesItsBufferWithAllOthers, STRANGER),
        (TakesTheSocketOfAnother, ""),
        (SwallowsKills, HIDDEN),
        (TakesAKillForTheEndOfTheStream, HIDDEN),
        (MakesAnErrorOfATimeoutThatIsNotItsOwn, HIDDEN),
    ],
)
def test_a_broken_class_is_caught(kind: type[Any], told: str, seeds: Iterable[int]) -> None:
    check_caught(kind, told, seeds)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (GoesOnWithItsParentsSocket, READ_IN_CHILD),
        (ShutsItsParentsSocketDown, FAILED_IN_PARENT),
        (ShutsItsParentsSocketDownAndClosesItsCopy, FAILED_IN_PARENT),
        (KeepsItsParentsSocketOpen, IN_CHILD),
        (KeepsACopyOfItsParentsSocketOpen, OPEN_IN_CHILD),
    ],
)
def test_a_class_that_does_harm_in_a_child_is_caught(
    kind: type[Any], told: str, seeds: Iterable[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is open in a child is waited for.
    monkeypatch.setattr(TORTURE_GRACE, 0.2)
    check_caught(kind, told, seeds, rounds=60, greenlets=3)


@pytest.fixture
def short_of_patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A torture that waits for a socket to be closed a little longer than for a round to end."""
    monkeypatch.setattr(TORTURE_HANG, 1.0)
    yield
    while left_open:
        left_open.pop().close()


@pytest.mark.parametrize(
    ("kind", "rounds"),
    [
        (ClosesInNameOnly, 300),
        (LeavesItsSocketOpenWhenOpeningIsInterrupted, 300),
        # Closings are rare, and so is what is thrown into them.
        pytest.param(LeavesItsSocketOpenWhenItsGoodbyeIsInterrupted, 2000, marks=pytest.mark.torture),
        # So is a connection that takes too long and is not interrupted before.
        pytest.param(LeavesItsSocketOpenWhenConnectingTimesOut, 1000, marks=pytest.mark.torture),
    ],
)
def test_a_class_that_leaves_a_socket_open_is_caught(
    kind: type[Any], rounds: int, seeds: Iterable[int], short_of_patience: None
) -> None:
    check_caught(kind, LEFT_OPEN, seeds, rounds=rounds, forks=0)


GOOD = pytest.mark.parametrize("kind", [TcpConnection, Guarded, TakesItsTimeToSayGoodbye, HasAHalfOpenClientInALocal])


@GOOD
def test_a_sound_class_is_not_blamed(kind: type[Any]) -> None:
    for seed in FEW:
        run(kind, seed, rounds=100, timeout=2 * TIMEOUT)


@pytest.mark.torture
@GOOD
def test_a_sound_class_is_not_blamed_by_a_long_torture(kind: type[Any]) -> None:
    for seed in SEEDS:
        run(kind, seed, forks=2, timeout=2 * TIMEOUT)


def test_a_class_with_a_half_open_client_in_a_local_is_not_blamed() -> None:
    for seed in FEW:
        with gevent.Timeout(3, AssertionError("the torture waits for a socket to be closed that it keeps itself")):
            run(HasAHalfOpenClientInALocal, seed, rounds=60, forks=0, timeout=2 * TIMEOUT)
