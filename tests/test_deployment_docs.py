"""The documents have a paragraph for each way to deploy an app that has pools."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.test_documents import DOCUMENTS, ROOT

#: How many paragraphs an example and what is said of it may take.
LENGTH = 4


def passages() -> list[str]:
    """Return every run of that many paragraphs of a document, each in one line."""
    found = []
    for document in [*DOCUMENTS, *sorted((ROOT / "docs").glob("*.inc"))]:
        paragraphs = document.read_text().split("\n\n")
        runs = [paragraphs[start : start + LENGTH] for start in range(len(paragraphs))]
        found += [" ".join(" ".join(run).split()) for run in runs]
    return found


def passages_about(*words: str) -> list[str]:
    """Return the passages that have all of `words`, which are regular expressions, in any case."""
    return [text for text in passages() if all(re.search(word, text, re.IGNORECASE) for word in words)]


def missing(name: str, reason: str, *words: str) -> Any:
    """Return a subject that the documents say nothing about yet."""
    return pytest.param(words, id=name, marks=pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason))


#: How a passage may say that a connection goes back to its pool.
GIVES_BACK = r"\breleas|\bback\b"


@pytest.mark.parametrize(
    "words",
    [
        missing(
            "copied contexts",
            "The guide says that a greenlet with a copied context has its own connection, and not that every greenlet"
            " needs a copy of its own.",
            r"copy_current_request_context",
            r"decorat|wrap(s|ped|ping)?\b|(each|every|per) greenlet|greenlet (each|apiece)",
        ),
        missing(
            "server-sent events",
            "No document says that a view gives its connection back before it streams events.",
            r"server-sent events|\bSSE\b",
            GIVES_BACK,
        ),
        missing(
            "clients that have gone",
            "No document says how a stream of events finds out that its client has gone: it sends a comment line.",
            r"server-sent events|\bSSE\b",
            r"\bcomments?\b",
            r"timeout|seconds",
        ),
        missing(
            "WebSockets",
            "No document says that a WebSocket gives its connection back while it waits.",
            r"websockets?\b",
            GIVES_BACK,
        ),
        missing(
            "Celery",
            "No document says how to use the pools in a Celery worker.",
            r"\bcelery\b",
            r"gevent",
            r"app_context|\bcontext\b",
        ),
        missing(
            "APScheduler",
            "No document says how to use the pools in a job of APScheduler's.",
            r"\bapscheduler\b",
            r"app_context|\bcontext\b",
        ),
        missing(
            "gevent.pywsgi",
            "No document says how to serve an app by gevent.pywsgi.",
            r"\bpywsgi\b",
            r"patch",
        ),
        missing(
            "uWSGI",
            "No document says how to serve an app by uWSGI.",
            r"\buwsgi\b",
            r"gevent",
        ),
        missing(
            "balancers",
            "No document says that behind a balancer it takes max_lifetime to reach backends that are new.",
            r"balancer",
            r"max_lifetime",
        ),
        missing(
            "hooks that exist already",
            "The guide imports the hooks, and shows no hook of the app's own that calls them.",
            r"def (post_worker_init|worker_exit)\(",
            r"flask_gsocketpool",
        ),
    ],
)
def test_the_documents_have_a_paragraph_about(words: tuple[str, ...]) -> None:
    assert passages_about(*words), f"no passage has all of {words}"


def test_the_documents_have_a_paragraph_about_flasks_own_server() -> None:
    assert passages_about(r"flask run", r"threads?\b")
