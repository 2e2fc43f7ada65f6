"""How real gunicorn workers end: what happens to requests in flight, and how the backend sees connections end.

The app's connections say hello and goodbye, so the backend can tell one that was closed from one that was lost with its
process, and whose it is.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.support.gunicorn import (
    PATIENCE,
    Answer,
    Backend,
    End,
    Seen,
    Start,
    eventually,
    results,
    slow,
    wrong,
)
from tests.support.gunicorn import backend as backend
from tests.support.gunicorn import start as start

pytestmark = pytest.mark.servers


# The end of workers


def is_cut_off(answer: Answer) -> bool:
    """Return whether there was no answer at all."""
    return answer.status is None


def are_answered_unless_refused(answers: list[Answer], backend: Backend) -> bool:
    """Return whether no request was lost that any worker has begun with."""
    return all(is_cut_off(answer) and not backend.takers(answer.asked) for answer in wrong(answers))


def are_abandoned(answers: list[Answer]) -> bool:
    """Return whether none is right. A request whose connection was closed under it may still say so."""
    return all(is_cut_off(answer) or answer.status == 500 for answer in answers)


def was_closed_in_time(seen: Seen, lost: list[Answer]) -> bool:
    """Return whether it was closed on purpose. Between a question of a lost request and its answer, that is a reset."""
    asked = {"hello", *(answer.asked for answer in lost)}
    return seen.has_ended_well or (seen.end is End.RESET and seen.texts[-1:] == ["bye"] and seen.texts[-2] in asked)


def test_workers_answer_every_request_in_flight_after_sigterm_and_close_every_connection(
    backend: Backend, start: Start
) -> None:
    gunicorn = start("--workers", "2")
    workers = gunicorn.workers(2)
    with gunicorn.being_asked() as answers, backend.holding():
        asking = gunicorn.begin_to_ask(*slow(8))
        backend.wait_until_held(8)
        gunicorn.send_signal(signal.SIGTERM)
        gunicorn.wait_until_deaf()
    in_flight = results(asking)
    assert not wrong(in_flight)
    assert {answer.worker for answer in in_flight} <= workers
    assert are_answered_unless_refused(answers, backend), answers
    assert gunicorn.wait_for_exit() == 0
    backend.wait_until_ended(workers)
    assert all(seen.has_ended_well for seen in backend.seen), backend
    assert "SIGKILL" not in gunicorn.log


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.torture), signal.SIGQUIT], ids=["INT", "QUIT"]
)
def test_a_quick_shutdown_abandons_the_requests_in_flight_and_closes_every_connection(
    backend: Backend, start: Start, number: signal.Signals
) -> None:
    gunicorn = start("--workers", "2")
    workers = gunicorn.workers(2)
    with gunicorn.being_asked() as answers, backend.holding():
        asking = gunicorn.begin_to_ask(*slow(4))
        backend.wait_until_held(4)
        gunicorn.send_signal(number)
        assert gunicorn.wait_for_exit() == 0
        backend.wait_until_ended(workers)
    # The first ones exactly; of the others, whatever was under way.
    assert are_abandoned(results(asking))
    assert are_abandoned(wrong(answers))
    assert all(was_closed_in_time(seen, wrong(answers)) for seen in backend.seen_of(workers)), backend
    assert "SIGKILL" not in gunicorn.log


@pytest.mark.parametrize("initial_connections", [0, 1])
def test_a_quick_shutdown_closes_a_connection_that_was_being_opened(
    backend: Backend, start: Start, initial_connections: int
) -> None:
    gunicorn = start("--workers", "1", SOCKETPOOL_INITIAL_CONNECTIONS=initial_connections)
    with backend.holding("hello"):
        asking = gunicorn.begin_to_ask("quick")
        backend.wait_until_held(1)
        gunicorn.send_signal(signal.SIGQUIT)
        assert gunicorn.wait_for_exit() == 0
        backend.wait_until(lambda: not any(seen.is_open for seen in backend.seen), "the connection ends")
        assert all(seen.has_ended_well for seen in backend.seen), backend
    results(asking)


def test_a_quick_shutdown_finishes_the_close_of_a_connection(backend: Backend, start: Start) -> None:
    gunicorn = start(
        "--workers",
        "1",
        SOCKETPOOL_FACTORY="tests.support.gunicorn_app:SingleUseConnection",
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
    with backend.holding():
        asking = gunicorn.begin_to_ask("slow")
        backend.wait_until_held(1)
        (busy,) = backend.held()
        with gunicorn.being_asked() as answers:
            eventually(lambda: len({answer.worker for answer in answers}) >= 4, "two workers are replaced")
            done = re.compile(rf"\[{busy}\] \[INFO\] Autorestarting worker")
            eventually(lambda: done.search(gunicorn.log), "the worker with the slow request has had enough")
    in_flight = results(asking)
    assert [answer.worker for answer in in_flight] == [busy]
    assert not wrong([*answers, *in_flight])
    eventually(lambda: busy in gunicorn.exited_workers(), "that worker exits")
    old = gunicorn.exited_workers()
    assert len(old) >= 3
    backend.wait_until_ended(old)
    assert all(seen.has_ended_well for seen in backend.seen_of(old)), backend
    assert all(len(seen.pids) <= 1 for seen in backend.seen), backend


def test_a_killed_worker_loses_its_own_requests_only_and_is_replaced(backend: Backend, start: Start) -> None:
    gunicorn = start("--workers", "2")
    workers = gunicorn.workers(2)
    with gunicorn.being_asked() as answers:
        with backend.holding():
            asking = gunicorn.begin_to_ask(*slow(8))
            backend.wait_until_held(8)
            victim = next(iter(backend.held()))
            os.kill(victim, signal.SIGKILL)
            backend.wait_until_ended([victim])
            eventually(lambda: {answer.worker for answer in answers} - workers, "the replacement serves")
        in_flight = results(asking)
    lost = wrong([*answers, *in_flight])
    assert all(is_cut_off(answer) for answer in lost)
    assert {answer.asked for answer in wrong(in_flight)} == {
        text for text in slow(8) if backend.takers(text) == {victim}
    }
    # Each of the three clients has one request at a time; the victim may not have got round to what it had accepted.
    assert len(wrong(answers)) <= 3
    assert all(backend.takers(answer.asked) <= {victim} for answer in lost)
    of_victim = backend.seen_of([victim])
    assert of_victim
    assert all(seen.end in (End.FIN, End.RESET) and "bye" not in seen.texts for seen in of_victim), backend
    assert all(seen.is_open for seen in backend.seen_of(workers - {victim})), backend
    assert not wrong(gunicorn.ask_all(*(f"afterwards-{number}" for number in range(20))))


def test_workers_that_have_lost_their_master_exit_and_close_their_connections(backend: Backend, start: Start) -> None:
    gunicorn = start("--workers", "2")
    workers = gunicorn.workers(2)
    with gunicorn.being_asked() as answers, backend.holding():
        asking = gunicorn.begin_to_ask(*slow(4))
        backend.wait_until_held(4)
        gunicorn.send_signal(signal.SIGKILL)
        gunicorn.wait_until_deaf()
        backend.wait_until_ended(workers)
    # No worker waits for them.
    assert are_abandoned(results(asking))
    assert are_abandoned(wrong(answers))
    assert all(was_closed_in_time(seen, wrong(answers)) for seen in backend.seen_of(workers)), backend
    assert gunicorn.exited_workers() == workers


# Requests that are stuck


@pytest.mark.parametrize("told", ["TERM to the worker", "HUP to the master"])
def test_a_request_cut_off_by_the_graceful_timeout_does_not_keep_its_connection(
    backend: Backend, start: Start, told: str
) -> None:
    gunicorn = start("--workers", "1", "--graceful-timeout", "1")
    (worker,) = gunicorn.workers(1)
    with backend.holding():
        asking = gunicorn.begin_to_ask(*slow(2))
        backend.wait_until_held(2)
        # With TERM to the master, its patience would end before the worker's, and it would kill.
        if told == "HUP to the master":
            gunicorn.send_signal(signal.SIGHUP)
        else:
            os.kill(worker, signal.SIGTERM)
        backend.wait_until_ended([worker])
        assert all(seen.has_ended_well for seen in backend.seen_of([worker])), backend
    assert all(is_cut_off(answer) for answer in results(asking))
    eventually(lambda: worker in gunicorn.exited_workers(), "the worker exits by itself")
    assert gunicorn.ask("afterwards").is_right


def test_a_worker_killed_with_a_stuck_request_sends_no_goodbye(backend: Backend, start: Start) -> None:
    gunicorn = start("--workers", "1", "--graceful-timeout", "1")
    (worker,) = gunicorn.workers(1)
    with backend.holding():
        asking = gunicorn.begin_to_ask(*slow(2))
        backend.wait_until_held(2)
        gunicorn.send_signal(signal.SIGTERM)
        assert gunicorn.wait_for_exit() == 0
        backend.wait_until_ended([worker])
    assert all(is_cut_off(answer) for answer in results(asking))
    assert all("bye" not in seen.texts for seen in backend.seen), backend
    assert worker not in gunicorn.exited_workers()


@pytest.mark.parametrize("how", [[], pytest.param(["--preload"], marks=pytest.mark.torture)], ids=["plain", "preload"])
def test_a_drain_timeout_closes_connections_before_gunicorn_kills_the_worker(
    backend: Backend, start: Start, how: list[str]
) -> None:
    gunicorn = start("--workers", "1", "--graceful-timeout", "4", *how, SOCKETPOOL_DRAIN_TIMEOUT=0.5)
    (worker,) = gunicorn.workers(1)
    with backend.holding():
        asking = gunicorn.begin_to_ask(*slow(2))
        stuck = gunicorn.begin_to_ask("never-done", view="stuck")
        backend.wait_until_held(2)
        backend.wait_until(lambda: backend.takers("never-done") == {worker}, "the other request has its connection")
        gunicorn.send_signal(signal.SIGTERM)
        backend.wait_until_ended([worker])
    assert len(backend.seen) >= 3
    assert all(seen.has_ended_well for seen in backend.seen), backend
    # Those that wait for the backend are told, and answer; the other one does not notice.
    assert [answer.status for answer in results(asking)] == [500, 500]
    assert gunicorn.wait_for_exit() == 0
    assert all(is_cut_off(answer) for answer in results(stuck))
    assert worker not in gunicorn.exited_workers()


def test_a_drain_timeout_lets_a_worker_exit_while_its_requests_wait_for_the_backend(
    backend: Backend, start: Start
) -> None:
    gunicorn = start("--workers", "2", SOCKETPOOL_DRAIN_TIMEOUT=0.5)
    workers = gunicorn.workers(2)
    with gunicorn.being_asked() as answers, backend.holding():
        asking = gunicorn.begin_to_ask(*slow(8))
        backend.wait_until_held(8)
        gunicorn.send_signal(signal.SIGTERM)
        assert gunicorn.wait_for_exit() == 0
    assert [answer.status for answer in results(asking)] == [500] * 8
    backend.wait_until_ended(workers)
    assert gunicorn.exited_workers() == workers
    assert are_abandoned(wrong(answers))
    assert all(was_closed_in_time(seen, wrong(answers)) for seen in backend.seen_of(workers)), backend


def test_a_drain_timeout_does_not_affect_requests_that_end_in_time(backend: Backend, start: Start) -> None:
    gunicorn = start("--workers", "2", SOCKETPOOL_DRAIN_TIMEOUT=2 * PATIENCE)
    workers = gunicorn.workers(2)
    with backend.holding():
        asking = gunicorn.begin_to_ask(*slow(8))
        backend.wait_until_held(8)
        gunicorn.send_signal(signal.SIGTERM)
        gunicorn.wait_until_deaf()
    assert not wrong(results(asking))
    assert gunicorn.wait_for_exit() == 0
    backend.wait_until_ended(workers)
    assert all(seen.has_ended_well for seen in backend.seen), backend


def test_a_worker_exits_within_close_timeout_even_if_no_close_returns(backend: Backend, start: Start) -> None:
    connections = 40
    gunicorn = start(
        "--workers",
        "1",
        SOCKETPOOL_FACTORY="tests.support.gunicorn_app:StuckConnection",
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


def test_preloaded_workers_share_no_connection_and_leave_those_of_the_master_alone(
    backend: Backend, start: Start, tmp_path: Path
) -> None:
    hooks = tmp_path / "hooks.py"
    hooks.write_text(
        "def pre_fork(server, worker):\n"
        "    from tests.support.gunicorn_app import use_what_was_opened_at_import\n"
        "    use_what_was_opened_at_import('before a fork')\n"
    )
    gunicorn = start("--preload", "--workers", "4", "--config", str(hooks), USE_POOL_AT_IMPORT="true")
    first = gunicorn.workers(4)
    assert gunicorn.pid not in first
    of_master = backend.seen_of([gunicorn.pid])
    forks = ["before a fork"] * 4
    assert [seen.texts for seen in of_master] == [["hello", *forks], ["hello", "import", *forks]]

    # The master forks again when a worker has exited, and still uses what it opened before there was any.
    for worker in first:
        os.kill(worker, signal.SIGTERM)
        backend.wait_until_ended([worker])
    second = gunicorn.workers(4)
    assert not first & second
    assert [seen.texts for seen in of_master] == [["hello", *forks, *forks], ["hello", "import", *forks, *forks]]
    assert all(seen.is_open for seen in of_master)

    gunicorn.send_signal(signal.SIGTERM)
    assert gunicorn.wait_for_exit() == 0
    backend.wait_until_ended([gunicorn.pid, *first, *second])
    assert all(len(seen.pids) <= 1 for seen in backend.seen), backend
    assert all(seen.has_ended_well for seen in backend.seen), backend
    assert backend.seen_of([gunicorn.pid]) == of_master
