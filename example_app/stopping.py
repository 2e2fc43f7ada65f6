"""Being told to stop."""

from __future__ import annotations

import signal
from types import FrameType


class StoppedError(Exception):
    """Somebody wants the program to stop. It says who."""


class Stop:
    """Remembers that the program was told to stop.

    A signal handler that raised might do so between the start of a process and the note of it. This one only sets a
    flag, and whatever waits for something calls :meth:`check` every now and then.
    """

    def __init__(self) -> None:
        self._reason: str | None = None

    def listen(self) -> None:
        """Takes SIGINT, SIGTERM and SIGHUP as the wish to stop, from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        # nohup has it ignored.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_signal)

    def after(self, seconds: int) -> None:
        """Stops the program when `seconds` are over."""
        signal.signal(signal.SIGALRM, self._on_alarm)
        signal.alarm(seconds)

    def check(self) -> None:
        """Does nothing as long as the program may go on.

        :raises StoppedError: if it may not.
        """
        if self._reason is not None:
            raise StoppedError(self._reason)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._reason = f"stopped by {signal.Signals(number).name}"

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        self._reason = "took too long"
