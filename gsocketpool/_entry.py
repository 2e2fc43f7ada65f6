"""What a pool knows about one connection, and about one of those who wait for any."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, Final

# What can be said of an entry. Plain strings: looking up the members of an Enum would double the time that an acquire
# takes here.
OPENING: Final = "opening"
IDLE: Final = "idle"
IN_USE: Final = "in use"
GONE: Final = "gone"

# How a connection is asked whether it is still good, when it is handed out and when it comes back. Plainly: by
# is_connected() and nothing else. Promptly: by is_usable() and is_reusable(), which don't block. Aside: its is_usable()
# may block, and so needs a greenlet of its own.
PLAINLY: Final = "plainly"
PROMPTLY: Final = "promptly"
ASIDE: Final = "aside"

#: Before any time there is.
DRAINED: Final = -math.inf


class Entry:
    """What the pool knows about one connection, from the moment somebody starts to open it."""

    __slots__ = (
        "asked",
        "connection",
        "expires_at",
        "holder",
        "is_new",
        "noted_use",
        "reported_use",
        "retire_at",
        "since",
        "status",
        "twin",
        "uses",
        "where",
    )

    def __init__(self, holder: Hashable) -> None:
        self.connection: Any = None
        self.status: str = OPENING
        #: Who opens or uses it.
        self.holder: Hashable | None = holder
        #: How often it has been handed out: this tells one use from the next.
        self.uses = 0
        #: When its present use began.
        self.since = 0.0
        #: When its lifetime ends; :data:`DRAINED` where the pool wants to be rid of it.
        self.expires_at = math.inf
        #: When it is to be retired, should it stay idle until then.
        self.retire_at = math.inf
        #: Whether it has been neither idle nor in use yet, so that it need not be checked.
        self.is_new = True
        #: In which of the ways it is asked whether it is still good.
        self.asked: str = PLAINLY
        #: Where it was acquired, when leaks are looked for, and for which use that was noted.
        self.where: list[tuple[str, int, str]] | None = None
        self.noted_use = 0
        #: The use that has been reported as a leak.
        self.reported_use = 0
        #: Another entry of the very same connection object: a factory may return one twice.
        self.twin: Entry | None = None

    def is_in(self, use: int) -> bool:
        """Whether this use of it is going on."""
        return self.uses == use and self.status is IN_USE


class Ticket:
    """A place in the queue. It gets an entry, an error or, when its time is over, nothing, and leaves the queue; then
    `wake` is to be called by whoever took it out.
    """

    __slots__ = ("came_at", "deadline", "entry", "error", "holder", "use", "wake")

    def __init__(self, holder: Hashable, came_at: float, deadline: float, wake: Callable[..., object]) -> None:
        self.holder = holder
        #: When its holder began to acquire, which decides the order.
        self.came_at = came_at
        self.deadline = deadline
        self.wake = wake
        self.entry: Entry | None = None
        #: Which use of the entry is its holder's.
        self.use = 0
        self.error: BaseException | None = None
