"""Real gunicorn processes with gevent workers serve requests from a real backend."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator

import pytest

from tests.support.gunicorn import Backend, End, Gunicorn, Start, eventually, results, slow, wrong
from tests.support.gunicorn import backend as backend
from tests.support.gunicorn import start as start

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Backend, Gunicorn]]:
    with Backend() as backend:
        directory = tmp_path_factory.mktemp("gunicorn")
        with Gunicorn(directory, backend, "--workers", "2", SOCKETPOOL_MAX_CONNECTIONS=4) as gunicorn:
            yield backend, gunicorn


@pytest.fixture
def shared(_shared: tuple[Backend, Gunicorn]) -> Iterator[tuple[Backend, Gunicorn]]:
    """A backend and a gunicorn with two workers, which may have four connections each, for several tests."""
    _, gunicorn = _shared
    before = len(gunicorn.log)
    yield _shared
    sys.stdout.write(gunicorn.log[before:])


def quick(count: int) -> list[str]:
    return [f"quick-{number}" for number in range(count)]


# Serving


def test_concurrent_requests_get_their_own_answers_over_at_most_max_connections_a_worker(
    shared: tuple[Backend, Gunicorn],
) -> None:
    backend, gunicorn = shared
    with backend.holding():
        asking = gunicorn.begin_to_ask(*slow(30))
        # One of two workers has at least 15 of them, so its pool runs dry.
        backend.wait_until(lambda: 4 in backend.held().values(), "a worker uses all of its connections")
    assert not wrong(results(asking))
    assert max(backend.peaks.values()) == 4


def test_connections_are_reused_from_one_request_to_the_next(shared: tuple[Backend, Gunicorn]) -> None:
    backend, gunicorn = shared
    before = len(backend.seen)
    assert not wrong(gunicorn.ask_all(*quick(100)))
    assert len(backend.seen) - before <= 8


def test_a_health_check_reports_on_the_worker_that_answers_it(shared: tuple[Backend, Gunicorn]) -> None:
    backend, gunicorn = shared
    workers = gunicorn.workers(2)
    seen = set()

    def ask() -> bool:
        found = json.loads(gunicorn.ask("pools", view="health").text)
        seen.add(found["pid"])
        assert found["pools"]["default"]["opened"] == len(backend.seen_of([found["pid"]]))
        return seen == workers

    eventually(ask, "both workers answer")
    ready = gunicorn.ask("ready", view="health")
    assert (ready.status, json.loads(ready.text)["pid"] in workers) == (200, True)


@pytest.mark.parametrize("abruptly", [False, True], ids=["closed", "reset"])
def test_no_request_fails_after_the_backend_was_restarted(shared: tuple[Backend, Gunicorn], abruptly: bool) -> None:
    backend, gunicorn = shared
    gunicorn.workers(2)
    with backend.holding():
        asking = gunicorn.begin_to_ask(*slow(30))
        backend.wait_until(lambda: 4 in backend.held().values(), "a worker uses all of its connections")
    assert not wrong(results(asking))
    idle = [seen for seen in backend.seen if seen.is_open]
    assert len(idle) > 4

    backend.restart(abruptly)

    assert {seen.end for seen in idle} == {End.OURS}
    assert not wrong(gunicorn.ask_all(*quick(30)))
    gunicorn.workers(2)


def test_a_streamed_body_keeps_one_connection_to_its_end(backend: Backend, start: Start) -> None:
    gunicorn = start("--workers", "1", PIECES=3)
    with backend.holding("text-1"):
        asking = gunicorn.begin_to_ask("text", view="stream")
        backend.wait_until_held(1)
        # The view is done. What others do meanwhile, they do on another connection.
        assert gunicorn.ask("another").is_right
    assert [answer.text for answer in results(asking)] == ["text-0\ntext-1\ntext-2\n"]
    assert [seen.texts for seen in backend.seen] == [
        ["hello", "first", "text-0", "text-1", "text-2"],
        ["hello", "another"],
    ]
    assert gunicorn.ask("again").is_right
    assert len(backend.seen) == 2


def test_a_connection_is_closed_if_the_client_leaves_in_the_middle_of_its_body(backend: Backend, start: Start) -> None:
    gunicorn = start("--workers", "1", PIECES=1_000_000, SOCKETPOOL_MAX_CONNECTIONS=1)
    with socket.create_connection(("127.0.0.1", gunicorn.port)) as client:
        client.sendall(b"GET /stream/text HTTP/1.1\r\nHost: localhost\r\n\r\n")
        backend.wait_until(lambda: any("text-9" in seen.texts for seen in backend.seen), "the body is sent")
    assert gunicorn.ask("again").is_right
    first, second = backend.seen
    assert first.has_ended_well
    assert second.texts == ["hello", "again"]


def test_a_request_that_gets_no_connection_in_time_is_answered_503_and_the_next_is_served(
    backend: Backend, start: Start
) -> None:
    gunicorn = start("--workers", "1", SOCKETPOOL_MAX_CONNECTIONS=1, SOCKETPOOL_ACQUIRE_TIMEOUT=1)
    with backend.holding():
        asking = gunicorn.begin_to_ask("slow")
        backend.wait_until_held(1)
        refused = gunicorn.ask("refused")
    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert not wrong(results(asking))
    assert gunicorn.ask("again").is_right
    assert [seen.texts for seen in backend.seen] == [["hello", "slow", "again"]]
