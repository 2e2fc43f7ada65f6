"""The records of one connection and of one waiting caller. Only the state writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, Final

# The status of an entry. Plain strings, because looking up Enum members would double the cost of an acquire.
OPENING: Final = "opening"
IDLE: Final = "idle"
IN_USE: Final = "in use"
RESETTING: Final = "resetting"
PINGING: Final = "pinging"
REMOVED: Final = "removed"

# How to decide whether a connection that comes back may be kept.
#: Call ``is_connected()``: the class derives from Connection and overrides no check.
CONNECTED_ONLY: Final = "connected only"
#: Read the attributes that ``StreamConnection.is_reusable()`` reads, without the call.
STREAM: Final = "stream"
#: Call ``is_reusable()``.
REUSABLE: Final = "reusable"
#: Call ``is_connected()``: the class does not derive from Connection.
FOREIGN: Final = "foreign"
#: Let the adapter decide: user code needs the pool's context, or the connection may be unsettled.
BY_ADAPTER: Final = "by the adapter"

#: The expiry of a drained connection.
DRAINED: Final = -math.inf


class Entry:
    """The pool's own record of a connection, from the start of its opening."""

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
        #: The greenlet that uses it or used it last. A weak reference, because a dead greenlet keeps its locals alive.
        self.holder: Any = None
        #: How often it was handed out. This distinguishes its leases.
        self.generation = 0
        #: When the current lease began.
        self.in_use_since = 0.0
        #: When the last use ended, if the pool retires or pings idle connections.
        self.idle_since = 0.0
        #: When it last answered a keepalive ping.
        self.pinged_at = -math.inf
        #: Whether its class or connector has a ``ping()``.
        self.can_ping = False
        #: When its lifetime ends; :data:`DRAINED` if it must not be used again.
        self.expires_at = math.inf
        #: When to retire it if it stays idle.
        self.retire_at = math.inf
        #: Whether it was never used nor idle, and so needs no check.
        self.is_new = True
        #: Returns whether the connection is good; None if the check may block, and so needs a greenlet.
        self.check: Callable[[Any], object] | None = None
        #: Completes the work of a block; None if there is nothing to complete.
        self.complete: Callable[[Any], object] | None = None
        #: How to decide on its return whether it may be kept.
        self.return_mode: str = CONNECTED_ONLY
        #: Where it was acquired, if the pool looks for leaks, and in which generation.
        self.callsite: list[tuple[str, int, str]] | None = None
        self.callsite_generation = 0
        #: The generation that was last reported as a leak.
        self.reported_generation = 0
        #: Another entry of the same connection object, which a factory may return more than once.
        self.duplicate: Entry | None = None

    def is_leased(self, generation: int) -> bool:
        """Return whether the lease of this generation is still active."""
        return self.generation == generation and self.status is IN_USE


class Waiter:
    """A caller in the queue. It gets an entry, an error or, after its deadline, nothing.

    The code that takes it out of the queue must wake it.
    """

    __slots__ = ("came_at", "deadline", "entry", "error", "generation", "holder", "hub_waiter")

    def __init__(self, holder: Hashable, came_at: float, deadline: float, hub_waiter: Any) -> None:
        #: A weak reference to the greenlet that waits.
        self.holder = holder
        #: When its acquire began, which decides its place in the queue.
        self.came_at = came_at
        self.deadline = deadline
        #: The ``gevent.hub.Waiter`` that wakes its greenlet.
        self.hub_waiter = hub_waiter
        self.entry: Entry | None = None
        #: The generation of the entry that is this waiter's lease.
        self.generation = 0
        self.error: BaseException | None = None

    @property
    def is_served(self) -> bool:
        """Whether it was given an entry and still has it."""
        return self.entry is not None and self.entry.is_leased(self.generation)
