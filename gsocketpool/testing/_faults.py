"""What a server does wrong, and for how many answers."""

from __future__ import annotations

from collections.abc import Callable

from gevent.event import Event

from gsocketpool import InvalidArgumentError
from gsocketpool.settings import check_count, check_seconds

#: What :meth:`FlakyServer.fail` can do, by name.
FAULTS = {
    "refuse": "Connections are refused. Those that are there go on.",
    "hang": "Connecting neither succeeds nor fails: the backlog is full. Connections that are there go on.",
    "silent": "Connections are accepted and requests are read, and nothing is said: no answer, no TLS handshake.",
    "late": "Answers come when the server has healed, or after a delay.",
    "half": "The first half of an answer comes, and no more.",
    "pieces": "Answers come byte by byte.",
    "twice": "Each answer comes twice.",
    "close": "The connection is closed instead of answering.",
    "reset": "The connection is reset instead of answering.",
}
#: Those that spoil connecting. The others spoil answers.
OF_CONNECTING = ("refuse", "hang")


class Faults:
    """The fault that a server commits at present, if any."""

    def __init__(self) -> None:
        #: The name of the fault; None where there is none, or it has been committed as often as it should be.
        self.present: str | None = None
        #: How many answers were spoiled, by all faults.
        self.spoiled = 0
        #: Set while the server is well.
        self.healed = Event()
        self.healed.set()
        #: The seconds after which a late answer comes.
        self.delay: float | None = None
        self._times: int | None = None
        self._only: Callable[[bytes], bool] | None = None

    def begin(self, fault: str, times: int | None, delay: float | None, only: Callable[[bytes], bool] | None) -> None:
        """Commit `fault` from now on."""
        self.present, self._times, self.delay, self._only = fault, times, delay, only
        self.healed.clear()

    def heal(self) -> None:
        """Commit none any more, and let go what was held back."""
        self.present = None
        self.healed.set()

    def take(self, answer: bytes) -> str | None:
        """Return the fault to commit with `answer`, and count it."""
        fault = self.present
        if fault is None or fault in OF_CONNECTING or not (self._only is None or self._only(answer)):
            return None
        self.spoiled += 1
        if self._times is not None:
            self._times -= 1
            if not self._times:
                # Not healed: what is late stays late.
                self.present = None
        return fault


def check_fault(fault: str, times: int | None, delay: float | None, only: object) -> float | None:
    """Return `delay` as a float, if a server can commit `fault` like this.

    :raises InvalidArgumentError: if it can't.
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
        raise InvalidArgumentError("delay", delay, "left out, but for 'late'")
    return check_seconds("delay", delay)
