"""An exchange that did not end well costs its connection, even if the exception was caught."""

from __future__ import annotations

import ast
import contextlib
import http.client
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from gevent.pywsgi import WSGIServer

from gsocketpool import Connection, Pool, TcpConnection
from tests.support.connections import no_hanging as no_hanging
from tests.support.documents import DOCUMENTS, ROOT, blocks
from tests.support.scripted import PATIENCE, Foreign, eventually


class Wrapper(Foreign, Connection):
    """Wraps a client that does as it is told. There is no __init__() to call another one from."""

    def ask(self, error: BaseException | None = None) -> str:
        """Do one exchange, which is cut short by `error`."""
        with self.exchange():
            if error is not None:
                raise error
            return "reply"

    def ask_twice(self, error: BaseException | None = None) -> str:
        """Do one exchange inside another one, which is cut short by `error`."""
        with self.exchange():
            reply = self.ask()
            if error is not None:
                raise error
            return reply

    def ask_in_spite_of(self, error: BaseException) -> str:
        """Do one exchange inside another one, and go on when `error` has cut the inner one short."""
        with self.exchange():
            try:
                return self.ask(error)
            except type(error):
                return "fallback"

    def rows(self) -> Generator[str, None, None]:
        """Do one exchange, whose reply comes piece by piece."""
        with self.exchange():
            yield "first row"
            yield "last row"


class WithClient(Wrapper):
    """Has a client that is no socket."""

    def get(self) -> object:
        return self


class WithCheck(Wrapper):
    def is_usable(self) -> bool:
        return self.is_open


# What a class may override makes no difference.
KINDS = [Wrapper, WithClient, WithCheck]

#: What libraries and gevent raise in the middle of an exchange.
ERRORS: list[type[BaseException]] = [TimeoutError, ValueError, gevent.Timeout, gevent.GreenletExit]


def only_connection(kind: type[Wrapper] = Wrapper) -> Pool[Wrapper]:
    """A pool of one connection, so that the next user gets the last one's or a new one."""
    return Pool(kind, max_connections=1)


def was_handed_on(pool: Pool[Wrapper], connection: Wrapper) -> bool:
    """Return whether the next user of a pool gets `connection`, which is closed if not."""
    with pool.connection() as next_one:
        if next_one is connection:
            return True
    eventually(lambda: not connection.is_open, "it is neither kept nor closed")
    assert sum(pool.stats().discarded.values()) == 1
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_whose_exchanges_end_well_is_kept(kind: type[Wrapper]) -> None:
    with only_connection(kind) as pool:
        with pool.connection() as connection:
            assert connection.ask() == "reply"
            assert connection.ask_twice() == "reply"
            assert list(connection.rows()) == ["first row", "last row"]
        assert was_handed_on(pool, connection)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_that_is_caught_inside_the_block_discards_the_connection(
    kind: type[Wrapper], error: type[BaseException]
) -> None:
    with only_connection(kind) as pool:
        with pool.connection() as connection, contextlib.suppress(error):
            connection.ask(error())
        assert not was_handed_on(pool, connection)


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_released_after_an_error_is_discarded(kind: type[Wrapper]) -> None:
    with only_connection(kind) as pool:
        connection = pool.acquire()
        try:
            with pytest.raises(TimeoutError):
                connection.ask(TimeoutError())
        finally:
            pool.release(connection)
        assert not was_handed_on(pool, connection)


def test_an_unfinished_exchange_discards_the_connection() -> None:
    with only_connection() as pool:
        with pool.connection() as connection:
            # The caller needs the first row only.
            rows = connection.rows()
            assert next(rows) == "first row"
        assert not was_handed_on(pool, connection)
        rows.close()


def test_a_good_exchange_does_not_make_up_for_a_failed_one() -> None:
    with only_connection() as pool:
        with pool.connection() as connection:
            with pytest.raises(TimeoutError):
                connection.ask(TimeoutError())
            # This may be refused as well.
            with contextlib.suppress(Exception):
                connection.ask()
        assert not was_handed_on(pool, connection)


def test_an_outer_exchange_is_not_over_when_an_inner_one_ends() -> None:
    with only_connection() as pool:
        with pool.connection() as connection, pytest.raises(TimeoutError):
            connection.ask_twice(TimeoutError())
        assert not was_handed_on(pool, connection)


def test_a_failed_inner_exchange_discards_the_connection() -> None:
    with only_connection() as pool:
        with pool.connection() as connection:
            assert connection.ask_in_spite_of(TimeoutError()) == "fallback"
        assert not was_handed_on(pool, connection)


def test_the_guard_raises_every_error_unchanged() -> None:
    connection = Wrapper()
    for kind in ERRORS:
        error = kind()
        with pytest.raises(kind) as caught:
            connection.ask(error)
        assert caught.value is error


def test_a_connection_with_an_unfinished_or_failed_exchange_is_not_reusable() -> None:
    connection = Wrapper()
    connection.open()
    assert connection.is_reusable(None)
    rows = connection.rows()
    next(rows)
    assert not connection.is_reusable(None)
    assert list(rows) == ["last row"]
    assert connection.is_reusable(None)
    with pytest.raises(TimeoutError):
        connection.ask(TimeoutError())
    assert not connection.is_reusable(None)


def test_a_failed_exchange_does_not_affect_another_connection() -> None:
    broken, whole = Wrapper(), Wrapper()
    broken.open()
    whole.open()
    with pytest.raises(TimeoutError):
        broken.ask(TimeoutError())
    assert whole.is_reusable(None)


# Our own streams


class Line(TcpConnection):
    def ask(self, line: bytes, error: BaseException | None = None) -> bytes:
        with self.exchange():
            self.send(line + b"\n")
            if error is not None:
                # It comes while the caller does something else, for what is sent and received is guarded anyway.
                raise error
            return self.recv_until(b"\n")


def test_a_stream_with_an_unread_reply_is_not_handed_on(echo_port: int) -> None:
    with Pool(Line, {"host": "127.0.0.1", "port": echo_port}, max_connections=1) as pool:
        with pool.connection() as connection:
            assert connection.ask(b"one") == b"one\n"
        with pool.connection() as again:
            assert again is connection
            with pytest.raises(ValueError, match="two"):
                again.ask(b"two", ValueError("two"))
        with pool.connection() as another:
            assert another is not connection
            assert another.ask(b"three") == b"three\n"


class Persistent(TcpConnection):
    """Reconnects in the middle of an exchange, and tries again."""

    def ask(self, line: bytes, error: BaseException | None = None) -> bytes:
        """Ask a second time over a new stream. `error` cuts that short."""
        with self.exchange():
            self.send(line + b"\n")
            self.reconnect()
            assert not self.is_reusable(None), "the exchange is still in progress"
            self.send(line + b"\n")
            if error is not None:
                raise error
            return self.recv_until(b"\n")

    def ask_in_vain(self, line: bytes, error: BaseException) -> None:
        """Ask a second time by an exchange inside the first one, which `error` cuts short."""
        with self.exchange():
            self.reconnect()
            with contextlib.suppress(type(error)), self.exchange():
                self.send(line + b"\n")
                raise error


@contextmanager
def pool_of_persistent(port: int) -> Iterator[Pool[Persistent]]:
    with Pool(Persistent, {"host": "127.0.0.1", "port": port}, max_connections=1) as pool:
        yield pool


def test_an_exchange_that_reconnects_and_ends_well_keeps_the_connection(echo_port: int) -> None:
    with pool_of_persistent(echo_port) as pool:
        with pool.connection() as connection:
            assert connection.ask(b"one") == b"one\n"
        with pool.connection() as again:
            assert again is connection
            assert again.ask(b"two") == b"two\n"


@pytest.mark.parametrize("step", ["raw", "same exchange", "exchange inside", "later exchange"])
def test_an_exchange_that_fails_after_a_reconnect_discards_the_connection(echo_port: int, step: str) -> None:
    with pool_of_persistent(echo_port) as pool:
        with pool.connection() as connection, contextlib.suppress(ValueError, TimeoutError):
            if step == "same exchange":
                connection.ask(b"lost", ValueError())
            elif step == "exchange inside":
                connection.ask_in_vain(b"lost", ValueError())
            else:
                assert connection.ask(b"one") == b"one\n"
                if step == "later exchange":
                    with connection.exchange():
                        connection.send(b"lost\n")
                        raise ValueError
                connection.socket.settimeout(0.01)
                connection.recv()
        with pool.connection() as another:
            assert another is not connection
            assert another.ask(b"mine") == b"mine\n"


class OldLine(TcpConnection):
    """Has a method of its own that happens to be called like the guard."""

    def exchange(self, line: bytes) -> bytes:
        self.send(line + b"\n")
        return self.recv_until(b"\n")


def test_a_class_with_an_exchange_method_of_its_own_still_works(echo_port: int) -> None:
    with Pool(OldLine, {"host": "127.0.0.1", "port": echo_port}, max_connections=1) as pool:
        with pool.connection() as connection:
            assert connection.exchange(b"one") == b"one\n"
        with pool.connection() as again:
            assert again is connection
            with gevent.Timeout(0.01, False):
                again.recv()
        with pool.connection() as another:
            assert another is not connection
            assert another.exchange(b"two") == b"two\n"


# A client of the standard library


class CooperativeClient(http.client.HTTPConnection):
    """A client as it is where gevent has patched."""

    def connect(self) -> None:
        self.sock = gevent.socket.create_connection((self.host, self.port), self.timeout)


class HttpConnection(Connection):
    def __init__(self, port: int, timeout: float) -> None:
        self.client = CooperativeClient("127.0.0.1", port, timeout=PATIENCE)
        self.timeout = timeout

    def open(self) -> None:
        self.client.connect()
        self.client.sock.settimeout(self.timeout)

    def close(self) -> None:
        self.client.close()

    def is_connected(self) -> bool:
        return self.client.sock is not None

    def get(self) -> Any:
        return self.client.sock

    @contextmanager
    def response(self, path: str) -> Iterator[http.client.HTTPResponse]:
        with self.exchange():
            self.client.request("GET", path)
            response = self.client.getresponse()
            yield response
            # The view may need no more than the status.
            response.read()


@contextmanager
def pool_of_clients(*timeouts: float) -> Iterator[tuple[Pool[HttpConnection], Event]]:
    """Give a pool of one connection to a web server, and what the server waits for before it answers ``/slow``.

    :param timeouts: of the connections, in the order of their opening.
    """
    gate = Event()
    left = list(timeouts)

    def app(environ: Any, start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            gate.wait()
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    web = WSGIServer(("127.0.0.1", 0), app, log=None, error_log=None)
    web.start()
    try:
        with Pool(HttpConnection, lambda: {"port": web.server_port, "timeout": left.pop(0)}, max_connections=1) as pool:
            yield pool, gate
    finally:
        gate.set()
        web.stop()


def status_or_fallback(pool: Pool[HttpConnection], path: str) -> int | str:
    """Return what a view answers that needs the status only, and can do without."""
    with pool.connection() as connection:
        try:
            with connection.response(path) as response:
                return response.status
        except TimeoutError:
            return "fallback"


def body(pool: Pool[HttpConnection]) -> bytes:
    """Return what another view answers."""
    with pool.connection() as connection, connection.response("/") as response:
        return response.read()


def test_no_view_gets_a_client_that_timed_out_in_the_block_of_another_view() -> None:
    with pool_of_clients(0.05, PATIENCE) as (pool, gate):
        assert status_or_fallback(pool, "/slow") == "fallback"
        gate.set()
        assert [body(pool), body(pool)] == [b"ok", b"ok"]
        assert pool.stats().opened == 2


def test_a_view_that_reads_only_the_status_leaves_a_reusable_client() -> None:
    with pool_of_clients(PATIENCE) as (pool, _):
        assert status_or_fallback(pool, "/") == 200
        assert [body(pool), body(pool)] == [b"ok", b"ok"]
        assert pool.stats().opened == 1


# The documents


def wrapping_classes() -> dict[str, ast.ClassDef]:
    """Return the classes in the documents' examples that derive from Connection itself, by where they are."""
    found = {}
    for document in DOCUMENTS:
        for block in blocks(document):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ClassDef) and "Connection" in map(ast.unparse, node.bases):
                    found[f"{document.name}: {node.name}"] = node
    return found


def uses_the_guard(node: ast.ClassDef) -> bool:
    withs = [inner for inner in ast.walk(node) if isinstance(inner, ast.With)]
    return any("self.exchange()" in map(ast.unparse, [item.context_expr for item in one.items]) for one in withs)


def test_the_documents_have_an_example_of_a_class_that_wraps_a_client() -> None:
    assert wrapping_classes()


def test_every_example_of_a_class_that_wraps_a_client_uses_the_guard() -> None:
    assert [where for where, node in wrapping_classes().items() if not uses_the_guard(node)] == []


def test_the_documents_say_under_which_condition_an_exception_may_be_caught() -> None:
    text = (ROOT / "docs" / "concepts.rst").read_text()
    promise = text[text.index("Replies stay with their requests") : text.index("Nothing is left open")]
    assert re.search(r"\bonly\s+(then|if|when|where)\b", promise, re.IGNORECASE)
