"""The documents have a paragraph for each way to deploy an app that has pools."""

from __future__ import annotations

import re

import pytest

from tests.support.documents import DOCUMENTS, ROOT

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


#: How a passage may say that a connection goes back to its pool.
GIVES_BACK = r"\breleas|\bback\b"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            (
                r"copy_current_request_context",
                r"decorat|wrap(s|ped|ping)?\b|(each|every|per) greenlet|greenlet (each|apiece)",
            ),
            id="copied contexts",
        ),
        pytest.param((r"server-sent events|\bSSE\b", GIVES_BACK), id="server-sent events"),
        pytest.param(
            (r"server-sent events|\bSSE\b", r"\bcomments?\b", r"timeout|seconds"), id="clients that have gone"
        ),
        pytest.param((r"websockets?\b", GIVES_BACK), id="WebSockets"),
        pytest.param((r"\bcelery\b", r"gevent", r"app_context|\bcontext\b"), id="Celery"),
        pytest.param((r"\bapscheduler\b", r"app_context|\bcontext\b"), id="APScheduler"),
        pytest.param((r"\bpywsgi\b", r"patch"), id="gevent.pywsgi"),
        pytest.param((r"\buwsgi\b", r"gevent"), id="uWSGI"),
        pytest.param((r"balancer", r"max_lifetime"), id="balancers"),
        pytest.param((r"def (post_worker_init|worker_exit)\(", r"flask_gsocketpool"), id="hooks that exist already"),
    ],
)
def test_the_documents_have_a_paragraph_about_each_way_to_deploy(words: tuple[str, ...]) -> None:
    assert passages_about(*words), f"no passage has all of {words}"


def test_the_documents_have_a_paragraph_about_flasks_own_server() -> None:
    assert passages_about(r"flask run", r"threads?\b")
