"""What runs beside the contestants, in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: Seconds that a server may take to start, and to stop.
PATIENCE = 30


@contextmanager
def process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A server, which is killed at the end."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, start_new_session=True, **options) as server:
        try:
            yield server
        finally:
            server.kill()


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
