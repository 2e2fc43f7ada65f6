"""Real servers on the loopback interface, and a look at the sockets of this process."""

from __future__ import annotations

import functools
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.pool
import gevent.queue
import gevent.socket
import gevent.ssl
import trustme

from tests.support.internals import open_sockets as open_sockets
from tests.support.scripted import PATIENCE


def echo(peer: Any) -> None:
    """A handler for :class:`Server` that sends back what it receives."""
    while data := peer.recv(65536):
        peer.sendall(data)


class Server:
    """A server that listens from its making, and accepts within a ``with`` block.

    It has a free port of its own, or a Unix socket's `path`. With `tls`, the context of a server, it speaks TLS.

    Each socket that it accepts is given to `handler` in a greenlet of its own, and closed when that returns. Without a
    handler it is left to the test, which takes it by :meth:`next_peer`. An `OSError` in a handler means that the client
    has gone; any other error is raised at the end of the block.
    """

    def __init__(
        self,
        handler: Callable[[Any], object] | None = None,
        *,
        host: str = "127.0.0.1",
        path: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._handler = handler
        self._tls = tls
        self._peers: Any = gevent.queue.Queue()
        self._sockets: list[Any] = []
        self._errors: list[Exception] = []
        self._greenlets = gevent.pool.Group()
        self.accepted = 0
        address: tuple[str, int] | str
        if path is None:
            family, address = socket.AF_INET6 if ":" in host else socket.AF_INET, (host, 0)
        else:
            family, address = socket.AF_UNIX, path
        self._listener = gevent.socket.socket(family, socket.SOCK_STREAM)
        self._listener.bind(address)
        self._listener.listen(128)
        self.address = self._listener.getsockname()
        self.host = host
        self.port: int = self.address[1] if path is None else 0

    def __enter__(self) -> Server:
        self._greenlets.spawn(self._accept)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, where: Any) -> None:
        self.stop()
        if error is None and self._errors:
            raise self._errors[0]

    def stop(self) -> None:
        """Stop listening, and close every connection."""
        self._greenlets.kill()
        self._listener.close()
        for accepted in self._sockets:
            accepted.close()

    def next_peer(self) -> Any:
        """Return the other end of the connection that was accepted next."""
        return self._peers.get(timeout=PATIENCE)

    def _accept(self) -> None:
        while True:
            accepted, _ = self._listener.accept()
            self.accepted += 1
            if self._tls is not None:
                accepted = self._tls.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
            self._sockets.append(accepted)
            self._greenlets.spawn(self._serve, accepted)

    def _serve(self, accepted: Any) -> None:
        try:
            if self._tls is not None:
                accepted.do_handshake()
            if self._handler is None:
                self._peers.put(accepted)
                return
            self._handler(accepted)
        except OSError:
            pass
        except Exception as error:
            self._errors.append(error)
        accepted.close()


@functools.cache
def authority() -> trustme.CA:
    """The authority that the servers' certificates are from. No system trusts it."""
    return trustme.CA()


def server_context(*names: str) -> ssl.SSLContext:
    """The context of a TLS server whose certificate is made for `names`."""
    context: ssl.SSLContext = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names).configure_cert(context)
    return context


def authority_pem() -> str:
    """The certificate of :func:`authority`, to be trusted by a client."""
    return authority().cert_pem.bytes().decode()


def client_context(kind: type[ssl.SSLContext] = gevent.ssl.SSLContext) -> ssl.SSLContext:
    """A new context that trusts :func:`authority` alone."""
    context = kind(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority_pem())
    return context


@contextmanager
def silent_listener() -> Iterator[tuple[str, int]]:
    """An address that accepts connections, and then does nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()


@contextmanager
def hanging_address() -> Iterator[tuple[str, int]]:
    """An address at which connecting neither succeeds nor fails: its listener's backlog is full."""
    sockets = [socket.socket()]
    try:
        sockets[0].bind(("127.0.0.1", 0))
        sockets[0].listen(0)
        is_full = False
        while not is_full:
            sockets.append(socket.socket())
            sockets[-1].setblocking(False)
            sockets[-1].connect_ex(sockets[0].getsockname())
            is_full = not select.select([], [sockets[-1]], [], 0.02)[1]
        yield sockets[0].getsockname()
    finally:
        for each in sockets:
            each.close()


@contextmanager
def refusing_address(host: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """An address at which connecting is refused: it is taken, but no server listens."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        taken.bind((host, 0))
        yield taken.getsockname()[:2]
