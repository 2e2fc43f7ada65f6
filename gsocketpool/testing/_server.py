"""A server that misbehaves on command."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import gevent
import gevent.pool
import gevent.socket
import gevent.ssl
from gevent.event import Event
from gevent.monkey import get_original

from gsocketpool import InvalidArgumentError
from gsocketpool._fork import tell_after_fork
from gsocketpool.connection import _sockets
from gsocketpool.settings import check_count, check_seconds
from gsocketpool.testing._peers import pid_of_peer
from gsocketpool.testing._sockets import identity

if TYPE_CHECKING:
    import ssl

#: What :meth:`FlakyServer.fail` can do, by name.
FAULTS = {
    "refuse": "Connections are refused. Those that are there go on.",
    "hang": "Connecting neither succeeds nor fails: the backlog is full. Connections that are there go on.",
    "silent": "Connections are accepted and requests are read, and nothing is said: no answer, no TLS handshake.",
    "late": "Answers come when the server has healed, or after a delay.",
    "half": "The first half of an answer comes, and no more.",
    "pieces": "Answers come byte by byte.",
    "twice": "Each answer comes twice.",
    "close": "The connection is closed instead of answering.",
    "reset": "The connection is reset instead of answering.",
}
_OF_CONNECTING = ("refuse", "hang")

# gevent's own would switch.
_select = get_original("select", "select")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class ServedConnection:
    """A connection as the server sees it. Nothing here changes any more once it has ended."""

    def __init__(self, sock: Any, number: int) -> None:
        self._sock = sock
        self._upstream: Any = None
        #: How many there were before it.
        self.number = number
        #: The process that opened it; None where that can't be found out, as outside of Linux.
        self.pid = pid_of_peer(sock)
        #: Everything that came over it.
        self.received = bytearray()
        #: The requests that came over it, each with its delimiter. Without upstream only: there nobody knows.
        self.requests: list[bytes] = []
        #: How it has ended: ``"closed"`` or ``"reset"`` by the client, ``"cut off"`` by a client that left without the
        #: goodbye that TLS asks for, or ``"by the server"``. None while it is open.
        self.end: str | None = None
        #: Whether something came that has not been answered.
        self.is_asking = False

    def __repr__(self) -> str:
        return f"<connection {self.number} of process {self.pid}: {self.end or 'open'}, {bytes(self.received[-80:])!r}>"

    @property
    def is_open(self) -> bool:
        return self.end is None


#: The servers that are inside their block.
serving: weakref.WeakSet[FlakyServer] = weakref.WeakSet()


class FlakyServer:
    """A real server on the loopback interface. It works well until it is told to misbehave.

    It reads requests, answers each of them, and remembers everything. It serves within its ``with`` block, in greenlets
    of the event loop there, so nothing that blocks the whole process may be used with it.

    :param answer: what to answer to a request. It gets the request, its delimiter included, and returns the answer's
        bytes, or None for no answer. By default the answer is the request itself.
    :param delimiter: the bytes that end a request.
    :param upstream: the address of a server to pass everything on to, in both directions, instead of answering. What
        comes from there in one piece counts as one answer. This teaches faults to a server of any protocol.
    :param path: where a Unix domain socket is made. Without one, a free TCP port of 127.0.0.1 is taken.
    :param tls: the context of a TLS server, to speak TLS.
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
            raise InvalidArgumentError("delimiter", delimiter, "bytes, at least one")
        if upstream is not None and not isinstance(upstream, str | tuple):
            raise InvalidArgumentError("upstream", upstream, "a tuple of host and port, or a path")
        if path is not None and not isinstance(path, str | os.PathLike):
            raise InvalidArgumentError("path", path, "a path")
        self._answer = answer or bytes
        self._delimiter = delimiter
        self._upstream = upstream
        self._tls = tls
        self._path = None if path is None else os.fspath(path)

        #: Every connection there was, the oldest first.
        self.connections: list[ServedConnection] = []
        #: The most connections that were open at the same time.
        self.most_open = 0

        self._greenlets = gevent.pool.Group()
        self._accepting: gevent.Greenlet | None = None
        self._listener: Any = None
        #: Takes the port, without listening, while nobody listens.
        self._placeholder: Any = None
        self._fillers: list[Any] = []
        self._errors: list[Exception] = []
        self._fault: str | None = None
        self._times: int | None = None
        self._only: Callable[[bytes], bool] | None = None
        self._delay: float | None = None
        self._healed = Event()
        self._healed.set()

    # Serving

    def __enter__(self) -> FlakyServer:
        if self._path is None:
            self._placeholder = self._bound(("127.0.0.1", 0))
            self._address = self._placeholder.getsockname()
        else:
            self._address = self._path
        self._listen()
        tell_after_fork(self)
        serving.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stop_listening()
        serving.discard(self)
        self.close_connections()
        self._greenlets.kill()
        if self._placeholder is not None:
            self._placeholder.close()
        else:
            _remove_socket(self._address)
        if error is None and self._errors:
            raise self._errors[0]

    @property
    def address(self) -> Any:
        """Host and port, or the path."""
        self._require_block()
        return self._address

    @property
    def host(self) -> str:
        """The address to connect to by TCP."""
        return str(self.address[0])

    @property
    def port(self) -> int:
        """The port to connect to by TCP."""
        return int(self.address[1])

    # What it has seen

    @property
    def open_connections(self) -> list[ServedConnection]:
        """The connections that have not ended yet."""
        return [served for served in self.connections if served.is_open]

    def wait_until(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """Waits until `condition` is true.

        :param timeout: the most seconds to wait.
        :raises InvalidArgumentError: if `timeout` is not a number of seconds.
        :raises AssertionError: if it does not come true in time. It says what the server has seen last.
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
            raise AssertionError(f"it has not come true within {timeout} s. The server has seen:{seen}") from None
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
        """Misbehaves from now on, until :meth:`heal` or another fault.

        :param fault: one of :data:`FAULTS`.
        :param times: how many answers it is for; without limit by default. Not for "refuse" and "hang".
        :param delay: for "late": the seconds after which an answer comes without having been healed.
        :param only: gets the bytes of an answer and returns whether the fault is for it. Not for "refuse" and "hang".
        :raises InvalidArgumentError: if one of these can't be used.
        """
        if fault not in FAULTS:
            raise InvalidArgumentError("fault", fault, f"one of {', '.join(FAULTS)}")
        for name, given in (("times", times), ("only", only)):
            if given is not None and fault in _OF_CONNECTING:
                raise InvalidArgumentError(name, given, f"left out for {fault!r}")
        if times is not None:
            check_count("times", times, least=1)
        if delay is not None:
            if fault != "late":
                raise InvalidArgumentError("delay", delay, "left out, but for 'late'")
            delay = check_seconds("delay", delay)
        self.heal()
        self._fault, self._times, self._delay, self._only = fault, times, delay, only
        self._healed.clear()
        if fault in _OF_CONNECTING:
            self._stop_listening()
        if fault == "hang":
            self._fill_backlog()

    def heal(self) -> None:
        """Works well again. Late answers are given now; others that were not given never are."""
        self._require_block()
        self._fault = None
        self._healed.set()
        if self._accepting is None:
            self._stop_listening()
            self._listen()

    def close_connections(self, *, reset: bool = False) -> None:
        """Closes all connections.

        :param reset: whether the clients are to see "connection reset" instead of the end of the stream.
        """
        for served in self.open_connections:
            self._end(served, reset=reset)

    def close_idle(self) -> None:
        """Closes the connections on which nothing is unanswered, as servers do after some time."""
        for served in self.open_connections:
            if not served.is_asking:
                self._end(served)

    def restart(self, *, reset: bool = False) -> None:
        """Closes everything, and then listens again on the same address, healed.

        :param reset: as for :meth:`close_connections`.
        """
        self._require_block()
        self._stop_listening()
        self.close_connections(reset=reset)
        self.heal()

    def _require_block(self) -> None:
        if self not in serving:
            raise RuntimeError("a FlakyServer serves, and has an address, within its `with` block only")

    # Listening

    def _bound(self, address: Any) -> Any:
        if isinstance(address, str):
            _remove_socket(address)
            bound = gevent.socket.socket(gevent.socket.AF_UNIX)
        else:
            bound = gevent.socket.socket()
            bound.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_REUSEADDR, 1)
            bound.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_REUSEPORT, 1)
        try:
            bound.bind(address)
        except OSError:
            bound.close()
            raise
        return bound

    def _listen(self) -> None:
        self._listener = self._bound(self._address)
        self._listener.listen(1024)
        self._accepting = self._greenlets.spawn(self._accept, self._listener)

    def _stop_listening(self) -> None:
        if self._accepting is not None:
            self._accepting.kill()
            self._accepting = None
            # The clients take those for connected that have not been accepted yet. Nothing switches from here on, or
            # there could be more of them.
            while _select([self._listener], [], [], 0)[0]:
                self._begin(self._listener.accept()[0])
        for sock in (self._listener, *self._fillers):
            sock.close()
        self._fillers.clear()

    def _fill_backlog(self) -> None:
        self._listener = self._bound(self._address)
        self._listener.listen(0)
        while True:
            filler = gevent.socket.socket(self._listener.family)
            self._fillers.append(filler)
            # Asked of the socket below, which does not wait.
            filler._sock.connect_ex(self._address)
            try:
                gevent.socket.wait_write(filler.fileno(), timeout=0.02)
                filler.getpeername()
            except OSError:
                return

    def _accept(self, listener: Any) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                # It was closed.
                return
            self._begin(sock)

    def _begin(self, sock: Any) -> None:
        served = ServedConnection(sock, len(self.connections))
        self.connections.append(served)
        self.most_open = max(self.most_open, len(self.open_connections))
        self._greenlets.spawn(self._serve, served)

    def _serve(self, served: ServedConnection) -> None:
        try:
            if self._tls is not None:
                if self._fault == "silent":
                    self._healed.wait()
                served._sock = self._tls.wrap_socket(
                    served._sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
                )
                served._sock.do_handshake()
            if self._upstream is None:
                self._answer_all(served)
            else:
                self._pass_on(served)
            end = "closed"
        except gevent.ssl.SSLEOFError:
            end = "cut off"
        except OSError:
            end = "reset"
        except Exception as error:
            # A TLS socket that is closed under its handshake may raise whatever it happens to.
            if served.is_open:
                self._errors.append(error)
            end = "by the server"
        self._end(served, end)

    def _answer_all(self, served: ServedConnection) -> None:
        unread = b""
        while data := served._sock.recv(65536):
            served.received += data
            *requests, unread = (unread + data).split(self._delimiter)
            for request in requests:
                served.requests.append(request + self._delimiter)
                answer = self._answer(served.requests[-1])
                if answer is not None:
                    if not isinstance(answer, bytes | bytearray):
                        raise TypeError(f"answer() must return bytes or None, not {type(answer).__name__}")
                    served.is_asking = True
                    self._send(served, answer)

    def _pass_on(self, served: ServedConnection) -> None:
        with self._connect_upstream() as upstream:
            served._upstream = upstream
            back = self._greenlets.spawn(self._pass_back, served, upstream)
            try:
                while data := served._sock.recv(65536):
                    served.received += data
                    served.is_asking = True
                    upstream.sendall(data)
            finally:
                back.kill()

    def _connect_upstream(self) -> Any:
        if not isinstance(self._upstream, str):
            return gevent.socket.create_connection(self._upstream)
        upstream = gevent.socket.socket(gevent.socket.AF_UNIX)
        upstream.connect(self._upstream)
        return upstream

    def _pass_back(self, served: ServedConnection, upstream: Any) -> None:
        with contextlib.suppress(OSError):
            while data := upstream.recv(65536):
                self._send(served, data)
        self._end(served)

    # Answering

    def _send(self, served: ServedConnection, answer: bytes) -> None:
        fault = self._fault_for(answer)
        if fault == "late":
            self._greenlets.spawn(self._send_late, served, answer, self._delay)
        elif fault == "half":
            served._sock.sendall(answer[: len(answer) // 2])
        elif fault == "pieces":
            for place in range(len(answer)):
                served._sock.sendall(answer[place : place + 1])
                gevent.sleep(0)
            served.is_asking = False
        elif fault in ("close", "reset"):
            self._end(served, reset=fault == "reset")
        elif fault != "silent":
            served.is_asking = False
            served._sock.sendall(answer * 2 if fault == "twice" else answer)

    def _send_late(self, served: ServedConnection, answer: bytes, delay: float | None) -> None:
        self._healed.wait(delay)
        with contextlib.suppress(OSError):
            served.is_asking = False
            served._sock.sendall(answer)

    def _fault_for(self, answer: bytes) -> str | None:
        if self._fault is None or self._fault in _OF_CONNECTING or not (self._only is None or self._only(answer)):
            return None
        fault = self._fault
        if self._times is not None:
            self._times -= 1
            if not self._times:
                # Not healed: what is late stays late.
                self._fault = None
        return fault

    def _end(self, served: ServedConnection, end: str = "by the server", *, reset: bool = False) -> None:
        if not served.is_open:
            return
        served.end = end
        with contextlib.suppress(OSError):
            if reset:
                served._sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_LINGER, _RESET_ON_CLOSE)
            elif isinstance(served._sock, gevent.ssl.SSLSocket) and served._sock._sslobj is not None:
                _sockets.say_goodbye(served._sock)
        # More than close(), which gevent puts off where a greenlet waits for the socket: the client would find it open
        # until the event loop has come round.
        _sockets.abort(served._sock)

    # Its sockets

    def _sockets(self) -> list[Any]:
        sockets = [self._listener, self._placeholder, *self._fillers]
        for served in self.open_connections:
            sockets += (served._sock, served._upstream)
        return [sock for sock in sockets if sock is not None and sock.fileno() >= 0]

    def _own_sockets(self) -> set[tuple[int, int]]:
        """The sockets that are open here, by what tells each from all others of this process."""
        return {identity(sock.fileno()) for sock in self._sockets()}

    def _after_fork(self) -> None:
        # In a forked child: the greenlets were copied, and must not serve the parent's clients.
        self._greenlets.kill(block=False)
        for sock in self._sockets():
            _sockets.abort(sock)


def _remove_socket(path: str) -> None:
    # Nothing else that is there is ours to remove: binding will say so.
    if not path.startswith("\0") and os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
        os.unlink(path)
