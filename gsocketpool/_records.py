"""What is known of one connection, and of one waiting caller. Only the state writes either."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, Final

# The status of an entry. Plain strings: looking up the members of an Enum would double what an acquire costs here.
OPENING: Final = "opening"
IDLE: Final = "idle"
IN_USE: Final = "in use"
RESETTING: Final = "resetting"
PINGING: Final = "pinging"
REMOVED: Final = "removed"

# How a connection is asked whether it may be kept, when it comes back.
#: By ``is_connected()`` alone: the class derives from Connection and overrides no check.
CONNECTED_ONLY: Final = "connected only"
#: By what ``StreamConnection.is_reusable()`` looks at, without a call.
STREAM: Final = "stream"
#: By ``is_reusable()``.
REUSABLE: Final = "reusable"
#: By ``is_connected()`` alone: the class does not derive from Connection.
FOREIGN: Final = "foreign"
#: By the adapter: in the pool's context, or where something may be left open.
BY_ADAPTER: Final = "by the adapter"

#: An expiry before any time there is.
DRAINED: Final = -math.inf


class Entry:
    """The pool's own record about a connection, from the moment that its opening begins."""

    __slots__ = (
        "callsite",
        "callsite_generation",
        "can_ping",
        "check",
        "complete",
        "connection",
        "duplicate",
        "expires_at",
        "generation",
        "holder",
        "idle_since",
        "in_use_since",
        "is_new",
        "pinged_at",
        "reported_generation",
        "retire_at",
        "return_mode",
        "status",
    )

    def __init__(self) -> None:
        self.connection: Any = None
        self.status: str = OPENING
        #: A weak reference to the greenlet that uses it, or used it last: a dead greenlet keeps its locals alive.
        self.holder: Any = None
        #: How often it has been handed out: this tells one lease from the next.
        self.generation = 0
        #: When its present lease began.
        self.in_use_since = 0.0
        #: When its last use ended. Noted only where idle connections are retired or pinged.
        self.idle_since = 0.0
        #: When it last answered the ping of an idle connection.
        self.pinged_at = -math.inf
        #: Whether there is a ping that it can be asked for.
        self.can_ping = False
        #: When its lifetime ends; :data:`DRAINED` once the pool wants to be rid of it.
        self.expires_at = math.inf
        #: When to retire it, should it stay idle until then.
        self.retire_at = math.inf
        #: Whether it has been neither idle nor in use yet, so that it needs no check.
        self.is_new = True
        #: Asks a connection whether it may be handed out; None where that may block, and so takes a greenlet.
        self.check: Callable[[Any], object] | None = None
        #: Completes what a block has done over a connection; None where there is nothing to complete.
        self.complete: Callable[[Any], object] | None = None
        #: How it is asked whether it may be kept.
        self.return_mode: str = CONNECTED_ONLY
        #: Where it was acquired, if leaks are looked for, and in which generation.
        self.callsite: list[tuple[str, int, str]] | None = None
        self.callsite_generation = 0
        #: The generation that was reported as a leak.
        self.reported_generation = 0
        #: Another entry of the very same connection object: a factory may return one twice.
        self.duplicate: Entry | None = None

    def is_leased(self, generation: int) -> bool:
        """Return whether the lease of this generation goes on."""
        return self.generation == generation and self.status is IN_USE


class Waiter:
    """A caller in the queue. It gets an entry, an error or, when its time is over, nothing.

    The code that takes it out of the queue has to wake it.
    """

    __slots__ = ("came_at", "deadline", "entry", "error", "generation", "holder", "hub_waiter")

    def __init__(self, holder: Hashable, came_at: float, deadline: float, hub_waiter: Any) -> None:
        #: A weak reference to the greenlet that waits.
        self.holder = holder
        #: When it began to acquire, which decides the order.
        self.came_at = came_at
        self.deadline = deadline
        #: What its greenlet waits for: a ``gevent.hub.Waiter``.
        self.hub_waiter = hub_waiter
        self.entry: Entry | None = None
        #: The generation of the entry that is this waiter's lease.
        self.generation = 0
        self.error: BaseException | None = None

    @property
    def is_served(self) -> bool:
        """Whether it was given an entry, and still has it."""
        return self.entry is not None and self.entry.is_leased(self.generation)
