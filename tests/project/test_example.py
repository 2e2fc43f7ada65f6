"""The example application, as it runs with the demo's own servers."""

from __future__ import annotations

import fcntl
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from example_app import create_app
from example_app.ports import find_free, first_free, why_unavailable
from example_app.servers import Demo, Ports, Server, ServerError
from flask_gsocketpool import current_pools
from tests.support.documents import ROOT

pytestmark = pytest.mark.servers

PATIENCE = 20


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """The demo's servers, but for gunicorn."""
    with Demo(Ports(*find_free(3))) as demo:
        demo.start_backends()
        yield demo


@pytest.fixture
def app(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    for name, value in addresses(demo).items():
        monkeypatch.setenv(name, value)
    app = create_app()
    app.testing = True
    yield app
    with app.app_context():
        for pool in current_pools.values():
            pool.close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def addresses(demo: Demo) -> dict[str, str]:
    return {
        "FLASK_SOCKETPOOL_URL": f"tcp://127.0.0.1:{demo.ports.echo}",
        "FLASK_SOCKETPOOL_POOLS__valkey__url": f"valkey://127.0.0.1:{demo.ports.valkey}",
    }


def wait_until(condition: Callable[[], object], timeout: float = PATIENCE) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# The routes


@pytest.mark.parametrize("text", ["hello", "Grüße, 世界", " a <b> & c=d+e%20f ", "tab\tand\rreturn", "x" * 4000])
def test_echo_replies_with_the_text(client: FlaskClient, text: str) -> None:
    answer = client.get("/echo", query_string={"text": text})
    assert (answer.status_code, answer.text) == (200, text)
    assert answer.mimetype == "text/plain"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({}, "Text is missing"),
        ({"text": ""}, "Text is missing"),
        ({"text": "two\nlines"}, "one line at a time"),
        ({"text": "a line\r\n"}, "one line at a time"),
        ({"text": "x" * 4001}, "too long"),
    ],
)
def test_echo_refuses_a_text_that_is_not_one_line(client: FlaskClient, query: dict[str, str], said: str) -> None:
    answer = client.get("/echo", query_string=query)
    assert answer.status_code == 400
    assert said in answer.text


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", ""]
)
@pytest.mark.parametrize("value", [b"", b"a=1&b=2", b"\r\n$-1\r\n", bytes(range(256)) * 300])
def test_a_value_is_stored_unchanged(client: FlaskClient, value: bytes, content_type: str) -> None:
    body = {"input_stream": io.BytesIO(value), "content_length": len(value), "content_type": content_type}
    assert client.put("/kv/some%20key", **body).status_code == 204
    answer = client.get("/kv/some%20key")
    assert (answer.status_code, answer.data) == (200, value)
    assert answer.mimetype == "application/octet-stream"


def test_a_key_without_a_value_is_not_found(client: FlaskClient) -> None:
    answer = client.get("/kv/never")
    assert answer.status_code == 404
    assert "never" in answer.text


def test_a_huge_value_is_refused(client: FlaskClient) -> None:
    assert client.put("/kv/huge", data=b"x" * (1024 * 1024 + 1)).status_code == 413


def test_the_pools_page_reports_the_pools_of_its_process(client: FlaskClient) -> None:
    client.get("/echo?text=hello")
    answer = client.get("/pools").get_json()
    assert answer["pid"] == os.getpid()
    assert set(answer["pools"]) == {"default", "valkey"}
    echo = answer["pools"]["default"]
    assert (echo["name"], echo["idle"], echo["opened"], echo["discarded"]) == ("echo", 1, 1, {})


def test_the_page_counts_visits_and_shows_the_pools(client: FlaskClient) -> None:
    def visits(page: str) -> int:
        found = re.search(r'id="visits">(\d+)<', page)
        assert found is not None
        return int(found[1])

    client.put("/kv/visits", data=b"not a number")
    first, second = client.get("/"), client.get("/")
    assert first.status_code == second.status_code == 200
    assert visits(second.text) == visits(first.text) + 1
    assert f"Pools of worker {os.getpid()}" in second.text
    assert all(f'<th scope="row">{name}</th>' in second.text for name in ("echo", "valkey"))
    assert "<output" not in second.text


def test_the_page_shows_the_reply(client: FlaskClient) -> None:
    page = client.get("/", query_string={"text": "<script>alert(1)</script>"})
    assert page.status_code == 200
    assert '<output for="text">&lt;script&gt;alert(1)&lt;/script&gt;</output>' in page.text
    assert "<script" not in page.text


def test_the_page_shows_the_error_of_a_bad_line(client: FlaskClient) -> None:
    page = client.get("/", query_string={"text": "two\nlines"})
    assert page.status_code == 400
    assert "one line at a time" in page.text


def test_the_page_fetches_nothing_from_elsewhere(client: FlaskClient) -> None:
    page = client.get("/").text
    assert "//" not in page
    assert re.findall(r'(?:src|href|action)="([^"]*)"', page) == ["data:,", "/"]


def test_a_backend_that_is_down_is_answered_502(monkeypatch: pytest.MonkeyPatch) -> None:
    echo, valkey = find_free(2)
    monkeypatch.setenv("FLASK_SOCKETPOOL_URL", f"tcp://127.0.0.1:{echo}")
    monkeypatch.setenv("FLASK_SOCKETPOOL_POOLS__valkey__url", f"valkey://127.0.0.1:{valkey}")
    client = create_app().test_client()
    for path in ("/echo?text=hello", "/kv/key", "/"):
        answer = client.get(path)
        assert answer.status_code == 502
        assert "backend" in answer.text
    assert client.get("/pools").status_code == 200


def test_the_configuration_has_defaults() -> None:
    config = create_app().config
    assert config["SOCKETPOOL_URL"] == "tcp://127.0.0.1:2000"
    assert config["SOCKETPOOL_POOLS"]["valkey"]["url"] == "valkey://127.0.0.1:6379"


# The echo server


def test_the_echo_server_reports_how_its_connections_ended(tmp_path: Path) -> None:
    (port,) = find_free(1)
    server = subprocess.Popen(
        [sys.executable, "-m", "example_app.echo", str(port)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == f"listening on 127.0.0.1:{port}\n"
        closed, reset, cut = (socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(3))
        with closed, reset, cut:
            for client in (closed, reset, cut):
                client.sendall(b"one\ntwo\n")
                assert client.makefile("rb").read(8) == b"one\ntwo\n"
            closed.close()
            # To close it like this resets it.
            reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            reset.close()
            server.terminate()
            assert json.loads(server.stdout.readline()) == {"connections": 3, "closed": 1, "reset": 1, "cut": 1}
        assert server.wait(PATIENCE) == 0
    finally:
        server.kill()
        server.communicate()


# The commands


def run_demo(*options: str, tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "example_app", *options],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def options_for(ports: Ports) -> list[str]:
    return ["--port", str(ports.web), "--echo-port", str(ports.echo), "--valkey-port", str(ports.valkey)]


def processes_with(tmp_path: Path) -> list[str]:
    """The processes whose temporary files are to go below `tmp_path`, which all that belongs to the demo inherits."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={tmp_path}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            # It has just ended, or its number is another process's.
            continue
    return found


@contextmanager
def nothing_left(tmp_path: Path, ports: Ports | None = None) -> Iterator[None]:
    """Sees to it that what runs in the block leaves no process, no file and no listener."""
    yield
    assert wait_until(lambda: not processes_with(tmp_path)), processes_with(tmp_path)
    assert list(tmp_path.iterdir()) == []
    if ports is not None:
        assert [why_unavailable(port) for port in (ports.web, ports.echo, ports.valkey)] == [None] * 3


def test_the_check_of_the_demo_passes(tmp_path: Path) -> None:
    home = Path.home() / ".gunicorn"
    had_gunicorn_files = home.exists()
    with nothing_left(tmp_path):
        check = run_demo("--check", tmp_path=tmp_path)
        printed, errors = check.communicate(timeout=90)
    assert (check.returncode, errors) == (0, ""), printed
    assert "FAILED" not in printed
    assert "0 reset, 0 cut" in printed
    assert home.exists() == had_gunicorn_files


def test_an_interrupted_check_leaves_nothing_behind(tmp_path: Path) -> None:
    with nothing_left(tmp_path):
        check = run_demo("--check", tmp_path=tmp_path)
        assert check.stdout is not None
        assert "are up" in check.stdout.readline()
        check.send_signal(signal.SIGINT)
        printed, errors = check.communicate(timeout=PATIENCE)
    assert (check.returncode, errors) == (1, "")
    assert "FAILED  stopped by SIGINT\n" in printed


@contextmanager
def running_demo(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Ports]]:
    ports = Ports(*find_free(3))
    with nothing_left(tmp_path, ports):
        demo = run_demo(*options_for(ports), tmp_path=tmp_path)
        try:
            assert demo.stdout is not None
            printed = [demo.stdout.readline() for _ in range(2)]
            assert f"http://127.0.0.1:{ports.web}/" in printed[1], demo.communicate()
            yield demo, ports
        finally:
            demo.terminate()
            demo.communicate()


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("send", "number"),
    [
        (os.killpg, signal.SIGINT),
        pytest.param(os.kill, signal.SIGINT, marks=pytest.mark.torture),
        (os.kill, signal.SIGTERM),
    ],
    ids=["Ctrl-C in a terminal", "SIGINT", "SIGTERM"],
)
def test_a_signal_stops_the_demo(tmp_path: Path, send: Callable[[int, int], None], number: int) -> None:
    with running_demo(tmp_path) as (demo, ports):
        assert get(ports.web, "/echo?text=hello") == (200, b"hello")
        assert get(ports.web, "/")[0] == 200
        # Browsers have a connection in reserve.
        with socket.create_connection(("127.0.0.1", ports.web)):
            began = time.monotonic()
            send(demo.pid, number)
            printed, errors = demo.communicate(timeout=PATIENCE)
        assert time.monotonic() - began < 10
    assert demo.returncode == 0
    assert "everything is stopped\n" in printed
    assert "Traceback" not in errors


def test_the_demo_ends_if_one_of_its_servers_ends(tmp_path: Path) -> None:
    with running_demo(tmp_path) as (demo, ports):
        (echo,) = (
            int(process.name)
            for process in Path("/proc").glob("[0-9]*")
            if f"example_app.echo\0{ports.echo}\0".encode() in read_if_there(process / "cmdline")
        )
        os.kill(echo, signal.SIGKILL)
        _, errors = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 1
    assert "echo-server exited with status -9" in errors
    assert "Traceback" not in errors


def read_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("option", ["--port", "--echo-port", "--valkey-port"])
def test_a_busy_port_is_reported(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, nothing_left(tmp_path):
        port = listener.getsockname()[1]
        demo = run_demo(*options_for(Ports(*find_free(3))), option, str(port), tmp_path=tmp_path)
        printed, errors = demo.communicate(timeout=PATIENCE)
    assert (demo.returncode, printed) == (1, "")
    assert errors == f"port {port} is in use: free it, or choose another port with {option}\n"


@contextmanager
def occupied(*ports: int) -> Iterator[None]:
    """Take these ports, unless another program has them. Only one test at a time does so, on the whole machine."""
    with ExitStack() as stack:
        lock = stack.enter_context(open(Path(tempfile.gettempdir(), "gsocketpool-test-ports.lock"), "w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        for port in ports:
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


def test_a_default_port_that_is_taken_is_replaced(tmp_path: Path) -> None:
    defaults = (8000, 2000, 16379)
    with occupied(*defaults), nothing_left(tmp_path):
        for _ in range(5):
            demo = run_demo(tmp_path=tmp_path)
            assert demo.stdout is not None
            printed = [demo.stdout.readline() for _ in range(5)]
            if printed[3]:
                break
            # Another process has taken one of the ports that were found.
            demo.communicate()
        try:
            found = re.findall(r"Port (\d+) is taken: using (\d+) instead", "".join(printed))
            assert tuple(int(default) for default, _ in found) == defaults
            web, echo, valkey = (int(replacement) for _, replacement in found)
            assert printed[3] == f"The echo server listens on 127.0.0.1:{echo}, Valkey on 127.0.0.1:{valkey}.\n"
            assert f"http://127.0.0.1:{web}/" in printed[4]
            assert get(web, "/echo?text=hello") == (200, b"hello")
        finally:
            demo.terminate()
            demo.communicate()
    assert demo.returncode == 0


def test_two_servers_never_get_the_same_port(tmp_path: Path) -> None:
    """An option may give one server the default of another."""
    web, _, valkey = find_free(3)
    options = ["--port", str(web), "--valkey-port", str(valkey)]
    with occupied(2000):
        demo = run_demo(*options, "--echo-port", "2000", tmp_path=tmp_path)
        assert "port 2000 is in use" in demo.communicate(timeout=PATIENCE)[1]
    assert demo.returncode == 1
    assert first_free(web, {web, web + 1}) > web + 1


def test_the_echo_server_takes_the_next_port_if_its_default_is_taken(tmp_path: Path) -> None:
    with occupied(2000):
        server = subprocess.Popen(
            [sys.executable, "-m", "example_app.echo"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            listening = re.fullmatch(r"listening on 127.0.0.1:(\d+)\n", server.stdout.readline())
            assert listening is not None
            assert int(listening[1]) > 2000
        finally:
            server.terminate()
            server.communicate()


def test_ports_must_be_different_numbers(tmp_path: Path) -> None:
    web, echo, _ = find_free(3)
    for options, status, said in (
        (options_for(Ports(web, echo, web)), 1, "must be different"),
        (["--port", "65536"], 2, "'65536' is not a port"),
        (["--port", "web"], 2, "'web' is not a port"),
    ):
        demo = run_demo(*options, tmp_path=tmp_path)
        _, errors = demo.communicate(timeout=PATIENCE)
        assert demo.returncode == status
        assert said in errors


def test_a_server_that_does_not_start_is_reported_with_its_output(tmp_path: Path) -> None:
    server = Server("a server", ["-c", "print('no luck'); raise SystemExit(3)"], tmp_path)
    server.start()
    try:
        with pytest.raises(ServerError, match=r"a server exited with status 3. It printed:\nno luck"):
            server.wait_until(lambda: False, lambda: None)
    finally:
        server.stop()


def test_a_server_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("example_app.servers.STOP_TIMEOUT", 0.1)
    stubborn = "import signal, os; signal.signal(15, signal.SIG_IGN); os.fork(); print('ready', flush=True)"
    server = Server("a server", ["-c", f"{stubborn}; signal.pause()"], tmp_path)
    server.start()
    server.wait_until(lambda: server.output().count("ready") == 2, lambda: None)
    assert not server.stop()
    assert wait_until(lambda: not processes_with(tmp_path))


@pytest.mark.parametrize(
    "arguments",
    [pytest.param([], marks=pytest.mark.torture), ["--preload", "-c", "example_app/gunicorn_conf.py"]],
    ids=["bare", "preload"],
)
def test_the_example_runs_under_gunicorn(demo: Demo, tmp_path: Path, arguments: list[str]) -> None:
    (port,) = find_free(1)
    gunicorn = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "-k", "gevent", "--bind", f"127.0.0.1:{port}"),
            *(*arguments, "example_app:create_app()"),
        ],
        cwd=ROOT,
        env={**os.environ, **addresses(demo), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert wait_until(lambda: why_unavailable(port) is not None)
        assert get(port, "/echo?text=hello") == (200, b"hello")
        assert get(port, "/kv/never")[0] == 404
        status, answer = get(port, "/pools")
        assert status == 200
        assert json.loads(answer)["pools"]["valkey"]["opened"] == 1
    finally:
        gunicorn.terminate()
        printed, _ = gunicorn.communicate(timeout=PATIENCE)
    assert gunicorn.returncode == 0, printed
    assert "Traceback" not in printed
    # valkey-py would block the worker.
    assert "before gevent patched" not in printed
