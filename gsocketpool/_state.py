"""Who is idle, in use, opening and waiting: the bookkeeping of a pool, and nothing else.

Nothing here switches, reads a clock, does I/O, locks, logs or calls anybody's code, so every method is one step that no
other greenlet can see half done. A method says what is to be done (wake this one, close these, open so many), and
whoever called it does that afterwards. `now` is always the caller's clock, in seconds.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, deque
from collections.abc import Hashable, Iterator
from itertools import takewhile
from typing import Any

from gsocketpool._entry import DRAINED, GONE, IDLE, IN_USE, Entry, Ticket


class State:
    """The state of one pool.

    What always holds: ``size + len(opening) <= max_connections`` (once enough connections have come back, where the
    limit was lowered), and nobody waits while a connection is idle.
    """

    def __init__(
        self,
        *,
        max_connections: int,
        min_connections: int = 0,
        max_opening: int | None = None,
        max_waiting: int | None = None,
        idle_timeout: float | None = None,
    ) -> None:
        self.max_connections = max_connections
        self.min_connections = min_connections
        self.max_opening = math.inf if max_opening is None else max_opening
        self.max_waiting = math.inf if max_waiting is None else max_waiting
        self.idle_timeout = idle_timeout

        #: The idle entries; the last one was used last.
        self.idle: list[Entry] = []
        #: The idle and in-use entries by the id() of their connection, for a user's ``__eq__`` and ``__hash__`` may do
        #: anything.
        self.entries: dict[int, Entry] = {}
        #: How many are idle or in use.
        self.size = 0
        #: The entries being opened, by who opens them.
        self.opening: dict[Hashable, Entry] = {}
        #: The queue, in the order of coming.
        self.waiters: deque[Ticket] = deque()
        self.closed = False
        #: Set where the limit was lowered, until enough connections have come back.
        self.has_surplus = False
        #: Set while opening has just failed with nobody waiting: `min_connections` is not insisted on meanwhile.
        self.filling_paused = False

        self._begin_to_count()

    def _begin_to_count(self) -> None:
        self.acquired_at_once = 0
        self.acquired_after_wait = 0
        self.timed_out = 0
        self.refused = 0
        self.opened = 0
        self.open_errors = 0
        self.detached = 0
        self.discarded: Counter[str] = Counter()
        self.retired: Counter[str] = Counter()
        self.wait_time = 0.0
        self.use_time = 0.0
        self.open_time = 0.0

    @property
    def in_use(self) -> int:
        return self.size - len(self.idle)

    def all_entries(self) -> Iterator[Entry]:
        """Every idle and in-use entry."""
        for first in self.entries.values():
            entry: Entry | None = first
            while entry is not None:
                yield entry
                entry = entry.twin

    def entries_in_use(self) -> list[Entry]:
        return [entry for entry in self.all_entries() if entry.status is IN_USE]

    def find(self, connection: object, status: str, holder: Hashable = None) -> Entry | None:
        """The entry of `connection`, by identity, if there is one with that status. Of twins, the holder's own."""
        found = None
        entry = self.entries.get(id(connection))
        while entry is not None:
            if entry.status is status and (found is None or entry.holder is holder):
                found = entry
            entry = entry.twin
        return found

    # Taking out and giving back

    def take(self, now: float, holder: Hashable) -> Entry | None:
        """The idle entry used last, in use from now on; None when none is idle."""
        if not self.idle:
            return None
        entry = self.idle.pop()
        entry.status = IN_USE
        entry.holder = holder
        entry.since = now
        entry.uses += 1
        return entry

    def put_back(self, entry: Entry, now: float) -> Ticket | str | None:
        """Ends a use of an entry, which lies idle then.

        Where somebody waits, it goes to the longest waiter, whose ticket is returned and to be woken. If it must not be
        used again, the reason is returned, and the use goes on until it is removed.
        """
        if now >= entry.expires_at or self.has_surplus:
            reason = self.reason_to_retire(entry, now)
            if reason is not None:
                return reason
        self.use_time += now - entry.since
        if self.waiters:
            ticket = self.waiters.popleft()
            ticket.entry = entry
            entry.holder = ticket.holder
            entry.since = now
            entry.retire_at = entry.expires_at
            entry.uses += 1
            ticket.use = entry.uses
            return ticket
        entry.status = IDLE
        entry.is_new = False
        entry.holder = None
        if self.idle_timeout is None:
            entry.retire_at = entry.expires_at
        else:
            entry.retire_at = min(now + self.idle_timeout, entry.expires_at)
        self.idle.append(entry)
        return None

    def reason_to_retire(self, entry: Entry, now: float) -> str | None:
        """Why an entry in use must not be used again; None if it may be."""
        if entry.expires_at == DRAINED:
            return "closed" if self.closed else "drain"
        # However short its lifetime, one use it is good for: or whoever waits would have one opened after another.
        if now >= entry.expires_at and not entry.is_new:
            return "lifetime"
        if self.has_surplus:
            self.has_surplus = self.size + len(self.opening) > self.max_connections
            if self.has_surplus:
                return "surplus"
        return None

    def remove(self, entry: Entry, now: float) -> None:
        """Takes an idle or in-use entry out for good: its place is free."""
        if entry.status is IDLE:
            self.idle.remove(entry)
        else:
            self.use_time += now - entry.since
        self._unregister(entry)

    def _unregister(self, entry: Entry) -> None:
        entry.status = GONE
        self.size -= 1
        key = id(entry.connection)
        first = self.entries[key]
        if first is not entry:
            while first.twin is not entry and first.twin is not None:
                first = first.twin
            first.twin = entry.twin
        elif entry.twin is not None:
            self.entries[key] = entry.twin
        else:
            del self.entries[key]

    # Waiting

    def must_refuse(self) -> bool:
        """Whether the queue is full. Callers for whom a connection can be opened don't count."""
        room = self.max_connections - self.size
        return len(self.waiters) >= self.max_waiting + (room if room > 0 else 0)

    def enqueue(self, ticket: Ticket) -> None:
        """Queues the ticket of a newcomer, behind all others."""
        self.waiters.append(ticket)

    def enqueue_again(self, ticket: Ticket) -> None:
        """Queues the ticket of somebody who was given a bad one: behind those only who came earlier."""
        ahead = takewhile(lambda other: other.came_at < ticket.came_at, self.waiters)
        self.waiters.insert(len(list(ahead)), ticket)

    def withdraw(self, ticket: Ticket) -> Entry | None:
        """Takes a ticket out of the queue. Returns the entry, if it has been given one."""
        if ticket.entry is None and ticket.error is None:
            # Its time may have been over.
            with contextlib.suppress(ValueError):
                self.waiters.remove(ticket)
        return ticket.entry

    def take_overdue_waiters_out(self, now: float) -> list[Ticket]:
        """Takes those whose time is over out of the queue. They are to be woken, and have got nothing."""
        overdue = [ticket for ticket in self.waiters if ticket.deadline <= now]
        if overdue:
            self.waiters = deque(ticket for ticket in self.waiters if ticket.deadline > now)
        return overdue

    def next_deadline(self) -> float:
        """When the first of those who wait has waited for too long."""
        return min((ticket.deadline for ticket in self.waiters), default=math.inf)

    # Opening

    def openings_due(self, *, more: int = 0) -> int:
        """How many openings are to be started: for the waiters, `more` callers and `min_connections`."""
        opening = len(self.opening)
        room = self.max_connections - self.size - opening
        if room <= 0 or self.closed:
            return 0
        wanted: float = len(self.waiters) + more
        if not self.filling_paused:
            wanted = max(wanted, self.min_connections - self.size)
        return int(max(0, min(wanted - opening, self.max_opening - opening, room)))

    def begin_opening(self, opener: Hashable) -> Entry:
        """A new entry that `opener` opens a connection for."""
        entry = self.opening[opener] = Entry(opener)
        return entry

    def land(self, entry: Entry, connection: object, now: float, expires_at: float) -> None:
        """The opening succeeded. The entry is in use by its opener, who gives it back like anybody else."""
        del self.opening[entry.holder]
        entry.connection = connection
        entry.status = IN_USE
        entry.since = now
        # It may have been drained meanwhile.
        entry.expires_at = min(expires_at, entry.expires_at)
        entry.twin = self.entries.get(id(connection))
        self.entries[id(connection)] = entry
        self.size += 1
        self.opened += 1
        self.filling_paused = False

    def fail_opening(self, entry: Entry, error: BaseException) -> Ticket | None:
        """The opening failed. Returns the longest waiter, who got the error, unless other openings suffice for all."""
        del self.opening[entry.holder]
        entry.status = GONE
        if not self.closed:
            # Closing the pool kills those who open, which is no error.
            self.open_errors += 1
        if len(self.waiters) > len(self.opening):
            ticket = self.waiters.popleft()
            ticket.error = error
            return ticket
        return None

    # Many at once

    def close(self) -> None:
        """Lets nothing be opened or kept any more."""
        self.closed = True
        self.drain()

    def drain(self) -> None:
        """Lets nothing be kept that is in use or being opened now. What is idle is to be taken out."""
        for entry in [*self.entries_in_use(), *self.opening.values()]:
            entry.expires_at = DRAINED

    def resize(self, max_connections: int) -> list[Entry]:
        """Sets the limit. Removes idle entries above it, those idle for longest first, and returns them."""
        self.max_connections = max_connections
        surplus = self.size + len(self.opening) - max_connections
        removed = self._take_out(self.idle[: max(0, surplus)])
        self.has_surplus = surplus > len(removed)
        return removed

    def take_idle_out(self) -> list[Entry]:
        """Removes every idle entry and returns them, the one idle for longest first."""
        return self._take_out(self.idle)

    def take_overdue_out(self, now: float) -> list[Entry]:
        """Removes the idle entries whose time is up and returns them."""
        return self._take_out([entry for entry in self.idle if now >= entry.retire_at])

    def _take_out(self, entries: list[Entry]) -> list[Entry]:
        for entry in entries:
            self._unregister(entry)
        self.idle = [entry for entry in self.idle if entry.status is IDLE]
        return entries

    def take_waiters_out(self) -> list[Ticket]:
        """Empties the queue and returns it: each ticket is to be given an error, and to be woken."""
        tickets = list(self.waiters)
        self.waiters.clear()
        return tickets

    def forget(self) -> list[Any]:
        """Drops every entry, as a forked child must, and returns the connections, half-open ones included.

        The queue stays: who waits in the child still wants a connection, one of the child's own.
        """
        entries = [*self.all_entries(), *self.opening.values()]
        for entry in entries:
            entry.status = GONE
            entry.twin = None
        self.idle.clear()
        self.entries.clear()
        self.opening.clear()
        self.size = 0
        self.has_surplus = False
        self.filling_paused = False
        self._begin_to_count()
        return [entry.connection for entry in entries if entry.connection is not None]
