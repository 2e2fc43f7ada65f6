"""What happens to a long request and its connection when ``--max-requests`` replaces its worker."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from tests.support.documents import DOCUMENTS, ROOT
from tests.support.gunicorn import Answer, Backend, Gunicorn, Start, eventually, results
from tests.support.gunicorn import backend as backend
from tests.support.gunicorn import start as start

#: All hooks there are.
HOOKS = "from flask_gsocketpool.gunicorn import *\n"


@contextmanager
def long_request(gunicorn: Gunicorn, backend: Backend) -> Iterator[tuple[int, list[Future[Answer]]]]:
    """Start a request that the backend does not answer within the block, and let its worker reach its last request."""
    with backend.holding():
        asking = gunicorn.begin_to_ask("slow")
        backend.wait_until_held(1)
        (worker,) = backend.held()
        assert gunicorn.ask("last").is_right
        eventually(lambda: f"[{worker}] [INFO] Autorestarting worker" in gunicorn.log, "the worker has had enough")
        yield worker, asking


def test_a_request_longer_than_the_graceful_timeout_is_lost_and_every_connection_is_closed(
    backend: Backend, start: Start
) -> None:
    gunicorn = start("--workers", "1", "--max-requests", "2", "--graceful-timeout", "1")
    with long_request(gunicorn, backend) as (worker, asking):
        (lost,) = results(asking)
        backend.wait_until_ended([worker])
        assert all(seen.has_ended_well for seen in backend.seen_of([worker])), backend
    assert lost.status is None
    eventually(lambda: worker in gunicorn.exited_workers(), "the worker exits by itself")


def test_the_drain_timeout_closes_the_connections_of_a_replaced_worker(
    backend: Backend, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    gunicorn = start(
        *("--workers", "1", "--max-requests", "2", "--graceful-timeout", "1"),
        *("--config", str(tmp_path / "hooks.py")),
        SOCKETPOOL_DRAIN_TIMEOUT=0.1,
    )
    with long_request(gunicorn, backend) as (worker, asking):
        # It waits for the backend until its connection is closed. If nothing closes that, gunicorn gives it up.
        (answer,) = results(asking)
        backend.wait_until_ended([worker])
        assert all(seen.has_ended_well for seen in backend.seen_of([worker])), backend
    if answer.error is not None:
        raise answer.error
    assert answer.status == 500


# What the documents say of it


def rows() -> list[str]:
    """Return the rows of the table of a worker's end, each in one line."""
    text = (ROOT / "docs" / "_worker_life.inc").read_text()
    return [" ".join(row.split()) for row in re.split(r"^ +\* - ", text, flags=re.MULTILINE)[1:]]


def rows_about_replaced_workers() -> list[str]:
    """Return the rows that name ``--max-requests``, and those that go on from one: "The same, and ..."."""
    found: list[str] = []
    is_about = False
    for row in rows():
        is_about = "--max-requests" in row or (is_about and row.startswith("The same"))
        if is_about:
            found.append(row)
    return found


def test_the_table_has_a_row_about_replaced_workers() -> None:
    assert rows_about_replaced_workers()


def test_the_table_says_that_a_replaced_worker_waits_no_longer_than_the_graceful_timeout() -> None:
    assert "--graceful-timeout" in " ".join(rows_about_replaced_workers())


def test_the_documents_say_what_the_drain_timeout_does_for_a_replaced_worker() -> None:
    paragraphs = [paragraph for path in DOCUMENTS for paragraph in path.read_text().split("\n\n")]
    assert [text for text in [*rows(), *paragraphs] if "DRAIN_TIMEOUT" in text and re.search("max.requests", text)]
