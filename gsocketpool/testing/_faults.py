"""The faults of a server."""

from __future__ import annotations

from collections.abc import Callable

from gevent.event import Event

from gsocketpool import InvalidArgumentError
from gsocketpool.settings import check_count, check_seconds

#: What :meth:`FlakyServer.fail` can do, by name.
FAULTS = {
    "refuse": "The server refuses new connections. Existing ones work.",
    "hang": "New connects are not answered, because the backlog is full. Existing connections work.",
    "silent": "The server accepts connections and reads requests, but sends nothing: no answer, no TLS handshake.",
    "late": "Answers are sent when the server heals, or after a delay.",
    "half": "Only the first half of each answer is sent.",
    "pieces": "Answers are sent byte by byte.",
    "twice": "Each answer is sent twice.",
    "close": "The server closes the connection instead of answering.",
    "reset": "The server resets the connection instead of answering.",
}
#: The faults that spoil connecting. The others spoil answers.
OF_CONNECTING = ("refuse", "hang")


class Faults:
    """The current fault of a server, if any."""

    def __init__(self) -> None:
        #: The name of the fault; None if there is none, or it has spoiled as many answers as it should.
        self.present: str | None = None
        #: How many answers all faults together have spoiled.
        self.spoiled = 0
        #: Set while the server works normally.
        self.healed = Event()
        self.healed.set()
        #: Seconds after which a late answer is sent.
        self.delay: float | None = None
        self._times: int | None = None
        self._only: Callable[[bytes], bool] | None = None

    def begin(self, fault: str, times: int | None, delay: float | None, only: Callable[[bytes], bool] | None) -> None:
        """Start a fault."""
        self.present, self._times, self.delay, self._only = fault, times, delay, only
        self.healed.clear()

    def heal(self) -> None:
        """End the fault, and release late answers."""
        self.present = None
        self.healed.set()

    def take(self, answer: bytes) -> str | None:
        """Return the fault that spoils `answer`, and count it; None if there is none."""
        fault = self.present
        if fault is None or fault in OF_CONNECTING or not (self._only is None or self._only(answer)):
            return None
        self.spoiled += 1
        if self._times is not None:
            self._times -= 1
            if not self._times:
                # Without healing: late answers stay late.
                self.present = None
        return fault


def check_fault(fault: str, times: int | None, delay: float | None, only: object) -> float | None:
    """Check the arguments of :meth:`FlakyServer.fail`, and return the delay in seconds.

    :raises InvalidArgumentError: if one of them can't be used.
    """
    if fault not in FAULTS:
        raise InvalidArgumentError("fault", fault, f"one of {', '.join(FAULTS)}")
    for name, given in (("times", times), ("only", only)):
        if given is not None and fault in OF_CONNECTING:
            raise InvalidArgumentError(name, given, f"left out for {fault!r}")
    if times is not None:
        check_count("times", times, least=1)
    if delay is None:
        return None
    if fault != "late":
        raise InvalidArgumentError("delay", delay, "left out except for 'late'")
    return check_seconds("delay", delay)
