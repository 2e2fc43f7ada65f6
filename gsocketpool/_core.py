"""The two hot paths, check out and check in, and whose thread and process a pool belongs to.

Follow an acquire from :meth:`Core._check_out` into the state and, if no connection is idle, into the queue. What every
acquire and release passes through is written out here: another call costs more than it does.
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


class Core:
    """What a pool does at every acquire and release, and the parts that do the rest."""

    #: The hub of the thread that the pool belongs to, from its first use on. A class attribute, so that `__del__` works
    #: if `__init__` failed.
    _hub: Any = None
    #: That thread; None before. Comparing it takes half the time of asking for the hub.
    _thread: Thread | None = None
    #: Its event loop's method: looking it up takes time.
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
        #: Where something was released that was left open.
        self._warned_callsites: set[_callsite.Frame] = set()
        self._holder_counts = _report.HolderCounts(self._state)
        # Last, for from now on the pool is told of forks.
        _fork.call_after_fork(self)

    @property
    def name(self) -> str:
        """The name of the pool in logs and errors."""
        return self._name

    def _create_connection(self) -> Any:
        raise NotImplementedError

    # Checking out

    def _check_out(self, timeout: float | None) -> Entry:
        """Return the entry of a connection that is in use by the caller from now on."""
        if current.thread is not self._thread:
            self._ensure_owner()
        if timeout is None:
            timeout = self._acquire_timeout
        else:
            timeout = check_seconds("timeout", timeout, zero=True, endless=True)
        began = now = self._clock()
        caller = getcurrent()
        # Before anything is taken: making one may fail.
        holder = ref(caller)
        state = self._state
        entry = state.pop_idle(now, holder) if state.idle else None
        has_waited = again = False
        try:
            while True:
                if entry is None:
                    has_waited = True
                    entry = self._wait_for_entry(caller, holder, began, timeout, again)
                    now = entry.in_use_since
                    if entry.retire_at < inf or entry.check is None:
                        # The event loop may have been held up since it was handed over.
                        now = self._clock()
                if entry.is_new:
                    # It may even have something to read, a greeting for instance.
                    break
                check = entry.check
                if check is None or now >= entry.retire_at:
                    if self._validate(entry, now, began + timeout):
                        break
                else:
                    generation = entry.generation
                    try:
                        # Its truth is asked for in here, for that may raise, too.
                        if not check(entry.connection):
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
                # The one place outside that writes the state: a call would cost a twentieth of all this.
                state.acquired_at_once += 1
            if self._notes_callsites:
                state.note_callsite(entry, _callsite.callers())
            return entry
        except BaseException as error:
            if has_waited:
                state.acquire_failed(self._clock() - began)
            if entry is not None and isinstance(error, RecursionError):
                self._defer(self._discard, entry, entry.generation, "interrupted")
            raise

    def _validate(self, entry: Entry, now: float, deadline: float) -> bool:
        """Return whether an entry that was just handed out is good. One that is not is discarded or retired."""
        if now >= entry.retire_at:
            self._lifecycle.remove(entry, RETIRED, "lifetime" if now >= entry.expires_at else "idle")
            return False
        generation = entry.generation
        check = entry.check
        try:
            if check is not None:
                answer = check(entry.connection)
            else:
                answer = self._adapter.is_usable(entry, 0.0 if getcurrent() is self._hub else deadline - now)
            if not answer:
                self._remove_leased(entry, generation, "unusable")
                return False
        except BaseException as error:
            if self._must_reraise(entry, generation, error):
                raise
            return False
        if check is None and entry.is_leased(generation):
            # It may have been drained meanwhile, or closed with the pool.
            reason = self._state.reason_to_retire(entry, self._clock())
            if reason is not None:
                self._lifecycle.remove(entry, RETIRED, reason)
        return entry.status is IN_USE and entry.generation == generation

    def _must_reraise(self, entry: Entry, generation: int, error: BaseException) -> bool:
        """Discard a connection whose check has raised. Return whether the error was thrown at the caller instead."""
        if entry.check is None or not isinstance(error, Exception):
            # It says nothing of the connection, which may be in the middle of its check.
            self._remove_leased(entry, generation, "interrupted")
            return True
        self._remove_leased(entry, generation, "unusable")
        logger.debug("%r failed its check", entry.connection, exc_info=error)
        return False

    def _wait_for_entry(self, caller: Any, holder: Any, began: float, timeout: float, again: bool) -> Entry:
        """Return the entry of a connection for which the caller has waited. It is not checked yet.

        :param again: whether the caller was given a bad one already. It keeps its place among the waiters.
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
                    # To look for them may switch.
                    break
            if deadline < waiters.fires_at or deadline == inf or self._hub is None:
                # This greenlet may have been copied by a fork; and the reaper is looked at every now and then.
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
                    # What was handed over while the exception was on its way belongs to the next one.
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
                        # The error's traceback has this frame, and so this frame must not have the error.
                        del waiter
            entry = waiter.entry
            if entry is None:
                raise self._timed_out(holder, began, timeout, can_wait)
            if entry.generation == waiter.generation and entry.status is IN_USE:
                return entry
            # Lost again before this greenlet woke: the pool was closed, or a fork has copied it.
            again = True
        raise self._closed_error()

    def _tell_acquired(self, lease: Any) -> None:
        """Tell the listener of a lease. If that is interrupted, the lease ends."""
        try:
            tell(self._listener.acquired, lease)  # type: ignore[arg-type]
        except BaseException:
            # The listener may have been in the middle of an exchange.
            self._defer(self._discard, lease._entry, lease._generation, "interrupted")
            raise
        if not lease.is_active:
            # The listener has given it back, or has waited and the pool was closed meanwhile.
            raise self._closed_error() if self._state.closed else self._not_found(lease, "active any more")

    # Checking in. None of this switches: it may run in a collected generator, in the middle of anything.

    def _check_in(self, entry: Entry, generation: int, error: BaseException | None, is_deferred: bool = False) -> None:
        """End one lease of an entry, if that is not over yet."""
        if entry.status is not IN_USE or entry.generation != generation:
            return
        state = self._state
        if state.changing:
            self._defer(self._check_in, entry, generation, error)
            return
        mode = entry.return_mode
        try:
            if mode is CONNECTED_ONLY:
                connection = entry.connection
                answer = error is None and not connection._unfinished_exchanges and connection.is_connected()
            elif mode is STREAM:
                connection = entry.connection
                answer = (
                    error is None
                    and connection._connected
                    and not connection._unread
                    and not connection._unfinished_exchanges
                )
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
                # A method that let another greenlet run, though it should not, may have let it give this back.
                if entry.status is IN_USE and entry.generation == generation:
                    outcome = state.give_back(entry, self._clock())
                    if outcome.__class__ is Waiter:
                        try:
                            self._run_callback(outcome.hub_waiter.switch, None)
                        except RecursionError:
                            # As in _put_off(). The lease is over, and the waiter has the entry already.
                            self._waiters.deferred += [(outcome.hub_waiter.switch, (None,))]
                    elif outcome is not None:
                        self._lifecycle.remove(entry, RETIRED, outcome)  # type: ignore[arg-type]
                        return
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
        except RecursionError:
            self._defer(self._check_in, entry, generation, error, True)

    def _start_reset(self, entry: Entry, generation: int) -> None:
        """End a lease whose connection is to be reset."""
        if not entry.is_leased(generation):
            return
        reason = self._state.reason_to_retire(entry, self._clock())
        if reason is None:
            self._lifecycle.begin_reset(entry)
        else:
            # It would be reset for no one.
            self._lifecycle.remove(entry, RETIRED, reason)

    def _complete(self, entry: Entry, generation: int) -> None:
        """Complete what a block has done that ends well. It may wait; what it raises discards the connection."""
        try:
            if self._state.changing:
                # The block is a collected generator's, in the middle of anything.
                raise PoolError(f"pool {self.name!r}: what a block has done can't be completed while it is collected")
            if entry.complete is not None:
                entry.complete(entry.connection)
        except BaseException:
            self._discard(entry, generation, "error")
            raise

    def _release(self, entry: Entry, generation: int, callsite: list[_callsite.Frame]) -> None:
        """End a lease by hand at `place`, and warn if something is left open that a block would complete."""
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
        # One that was lost has nothing to reset.
        if not is_settled and entry.status is RESETTING:
            self._warned_callsites.update(callsite)
            self._run_callback(_log_unsettled, self.name, entry.connection, callsite)

    def _discard(self, entry: Entry, generation: int, reason: str = "explicit") -> None:
        """Take out an entry whose connection must not be used again, unless its lease is over."""
        if entry.status in (REMOVED, RESETTING) or entry.generation != generation:
            return
        if current.thread is not self._thread:
            self._run_in_owner(entry, self._discard, entry, generation, reason)
        elif self._state.changing:
            self._defer(self._discard, entry, generation, reason)
        else:
            self._lifecycle.remove(entry, DISCARDED, reason)

    def _defer(self, method: Callable[..., None], *arguments: Any) -> None:
        """Have the event loop call a method of this: near the recursion limit, there is more room for calls there."""
        try:
            self._run_callback(method, *arguments)
        except RecursionError:
            # That of libuv is written in Python, and takes more of the stack than what is put off. So this is done a
            # while later: when a caller waits or its time is over, a place becomes free, or the pool is swept. To call
            # append() may fail here, too.
            self._waiters.deferred += [(method, arguments)]

    def _transfer(self, entry: Entry) -> None:
        self._state.transfer(entry, ref(getcurrent()))

    def _remove_leased(self, entry: Entry, generation: int, reason: str) -> None:
        if entry.is_leased(generation):
            self._lifecycle.remove(entry, DISCARDED, reason)

    # Whose it is

    def _run_in_owner(self, entry: Entry, method: Callable[..., None], *arguments: Any) -> None:
        """Have the event loop of the owner's thread call a method of this. It takes no lock."""
        loop = self._hub.loop
        if loop is None or self._thread is None or self._thread.has_ended:
            # The thread has ended, and its event loop will run no more.
            self._state.remove(entry, self._clock(), DISCARDED, "interrupted")
            self._adapter.abort(entry.connection)
        else:
            loop.run_callback_threadsafe(method, *arguments)

    def _ensure_owner(self) -> None:
        """Make sure that this is the thread that the pool belongs to. The first to use the pool makes it its own."""
        hub = get_hub()
        if hub is self._hub:
            greenlet = self._reaper.greenlet
            if greenlet is not None and greenlet.dead:
                # A program that kills every greenlet there is has killed it, too.
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
            # The event loop of the main thread is there until the end.
            self._thread.own(self)
        self._waiters.attach(hub)
        self._lifecycle.attach(hub)
        if not self._state.closed:
            self._reaper.start(self)
            self._lifecycle.start_openings()

    def _after_fork(self) -> None:
        """In a forked child: forget the connections and the greenlets, which are the parent's."""
        state, hub = self._state, self._hub
        if hub is None:
            return
        openers: list[Any] = list(state.opening)
        forget_connections(state, self._adapter)
        self._closer.abort_all()
        for opener in openers:
            _fork.stop(opener)
        if hub.thread_ident != get_ident():
            # The waiters are greenlets of a thread that the child does not have.
            state.forget_waiters()
        elif state.waiters:
            # The waiters were copied by the fork, too, and go on waiting.
            hub.loop.run_callback(_ensure_owner, ref(self))
        self._waiters.after_fork()
        self._lifecycle.after_fork()
        self._reaper.after_fork()
        self._hub = None
        self._thread = None

    def _thread_ended(self) -> None:
        """Abort every connection, those in use included: there is no event loop any more that could close them.

        The entries stay as they are: other threads may still have leases of them.
        """
        abort_connections(self._state, self._adapter)
        self._closer.abort_rest()

    def __del__(self) -> None:
        # This may run anywhere, in the middle of another pool's bookkeeping or in another thread. So closing is left to
        # the event loop, as long as there is one.
        if self._hub is not None and self._thread is not None:
            for entry in self._state.pop_all_idle("collected"):
                self._closer.add(entry.connection)
            for entry in self._state.pop_all_pinging():
                self._closer.add(entry.connection)
            for entry in self._state.pop_all_resetting():
                self._closer.add(entry.connection, cancel=True)
            # The reaper may keep the state for good, if the event loop never runs again.
            self._state.forget_entries()
            self._closer.outlive_pool(self._hub.loop, self._thread, self._reaper.stop, self._lifecycle.stop_upkeep)

    # What to raise

    def _closed_error(self) -> PoolClosedError:
        return PoolClosedError(f"pool {self.name!r} is closed")

    def _not_found(self, connection: object, status: str) -> ConnectionNotFoundError:
        return ConnectionNotFoundError(f"{shown(connection)} is not {status} in pool {self.name!r}")

    def _timed_out(self, holder: Any, began: float, timeout: float, can_wait: bool) -> PoolExhaustedError:
        waited = self._clock() - began
        # The time is counted where the acquire ends.
        self._state.acquire_failed(0.0, timed_out=True)
        if not timeout or not can_wait:
            # For the next caller that can't wait.
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
    # Logging may switch, which the event loop's own greenlet can't.
    message = "%r could not say whether it can be used again, and is closed"
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
    if core is not None:
        core._ensure_owner()
