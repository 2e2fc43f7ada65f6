"""The bookkeeping of a pool: which connections are idle, in use and opening, who waits, and every counter.

The rules:

- The state is pure. Nothing here switches, reads a clock, does I/O, locks, logs or runs user code. `now` is the time in
  seconds by the pool's clock.
- Nothing else writes the state, its entries or its waiters. Each public method is one step that no other greenlet can
  see half done. It returns what to do next (wake this waiter, close these connections), and the caller does it.
- The garbage collector may run at any allocation and give a connection back in the middle of a step. So a step that
  changes the state sets :attr:`State.changing`, and a give-back that finds it set is deferred.
- Near the recursion limit any call may fail. So a step that takes an entry out makes its calls before its first write.
"""

from __future__ import annotations

import functools
import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from itertools import takewhile
from operator import attrgetter
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from gsocketpool._records import CONNECTED_ONLY, DRAINED, IDLE, IN_USE, PINGING, REMOVED, RESETTING, Entry, Waiter
from gsocketpool.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

# Why an entry is removed. Each cause has counters by reason, such as "lifetime".
#: The connection must not be used again.
DISCARDED: Final = "discarded"
#: The connection is good, but too old, idle for too long, or surplus.
RETIRED: Final = "retired"
#: The caller keeps the connection.
DETACHED: Final = "detached"

#: How many connections closed by a release are remembered, so that ``drop()`` accepts them.
REMEMBERED = 64


def _changes(
    step: Callable[Concatenate[State, P], R],
) -> Callable[Concatenate[State, P], R]:
    """Mark a method as one that changes the state."""

    @functools.wraps(step)
    def change(self: State, *args: P.args, **kwargs: P.kwargs) -> R:
        self.changing = True
        try:
            return step(self, *args, **kwargs)
        finally:
            self.changing = False

    return change  # type: ignore[return-value]


class State:
    """The state of one pool.

    Always true: ``size + len(opening) <= max_connections`` (after a lower limit was set, once enough connections have
    come back), and no caller waits while a connection is idle.
    """

    # Without slots, one more attribute would make every acquire slower: Python looks up 30 or more in a dict.
    __slots__ = (
        "acquired_after_wait",
        "acquired_at_once",
        "changing",
        "closed",
        "closed_on_release",
        "detached",
        "discarded",
        "entries",
        "filling_paused_until",
        "has_surplus",
        "idle",
        "idle_timeout",
        "max_connections",
        "max_opening",
        "max_waiting",
        "min_connections",
        "open_errors",
        "open_time",
        "opened",
        "opening",
        "refused",
        "resetting",
        "retired",
        "size",
        "timed_out",
        "tracks_idle_time",
        "use_time",
        "wait_time",
        "waiters",
    )

    def __init__(self, settings: Settings) -> None:
        self.max_connections = settings.max_connections
        self.min_connections = settings.min_connections
        self.max_opening = math.inf if settings.max_opening is None else settings.max_opening
        self.max_waiting = math.inf if settings.max_waiting is None else settings.max_waiting
        self.idle_timeout = math.inf if settings.idle_timeout is None else settings.idle_timeout
        #: Whether a setting depends on how long a connection has been idle.
        self.tracks_idle_time = settings.idle_timeout is not None or settings.keepalive_interval is not None

        #: Whether a step that changes the state is in progress.
        self.changing = False
        #: The idle entries, the most recently used last.
        self.idle: list[Entry] = []
        #: All entries except those being opened, by id() of the connection: its class may define any ``__eq__``.
        self.entries: dict[int, Entry] = {}
        #: How many entries are idle, in use, resetting or pinging.
        self.size = 0
        #: How many entries are resetting or pinging.
        self.resetting = 0
        #: The entries being opened, by the greenlet that opens them.
        self.opening: dict[Hashable, Entry] = {}
        #: The queue, first come first.
        self.waiters: deque[Waiter] = deque()
        self.closed = False
        #: Set when the limit is lowered, until enough connections have come back.
        self.has_surplus = False
        #: When to fill up to `min_connections` again after a failed opening.
        self.filling_paused_until = -math.inf
        #: Connections that a release has closed since the last sweep.
        self.closed_on_release: deque[Any] = deque(maxlen=REMEMBERED)

        self._reset_counts()

    def _reset_counts(self) -> None:
        self.acquired_at_once = 0
        self.acquired_after_wait = 0
        self.timed_out = 0
        self.refused = 0
        self.opened = 0
        self.open_errors = 0
        self.detached = 0
        self.discarded: dict[str, int] = {}
        self.retired: dict[str, int] = {}
        self.wait_time = 0.0
        self.use_time = 0.0
        self.open_time = 0.0

    # Queries

    @property
    def in_use(self) -> int:
        return self.size - len(self.idle) - self.resetting

    def all_entries(self) -> list[Entry]:
        """Return every entry except those being opened."""
        found = []
        for first in list(self.entries.values()):
            entry: Entry | None = first
            while entry is not None:
                found.append(entry)
                entry = entry.duplicate
        return found

    def entries_in_use(self) -> list[Entry]:
        return [entry for entry in self.all_entries() if entry.status is IN_USE]

    def find(self, connection: object, status: str, holder: Hashable = None) -> Entry | None:
        """Return the entry of `connection` with that status, or None. Among duplicates, prefer the holder's own."""
        found = None
        entry = self.entries.get(id(connection))
        while entry is not None:
            if entry.status is status and (found is None or entry.holder is holder):
                found = entry
            entry = entry.duplicate
        return found

    def reason_to_retire(self, entry: Entry, now: float) -> str | None:
        """Return why an entry in use must be retired; None if it may be used again."""
        if entry.expires_at == DRAINED:
            return "closed" if self.closed else "drain"
        # A connection serves at least one use; otherwise a waiter would trigger one open after another.
        if now >= entry.expires_at and not entry.is_new:
            return "lifetime"
        if self.has_surplus and self.size + len(self.opening) > self.max_connections:
            return "surplus"
        return None

    # Checking out and in

    def pop_idle(self, now: float, holder: Hashable) -> Entry | None:
        """Put the idle entry that was used last in use, and return it; None if none is idle."""
        # Not marked as a change, because a give-back in the middle of it does no harm.
        if not self.idle:
            return None
        entry = self.idle.pop()
        entry.status = IN_USE
        entry.holder = holder
        entry.in_use_since = now
        entry.generation += 1
        return entry

    def give_back(self, entry: Entry, now: float) -> Waiter | str | None:
        """End a lease. The entry becomes idle or goes to the longest waiter.

        Return that waiter, for the caller to wake. If the entry must be retired, return the reason instead; the lease
        goes on until the caller removes the entry.
        """
        self.changing = True
        try:
            if now >= entry.expires_at or self.has_surplus:
                reason = self.reason_to_retire(entry, now)
                if reason is not None:
                    return reason
                self.has_surplus = self.size + len(self.opening) > self.max_connections
            # Calls before writes, because near the recursion limit any call may fail.
            if self.waiters:
                waiter = self.waiters.popleft()
                self.use_time += now - entry.in_use_since
                waiter.entry = entry
                entry.holder = waiter.holder
                entry.in_use_since = now
                if self.tracks_idle_time:
                    entry.retire_at = entry.expires_at
                entry.generation += 1
                waiter.generation = entry.generation
                return waiter
            self.idle.append(entry)
            self.use_time += now - entry.in_use_since
            entry.status = IDLE
            entry.is_new = False
            if self.tracks_idle_time:
                entry.idle_since = now
                entry.retire_at = min(entry.expires_at, now + self.idle_timeout)
            return None
        finally:
            self.changing = False

    @_changes
    def begin_reset(self, entry: Entry, now: float) -> None:
        """End a lease. The entry is neither idle nor in use until :meth:`end_reset`."""
        self.use_time += now - entry.in_use_since
        entry.status = RESETTING
        entry.holder = None
        self.resetting += 1

    @_changes
    def end_reset(self, entry: Entry, now: float) -> Waiter | str | None:
        """Give back an entry that was reset, as :meth:`give_back` does."""
        # In one step, so that the garbage collector can't give the entry back while it is in use.
        entry.status = IN_USE
        entry.in_use_since = now
        self.resetting -= 1
        return self.give_back(entry, now)

    def pingable(self, now: float) -> list[tuple[float, Entry]]:
        """Return the idle entries that can be pinged, each with the time of its last use or ping.

        Entries that are due to be retired are left out.
        """
        return [
            (max(entry.idle_since, entry.pinged_at), entry)
            for entry in self.idle
            if entry.can_ping and now < entry.retire_at
        ]

    @_changes
    def begin_ping(self, entry: Entry, generation: int) -> bool:
        """Mark an idle entry as being pinged. Return False if it is not idle or was used after that generation."""
        if entry.status is not IDLE or entry.generation != generation:
            return False
        self.idle.remove(entry)
        entry.status = PINGING
        entry.holder = None
        self.resetting += 1
        return True

    @_changes
    def end_ping(self, entry: Entry, now: float) -> Waiter | str | None:
        """Give back an entry that has answered a ping, as :meth:`give_back` does, but without counting a use.

        If the entry becomes idle, it keeps its place among the others and its time to retire.
        """
        stays_idle = not self.waiters and self.reason_to_retire(entry, now) is None
        entry.pinged_at = now
        self.resetting -= 1
        if stays_idle:
            entry.status = IDLE
            insort(self.idle, entry, key=attrgetter("idle_since"))
            return None
        # As in end_reset().
        entry.status = IN_USE
        entry.in_use_since = now
        return self.give_back(entry, now)

    @_changes
    def remove(self, entry: Entry, now: float, cause: str, reason: str = "") -> bool:
        """Remove an entry and free its place. Return False if it was removed already."""
        if entry.status is REMOVED:
            return False
        key = id(entry.connection)
        counts = self.discarded if cause is DISCARDED else self.retired
        count = counts.get(reason, 0) + 1
        status = entry.status
        self._unregister(entry, key)
        if status is IDLE:
            self.idle.remove(entry)
        elif status is IN_USE:
            self.use_time += now - entry.in_use_since
        else:
            self.resetting -= 1
        if cause is DETACHED:
            self.detached += 1
        else:
            counts[reason] = count
        return True

    def _unregister(self, entry: Entry, key: int) -> None:
        first = self.entries[key]
        if first is not entry:
            while first.duplicate is not entry and first.duplicate is not None:
                first = first.duplicate
            first.duplicate = entry.duplicate
        elif entry.duplicate is not None:
            self.entries[key] = entry.duplicate
        else:
            del self.entries[key]
        entry.status = REMOVED
        self.size -= 1

    @_changes
    def remember_closed(self, connection: object) -> None:
        """Remember until the next sweep that a release has closed this connection."""
        self.closed_on_release.append(connection)

    @_changes
    def forget_closed(self, connection: object) -> bool:
        """Return whether a release has closed this connection, and forget it."""
        for place, closed in enumerate(self.closed_on_release):
            if closed is connection:
                del self.closed_on_release[place]
                return True
        return False

    @_changes
    def forget_all_closed(self) -> None:
        self.closed_on_release.clear()

    @_changes
    def transfer(self, entry: Entry, holder: Hashable) -> None:
        """Make `holder` the holder of an entry in use."""
        entry.holder = holder

    @_changes
    def note_callsite(self, entry: Entry, callsite: list[tuple[str, int, str]]) -> None:
        """Note where the current lease of an entry was acquired."""
        entry.callsite = callsite
        entry.callsite_generation = entry.generation

    @_changes
    def note_reported(self, entry: Entry) -> None:
        """Note that the current lease of an entry was reported as a leak."""
        entry.reported_generation = entry.generation

    # Waiting

    def enqueue(self, waiter: Waiter, now: float, again: bool = False) -> bool:
        """Queue a caller, at the end or, with `again`, at its old place.

        If a connection has just become idle, the caller gets it at once. If the queue is full, count a refusal and
        return False. Callers for which a connection can be opened don't count.
        """
        self.changing = True
        try:
            if self.max_waiting < math.inf and not again:
                room = self.max_connections - self.size
                if len(self.waiters) >= self.max_waiting + (room if room > 0 else 0):
                    self.refused += 1
                    return False
            if self.idle:
                waiter.entry = self.pop_idle(now, waiter.holder)
                waiter.generation = waiter.entry.generation if waiter.entry is not None else 0
            elif again:
                ahead = takewhile(lambda other: other.came_at < waiter.came_at, self.waiters)
                self.waiters.insert(len(list(ahead)), waiter)
            else:
                self.waiters.append(waiter)
            return True
        finally:
            self.changing = False

    def withdraw(self, waiter: Waiter) -> Entry | None:
        """Take a waiter out of the queue. Return its entry if it was given one and still has it."""
        # Inlined as in enqueue(): near the recursion limit, a waiter that could be queued can be withdrawn, too.
        self.changing = True
        try:
            if waiter.entry is None and waiter.error is None and waiter in self.waiters:
                self.waiters.remove(waiter)
            return waiter.entry if waiter.is_served else None
        finally:
            self.changing = False

    @_changes
    def pop_timed_out(self, now: float) -> list[Waiter]:
        """Remove the waiters whose deadline has passed from the queue, and return them."""
        late = [waiter for waiter in self.waiters if waiter.deadline <= now]
        if late:
            self.waiters = deque(waiter for waiter in self.waiters if waiter.deadline > now)
        return late

    @_changes
    def fail_waiters(self, error: Callable[[], BaseException]) -> list[Waiter]:
        """Give each waiter an error of its own, empty the queue and return the waiters."""
        waiters = list(self.waiters)
        self.waiters.clear()
        for waiter in waiters:
            waiter.error = error()
        return waiters

    @_changes
    def forget_waiters(self) -> None:
        """Empty the queue of waiters whose thread does not exist in a forked child."""
        self.waiters.clear()

    def next_deadline(self) -> float:
        """Return the earliest deadline of the waiters; infinity if there are none."""
        return min((waiter.deadline for waiter in list(self.waiters)), default=math.inf)

    def served(self, entry: Entry, waited: float) -> None:
        """Count an acquire that had to wait."""
        # As in pop_idle().
        entry.is_new = False
        self.acquired_after_wait += 1
        self.wait_time += waited

    @_changes
    def acquire_failed(self, waited: float, *, timed_out: bool = False) -> None:
        """Count an acquire that ended without a connection."""
        self.wait_time += waited
        self.timed_out += timed_out

    # Opening

    @_changes
    def begin_opening(self, opener: Hashable, now: float, more: int) -> Entry | None:
        """Return a new entry for the connection that `opener` opens; None if no opening is due."""
        if not self.is_opening_due(now, more):
            return None
        entry = self.opening[opener] = Entry()
        return entry

    @_changes
    def cancel_opening(self, opener: Hashable) -> None:
        """Undo :meth:`begin_opening`."""
        del self.opening[opener]

    def is_opening_due(self, now: float, more: int = 0) -> bool:
        """Return whether waiters, `more` callers or `min_connections` need another opening, and the limits allow it."""
        opening = len(self.opening)
        if self.closed or opening >= self.max_opening or self.size + opening >= self.max_connections:
            return False
        if len(self.waiters) + more > opening:
            return True
        return self.size + opening < self.min_connections and now >= self.filling_paused_until

    @_changes
    def note_connection(self, entry: Entry, connection: object) -> None:
        """Note the connection of an entry that is being opened, so that an interruption can't lose it."""
        entry.connection = connection

    @_changes
    def opening_succeeded(
        self,
        opener: Hashable,
        entry: Entry,
        now: float,
        took: float,
        expires_at: float = math.inf,
        check: Callable[[Any], object] | None = None,
        return_mode: str = CONNECTED_ONLY,
        complete: Callable[[Any], object] | None = None,
        can_ping: bool = False,
    ) -> None:
        """Register a new connection. Its entry is in use without a holder; give it back to hand it out."""
        self.open_time += took
        key = id(entry.connection)
        del self.opening[opener]
        entry.status = IN_USE
        entry.in_use_since = now
        entry.check = check
        entry.return_mode = return_mode
        entry.complete = complete
        entry.can_ping = can_ping
        # The pool may have been drained during the opening.
        entry.expires_at = entry.retire_at = min(expires_at, entry.expires_at)
        entry.duplicate = self.entries.get(key)
        self.entries[key] = entry
        self.size += 1
        self.opened += 1
        self.filling_paused_until = -math.inf

    @_changes
    def opening_failed(self, opener: Hashable, entry: Entry, took: float, error: BaseException) -> Waiter | None:
        """Count a failed opening. Unless other openings can serve all waiters, fail the longest one and return it."""
        self.open_time += took
        del self.opening[opener]
        entry.status = REMOVED
        if not self.closed:
            # Closing the pool kills its openers, which is not an open error.
            self.open_errors += 1
        if len(self.waiters) > len(self.opening):
            waiter = self.waiters.popleft()
            waiter.error = error
            return waiter
        return None

    @_changes
    def pause_filling(self, now: float, until: float) -> bool:
        """Stop filling up to `min_connections` until `until`. Return False if not needed, or paused already."""
        if self.size >= self.min_connections or now < self.filling_paused_until or self.closed:
            return False
        self.filling_paused_until = until
        return True

    @_changes
    def resume_filling(self) -> None:
        """Fill up to `min_connections` again."""
        self.filling_paused_until = -math.inf

    # Changing many entries

    @_changes
    def close(self) -> None:
        """Allow no more openings, and expire every connection that is not idle."""
        self.closed = True
        self._drain()

    @_changes
    def drain(self) -> None:
        """Expire every connection that is not idle. The caller pops the idle ones."""
        self._drain()

    def _drain(self) -> None:
        for entry in [*self.all_entries(), *self.opening.values()]:
            if entry.status is not IDLE:
                entry.expires_at = DRAINED

    @_changes
    def resize(self, max_connections: int) -> list[Entry]:
        """Set the limit. Remove idle entries above it, the longest idle first, and return them."""
        self.max_connections = max_connections
        surplus = self.size + len(self.opening) - max_connections
        removed = self._pop(self.idle[: max(0, surplus)], RETIRED, "surplus")
        self.has_surplus = surplus > len(removed)
        return removed

    @_changes
    def pop_all_idle(self, reason: str) -> list[Entry]:
        """Remove every idle entry and return them, the longest idle first."""
        return self._pop(self.idle[:], RETIRED, reason)

    @_changes
    def pop_all_resetting(self) -> list[Entry]:
        """Remove every entry that is being reset and return them."""
        return self._pop_busy(RESETTING, "not_reset")

    @_changes
    def pop_all_pinging(self) -> list[Entry]:
        """Remove every entry that is being pinged and return them."""
        return self._pop_busy(PINGING, "not_pinged")

    def _pop_busy(self, status: str, reason: str) -> list[Entry]:
        found = [entry for entry in self.all_entries() if entry.status is status]
        removed = self._pop(found, DISCARDED, reason)
        self.resetting -= len(removed)
        return removed

    @_changes
    def pop_expired(self, now: float) -> list[Entry]:
        """Remove the idle entries that are too old or idle for too long, and return them."""
        old = self._pop([entry for entry in self.idle if now >= entry.expires_at], RETIRED, "lifetime")
        return old + self._pop([entry for entry in self.idle if now >= entry.retire_at], RETIRED, "idle")

    @_changes
    def pop_unchanged(self, checked: Iterable[tuple[Entry, int]], cause: str, reason: str) -> list[Entry]:
        """Remove the entries that are idle and still of the given generation, and return them."""
        chosen = [entry for entry, generation in checked if entry.status is IDLE and entry.generation == generation]
        return self._pop(chosen, cause, reason)

    def _pop(self, entries: list[Entry], cause: str, reason: str) -> list[Entry]:
        if not entries:
            return entries
        for entry in entries:
            self._unregister(entry, id(entry.connection))
        self.idle = [entry for entry in self.idle if entry.status is IDLE]
        counts = self.discarded if cause is DISCARDED else self.retired
        counts[reason] = counts.get(reason, 0) + len(entries)
        return entries

    @_changes
    def forget_entries(self) -> None:
        """Forget the connections in use. The pool was collected, so they belong to their holders alone."""
        self.entries.clear()

    @_changes
    def reset_after_fork(self) -> list[Any]:
        """Drop every entry, in a forked child, and return the connections, half-open ones included.

        The queue stays: the copied waiters still wait for a connection, now one of the child's own.
        """
        entries = [*self.all_entries(), *self.opening.values()]
        for entry in entries:
            entry.status = REMOVED
            entry.duplicate = None
        self.idle.clear()
        self.entries.clear()
        self.opening.clear()
        self.closed_on_release.clear()
        self.size = 0
        self.resetting = 0
        self.has_surplus = False
        self.filling_paused_until = -math.inf
        self._reset_counts()
        return [entry.connection for entry in entries if entry.connection is not None]
