"""A request has connections and a time of its own, and its end gives back what the view forgot."""

from __future__ import annotations

import gc
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from flask import Flask, Response, abort, copy_current_request_context, current_app, request, stream_with_context
from werkzeug.test import create_environ

from flask_gsocketpool import (
    ConfigurationError,
    GSocketPool,
    UnreleasedConnectionWarning,
    connection_closed,
    connection_opened,
    current_connection,
    current_connections,
    current_pool,
    current_pools,
    pool_exhausted,
)
from flask_gsocketpool.testing import override_pool
from gsocketpool import ConnectionNotFoundError, InvalidArgumentError, PoolExhaustedError
from gsocketpool.testing import FakePool
from tests.support.internals import sweep, use_clock_for_requests
from tests.support.scripted import (
    PATIENCE,
    Backend,
    CheckedConnection,
    Clock,
    eventually,
    numbers,
    settle,
    spawn_acquire,
)

TOO_LONG = 1000


def touch() -> int:
    """Make the request have a connection of its own."""
    number: int = current_connection.number
    return number


class App(Flask):
    """An app with one pool, which tells what its views do."""

    def __init__(self, backend: Backend, **config: Any) -> None:
        super().__init__("app")
        self.config.update(SOCKETPOOL_FACTORY=backend.connect, SOCKETPOOL_ACQUIRE_TIMEOUT=TOO_LONG, **config)
        GSocketPool(self)
        #: What the last view has seen.
        self.seen: list[Any] = []

    def ask(self, view: Any, **arguments: Any) -> Any:
        """The response to a request that `view` answers."""
        self.view_functions["view"] = view
        if not any(rule.endpoint == "view" for rule in self.url_map.iter_rules()):
            self.add_url_rule("/", "view", view)
        return self.test_client().get("/", **arguments)

    def numbers(self) -> tuple[int, int, int, int]:
        with self.app_context():
            return numbers(current_pool)

    def stats(self) -> Any:
        with self.app_context():
            return current_pool.stats()


# Not called `app`: pytest-flask would push a request context of it around every test.
@pytest.fixture
def site(backend: Backend) -> App:
    return App(backend, SOCKETPOOL_MAX_CONNECTIONS=2)


# The request's own connection


def test_a_request_has_one_connection_of_its_own_from_the_first_use_to_its_end(site: App) -> None:
    def view() -> str:
        assert site.numbers()[0] == 0
        first = current_connection.number
        assert site.numbers() == (1, 0, 0, 0)
        assert current_connections["default"] is current_connection._get_current_object()
        return f"{first} {current_connection.number}"

    assert site.ask(view).text == "0 0"
    assert site.numbers() == (0, 1, 0, 0)
    assert site.ask(view).text == "0 0"


def test_a_request_that_uses_no_connection_opens_none(site: App) -> None:
    assert site.ask(lambda: "nothing").text == "nothing"
    assert site.stats().opened == 0


def test_an_error_of_opening_is_not_taken_for_a_missing_pool() -> None:
    def read_options() -> dict[str, Any]:
        raise KeyError("no such variable")

    app = Flask("app")
    app.config.update(SOCKETPOOL_FACTORY="gsocketpool:TcpConnection", SOCKETPOOL_OPTIONS=read_options)
    GSocketPool(app)
    with app.app_context():
        with pytest.raises(KeyError, match="no such variable"):
            current_connections.get("default")
        assert current_connections.get("other") is None
        assert current_pools.get("other", "none") == "none"
        assert current_pools.get("default") is current_pool._get_current_object()


def test_concurrent_requests_have_different_connections(site: App) -> None:
    def view() -> str:
        number = current_connection.number
        gevent.sleep(0)
        assert current_connection.number == number
        return str(number)

    site.ask(view)
    greenlets = [gevent.spawn(lambda: site.test_client().get("/").text) for _ in range(6)]
    gevent.joinall(greenlets, raise_error=True)
    assert {greenlet.value for greenlet in greenlets} == {"0", "1"}
    assert site.stats().opened == 2


def test_named_pools_have_connections_of_their_own(backend: Backend) -> None:
    app = App(backend, SOCKETPOOL_POOLS={"cache": {"factory": backend.connect}})

    def view() -> str:
        assert set(current_connections) == {"default", "cache"}
        assert len(current_connections) == 2
        assert current_connections["cache"] is not current_connections["default"]
        assert numbers(current_pools["cache"]) == numbers(current_pool) == (1, 0, 0, 0)
        return "ok"

    assert app.ask(view).text == "ok"
    with app.app_context():
        assert numbers(current_pools["cache"]) == numbers(current_pool) == (0, 1, 0, 0)


def test_a_request_gets_another_connection_after_a_discard_by_hand(site: App) -> None:
    def view() -> str:
        current_pool.discard(current_connections["default"])
        return str(current_connection.number)

    assert site.ask(view).text == "1"
    assert site.numbers() == (0, 1, 0, 0)


@pytest.mark.parametrize("propagate", [True, False])
def test_an_unhandled_exception_discards_the_current_connection(site: App, propagate: bool) -> None:
    site.testing = propagate

    def view() -> str:
        touch()
        raise LookupError

    if propagate:
        with pytest.raises(LookupError):
            site.ask(view)
    else:
        assert site.ask(view).status_code == 500
    assert site.stats().discarded == {"error": 1}
    assert site.numbers() == (0, 0, 0, 0)


def leave_by_abort() -> None:
    abort(404)


def leave_by_exhaustion() -> None:
    held = [current_pool.acquire()]
    try:
        held.append(current_pool.acquire(timeout=0))
    finally:
        current_pool.release(held[0])


def leave_by_error() -> None:
    raise LookupError


@pytest.mark.parametrize(
    ("leave", "status"), [(leave_by_abort, 404), (leave_by_exhaustion, 503), (leave_by_error, 409)]
)
def test_an_exception_that_the_app_handles_discards_it_like_any_other(
    site: App, leave: Callable[[], None], status: int
) -> None:
    def handle(error: LookupError) -> tuple[str, int]:
        # The connection that was in use before may have a reply on its way.
        return str(current_connection.number), 409

    site.register_error_handler(LookupError, handle)

    def view() -> str:
        touch()
        leave()
        return "never"

    response = site.ask(view)
    assert response.status_code == status
    if leave is leave_by_error:
        assert response.text == "1"
    assert site.stats().discarded == {"error": 1}
    assert site.numbers()[0] == 0


def test_an_exception_in_a_request_without_connections_changes_nothing(site: App) -> None:
    assert site.ask(leave_by_abort).status_code == 404
    assert site.stats().opened == 0


def test_a_current_connection_outside_a_request_lasts_as_long_as_the_app_context(site: App) -> None:
    with site.app_context():
        assert current_connection.number == 0
        assert site.ask(lambda: str(current_connection.number)).text == "1"
        assert current_connection.number == 0
        assert site.numbers() == (1, 1, 0, 0)
    assert site.numbers() == (0, 2, 0, 0)
    with pytest.raises(RuntimeError, match="no application context"):
        touch()


def test_a_current_connection_in_a_pushed_request_context_lasts_as_long_as_the_context(site: App) -> None:
    with site.test_request_context():
        assert current_connection.number == 0
        assert site.numbers() == (1, 0, 0, 0)
    assert site.numbers() == (0, 1, 0, 0)


def test_each_request_inside_an_outer_app_context_gives_its_connection_back_at_its_end(site: App) -> None:
    with site.app_context():
        for _ in range(3):
            assert site.ask(lambda: str(current_connection.number)).text == "0"
            assert site.numbers() == (0, 1, 0, 0)


def test_a_request_within_a_request_has_a_connection_of_its_own(site: App) -> None:
    def inner() -> str:
        return str(current_connection.number)

    site.add_url_rule("/inner", "inner", inner)

    def outer() -> str:
        own = current_connection.number
        other = site.test_client().get("/inner").text
        assert current_connection.number == own
        assert site.numbers() == (1, 1, 0, 0)
        return f"{own} {other}"

    assert site.ask(outer).text == "0 1"
    assert site.numbers() == (0, 2, 0, 0)


def test_a_test_client_that_keeps_the_context_keeps_the_connection(site: App) -> None:
    site.testing = True
    with site.test_client() as client:
        site.ask(lambda: str(touch()))
        for _ in range(3):
            assert client.get("/").text == "0"
            # As a test does that looks at what the view has done.
            assert request.path == "/"
            assert touch() == 0
            assert site.numbers() == (1, 0, 0, 0)
    assert site.numbers() == (0, 1, 0, 0)


def test_a_current_connection_in_a_context_pushed_twice_lasts_until_the_second_pop(site: App) -> None:
    context = site.test_request_context()
    context.push()
    context.push()
    assert touch() == 0
    context.pop()
    assert touch() == 0
    assert site.numbers() == (1, 0, 0, 0)
    context.pop()
    assert site.numbers() == (0, 1, 0, 0)


def test_a_request_to_another_app_within_a_request_uses_the_pool_of_that_app(backend: Backend) -> None:
    one, two = App(backend), App(backend)

    def inner() -> str:
        return str(touch())

    def outer() -> str:
        own = touch()
        other = two.ask(inner).text
        assert touch() == own
        assert (one.numbers(), two.numbers()) == ((1, 0, 0, 0), (0, 1, 0, 0))
        return f"{own} {other}"

    assert one.ask(outer).text == "0 1"
    assert (one.numbers(), two.numbers()) == ((0, 1, 0, 0), (0, 1, 0, 0))


def test_an_app_context_of_another_app_within_a_request_has_a_connection_of_its_own(backend: Backend) -> None:
    one, two = App(backend), App(backend)

    def view() -> str:
        own = current_connection.number
        with two.app_context():
            foreign = current_connection.number
            assert two.numbers() == (1, 0, 0, 0)
        assert two.numbers() == (0, 1, 0, 0)
        assert current_connection.number == own
        return f"{own} {foreign}"

    assert one.ask(view).text == "0 1"
    assert one.numbers() == (0, 1, 0, 0)


def test_a_greenlet_with_a_copy_of_the_request_context_has_a_connection_of_its_own(site: App) -> None:
    def view() -> str:
        @copy_current_request_context
        def other() -> int:
            number: int = current_connection.number
            return number

        own = current_connection.number
        greenlet = gevent.spawn(other)
        assert greenlet.get() != own
        assert site.numbers() == (1, 1, 0, 0)
        assert current_connection.number == own
        return "ok"

    assert site.ask(view).text == "ok"
    assert site.numbers() == (0, 2, 0, 0)


def use_block() -> bool:
    with current_pool.connection() as connection:
        settle()
        return bool(connection.is_open)


def use_by_hand() -> bool:
    connection = current_pool.acquire()
    settle()
    is_open = bool(connection.is_open)
    current_pool.release(connection)
    return is_open


def use_own() -> bool:
    connection = current_connection._get_current_object()
    settle()
    return bool(connection.is_open)


@pytest.mark.parametrize("use", [use_block, use_by_hand, use_own])
def test_a_connection_acquired_by_a_greenlet_after_the_end_of_its_request_is_taken_back(
    backend: Backend, use: Callable[[], bool]
) -> None:
    app = App(backend, SOCKETPOOL_MAX_CONNECTIONS=1)
    with app.app_context():
        pool = current_pool._get_current_object()
        held = pool.acquire()

    def view() -> str:
        greenlets.append(gevent.spawn(copy_context().run, use))
        settle()
        return "ok"

    greenlets: list[Any] = []
    assert app.ask(view).text == "ok"
    pool.release(held)
    assert greenlets[0].get(timeout=PATIENCE)
    greenlets.clear()
    gc.collect()
    settle()
    assert numbers(pool)[0] == 0


def test_greenlets_that_share_a_context_share_its_current_connection(backend: Backend) -> None:
    app = App(backend, SOCKETPOOL_MAX_CONNECTIONS=3)
    app.testing = True

    def view() -> str:
        greenlets = [gevent.spawn(copy_context().run, touch) for _ in range(2)]
        return str([greenlet.get(timeout=PATIENCE) for greenlet in greenlets])

    assert app.ask(view).text == "[0, 0]"
    assert app.numbers()[0] == 0


def test_current_connection_enters_a_block_of_a_replacement_pool(site: App) -> None:
    class Block:
        def __enter__(self) -> str:
            log.append("enter")
            return "scripted"

        def __exit__(self, kind: Any, error: Any, where: Any) -> None:
            log.append(error)

    log: list[Any] = []
    override_pool(site, "default", SimpleNamespace(connection=Block))
    assert site.ask(lambda: current_connection + current_connection).text == "scriptedscripted"
    assert log == ["enter", None]


def test_a_replacement_pool_is_called_with_the_arguments_of_the_view(site: App) -> None:
    class Bare:
        @contextmanager
        def connection(self) -> Iterator[str]:
            yield "scripted"

    with override_pool(site, "default", Bare()), site.app_context(), current_pool.connection() as connection:
        assert connection == "scripted"


def test_a_replacement_pool_takes_effect_and_ends_at_once(site: App) -> None:
    def view() -> str:
        own = current_connection.number
        with override_pool(site, "default", FakePool(SimpleNamespace(number="another"))):
            other = current_connection.number
        return f"{own} {other} {current_connection.number}"

    assert site.ask(view).text == "0 another 0"


# Streaming


def stream(*, touch_first: bool) -> Any:
    """A view whose body says which connection it has, three times."""

    def view() -> Response:
        if touch_first:
            touch()

        def body() -> Iterator[str]:
            for _ in range(3):
                yield str(current_connection.number)

        return Response(stream_with_context(body()))

    return view


@pytest.mark.parametrize("touch_first", [True, False])
def test_a_streamed_body_keeps_its_connection_until_its_end(site: App, touch_first: bool) -> None:
    response = site.ask(stream(touch_first=touch_first), buffered=False)
    parts = response.iter_encoded()
    assert next(parts) == b"0"
    assert site.numbers() == (1, 0, 0, 0)
    assert b"".join(parts) == b"00"
    response.close()
    assert site.numbers() == (0, 1, 0, 0)
    assert site.stats().discarded == {}


def test_no_other_request_gets_a_connection_between_its_view_and_its_body(site: App) -> None:
    assert site.ask(stream(touch_first=True)).text == "000"
    # A client of Flask's asks for the first piece at once.
    body: Any = site.wsgi_app(create_environ("/"), lambda *arguments: len)
    assert site.numbers() == (1, 0, 0, 0)
    assert b"".join(body) == b"000"
    body.close()
    assert site.numbers() == (0, 1, 0, 0)


@pytest.mark.parametrize("touch_first", [True, False])
def test_a_body_that_is_closed_before_its_end_discards_its_connection(site: App, touch_first: bool) -> None:
    response = site.ask(stream(touch_first=touch_first), buffered=False)
    next(response.iter_encoded())
    response.close()
    assert site.numbers() == (0, 0, 0, 0)
    assert site.stats().discarded == {"error": 1}


@pytest.mark.parametrize("end", ["read", "closed"])
def test_a_body_without_a_context_may_use_a_connection_of_its_view(site: App, end: str) -> None:
    def view() -> Response:
        # Not the proxy, which is nothing there.
        connection = current_connections["default"]
        return Response(str(connection.number) for _ in range(3))

    response = site.ask(view, buffered=False)
    parts = response.iter_encoded()
    assert next(parts) == b"0"
    assert site.numbers() == (1, 0, 0, 0)
    if end == "read":
        assert b"".join(parts) == b"00"
    response.close()
    assert site.numbers()[0] == 0
    assert site.stats().discarded == ({} if end == "read" else {"error": 1})


def test_a_body_that_is_never_read_gives_its_connection_back(site: App) -> None:
    assert site.ask(stream(touch_first=True)).text == "000"
    before = site.stats().opened
    site.test_client().head("/").close()
    assert site.stats().discarded == {}
    assert site.stats().opened == before
    assert site.numbers() == (0, 1, 0, 0)


def test_a_body_that_fails_discards_its_connection(site: App) -> None:
    def view() -> Response:
        def body() -> Iterator[str]:
            yield str(current_connection.number)
            raise LookupError

        return Response(stream_with_context(body()))

    response = site.ask(view, buffered=False)
    with pytest.raises(LookupError):
        list(response.iter_encoded())
    response.close()
    assert site.stats().discarded == {"error": 1}


def test_an_error_after_a_streamed_response_was_made_discards_its_connection(site: App) -> None:
    site.testing = True

    @site.after_request
    def fail(response: Response) -> Response:
        raise LookupError

    def ask() -> None:
        with pytest.raises(LookupError):
            site.ask(stream(touch_first=True))

    # They are called in the reverse order, so the response is held for its body before this one.
    site.after_request_funcs[None].reverse()
    ask()
    # Flask 3.0 ends the request when the body is collected.
    gc.collect()
    assert site.numbers() == (0, 0, 0, 0)


# What a request holds


@pytest.mark.parametrize("own", [True, False])
def test_a_request_that_would_wait_for_itself_gets_an_error_at_once(backend: Backend, own: bool) -> None:
    app = App(backend, SOCKETPOOL_MAX_CONNECTIONS=1)
    errors = []

    def view() -> str:
        try:
            if own:
                touch()
                current_pool.acquire()
            else:
                with current_pool.connection(), current_pool.connection():
                    pass
        except PoolExhaustedError as error:
            errors.append(error)
        return "told"

    with gevent.Timeout(PATIENCE):
        assert app.ask(view).text == "told"
    (error,) = errors
    assert "this request holds <connection 0> of pool 'default', acquired at " in str(error)
    assert "test_requests.py:" in str(error)
    assert error.held_by_caller == 1


def test_a_request_that_would_wait_for_itself_in_a_block_made_before_gets_an_error_at_once(backend: Backend) -> None:
    app = App(backend, SOCKETPOOL_MAX_CONNECTIONS=1)

    def view() -> str:
        block = current_pool.connection()
        touch()
        with pytest.raises(PoolExhaustedError, match="this request holds <connection 0>"):
            block.__enter__()
        return "told"

    with gevent.Timeout(PATIENCE):
        assert app.ask(view).text == "told"


def use_for_a_while() -> int:
    with current_pool.connection() as connection:
        settle()
        number: int = connection.number
        return number


def test_greenlets_that_share_the_context_wait_for_each_other(backend: Backend) -> None:
    app = App(backend, SOCKETPOOL_MAX_CONNECTIONS=1)

    def view() -> str:
        use_for_a_while()
        greenlets = [gevent.spawn(copy_context().run, use_for_a_while) for _ in range(3)]
        return str([greenlet.get(timeout=PATIENCE) for greenlet in greenlets])

    assert app.ask(view).text == "[0, 0, 0]"


def test_a_request_waits_for_a_block_that_it_has_handed_to_another_greenlet(backend: Backend) -> None:
    app = App(backend, SOCKETPOOL_MAX_CONNECTIONS=1)

    def view() -> str:
        lease = current_pool.connection()
        lease.__enter__()

        def take_over() -> None:
            lease.transfer()
            settle()
            lease.release()

        greenlet = gevent.spawn(copy_context().run, take_over)
        gevent.sleep(0)
        number = use_for_a_while()
        greenlet.join()
        return str(number)

    assert app.ask(view).text == "0"


def calls_of(function: Callable[[], object]) -> int:
    """Return how many functions of Python a function calls, all in all."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("by_block", [True, False])
def test_the_cost_of_an_acquire_does_not_grow_with_the_connections_of_its_request(
    backend: Backend, by_block: bool
) -> None:
    app = App(backend, SOCKETPOOL_MAX_CONNECTIONS=1000)
    with app.app_context():
        current_pool.fill(400)
    acquire = (lambda: current_pool.connection().__enter__()) if by_block else (lambda: current_pool.acquire())

    def hold(number: int) -> int:
        with app.test_request_context():
            held: list[Any] = []
            calls = calls_of(lambda: held.extend(acquire() for _ in range(number)))
            for connection in held:
                current_pool.release(connection)
            return calls

    assert hold(400) < 3 * hold(200)


def test_an_error_names_the_connections_of_a_request_even_if_they_are_given_back_meanwhile(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(backend, SOCKETPOOL_MAX_CONNECTIONS=2)

    def view() -> str:
        first, second = current_pool.acquire(), current_pool.acquire()
        monkeypatch.setattr(type(first), "__repr__", give_back)
        to_give_back.append(second)
        with pytest.raises(PoolExhaustedError) as caught:
            current_pool.acquire(timeout=0)
        return str(caught.value)

    def give_back(connection: Any) -> str:
        # Once: the error of a second release shows the connection, and so would call this again and again.
        while to_give_back:
            current_pool.release(to_give_back.pop())
        return f"<connection {connection.number}>"

    to_give_back: list[Any] = []
    said = app.ask(view).text
    assert "this request holds <connection 0>" in said
    assert "this request holds <connection 1>" in said


def test_a_request_waits_for_a_connection_that_another_caller_holds(backend: Backend) -> None:
    app = App(backend, SOCKETPOOL_MAX_CONNECTIONS=2)
    with app.app_context():
        held = current_pool.acquire()
        pool = current_pool._get_current_object()

    def view() -> str:
        touch()
        gevent.spawn(pool.release, held)
        with current_pool.connection() as connection:
            return str(connection.number)

    assert app.ask(view).text == "0"


def test_a_request_waits_for_connections_that_its_own_greenlets_give_back(backend: Backend) -> None:
    app = App(backend, SOCKETPOOL_MAX_CONNECTIONS=2)

    def view() -> str:
        pool = current_pool._get_current_object()
        gevent.joinall([gevent.spawn(pool.release, current_pool.acquire()) for _ in range(6)])
        return "fanned out"

    assert app.ask(view).text == "fanned out"
    assert app.stats().discarded == {}


def forget() -> str:
    current_pool.acquire()
    return "forgotten"


@pytest.mark.parametrize("mode", ["testing", "debug"])
def test_a_forgotten_connection_is_taken_back_each_time_and_reported(site: App, mode: str) -> None:
    setattr(site, mode, True)
    with pytest.warns(UnreleasedConnectionWarning, match=r"a request has not given back <connection 0> .* in forget"):
        site.ask(forget)
    assert site.numbers() == (0, 0, 0, 0)
    assert site.stats().discarded == {"not_released": 1}
    site.ask(forget)
    assert site.stats().discarded == {"not_released": 2}


def test_each_place_that_forgets_a_connection_is_reported_once(site: App, caplog: pytest.LogCaptureFixture) -> None:
    def view() -> str:
        current_pool.acquire()
        current_pool.acquire()
        return "both forgotten"

    first = view.__code__.co_firstlineno + 1
    for _ in range(2):
        site.ask(view)
    places = [f"acquired at {__file__}:{line} in view" for line in (first, first + 1)]
    assert [record.getMessage().endswith(place) for record, place in zip(caplog.records, places, strict=True)] == [
        True,
        True,
    ]


@pytest.mark.parametrize("what", ["own", "forgotten"])
def test_the_end_of_a_request_does_not_wait_until_its_connections_are_closed(backend: Backend, what: str) -> None:
    names = ["default", "one", "two"]
    app = App(backend, SOCKETPOOL_POOLS={name: {"factory": backend.connect} for name in names[1:]})

    def view() -> str:
        for name in names:
            if what == "own":
                assert current_connections[name].is_open
            else:
                current_pools[name].acquire()
        backend.closes.clear()
        raise LookupError

    assert app.ask(view).status_code == 500
    with app.app_context():
        assert [numbers(current_pools[name]) for name in names] == [(0, 0, 0, 0)] * 3
    assert len(backend.open) == 3
    backend.closes.set()
    settle()
    assert not backend.open


def test_a_connection_that_was_taken_back_can_not_be_released_by_its_request(backend: Backend) -> None:
    """While the first one is closed, no caller can have got the second."""
    app = App(backend)

    def view() -> str:
        held.extend([current_pool.acquire(), current_pool.acquire()])
        pools.append(current_pool._get_current_object())
        backend.closes.clear()
        return "ok"

    held: list[Any] = []
    pools: list[Any] = []
    request = gevent.spawn(app.ask, view)
    settle()
    with pytest.raises(ConnectionNotFoundError):
        pools[0].release(held[1])
    backend.closes.set()
    request.join()
    assert numbers(pools[0]) == (0, 0, 0, 0)


def abandon(context: Any) -> None:
    """Let go of a context that Flask has not ended."""
    context.__enter__()
    touch()
    current_pool.acquire()
    # What another teardown function that raises does to it, until Flask 3.2 calls the rest all the same.
    with suppress(Exception):
        context.__exit__(None, None, None)


def test_a_forgotten_connection_is_taken_back_when_its_abandoned_context_is_collected(site: App) -> None:
    @site.teardown_request
    def fail(error: Any) -> None:
        raise ZeroDivisionError

    abandon(site.test_request_context())
    gc.collect()
    settle()
    assert site.numbers()[0] == 0
    assert site.stats().discarded["not_released"]


def test_a_connection_of_a_response_that_is_never_closed_is_taken_back(site: App) -> None:
    site.ask(lambda: abort(418) if touch() == 0 else "never")
    gc.collect()
    settle()
    assert site.numbers()[0] == 0


def test_a_connection_forgotten_in_an_aborted_request_is_reported(site: App, caplog: pytest.LogCaptureFixture) -> None:
    def view() -> str:
        forget()
        abort(404)

    response = site.ask(view)
    assert b"Not Found" in response.data
    response.close()
    assert "has not given back" in caplog.text


def test_a_copied_request_context_in_the_same_greenlet_leaves_the_outer_connection_alone(site: App) -> None:
    def view() -> str:
        own = touch()
        assert copy_current_request_context(touch)() != own
        assert touch() == own
        assert site.numbers() == (1, 1, 0, 0)
        return "ok"

    assert site.ask(view).text == "ok"


def test_steps_of_a_connection_do_not_call_the_teardown_functions_of_the_app(site: App) -> None:
    @site.teardown_appcontext
    def use(error: Any) -> None:
        calls.append(touch())

    calls: list[int] = []
    assert site.ask(lambda: str(touch())).text == "0"
    assert calls == [0]


def test_a_long_request_does_not_remember_every_use(site: App) -> None:
    def view() -> str:
        for _ in range(100):
            current_pool.discard(current_pool.acquire())
        return str(len(site.extensions["gsocketpool"].scopes.current().noted) < 20)

    assert site.ask(view).text == "True"


def test_a_forgotten_connection_is_logged_once_in_production(site: App, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        site.ask(forget)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "has not given back <connection 0> of pool 'default', acquired at" in record.getMessage()


def test_connections_given_back_or_detached_are_not_reported(site: App) -> None:
    site.testing = True

    def view() -> str:
        current_pool.release(current_pool.acquire())
        current_pool.discard(current_pool.acquire())
        current_pool.detach(current_pool.acquire())
        with current_pool.connection():
            return "ok"

    assert site.ask(view).text == "ok"
    assert "not_released" not in site.stats().discarded


def test_connections_held_outside_of_requests_are_left_alone(site: App) -> None:
    site.testing = True
    with site.app_context():
        held = current_pool.acquire()
        site.ask(lambda: "ok")
    assert site.numbers() == (1, 0, 0, 0)
    with site.app_context():
        current_pool.release(held)


# The request's time


def test_request_timeout_bounds_all_acquires_of_a_request_together(backend: Backend) -> None:
    app = App(backend, SOCKETPOOL_REQUEST_TIMEOUT="0.05", SOCKETPOOL_MAX_CONNECTIONS=1)
    with app.app_context():
        held = current_pool.acquire()

    def view() -> str:
        for timeout in (None, TOO_LONG, math.inf):
            with pytest.raises(PoolExhaustedError) as caught:
                current_pool.acquire(timeout=timeout)
            assert caught.value.timeout <= 0.05
        with pytest.raises(InvalidArgumentError):
            current_pool.acquire(timeout=-1)
        return "over"

    assert app.ask(view).text == "over"
    with app.test_request_context(), pytest.raises(PoolExhaustedError):
        current_pool.acquire()
    with app.app_context():
        current_pool.release(held)
    assert app.ask(lambda: str(current_connection.number)).text == "0"
    with app.app_context():
        assert current_connection.number == 0, "outside of a request, the time is not limited"


def test_an_acquire_gets_the_rest_of_the_request_timeout(
    backend: Backend, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_clock_for_requests(monkeypatch, clock)
    other = {"factory": backend.connect, "max_connections": 1}
    app = App(backend, SOCKETPOOL_REQUEST_TIMEOUT=10, SOCKETPOOL_MAX_CONNECTIONS=1, SOCKETPOOL_POOLS={"other": other})
    with app.app_context():
        assert current_pools["default"].acquire() is not current_pools["other"].acquire()
    acquires: list[Callable[[], object]] = [
        lambda: current_pool.acquire(),
        lambda: current_pool.connection().__enter__(),
        lambda: touch(),
        lambda: current_pools["other"].acquire(),
        lambda: current_connections["other"],
    ]

    @app.before_request
    def be_slow() -> None:
        clock.advance(9.99)

    def view() -> str:
        for left, late in (0.01, 0.004), (0.006, 1000), (0, 0):
            for acquire in acquires:
                with pytest.raises(PoolExhaustedError) as caught:
                    acquire()
                assert caught.value.timeout == pytest.approx(left, abs=1e-6)
            clock.advance(late)
        return "over"

    assert app.ask(view).text == "over"


def exhausted_app(backend: Backend, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> App:
    """An app whose only connection is in use, and whose requests have 10 s by `clock`."""
    use_clock_for_requests(monkeypatch, clock)
    app = App(backend, SOCKETPOOL_REQUEST_TIMEOUT=10, SOCKETPOOL_MAX_CONNECTIONS=1)
    with app.app_context():
        current_pool.acquire()
    return app


def test_copies_of_a_requests_context_share_its_time(
    backend: Backend, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = exhausted_app(backend, clock, monkeypatch)

    def view() -> str:
        clock.advance(9.99)
        with pytest.raises(PoolExhaustedError) as caught:
            copy_current_request_context(current_pool.acquire)()
        assert caught.value.timeout == pytest.approx(0.01, abs=1e-6)
        return "over"

    assert app.ask(view).text == "over"


def test_a_block_gets_the_rest_of_the_request_timeout_when_it_is_entered(
    backend: Backend, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = exhausted_app(backend, clock, monkeypatch)

    def view() -> str:
        block = current_pool.connection()
        clock.advance(9.99)
        with pytest.raises(PoolExhaustedError) as caught:
            block.__enter__()
        assert caught.value.timeout == pytest.approx(0.01, abs=1e-6)
        return "over"

    assert app.ask(view).text == "over"


def test_the_request_timeout_may_be_a_function_of_the_request(backend: Backend) -> None:
    def seconds() -> float | None:
        header = request.headers.get("X-Seconds")
        return None if header is None else float(header)

    app = App(backend, SOCKETPOOL_REQUEST_TIMEOUT=lambda request: seconds(), SOCKETPOOL_MAX_CONNECTIONS=1)
    with app.app_context():
        current_pool.acquire()
        waiting = current_pool._get_current_object()

    def view() -> str:
        with current_pool.connection():
            return "never"

    assert app.ask(view, headers={"X-Seconds": "0.01"}).status_code == 503
    other = gevent.spawn(app.ask, view)
    settle()
    assert numbers(waiting)[3] == 1
    other.kill()
    app.testing = True
    with pytest.raises(InvalidArgumentError, match="SOCKETPOOL_REQUEST_TIMEOUT must be"):
        app.ask(view, headers={"X-Seconds": "-5"})


def tell(request: Any) -> float:
    return 0.01


def test_the_request_timeout_may_be_the_name_of_a_function() -> None:
    app = Flask("app")
    app.config.update(SOCKETPOOL_URL="tcp://localhost:1", SOCKETPOOL_REQUEST_TIMEOUT=f"{__name__}:tell")
    GSocketPool(app)
    with app.test_request_context():
        scopes = app.extensions["gsocketpool"].scopes
        assert scopes.remaining(scopes.current()) <= 0.01


@pytest.mark.parametrize("given", ["soon", 0, -1, [], f"{__name__}:missing"])
def test_a_bad_request_timeout_is_refused(given: Any) -> None:
    app = Flask("app")
    app.config.update(SOCKETPOOL_URL="tcp://localhost:1", SOCKETPOOL_REQUEST_TIMEOUT=given)
    with pytest.raises(ConfigurationError) as caught:
        GSocketPool(app)
    assert caught.value.key == "SOCKETPOOL_REQUEST_TIMEOUT"


# The app's context and its signals


def test_every_step_of_a_connection_runs_in_the_app_context(backend: Backend) -> None:
    class Asking(CheckedConnection):
        def __init__(self, backend: Backend, options: dict[str, Any]) -> None:
            names.append(f"make {current_app.name}")
            super().__init__(backend, options)

        def open(self) -> None:
            names.append(f"open {current_app.name}")
            super().open()

        def is_usable(self) -> bool:
            names.append(f"check {current_app.name}")
            return super().is_usable()

        def is_connected(self) -> bool:
            assert current_app.name == "app"
            return super().is_connected()

        def is_reusable(self, error: BaseException | None) -> bool:
            names.append(f"reuse {current_app.name}")
            return super().is_reusable(error)

        def is_expired(self) -> bool:
            names.append(f"expire {current_app.name}")
            return True

        def close(self) -> None:
            names.append(f"close {current_app.name}")
            super().close()

    def options() -> dict[str, Any]:
        names.append(f"options {current_app.name}")
        return {"backend": backend, "options": {}}

    names: list[str] = []
    app = App(backend)
    app.config.update(SOCKETPOOL_FACTORY=Asking, SOCKETPOOL_OPTIONS=options)
    del app.extensions["gsocketpool"]
    GSocketPool(app)
    with app.app_context():
        pool = current_pool._get_current_object()
    other = Flask("other")

    def use() -> None:
        pool.release(pool.acquire())
        with other.app_context():
            pool.release(pool.acquire())
            assert current_app.name == "other"

    # Without a context, and in that of another app.
    gevent.spawn(use).get()
    gevent.spawn(sweep, pool).join()
    opening = ["options app", "make app", "open app", "reuse app"]
    eventually(lambda: names == [*opening, "check app", "reuse app", "expire app", "close app"])
    names.clear()
    gevent.spawn(use).get()
    gevent.spawn(pool.drop_expired).join()
    eventually(lambda: names == [*opening, "check app", "reuse app", "expire app", "close app"])
    names.clear()

    def use_another() -> None:
        # There is no reference to it afterwards.
        apart = app.extensions["gsocketpool"].private_copy("default")
        apart.release(apart.acquire())

    gevent.spawn(use_another).get()
    gc.collect()
    settle()
    assert names == [*opening, "close app"]


def test_signals_are_sent_in_the_app_context(backend: Backend) -> None:
    app = App(backend, SOCKETPOOL_MAX_CONNECTIONS=1)
    told: list[Any] = []

    def note(sender: Flask, **what: Any) -> None:
        assert sender is current_app._get_current_object() is app  # type: ignore[attr-defined]
        what["pool"] = what["pool"].name
        told.append(what)

    with ExitStack() as stack:
        for signal in (connection_opened, connection_closed, pool_exhausted):
            stack.enter_context(signal.connected_to(note, app))
        stack.enter_context(app.app_context())
        connection = current_pool.acquire()
        with pytest.raises(PoolExhaustedError) as caught:
            current_pool.acquire(timeout=0)
        current_pool.discard(connection)
        settle()
    assert told == [
        {"pool": "default", "connection": connection},
        {"pool": "default", "error": caught.value},
        {"pool": "default", "connection": connection, "reason": "explicit"},
    ]
    with app.app_context():
        current_pool.acquire()
    settle()
    assert len(told) == 3


def test_a_receiver_may_use_current_connections(backend: Backend) -> None:
    app = App(backend, SOCKETPOOL_POOLS={"audit": {"factory": backend.connect}})
    heard: list[str] = []

    def note(sender: Flask, pool: Any, **what: Any) -> None:
        heard.append(pool.name)
        assert current_connections["audit"].is_open

    with connection_closed.connected_to(note, app):
        with app.app_context():
            current_pool.discard(current_pool.acquire())
        eventually(lambda: heard)
        settle()
        assert heard == ["default"]
        with app.app_context():
            assert numbers(current_pools["audit"]) == (0, 1, 0, 0), "given back at the end of the receiver"


def test_a_connection_closed_as_soon_as_it_is_open_is_signalled_in_order(backend: Backend) -> None:
    app = App(backend, SOCKETPOOL_MAX_CONNECTIONS=1)
    told: list[str] = []

    def note_opened(sender: Flask, connection: Any, **what: Any) -> None:
        told.append(f"{connection.number} opened")

    def note_closed(sender: Flask, connection: Any, **what: Any) -> None:
        told.append(f"{connection.number} closed")

    backend.opens.clear()
    with app.app_context():
        pool = current_pool._get_current_object()
    with connection_opened.connected_to(note_opened, app), connection_closed.connected_to(note_closed, app):
        spawn_acquire(pool)
        pool.drain()
        backend.opens.set()
        settle()
    assert told == ["0 opened", "0 closed", "1 opened"]


@pytest.mark.parametrize("command", [["check"], ["bench", "--seconds", "0.01"]], ids=["check", "bench"])
def test_pools_made_by_commands_send_no_signals(site: App, command: list[str]) -> None:
    def note(sender: Flask, **what: Any) -> None:
        told.append(what)

    told: list[Any] = []
    with connection_opened.connected_to(note, site), connection_closed.connected_to(note, site):
        assert site.test_cli_runner().invoke(args=["socketpool", *command]).exit_code == 0
        settle()
    assert told == []


def test_a_receiver_that_waits_does_not_hold_up_a_request(site: App) -> None:
    def wait(sender: Flask, **what: Any) -> None:
        gevent.sleep(PATIENCE)

    with connection_opened.connected_to(wait, site), gevent.Timeout(PATIENCE / 2):
        assert site.ask(lambda: str(current_connection.number)).text == "0"


def test_a_receiver_may_be_async(site: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async def note(sender: Flask, **what: Any) -> None:
        told.append(what["connection"].number)

    # What Flask does with the async extra.
    monkeypatch.setattr(site, "async_to_sync", lambda function: lambda *given, **named: run(function(*given, **named)))
    told: list[int] = []
    with connection_opened.connected_to(note, site):
        site.ask(lambda: str(touch()))
        settle()
    assert told == [0]


def run(coroutine: Any) -> None:
    """Run a coroutine that waits for nothing."""
    with suppress(StopIteration):
        coroutine.send(None)


def test_the_shell_context_has_the_pools(site: App) -> None:
    names = site.make_shell_context()
    assert names["current_pool"] is current_pool
    assert names["current_pools"] is current_pools
