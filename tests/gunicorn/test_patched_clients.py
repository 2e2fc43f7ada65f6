"""Client libraries are imported after gevent has patched Python, under ``--preload``, too; if not, the log warns."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import DOCUMENTS, ROOT, blocks
from tests.support.gunicorn import Start
from tests.support.gunicorn import backend as backend
from tests.support.gunicorn import start as start
from tests.support.scripted import PATIENCE

#: An app is made, and gevent patches Python afterwards, as a worker does when its master has imported the app. Each
#: line of the output is how many warnings about that there are so far.
SCRIPT = """
import logging, os, sys
from types import SimpleNamespace
import gevent
from gevent import monkey

patch, *steps = sys.argv[1:]
if patch != "nothing":
    getattr(monkey, patch)()

from flask import Flask
from flask_gsocketpool import GSocketPool, current_pool
from flask_gsocketpool.gunicorn import post_worker_init
from tests.support.scripted import Plain

class Handler(logging.Handler):
    warnings = 0
    def emit(self, record):
        self.warnings += record.levelno >= logging.WARNING and "patch" in record.getMessage()

handler = Handler()
logging.getLogger("gsocketpool").addHandler(handler)

site = Flask("site")
site.config["SOCKETPOOL_FACTORY"] = Plain
GSocketPool(site)

@site.get("/")
def index():
    with current_pool.connection():
        return "used"

def hook():
    post_worker_init(SimpleNamespace(wsgi=site, pid=os.getpid(), alive=False, timeout=15, notify=lambda: None))

def request():
    # As in a worker: it begins in a greenlet, and the server says who it is.
    environ = {"SERVER_SOFTWARE": "gunicorn/27.0"}
    answer = gevent.spawn(lambda: site.test_client().get("/", environ_overrides=environ).text).get()
    assert answer == "used"

monkey.patch_all()
for step in steps:
    globals()[step]()
    print(handler.warnings)
"""

#: Read as gunicorn reads it: before anything else that the server imports for the app.
READING_THE_CONFIGURATION = """
import sys
exec(sys.stdin.read())
from gevent import monkey
print(*(monkey.is_module_patched(name) for name in ("select", "socket")))
"""

#: The hooks, in a file that patches nothing.
HOOKS = "from flask_gsocketpool.gunicorn import *\n"


def output_of(script: str, *arguments: str, given: str = "") -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=given,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=2 * PATIENCE,
    )
    return run.stdout.split()


@pytest.mark.parametrize(
    ("patch", "steps"),
    [
        pytest.param("nothing", ["hook", "request"], id="nothing-hook"),
        pytest.param("nothing", ["request", "request"], id="nothing-request"),
        # A client that waits by the original of either blocks the whole process.
        pytest.param("patch_socket", ["hook", "request"], id="only socket-hook"),
        pytest.param("patch_select", ["request", "request"], id="only select-request"),
    ],
)
def test_an_app_made_before_gevent_has_patched_is_warned_about_once(patch: str, steps: list[str]) -> None:
    first, last = map(int, output_of(SCRIPT, patch, *steps))
    assert first >= 1, f"the {steps[0]} says nothing"
    assert last == first


def test_an_app_made_after_gevent_has_patched_is_not_warned_about() -> None:
    assert output_of(SCRIPT, "patch_all", "hook", "request") == ["0", "0"]


# The configuration in the guide


def configuration() -> str:
    (text,) = [block for block in blocks(ROOT / "docs" / "flask" / "deployment.rst") if "worker_class" in block]
    return text


def is_import_of_gevent(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Import):
        return all(alias.name.split(".")[0] == "gevent" for alias in statement.names)
    return isinstance(statement, ast.ImportFrom) and (statement.module or "").split(".")[0] == "gevent"


def test_the_configuration_in_the_guide_begins_with_the_patch() -> None:
    first = next(statement for statement in ast.parse(configuration()).body if not is_import_of_gevent(statement))
    assert "patch_all(" in ast.unparse(first)


def test_imports_after_the_configuration_in_the_guide_find_a_patched_python() -> None:
    assert output_of(READING_THE_CONFIGURATION, given=configuration()) == ["True", "True"]


def test_documents_that_call_preload_safe_mention_the_patch() -> None:
    paragraphs = [paragraph for path in DOCUMENTS for paragraph in path.read_text().split("\n\n")]
    assert [text for text in paragraphs if "``--preload`` is safe" in text and "patch" not in text] == []


# Real workers


def log_of_a_preloaded_worker(start: Start, directory: Path, text: str) -> str:
    """Return what gunicorn and we log until a worker has answered its first request.

    :param text: gunicorn's configuration.
    """
    (directory / "hooks.py").write_text(text)
    gunicorn = start("--preload", "--workers", "1", "--config", str(directory / "hooks.py"))
    if not gunicorn.ask("text").is_right:
        raise RuntimeError(gunicorn.log)
    # What gevent itself says of patching late is not enough.
    return "\n".join(line for line in gunicorn.log.splitlines() if "MonkeyPatchWarning" not in line)


def test_a_preloaded_worker_logs_a_warning_if_nothing_was_patched_before_the_import(
    start: Start, tmp_path: Path
) -> None:
    assert "patch" in log_of_a_preloaded_worker(start, tmp_path, HOOKS)


def test_a_preloaded_worker_with_the_configuration_in_the_guide_logs_no_warning(start: Start, tmp_path: Path) -> None:
    assert "patch" not in log_of_a_preloaded_worker(start, tmp_path, configuration())
