"""Stop on a signal, or after a time."""

from __future__ import annotations

import signal
from types import FrameType


class StoppedError(Exception):
    """The program must stop. The message is the reason."""


class Stop:
    """Records that the program must stop.

    A signal handler that raised could do so after a process was started and before it was recorded. So this handler
    only sets a flag, and code that waits calls :meth:`check` regularly.
    """

    def __init__(self) -> None:
        self._reason: str | None = None

    def listen(self) -> None:
        """Stop on SIGINT, SIGTERM and SIGHUP from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        # nohup makes the process ignore it.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_signal)

    def after(self, seconds: int) -> None:
        """Stop after this many seconds."""
        signal.signal(signal.SIGALRM, self._on_alarm)
        signal.alarm(seconds)

    def check(self) -> None:
        """Return while the program may go on.

        :raises StoppedError: once it must stop.
        """
        if self._reason is not None:
            raise StoppedError(self._reason)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._reason = f"stopped by {signal.Signals(number).name}"

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        self._reason = "took too long"
