"""Keep a server running until the standard input ends: start it again whenever it has exited.

So any process can restart the server by killing it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading


class Keeper:
    """Runs one server, again and again."""

    def __init__(self, command: list[str], user: str | None) -> None:
        self._command = command
        self._user = user
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = False

    def run(self) -> None:
        """Start the server whenever it is not running."""
        while self._start():
            assert self._process is not None
            self._process.wait()

    def stop_at_the_end_of_input(self) -> None:
        """Wait for the end of the standard input, and stop the server."""
        sys.stdin.read()
        with self._lock:
            self._is_over = True
            if self._process is not None:
                # On this signal, PostgreSQL exits without a checkpoint, and so do its children.
                self._process.send_signal(signal.SIGQUIT)
                self._process.send_signal(signal.SIGCONT)

    def _start(self) -> bool:
        with self._lock:
            if self._is_over:
                return False
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(self._command, user=self._user, **quiet)  # type: ignore[call-overload]
            return True


if __name__ == "__main__":
    # A shell that runs the tests in the background ignores this signal, and the server would inherit that.
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    keeper = Keeper(*json.loads(sys.argv[1]))
    threading.Thread(target=keeper.stop_at_the_end_of_input, daemon=True).start()
    keeper.run()
