"""Real gunicorn processes with gevent workers, in front of a real backend.

The app's connections say hello and goodbye, so the backend can tell one that was closed from one that was lost with its
process, and whose it is.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.gunicorn_support import PATIENCE, Backend, End, Gunicorn, eventually, results, wrong

Start = Callable[..., Gunicorn]


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend


@pytest.fixture
def start(backend: Backend, tmp_path: Path) -> Iterator[Start]:
    """Starts a gunicorn. Its log is shown if the test fails."""
    with ExitStack() as stack:

        def start(*arguments: str, **config: str | float) -> Gunicorn:
            gunicorn = Gunicorn(tmp_path, backend, *arguments, **config)
            stack.callback(lambda: sys.stdout.write(gunicorn.log))
            return stack.enter_context(gunicorn)

        yield start


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


def slow(count: int) -> list[str]:
    return [f"slow-{number}" for number in range(count)]


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


# The end of workers


def test_after_term_every_request_in_flight_is_answered_and_every_connection_closed(
    backend: Backend, start: Start
) -> None:
    gunicorn = start("--workers", "2")
    workers = gunicorn.workers(2)
    with backend.holding():
        asking = gunicorn.begin_to_ask(*slow(8))
        backend.wait_until_held(8)
        gunicorn.send_signal(signal.SIGTERM)
        gunicorn.wait_until_deaf()
    answers = results(asking)
    assert not wrong(answers)
    assert {answer.worker for answer in answers} <= workers
    assert gunicorn.wait_for_exit() == 0
    backend.wait_until_ended(workers)
    assert all(seen.has_ended_well for seen in backend.seen), backend
    assert "SIGKILL" not in gunicorn.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["INT", "QUIT"])
def test_after_a_quick_shutdown_every_connection_is_closed_also_those_in_use(
    backend: Backend, start: Start, number: signal.Signals
) -> None:
    gunicorn = start("--workers", "2")
    workers = gunicorn.workers(2)
    with backend.holding():
        asking = gunicorn.begin_to_ask(*slow(4))
        backend.wait_until_held(4)
        gunicorn.send_signal(number)
        assert gunicorn.wait_for_exit() == 0
        backend.wait_until_ended(workers)
        assert all(seen.has_ended_well for seen in backend.seen), backend
    results(asking)
    assert "SIGKILL" not in gunicorn.log


def test_after_a_quick_shutdown_a_connection_that_was_being_opened_is_closed(backend: Backend, start: Start) -> None:
    gunicorn = start("--workers", "1")
    with backend.holding("hello"):
        asking = gunicorn.begin_to_ask("quick")
        backend.wait_until_held(1)
        gunicorn.send_signal(signal.SIGQUIT)
        assert gunicorn.wait_for_exit() == 0
        backend.wait_until(lambda: not any(seen.is_open for seen in backend.seen), "the connection ends")
        assert all(seen.has_ended_well for seen in backend.seen), backend
    results(asking)


def test_after_a_quick_shutdown_a_connection_that_was_being_closed_is_closed_to_the_end(
    backend: Backend, start: Start
) -> None:
    gunicorn = start(
        "--workers",
        "1",
        SOCKETPOOL_FACTORY="tests.gunicorn_app:SingleUseConnection",
        SOCKETPOOL_CLOSE_TIMEOUT=PATIENCE,
    )
    with backend.holding("may I go"):
        asking = gunicorn.begin_to_ask("quick")
        backend.wait_until_held(1)
        gunicorn.send_signal(signal.SIGQUIT)
        eventually(gunicorn.exited_workers, "the worker is about to exit")
    assert gunicorn.wait_for_exit() == 0
    backend.wait_until(lambda: not any(seen.is_open for seen in backend.seen), "the connection ends")
    assert [seen.texts for seen in backend.seen] == [["hello", "quick", "may I go", "bye"]]
    results(asking)


def test_a_reload_loses_no_request_and_closes_the_connections_of_the_old_workers(
    backend: Backend, start: Start
) -> None:
    gunicorn = start("--workers", "2")
    old = gunicorn.workers(2)
    with gunicorn.being_asked() as answers:
        with backend.holding():
            asking = gunicorn.begin_to_ask(*slow(4))
            backend.wait_until_held(4)
            gunicorn.send_signal(signal.SIGHUP)
            eventually(lambda: len({answer.worker for answer in answers} - old) >= 2, "both new workers serve")
        in_flight = results(asking)
        backend.wait_until_ended(old)
    assert not wrong([*answers, *in_flight])
    assert {answer.worker for answer in in_flight} <= old
    assert all(seen.has_ended_well for seen in backend.seen_of(old)), backend
    new = {answer.worker for answer in answers} - old
    assert all(seen.is_open for seen in backend.seen_of(new)), backend
    assert gunicorn.ask("afterwards").is_right


def test_workers_replaced_after_max_requests_lose_no_request_and_close_their_connections(
    backend: Backend, start: Start
) -> None:
    gunicorn = start("--workers", "2", "--max-requests", "5")
    with gunicorn.being_asked() as answers:
        eventually(lambda: len({answer.worker for answer in answers}) >= 4, "two workers are replaced")
    assert not wrong(answers)
    old = gunicorn.exited_workers()
    assert len(old) >= 2
    backend.wait_until_ended(old)
    assert all(seen.has_ended_well for seen in backend.seen_of(old)), backend
    assert all(len(seen.pids) <= 1 for seen in backend.seen), backend


def test_a_request_cut_off_by_the_graceful_timeout_does_not_keep_its_connection(backend: Backend, start: Start) -> None:
    gunicorn = start("--workers", "1", "--graceful-timeout", "1")
    (worker,) = gunicorn.workers(1)
    with backend.holding():
        asking = gunicorn.begin_to_ask(*slow(2))
        backend.wait_until_held(2)
        # Not the master: its patience would end at the same time, and it would kill.
        os.kill(worker, signal.SIGTERM)
        backend.wait_until_ended([worker])
        assert all(seen.has_ended_well for seen in backend.seen_of([worker])), backend
    results(asking)
    assert gunicorn.ask("afterwards").is_right


def test_a_worker_exits_within_close_timeout_although_no_close_returns(backend: Backend, start: Start) -> None:
    connections = 40
    gunicorn = start(
        "--workers",
        "1",
        SOCKETPOOL_FACTORY="tests.gunicorn_app:StuckConnection",
        SOCKETPOOL_CLOSE_TIMEOUT=1,
        SOCKETPOOL_MAX_OPENING=connections,
    )
    with backend.holding():
        asking = gunicorn.begin_to_ask(*slow(connections))
        backend.wait_until_held(connections)
    assert not wrong(results(asking))
    began = time.monotonic()
    gunicorn.send_signal(signal.SIGTERM)
    assert gunicorn.wait_for_exit() == 0
    # One after the other they would take 40 s.
    assert time.monotonic() - began < 20
    backend.wait_until(lambda: all(seen.has_ended_well for seen in backend.seen), "all connections are let go of")
    assert len(backend.seen) == connections
    assert "SIGKILL" not in gunicorn.log


# Forking after the pool was used


def test_with_preload_no_connection_is_shared_and_those_of_the_master_are_not_disturbed(
    backend: Backend, start: Start, tmp_path: Path
) -> None:
    hooks = tmp_path / "hooks.py"
    hooks.write_text(
        "def pre_fork(server, worker):\n"
        "    from tests.gunicorn_app import use_what_was_opened_at_import\n"
        "    use_what_was_opened_at_import('before a fork')\n"
    )
    gunicorn = start("--preload", "--workers", "2", "--config", str(hooks), USE_POOL_AT_IMPORT="true")
    first = gunicorn.workers(2)
    assert gunicorn.pid not in first
    of_master = backend.seen_of([gunicorn.pid])
    forks = ["before a fork"] * 2
    assert [seen.texts for seen in of_master] == [["hello", *forks], ["hello", "import", *forks]]

    # The master forks again when a worker has exited, and still uses what it opened before there was any.
    for worker in first:
        os.kill(worker, signal.SIGTERM)
        backend.wait_until_ended([worker])
    second = gunicorn.workers(2)
    assert not first & second
    assert [seen.texts for seen in of_master] == [["hello", *forks, *forks], ["hello", "import", *forks, *forks]]
    assert all(seen.is_open for seen in of_master)

    gunicorn.send_signal(signal.SIGTERM)
    assert gunicorn.wait_for_exit() == 0
    backend.wait_until_ended([gunicorn.pid, *first, *second])
    assert all(len(seen.pids) <= 1 for seen in backend.seen), backend
    assert all(seen.has_ended_well for seen in backend.seen), backend
    assert backend.seen_of([gunicorn.pid]) == of_master
