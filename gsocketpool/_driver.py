"""Those who use a pool: how they wait and are served, and how they give back.

Each change of the state is one step of its own; waiting, waking and closing come after it.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import gevent
from gevent import getcurrent
from gevent.hub import Waiter, get_hub

from gsocketpool import _report, _steps, _where
from gsocketpool._alarm import Alarm
from gsocketpool._aside import is_usable_within
from gsocketpool._entry import ASIDE, IN_USE, PLAINLY, PROMPTLY, Entry, Ticket
from gsocketpool._keeper import Keeper
from gsocketpool.exceptions import ConnectionNotFoundError, PoolClosedError, PoolExhaustedError, shown
from gsocketpool.settings import Settings, check_seconds

logger = logging.getLogger("gsocketpool")

#: Seconds that a waiter may be woken too late, at the end of its time, for each that waits.
LATENESS = 1e-6


# What everybody passes through is written out, where a call or a lookup would cost more than it does: _acquire(),
# _is_fit() and _hand_in() first among them.


class Driver(Keeper):
    """What a pool does for its users. What they call is :class:`~gsocketpool.Pool`'s."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._acquire_timeout = math.inf if settings.acquire_timeout is None else settings.acquire_timeout
        self._notes_where = settings.leak_threshold is not None
        self._alarm = Alarm()
        # Last, for from now on it is told of forks.
        super().__init__(name, settings)

    def _was_exhausted(self, error: PoolExhaustedError) -> None:
        """For who builds on a pool, as those of the keeper."""

    # Acquiring

    def _acquire(self, timeout: float | None) -> Entry:
        caller = getcurrent()
        # A greenlet's parent is its hub as a rule, which tells threads apart in half the time that get_hub() takes.
        hub = caller.parent
        if (hub is not self._hub or hub is None) and get_hub() is not self._hub:
            self._enter()
        if timeout is None:
            timeout = self._acquire_timeout
        else:
            timeout = check_seconds("timeout", timeout, zero=True, endless=True)
        state = self._state
        clock = self._clock
        now = clock()
        entry = state.take(now, caller) if state.idle else None
        if entry is not None and self._is_fit(entry, now, now + timeout):
            state.acquired_at_once += 1
        else:
            entry = self._acquire_slowly(caller, now, timeout, entry is not None)
        if self._notes_where:
            entry.where, entry.noted_use = _where.callers(), entry.uses
        return entry

    def _acquire_slowly(self, caller: Any, began: float, timeout: float, is_again: bool) -> Entry:
        """Waits in the queue until there is a connection that is fit.

        :param is_again: whether the caller was given a bad one already. It keeps its place among those who wait.
        """
        state = self._state
        deadline = began + timeout
        now = began
        entry: Entry | None = None
        try:
            while True:
                if state.closed:
                    raise self._closed_error()
                if is_again:
                    now = self._clock()
                    entry = state.take(now, caller) if now < deadline or not timeout else None
                elif len(state.waiters) >= state.max_waiting and state.must_refuse():
                    state.refused += 1
                    raise self._exhausted_error(caller, now - began, timeout, is_refused=True)
                if entry is None and now < deadline:
                    ticket = self._wait(caller, began, deadline, is_again)
                    entry = ticket.entry
                    if entry is not None and (entry.uses != ticket.use or entry.status is not IN_USE):
                        # Lost again before this greenlet woke: the pool was closed, a fork has copied it, or somebody
                        # has released twice.
                        is_again = True
                        continue
                if entry is None:
                    state.timed_out += 1
                    if not timeout:
                        # The next one who can't wait shall be luckier.
                        self._start_openings(more=1)
                    raise self._exhausted_error(caller, self._clock() - began, timeout)
                now = entry.since
                if entry.retire_at < math.inf or entry.asked is ASIDE:
                    # The event loop may have been held up since it was handed over.
                    now = self._clock()
                # A new one need not be checked: it may even have something to read, a greeting for instance.
                if entry.is_new or self._is_fit(entry, now, deadline):
                    entry.is_new = False
                    state.acquired_after_wait += 1
                    state.wait_time += entry.since - began
                    return entry
                is_again = True
        except BaseException:
            state.wait_time += self._clock() - began
            raise

    def _wait(self, caller: Any, began: float, deadline: float, is_again: bool) -> Ticket:
        """Queues, and returns the ticket, which has no entry if none was in time."""
        if self._hub is None or deadline == math.inf:
            # This greenlet was copied by a fork; or no alarm will be set, which would see whether the reaper is dead.
            self._enter()
        state = self._state
        waiter = Waiter(self._hub)
        ticket = Ticket(caller, began, deadline, waiter.switch)
        if is_again:
            state.enqueue_again(ticket)
        else:
            state.enqueue(ticket)
        try:
            if state.size < state.max_connections:
                self._start_openings()
            if deadline < self._alarm.at:
                self._set_alarm(deadline)
            waiter.get()
        except BaseException:
            # What was handed over while the exception was on its way belongs to the next one.
            entry = state.withdraw(ticket)
            if entry is not None and entry.is_in(ticket.use):
                self._put_back(entry)
            raise
        finally:
            if not state.waiters:
                self._alarm.stop()
        if ticket.error is not None:
            try:
                raise ticket.error
            finally:
                # The error's traceback has this frame, and so this frame must not have the error.
                del ticket
        return ticket

    def _set_alarm(self, at: float) -> None:
        self._enter()
        self._alarm.set(at, self._clock(), self._hub.loop, self._alarm_rings)

    def _alarm_rings(self) -> None:
        # This may be a forked child, in which nobody has used the pool yet.
        self._enter()
        self._alarm.stop()
        now = self._clock()
        for ticket in self._state.take_overdue_waiters_out(now):
            self._hub.loop.run_callback(ticket.wake, None)
        first = self._state.next_deadline()
        if first < math.inf:
            # Looking at all of them takes its time, so it is not done too often where they are many.
            self._set_alarm(max(first, now + len(self._state.waiters) * LATENESS))

    def _is_fit(self, entry: Entry, now: float, deadline: float) -> bool:
        """Whether an entry that was idle or in use a moment ago may be handed out. One that may not is let go of."""
        if now >= entry.retire_at:
            self._retire(entry, "lifetime" if now >= entry.expires_at else "idle")
            return False
        uses = entry.uses
        try:
            if entry.asked is PLAINLY:
                usable = entry.connection.is_connected()
            elif entry.asked is PROMPTLY:
                usable = entry.connection.is_usable()
            elif now < deadline:
                usable = is_usable_within(deadline - now, entry, self._context)
            else:
                usable = _steps.looks_usable(entry.connection)
        except BaseException as error:
            was_thrown = entry.asked is ASIDE or not isinstance(error, Exception)
            if entry.is_in(uses):
                self._discard(entry, "interrupted" if was_thrown else "unusable")
            if was_thrown:
                # At who asked. It says nothing of the connection.
                raise
            logger.debug("%r failed its check", entry.connection, exc_info=True)
            return False
        if entry.uses != uses or entry.status is not IN_USE:
            return False
        if not usable:
            self._discard(entry, "unusable")
            return False
        if entry.asked is ASIDE:
            # Much may have happened meanwhile.
            reason = self._state.reason_to_retire(entry, self._clock())
            if reason is not None:
                self._retire(entry, reason)
                return False
        return True

    # Giving back

    def _find(self, connection: object, status: str) -> Entry:
        entry = self._state.find(connection, status, getcurrent())
        if entry is None:
            raise self._not_found(connection, status)
        return entry

    def _hand_in(self, entry: Entry, uses: int, error: BaseException | None) -> gevent.Greenlet | None:
        """Ends one use of an entry, if that is not over yet. Returns what closes the connection, if it is closed."""
        if entry.status is not IN_USE or entry.uses != uses:
            return None
        if getcurrent() is not entry.holder:
            self._enter()
        try:
            if entry.asked is PLAINLY:
                reusable = error is None and entry.connection.is_connected()
            else:
                reusable = entry.connection.is_reusable(error) is True
        except Exception:
            # Logging may switch, so first it is closed.
            closing = self._discard(entry, "not reusable" if error is None else "error") if entry.is_in(uses) else None
            logger.warning(
                "%r could not say whether it can be used again, and is closed", entry.connection, exc_info=True
            )
            return closing
        except BaseException:
            if entry.is_in(uses):
                self._discard(entry, "interrupted")
            raise
        if entry.status is not IN_USE or entry.uses != uses:
            # A step that switched, though it should not, has let somebody else give it back.
            return None
        if not reusable:
            return self._discard(entry, "not reusable" if error is None else "error")
        clock = self._clock
        outcome = self._state.put_back(entry, clock())
        return None if outcome is None else self._follow(outcome, entry)

    # Forks

    def _after_fork(self) -> None:
        super()._after_fork()
        if not self._state.waiters:
            self._alarm.stop()

    # What to raise

    def _closed_error(self) -> PoolClosedError:
        return PoolClosedError(f"pool {self.name!r} is closed")

    def _not_found(self, connection: object, status: str) -> ConnectionNotFoundError:
        return ConnectionNotFoundError(f"{shown(connection)} is not {status} in pool {self.name!r}")

    def _exhausted_error(
        self, caller: Any, waited: float, timeout: float, is_refused: bool = False
    ) -> PoolExhaustedError:
        error = _report.exhausted(
            self.name,
            self._state,
            is_refused=is_refused,
            timeout=timeout,
            waited=waited,
            caller=caller,
            last_open_error=self._last_open_error,
        )
        self._was_exhausted(error)
        return error
