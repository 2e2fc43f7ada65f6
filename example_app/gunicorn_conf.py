"""Gunicorn settings for the demo, beside those on its command line."""

# Patch before anything else is imported, so that --preload imports the app and its client libraries patched.
from gevent import monkey

monkey.patch_all()

from typing import Any

# Otherwise, recent gunicorn versions create a socket in the home directory. Older versions ignore this setting.
control_socket_disable = True
# A browser keeps its connection open, and a stopping worker waits for it.
keepalive = 1
graceful_timeout = 3
# Leave out the messages about starting and stopping.
loglevel = "warning"


def post_worker_init(worker: Any) -> None:
    """Print that a worker is about to accept requests. A worker may miss a signal that comes earlier."""
    print(f"worker {worker.pid} is ready", flush=True)
