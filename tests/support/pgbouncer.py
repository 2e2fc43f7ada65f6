"""PgBouncer, if it is installed, in front of a PostgreSQL server of the tests."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from tests.support.scripted import eventually

#: Where the program is; None if it is not installed. Debian has it where only root looks.
PGBOUNCER = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))


def pgbouncer_version() -> tuple[int, ...]:
    """Return the first two numbers of PgBouncer's version; (0, 0) where there is none."""
    if PGBOUNCER is None:
        return 0, 0
    printed = subprocess.run([PGBOUNCER, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", printed)
    assert found is not None
    return int(found[1]), int(found[2])


class PgBouncer:
    """A PgBouncer in front of a PostgreSQL server, at a Unix socket of its own.

    :param directory: for its configuration and its socket; its user must be able to write there.
    :param conninfo: where the PostgreSQL server is.
    :param settings: of its configuration.
    """

    def __init__(self, directory: Path, conninfo: str, settings: dict[str, object]) -> None:
        # It refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(directory, self._user)
        self._socket = directory / ".s.PGSQL.6432"
        self._configuration = directory / "pgbouncer.ini"
        self._log = directory / "log"
        server = conninfo_to_dict(conninfo)
        #: Where it listens.
        self.conninfo = f"host={directory} port=6432 user={server['user']} dbname={server['dbname']}"
        settings = {"auth_type": "any", "listen_port": 6432, "unix_socket_dir": directory, **settings}
        self._configuration.write_text(
            f"[databases]\n{server['dbname']} = host={server['host']} user={server['user']}\n\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )

    def start(self) -> None:
        """Start it, and return when it listens."""
        assert PGBOUNCER is not None
        # One that was killed leaves it behind.
        self._socket.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([PGBOUNCER, self._configuration], user=self._user, stderr=log)
        eventually(self._is_listening, self._log.read_text)

    def _is_listening(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        # The file is there a moment earlier.
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self._socket)) == 0

    def stop(self) -> None:
        """Stop it, without a goodbye to its clients."""
        self._process.kill()
        self._process.wait()


@contextmanager
def pgbouncer(conninfo: str, **settings: object) -> Iterator[PgBouncer]:
    """A PgBouncer that runs within the block."""
    with tempfile.TemporaryDirectory() as directory:
        bouncer = PgBouncer(Path(directory), conninfo, settings)
        bouncer.start()
        try:
            yield bouncer
        finally:
            bouncer.stop()
