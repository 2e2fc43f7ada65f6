"""A server that misbehaves on command."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import gevent
import gevent.pool

from gsocketpool import InvalidArgumentError
from gsocketpool._fork import call_after_fork
from gsocketpool.connection import _sockets
from gsocketpool.exceptions import add_note, described
from gsocketpool.settings import check_seconds
from gsocketpool.testing._faults import OF_CONNECTING, Faults, check_fault
from gsocketpool.testing._listening import Acceptor
from gsocketpool.testing._served import ServedConnection, end
from gsocketpool.testing._serving import Service
from gsocketpool.testing._sockets import identity

if TYPE_CHECKING:
    import ssl

#: The servers whose ``with`` block is running.
serving: weakref.WeakSet[FlakyServer] = weakref.WeakSet()


class FlakyServer:
    """A real server on the loopback interface. It works normally until a test tells it to misbehave.

    It reads requests, answers each of them, and records everything. It runs inside its ``with`` block, in greenlets of
    that event loop, so a client that blocks the whole process can't talk to it.

    :param answer: gets a request, delimiter included, and returns the answer's bytes, or None for no answer. By default
        the answer is the request itself. If it raises, the server closes the connection, and the error is raised at
        the end of the block, or noted on the error that leaves the block.
    :param delimiter: the bytes that end a request.
    :param upstream: the address of a server to relay everything to, in both directions, instead of answering. Each
        piece received from there counts as one answer. This adds faults to a server of any protocol.
    :param path: the path of a Unix domain socket to listen on. By default, a free TCP port of 127.0.0.1.
    :param tls: the server's SSL context, to speak TLS.
    :raises InvalidArgumentError: if one of these can't be used.
    """

    def __init__(
        self,
        answer: Callable[[bytes], bytes | None] | None = None,
        *,
        delimiter: bytes = b"\n",
        upstream: tuple[str, int] | str | None = None,
        path: str | os.PathLike[str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if answer is not None and not callable(answer):
            raise InvalidArgumentError("answer", answer, "a callable that returns bytes, or None")
        if answer is not None and upstream is not None:
            raise InvalidArgumentError("answer", answer, "left out where upstream is given")
        if not isinstance(delimiter, bytes) or not delimiter:
            raise InvalidArgumentError("delimiter", delimiter, "bytes that are not empty")
        if upstream is not None and not isinstance(upstream, str | tuple):
            raise InvalidArgumentError("upstream", upstream, "a tuple of host and port, or a path")
        if path is not None and not isinstance(path, str | os.PathLike):
            raise InvalidArgumentError("path", path, "a path")
        self._path = None if path is None else os.fspath(path)

        #: Every connection so far, the oldest first.
        self.connections: list[ServedConnection] = []
        #: The highest number of connections open at the same time.
        self.most_open: int = 0

        self._faults = Faults()
        self._greenlets = gevent.pool.Group()
        self._service = Service(answer or bytes, delimiter, upstream, tls, self._faults, self._greenlets)
        self._acceptor: Acceptor

    # Serving

    def __enter__(self) -> FlakyServer:
        self._acceptor = Acceptor(self._path, self._begin, self._greenlets)
        self._acceptor.listen()
        call_after_fork(self)
        serving.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._acceptor.stop_listening()
        serving.discard(self)
        self.close_connections()
        self._greenlets.kill()
        self._acceptor.close()
        errors, upstream_error = self._service.errors, self._service.upstream_error
        if error is None:
            if errors:
                raise errors[0]
        elif errors or upstream_error is not None:
            # It may be the reason for the error that leaves the block.
            add_note(error, f"the FlakyServer failed: {described(errors[0]) if errors else upstream_error}")

    def _begin(self, sock: Any) -> None:
        served = ServedConnection(sock, len(self.connections))
        self.connections.append(served)
        self.most_open = max(self.most_open, len(self.open_connections))
        self._greenlets.spawn(self._service.serve, served)

    @property
    def address(self) -> Any:
        """Host and port, or the path."""
        self._require_block()
        return self._acceptor.address

    @property
    def host(self) -> str:
        """The address to connect to by TCP."""
        return str(self.address[0])

    @property
    def port(self) -> int:
        """The port to connect to by TCP."""
        return int(self.address[1])

    # What it has recorded

    @property
    def open_connections(self) -> list[ServedConnection]:
        """The connections that have not ended yet."""
        return [served for served in self.connections if served.is_open]

    def wait_until(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """Wait until `condition` returns something true.

        :param timeout: the most seconds to wait.
        :raises InvalidArgumentError: if `timeout` is not a number of seconds.
        :raises AssertionError: if the time is over first. The message shows the server's last ten connections.
        """
        timeout = check_seconds("timeout", timeout, zero=True)
        deadline = gevent.Timeout.start_new(timeout)
        try:
            while not condition():
                gevent.sleep(0.001)
        except gevent.Timeout as error:
            if error is not deadline:
                raise
            seen = "".join(f"\n{served!r}" for served in self.connections[-10:])
            raise AssertionError(f"not true within {timeout} s. The server's last connections:{seen}") from None
        finally:
            deadline.close()

    # Misbehaving

    def fail(
        self,
        fault: str,
        *,
        times: int | None = None,
        delay: float | None = None,
        only: Callable[[bytes], bool] | None = None,
    ) -> None:
        """Misbehave until :meth:`heal` or the next call of this.

        :param fault: one of :data:`FAULTS`.
        :param times: how many answers to spoil; None for no limit. Not for "refuse" and "hang".
        :param delay: for "late": seconds after which an answer is sent even without :meth:`heal`.
        :param only: gets the bytes of an answer and returns whether to spoil it. Not for "refuse" and "hang".
        :raises InvalidArgumentError: if one of these can't be used.
        """
        delay = check_fault(fault, times, delay, only)
        self.heal()
        self._faults.begin(fault, times, delay, only)
        if fault in OF_CONNECTING:
            self._acceptor.stop_listening()
        if fault == "hang":
            self._acceptor.fill_backlog()

    def heal(self) -> None:
        """Work normally again. Late answers are sent now; other answers that were withheld never are."""
        self._require_block()
        self._faults.heal()
        if not self._acceptor.is_listening():
            self._acceptor.stop_listening()
            self._acceptor.listen()

    def close_connections(self, *, reset: bool = False) -> None:
        """Close all connections.

        :param reset: whether the clients see "connection reset" instead of the end of the stream.
        """
        for served in self.open_connections:
            end(served, reset=reset)

    def close_idle(self) -> None:
        """Close the connections on which every request was answered, as servers do with idle clients."""
        for served in self.open_connections:
            if not served.is_asking:
                end(served)

    def restart(self, *, reset: bool = False) -> None:
        """Close every connection, then listen on the same address again and work normally.

        :param reset: as for :meth:`close_connections`.
        """
        self._require_block()
        self._acceptor.stop_listening()
        self.close_connections(reset=reset)
        self.heal()

    def _require_block(self) -> None:
        if self not in serving:
            raise RuntimeError("a FlakyServer serves, and has an address, within its `with` block only")

    # Its sockets

    def _sockets(self) -> list[Any]:
        sockets = self._acceptor.sockets()
        for served in self.open_connections:
            sockets += (served._sock, served._upstream)
        return [sock for sock in sockets if sock is not None and sock.fileno() >= 0]

    def _own_sockets(self) -> set[tuple[int, int]]:
        """Return the :func:`identity` of each socket that is open here."""
        return {identity(sock.fileno()) for sock in self._sockets()}

    def _after_fork(self) -> None:
        # The fork copied the greenlets, and in the child they must not serve the parent's clients.
        self._greenlets.kill(block=False)
        for sock in self._sockets():
            _sockets.abort(sock)
