"""``flask socketpool``, as it is called at a shell."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

from gsocketpool import TcpConnection
from tests.support.line_server import LineServer
from tests.support.line_server import server as server
from tests.support.scripted import PATIENCE

APP = """
from gevent import monkey
from flask import Flask
from flask_gsocketpool import GSocketPool

app = Flask(__name__)
app.config.from_prefixed_env()
GSocketPool(app)
assert not monkey.saved

def exchange(connection):
    connection.send(b"hello\\n")
    assert connection.recv_until(b"\\n") == b"hello\\n"
"""


def flask(tmp_path: Path, server: LineServer, *arguments: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    (tmp_path / "site_of_tests.py").write_text(APP)
    return subprocess.run(
        [sys.executable, "-X", "dev", "-m", "flask", "--app", "site_of_tests", "socketpool", *arguments],
        cwd=tmp_path,
        env={**os.environ, "FLASK_SOCKETPOOL_URL": f"tcp://127.0.0.1:{server.port}", "TERM": "xterm"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE * 3,
        **streams,
    )


def test_the_flask_command_checks_a_backend_without_patching(tmp_path: Path, server: LineServer) -> None:
    done = flask(tmp_path, server, "check", stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"127.0.0.1:{server.port}" in done.stdout
    server.stop()
    done = flask(tmp_path, server, "check", "--json", stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["pools"]["default"]["error"]["type"] == "ConnectionRefusedError"
    server.restart()


def test_progress_is_shown_only_on_a_terminal(tmp_path: Path, server: LineServer) -> None:
    arguments = "bench", "--seconds", "0.2", "--exchange", "site_of_tests:exchange", "--json"
    master, terminal = pty.openpty()
    try:
        done = flask(tmp_path, server, *arguments, stderr=terminal)
        shown = os.read(master, 65536).decode()
    finally:
        os.close(master)
        os.close(terminal)
    assert done.returncode == 0, shown
    assert json.loads(done.stdout)["exchanges_per_second"] > 0
    assert "opening" in shown
    assert "100%" in shown
    done = flask(tmp_path, server, *arguments, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert TcpConnection.__name__ not in done.stdout
