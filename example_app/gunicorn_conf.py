"""The settings of gunicorn that the demo needs beyond those on its command line."""

# First of all, so that the app and its client libraries are imported into a patched Python, also with --preload.
from gevent import monkey

monkey.patch_all()

from typing import Any

# Newer versions put a socket into the home directory otherwise; older ones pass over this.
control_socket_disable = True
# A browser keeps its connection open, and a worker that stops waits for it.
keepalive = 1
graceful_timeout = 3
# Without its messages about starting and stopping.
loglevel = "warning"


def post_worker_init(worker: Any) -> None:
    """Tells that a worker is about to accept requests. One that is told to stop before that may not hear it."""
    print(f"worker {worker.pid} is ready", flush=True)
