"""The two hot paths, check out and check in, and the thread and process that own a pool.

Follow an acquire from :meth:`Core._check_out` into the state and, if no connection is idle, into the queue. The code
that every acquire and release runs is inlined here, because a call would cost more than the work it does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from math import inf
from typing import Any
from weakref import ReferenceType, ref

import gevent
from gevent import getcurrent
from gevent.hub import Waiter as HubWaiter
from gevent.hub import get_hub

from gsocketpool import _callsite, _fork, _report
from gsocketpool._adapter import RESET, Adapter, Context
from gsocketpool._closer import Closer
from gsocketpool._lifecycle import Lifecycle, abort_connections, forget_connections
from gsocketpool._reaper import Reaper
from gsocketpool._records import (
    BY_ADAPTER,
    CONNECTED_ONLY,
    FOREIGN,
    IN_USE,
    REMOVED,
    RESETTING,
    STREAM,
    Entry,
    Waiter,
)
from gsocketpool._state import DISCARDED, RETIRED, State
from gsocketpool._steps import Steps
from gsocketpool._threads import Thread, current, get_ident
from gsocketpool._waiters import Waiters
from gsocketpool.connection import StreamConnection
from gsocketpool.events import Listener, PoolEvents, tell
from gsocketpool.exceptions import (
    ConnectionNotFoundError,
    PoolClosedError,
    PoolError,
    PoolExhaustedError,
    WrongThreadError,
    shown,
)
from gsocketpool.settings import Settings, check_seconds

logger = logging.getLogger("gsocketpool")

_IS_OPEN_AND_SILENT = StreamConnection._is_open_and_silent


class Core:
    """Checks connections out and in, and owns the parts that do the rest."""

    #: The hub of the owner's thread; None before the first use. A class attribute, so that `__del__` works if
    #: `__init__` failed.
    _hub: Any = None
    #: The owner's thread; None before the first use. Comparing it takes half the time of getting the hub.
    _thread: Thread | None = None
    #: The event loop's method, kept to save the lookup.
    _run_callback: Any = None

    def __init__(
        self,
        name: str,
        settings: Settings,
        events: PoolEvents | None,
        steps: Steps,
        context: Context | None,
        clock: Callable[[], float] | None,
    ) -> None:
        self._name = name
        self._settings = settings
        self._acquire_timeout = inf if settings.acquire_timeout is None else settings.acquire_timeout
        self._notes_callsites = settings.leak_threshold is not None
        self._clock = time.monotonic if clock is None else clock
        self._listener = Listener(events)
        self._tells_acquired = self._listener.acquired is not None
        self._tells_released = self._listener.released is not None
        self._tells_waiting = self._listener.waiting is not None
        self._state = State(settings)
        self._adapter = Adapter(steps, context, settings.reset)
        self._closer = Closer(settings.close_timeout, self._adapter)
        self._waiters = Waiters(self._state, self._clock)
        self._lifecycle = Lifecycle(
            self, self._state, settings, self._clock, self._adapter, self._closer, self._waiters, self._listener
        )
        self._reaper = Reaper(self._state, settings, self._clock, self._adapter, self._lifecycle, self._listener)
        #: Where unfinished work was released, so that each place is logged once.
        self._warned_callsites: set[_callsite.Frame] = set()
        self._holder_counts = _report.HolderCounts(self._state)
        # Last, because _after_fork() needs everything above.
        _fork.call_after_fork(self)

    @property
    def name(self) -> str:
        """The pool's name in logs and errors."""
        return self._name

    def _create_connection(self) -> Any:
        raise NotImplementedError

    # Checking out

    def _check_out(self, timeout: float | None) -> Entry:
        """Return the entry of a good connection, in use by the caller."""
        if current.thread is not self._thread:
            self._ensure_owner()
        if timeout is None:
            timeout = self._acquire_timeout
        else:
            timeout = check_seconds("timeout", timeout, zero=True, endless=True)
        # In two steps, because Python looks for a method first, and would take longer.
        clock = self._clock
        began = now = clock()
        caller = getcurrent()
        # Before an entry is taken, because making a reference may fail.
        holder = ref(caller)
        state = self._state
        entry = state.pop_idle(now, holder)
        has_waited = again = False
        try:
            while True:
                if entry is None:
                    has_waited = True
                    entry = self._wait_for_entry(caller, holder, began, timeout, again)
                    now = entry.in_use_since
                    if entry.retire_at < inf or entry.check is None:
                        # The event loop may have been blocked since the connection was handed over.
                        now = clock()
                if entry.is_new:
                    # It needs no check, and may have something to read, such as a greeting.
                    break
                check = entry.check
                if check is None or now >= entry.retire_at:
                    if self._validate(entry, now, began + timeout):
                        break
                else:
                    generation = entry.generation
                    try:
                        connection = entry.connection
                        if (
                            check is _IS_OPEN_AND_SILENT
                            and connection._connected
                            and connection._sock._sock is connection._polled
                        ):
                            # What the check does, without the call, which would take 4 % of an acquire and release.
                            # Nothing here switches, so the lease can't have ended.
                            if not connection._poll.poll(0):
                                break
                            is_good: object = False
                        else:
                            is_good = check(connection)
                        # The truth test is inside the try, because it may raise, too.
                        if not is_good:
                            self._remove_leased(entry, generation, "unusable")
                        elif entry.generation == generation and entry.status is IN_USE:
                            break
                    except BaseException as error:
                        if self._must_reraise(entry, generation, error):
                            raise
                entry = None
                again = True
            if has_waited:
                state.served(entry, entry.in_use_since - began)
            else:
                # The only write to the state from outside: a call would make an acquire 5 % slower.
                state.acquired_at_once += 1
            if self._notes_callsites:
                state.note_callsite(entry, _callsite.callers())
            return entry
        except BaseException as error:
            if has_waited:
                state.acquire_failed(self._clock() - began)
            if entry is not None and isinstance(error, RecursionError):  # pragma: no cover - as in _check_in()
                self._defer(self._discard, entry, entry.generation, "interrupted")
            raise

    def _validate(self, entry: Entry, now: float, deadline: float) -> bool:
        """Return whether an entry that was just checked out is good. If not, discard or retire it.

        Its time is up, or its check may block.
        """
        if now >= entry.retire_at:
            self._lifecycle.remove(entry, RETIRED, "lifetime" if now >= entry.expires_at else "idle")
            return False
        generation = entry.generation
        try:
            if not self._adapter.is_usable(entry, 0.0 if getcurrent() is self._hub else deadline - now):
                self._remove_leased(entry, generation, "unusable")
                return False
        except BaseException:
            # The connection may be in the middle of its check.
            self._remove_leased(entry, generation, "interrupted")
            raise
        if entry.is_leased(generation):
            # The pool may have been drained or closed during the check.
            reason = self._state.reason_to_retire(entry, self._clock())
            if reason is not None:
                self._lifecycle.remove(entry, RETIRED, reason)
        return entry.status is IN_USE and entry.generation == generation

    def _must_reraise(self, entry: Entry, generation: int, error: BaseException) -> bool:
        """Discard a connection whose check raised. Return True if the error was thrown at the caller from outside."""
        if not isinstance(error, Exception):
            # The connection may be in the middle of its check.
            self._remove_leased(entry, generation, "interrupted")
            return True
        self._remove_leased(entry, generation, "unusable")
        logger.debug("%r failed its check", entry.connection, exc_info=error)
        return False

    def _wait_for_entry(self, caller: Any, holder: Any, began: float, timeout: float, again: bool) -> Entry:
        """Wait for a connection and return its entry, which is not checked yet.

        :param again: whether the caller was given a bad connection before, and so keeps its place in the queue.
        """
        state, waiters = self._state, self._waiters
        can_wait = caller is not self._hub
        deadline = began + timeout if can_wait else began
        now = began
        while not state.closed:
            if again:
                now = self._clock()
                entry = state.pop_idle(now, holder) if now < deadline or not timeout or not can_wait else None
                if entry is not None:
                    return entry
            if now >= deadline:
                raise self._timed_out(holder, began, timeout, can_wait)
            if waiters.deferred:
                waiters.run_deferred()
            if began >= self._reaper.next_check_at and state.size + len(state.opening) >= state.max_connections:
                self._reaper.check_holders(self, self._clock())
                if state.closed:
                    # The check may switch.
                    break
            if deadline < waiters.fires_at or deadline == inf or self._hub is None:
                # A fork may have copied this greenlet. This also restarts a killed reaper.
                self._ensure_owner()
            waiter = Waiter(holder, began, deadline, HubWaiter(self._hub))
            if not state.enqueue(waiter, began, again):
                raise self._exhausted_error(holder, self._clock() - began, timeout, is_refused=True)
            if waiter.entry is None:
                try:
                    if self._tells_waiting:
                        tell(self._listener.waiting, self)  # type: ignore[arg-type]
                    if state.size < state.max_connections:
                        self._lifecycle.start_openings()
                    if deadline < waiters.fires_at:
                        waiters.start_timer(deadline)
                    waiter.hub_waiter.get()
                except BaseException:
                    # Pass on a connection that was handed over before the exception arrived.
                    entry = state.withdraw(waiter)
                    if entry is not None:
                        self._lifecycle.give_back(entry)
                    raise
                finally:
                    if not state.waiters:
                        waiters.stop_timer()
                if waiter.error is not None:
                    try:
                        raise waiter.error
                    finally:
                        # Break the cycle: the error's traceback refers to this frame.
                        del waiter
            entry = waiter.entry
            if entry is None:
                raise self._timed_out(holder, began, timeout, can_wait)
            if entry.generation == waiter.generation and entry.status is IN_USE:
                return entry
            # The entry was lost before this greenlet woke: the pool was closed, or a fork copied the greenlet.
            again = True
        raise self._closed_error()

    def _tell_acquired(self, lease: Any) -> None:
        """Tell the listener about a new lease. If the listener is interrupted, end the lease."""
        try:
            tell(self._listener.acquired, lease)  # type: ignore[arg-type]
        except BaseException:
            # The listener may have been in the middle of an exchange.
            self._defer(self._discard, lease._entry, lease._generation, "interrupted")
            raise
        if not lease.is_active:
            # The listener gave it back, or the pool was closed while the listener waited.
            raise self._closed_error() if self._state.closed else self._not_found(lease, "active any more")

    # Checking in. Nothing here switches, because the garbage collector may run it at any point of any code.

    def _check_in(self, entry: Entry, generation: int, error: BaseException | None, is_deferred: bool = False) -> None:
        """End a lease of an entry, unless it has ended already."""
        if entry.status is not IN_USE or entry.generation != generation:
            return
        state = self._state
        if state.changing:
            self._defer(self._check_in, entry, generation, error)
            return
        mode = entry.return_mode
        try:
            if mode is STREAM:
                connection = entry.connection
                answer = (
                    error is None
                    and connection._connected
                    and not connection._unread
                    and not connection._unfinished_exchanges
                )
            elif mode is CONNECTED_ONLY:
                connection = entry.connection
                answer = error is None and not connection._unfinished_exchanges and connection.is_connected()
            elif mode is FOREIGN:
                answer = error is None and entry.connection.is_connected()
            elif mode is BY_ADAPTER:
                answer = self._adapter.check_returned(entry.connection, error)
                if answer is RESET:
                    self._start_reset(entry, generation)
                    return
            else:
                answer = entry.connection.is_reusable(error) is True
            if answer:
                # If user code switched, though it must not, another greenlet may have ended the lease. For a stream, no
                # user code has run.
                if mode is STREAM or (entry.status is IN_USE and entry.generation == generation):
                    clock = self._clock
                    outcome = state.give_back(entry, clock())
                    if outcome is not None:
                        if outcome.__class__ is not Waiter:
                            self._lifecycle.remove(entry, RETIRED, outcome)  # type: ignore[arg-type]
                            return
                        try:
                            self._run_callback(outcome.hub_waiter.switch, None)
                        except RecursionError:
                            # As in _defer(). The waiter has the entry already, and only has to be woken.
                            self._waiters.deferred += [(outcome.hub_waiter.switch, (None,))]
                    if self._tells_released:
                        self._lifecycle.tell_released(entry.connection)
                return
        except Exception as failure:
            if isinstance(failure, RecursionError) and not is_deferred:
                self._defer(self._check_in, entry, generation, error, True)
                return
            self._run_callback(_log_failed_check, entry.connection, failure)
        except BaseException:
            self._remove_leased(entry, generation, "interrupted")
            raise
        try:
            self._remove_leased(entry, generation, "not_reusable" if error is None else "error")
            if error is None and entry.status is not IN_USE:
                state.remember_closed(entry.connection)
        except RecursionError:  # pragma: no cover - only near the recursion limit, where coverage can't measure
            self._defer(self._check_in, entry, generation, error, True)

    def _start_reset(self, entry: Entry, generation: int) -> None:
        """End a lease and reset its connection."""
        if not entry.is_leased(generation):
            return
        reason = self._state.reason_to_retire(entry, self._clock())
        if reason is None:
            self._lifecycle.begin_reset(entry)
        else:
            # A reset would be wasted.
            self._lifecycle.remove(entry, RETIRED, reason)

    def _complete(self, entry: Entry, generation: int) -> None:
        """Complete a block that ended well, by a commit for instance. It may wait; an error discards the connection."""
        try:
            if self._state.changing:
                # The garbage collector closed the block's generator in the middle of a change to the state.
                raise PoolError(f"pool {self.name!r}: a block can't be completed while the garbage collector ends it")
            entry.complete(entry.connection)  # type: ignore[misc]
        except BaseException:
            self._discard(entry, generation, "error")
            raise

    def _release(self, entry: Entry, generation: int, callsite: list[_callsite.Frame]) -> None:
        """End a lease that user code releases at `callsite`, and warn about work that a block would complete."""
        if not entry.is_leased(generation):
            return
        if self._state.changing:
            self._defer(self._release, entry, generation, callsite)
            return
        is_settled = True
        if self._settings.reset != "never" and not self._warned_callsites.issuperset(callsite):
            try:
                is_settled = self._adapter.is_settled(entry.connection)
            except BaseException:
                self._remove_leased(entry, generation, "interrupted")
                raise
        self._check_in(entry, generation, None)
        # A dead connection counts as unsettled, too, but is not reset.
        if not is_settled and entry.status is RESETTING:
            self._warned_callsites.update(callsite)
            self._run_callback(_log_unsettled, self.name, entry.connection, callsite)

    def _discard(self, entry: Entry, generation: int, reason: str = "explicit") -> None:
        """Take out an entry whose connection must not be used again, unless the lease has ended already."""
        if entry.status in (REMOVED, RESETTING) or entry.generation != generation:
            return
        if current.thread is not self._thread:
            self._run_in_owner(entry, self._discard, entry, generation, reason)
        elif self._state.changing:
            self._defer(self._discard, entry, generation, reason)
        else:
            self._lifecycle.remove(entry, DISCARDED, reason)

    def _defer(self, method: Callable[..., None], *arguments: Any) -> None:
        """Let the event loop call a method: near the recursion limit, its stack has more room."""
        try:
            self._run_callback(method, *arguments)
        except RecursionError:
            # libuv's run_callback() is written in Python and may need more stack than there is. So the call is left to
            # the next wait, timeout, free place or sweep. Here, even append() could fail.
            self._waiters.deferred += [(method, arguments)]

    def _transfer(self, entry: Entry) -> None:
        self._state.transfer(entry, ref(getcurrent()))

    def _remove_leased(self, entry: Entry, generation: int, reason: str) -> None:
        if entry.is_leased(generation):
            self._lifecycle.remove(entry, DISCARDED, reason)

    # Ownership

    def _run_in_owner(self, entry: Entry, method: Callable[..., None], *arguments: Any) -> None:
        """Let the event loop of the owner's thread call a method. This takes no lock."""
        loop = self._hub.loop
        if loop is None or self._thread is None or self._thread.has_ended:
            # That event loop never runs again.
            self._state.remove(entry, self._clock(), DISCARDED, "interrupted")
            self._adapter.abort(entry.connection)
        else:
            loop.run_callback_threadsafe(method, *arguments)

    def _ensure_owner(self) -> None:
        """Raise unless this thread owns the pool. The first thread that uses the pool becomes its owner."""
        hub = get_hub()
        if hub is self._hub:
            greenlet = self._reaper.greenlet
            if greenlet is not None and greenlet.dead:
                # Some programs kill every greenlet they find.
                self._reaper.start(self)
            return
        if self._hub is not None:
            raise WrongThreadError(
                f"pool {self.name!r} is in use by another thread, and its sockets belong to the event loop there;"
                " every thread needs a pool of its own"
            )
        self._hub = hub
        self._thread = current.thread
        self._run_callback = hub.loop.run_callback
        if not hub.loop.default:
            # Only the main thread's event loop lasts until the process ends.
            self._thread.own(self)
        self._waiters.attach(hub)
        self._lifecycle.attach(hub)
        if not self._state.closed:
            self._reaper.start(self)
            self._lifecycle.start_openings()

    def _after_fork(self) -> None:
        """Forget the parent's connections and greenlets, in a forked child."""
        state, hub = self._state, self._hub
        if hub is None:
            return
        openers: list[Any] = list(state.opening)
        forget_connections(state, self._adapter)
        self._closer.abort_all()
        for opener in openers:
            _fork.stop(opener)
        if hub.thread_ident != get_ident():
            # The waiters' thread does not exist in the child.
            state.forget_waiters()
        elif state.waiters:
            # The fork copied the waiters, which go on waiting.
            hub.loop.run_callback(_ensure_owner, ref(self))
        self._waiters.after_fork()
        self._lifecycle.after_fork()
        self._reaper.after_fork()
        self._hub = None
        self._thread = None

    def _thread_ended(self) -> None:
        """Abort every connection, in use or not: no event loop is left to close them.

        The entries stay as they are, because other threads may still hold leases.
        """
        abort_connections(self._state, self._adapter)
        self._closer.abort_rest()

    def __del__(self) -> None:
        # This may run in another thread, or in the middle of another pool's bookkeeping. So the event loop closes the
        # connections, as long as there is one.
        if self._thread is not None:
            for entry in self._state.pop_all_idle("collected"):
                self._closer.add(entry.connection)
            for entry in self._state.pop_all_pinging():
                self._closer.add(entry.connection)
            for entry in self._state.pop_all_resetting():
                self._closer.add(entry.connection, cancel=True)
            # If the event loop never runs again, the reaper keeps the state alive.
            self._state.forget_entries()
            self._closer.outlive_pool(self._hub.loop, self._thread, self._reaper.stop, self._lifecycle.stop_upkeep)

    # Errors

    def _closed_error(self) -> PoolClosedError:
        return PoolClosedError(f"pool {self.name!r} is closed")

    def _not_found(self, connection: object, status: str) -> ConnectionNotFoundError:
        return ConnectionNotFoundError(f"{shown(connection)} is not {status} in pool {self.name!r}")

    def _timed_out(self, holder: Any, began: float, timeout: float, can_wait: bool) -> PoolExhaustedError:
        waited = self._clock() - began
        # 0 s, because _check_out() counts the time.
        self._state.acquire_failed(0.0, timed_out=True)
        if not timeout or not can_wait:
            # For the next caller that doesn't wait.
            self._lifecycle.start_openings(more=1)
        return self._exhausted_error(holder, waited, timeout if can_wait else 0.0)

    def _exhausted_error(
        self, holder: Any, waited: float, timeout: float, is_refused: bool = False
    ) -> PoolExhaustedError:
        error = _report.exhausted(
            self.name,
            self._state,
            is_refused=is_refused,
            timeout=timeout,
            waited=waited,
            held=self._holder_counts.of(holder),
            last_open_error=self._lifecycle.last_error,
        )
        if self._listener.exhausted is not None:
            tell(self._listener.exhausted, self, error)
        return error


def _log_failed_check(connection: Any, failure: Exception) -> None:
    # Logging may switch, which the event loop's own greenlet can't do.
    message = "checking whether %r can be used again failed, so it is closed"
    gevent.spawn(logger.warning, message, connection, exc_info=failure)


def _log_unsettled(name: str, connection: Any, callsite: list[_callsite.Frame]) -> None:
    # As above.
    message = (
        "pool %r: %r was released with unfinished work, which the pool resets instead of completing. Complete it before"
        " you release the connection, or use a `with pool.connection()` block, in the thread of the pool. Released %s"
    )
    gevent.spawn(logger.warning, message, name, connection, _callsite.describe(callsite))


def _ensure_owner(reference: ReferenceType[Core]) -> None:
    core = reference()
    if core is not None:  # pragma: no branch - the waiters that the fork has copied hold it
        core._ensure_owner()
