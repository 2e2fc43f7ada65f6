"""Serves connections: answers their requests, or relays everything to a server upstream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
import gevent.pool
import gevent.socket
import gevent.ssl

from gsocketpool.exceptions import described
from gsocketpool.testing._faults import Faults
from gsocketpool.testing._served import ServedConnection, end, send

if TYPE_CHECKING:
    import ssl


class Service:
    """Serves the connections of one server, and spoils answers by its faults."""

    def __init__(
        self,
        answer: Callable[[bytes], bytes | None],
        delimiter: bytes,
        upstream: tuple[str, int] | str | None,
        tls: ssl.SSLContext | None,
        faults: Faults,
        greenlets: gevent.pool.Group,
    ) -> None:
        self._answer = answer
        self._delimiter = delimiter
        self._upstream = upstream
        self._tls = tls
        self._faults = faults
        self._greenlets = greenlets
        #: Unexpected errors, such as those of ``answer()``.
        self.errors: list[BaseException] = []
        #: Why the server upstream could not be reached; None if it always could. In words, because the error would keep
        #: the sockets in its traceback.
        self.upstream_error: str | None = None

    def serve(self, served: ServedConnection) -> None:
        """Serve a connection until it ends."""
        try:
            if self._tls is not None:
                if self._faults.present == "silent":
                    self._faults.healed.wait()
                served._sock = self._tls.wrap_socket(
                    served._sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
                )
                served._sock.do_handshake()
            if self._upstream is None:
                self._answer_all(served)
            else:
                self._relay(served)
            how = "closed"
        except gevent.ssl.SSLEOFError:
            how = "cut off"
        except OSError:
            how = "reset"
        except Exception as error:  # pragma: no cover - as luck has it
            # A TLS socket that is closed during its handshake may raise any error.
            if served.is_open:
                self.errors.append(error)
            how = "by the server"
        end(served, how)

    def _answer_all(self, served: ServedConnection) -> None:
        unread = b""
        while data := served._sock.recv(65536):
            served.received += data
            *requests, unread = (unread + data).split(self._delimiter)
            for request in requests:
                served.requests.append(request + self._delimiter)
                try:
                    answer = self._answer(served.requests[-1])
                    if not isinstance(answer, bytes | bytearray | None):
                        raise TypeError(f"answer() must return bytes or None, not {type(answer).__name__}")
                except (Exception, gevent.Timeout) as error:
                    # Here, because an OSError of the connection itself has another meaning.
                    self.errors.append(error)
                    end(served)
                    return
                if answer is not None:
                    served.is_asking = True
                    self._send(served, answer)

    # With a server upstream

    def _relay(self, served: ServedConnection) -> None:
        try:
            upstream = self._connect_upstream()
        except OSError as error:
            self.upstream_error = f"could not connect to the server upstream, {self._upstream!r}: {described(error)}"
            end(served)
            return
        with upstream:
            served._upstream = upstream
            back = self._greenlets.spawn(self._relay_back, served, upstream)
            try:
                while data := served._sock.recv(65536):  # pragma: no branch - as luck has it, an error ends it
                    served.received += data
                    served.is_asking = True
                    upstream.sendall(data)
            finally:
                back.kill()

    def _connect_upstream(self) -> Any:
        if not isinstance(self._upstream, str):
            return gevent.socket.create_connection(self._upstream)
        upstream = gevent.socket.socket(gevent.socket.AF_UNIX)
        try:
            upstream.connect(self._upstream)
        except BaseException:
            upstream.close()
            raise
        return upstream

    def _relay_back(self, served: ServedConnection, upstream: Any) -> None:
        with contextlib.suppress(OSError):
            while data := upstream.recv(65536):
                self._send(served, data)
        end(served)

    # Each answer

    def _send(self, served: ServedConnection, answer: bytes) -> None:
        fault = self._faults.take(answer)
        if fault == "late":
            self._greenlets.spawn(self._send_late, served, answer, self._faults.delay)
        elif fault == "half":
            send(served, answer[: len(answer) // 2])
        elif fault == "pieces":
            for place in range(len(answer)):
                send(served, answer[place : place + 1])
                gevent.sleep(0)
            served.is_asking = False
        elif fault in ("close", "reset"):
            end(served, reset=fault == "reset")
        elif fault != "silent":
            served.is_asking = False
            send(served, answer * 2 if fault == "twice" else answer)

    def _send_late(self, served: ServedConnection, answer: bytes, delay: float | None) -> None:
        self._faults.healed.wait(delay)
        with contextlib.suppress(OSError):
            served.is_asking = False
            send(served, answer)
