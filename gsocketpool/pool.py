"""The pool."""

from __future__ import annotations

import logging
import math
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from random import uniform
from types import MappingProxyType, TracebackType
from typing import Any, Generic, TypeVar

import gevent
from gevent import getcurrent
from gevent.event import Event
from gevent.hub import Waiter, get_hub

from gsocketpool import _steps, _where
from gsocketpool._aside import Closer, close_all, is_usable_within, open_within
from gsocketpool._block import Block
from gsocketpool._forking import tell_after_fork
from gsocketpool._state import Entry, State, Status, Ticket
from gsocketpool.exceptions import (
    ConnectionNotFoundError,
    InvalidArgumentError,
    PoolClosedError,
    PoolExhaustedError,
    PoolNotReadyError,
    WrongThreadError,
)
from gsocketpool.reaper import start_reaper
from gsocketpool.settings import Settings, check_count, check_seconds
from gsocketpool.stats import PoolStats

logger = logging.getLogger("gsocketpool")

C = TypeVar("C")

#: Seconds between attempts to fill up to ``min_connections`` after a failure: the first, and the most.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0


class Pool(Generic[C]):
    """Hands out connections to one backend, at most `max_connections` at a time.

    A pool is for the greenlets of one thread: that which first uses it. After a fork, the child's copy of a pool starts
    empty. A pool that nobody refers to any more closes its idle connections in the event loop's next turn.

    :param factory: a :class:`Connection` class, or any callable that returns a connection, open or not.
    :param options: the keyword arguments for the factory, or a callable that returns them, which is asked at every
        open: for credentials that rotate.
    :param initial_connections: how many connections to open here and now; what opening raises is raised.
    :param max_connections: the limit on connections that are idle, in use or being opened.
    :param reap_expired_connections: whether a background greenlet sweeps the pool: retires idle connections whose time
        is up, asks the others ``is_expired()``, and looks for leaks.
    :param reap_interval: seconds between two sweeps. They come more often where `max_lifetime`, `idle_timeout` or
        `leak_threshold` is shorter.
    :param name: what the pool is called in logs and errors; by default the factory's name.
    :param min_connections: how many connections are kept open in the background, from now on.
    :param max_waiting: how many callers may wait for a connection to be released; one more is refused at once. None for
        no limit.
    :param acquire_timeout: seconds that an acquire may take in all; None for no limit.
    :param open_timeout: seconds that opening one connection may take; None for no limit.
    :param close_timeout: seconds that closing one connection may take; then it loses its descriptor.
    :param max_opening: how many connections may be opened at the same time; None for no limit.
    :param max_lifetime: seconds from its opening after which a connection is retired, less a random share of up to 10 %
        so that those opened together don't all end together; None for no limit.
    :param idle_timeout: seconds without use after which a connection is retired; None for no limit.
    :param leak_threshold: seconds of use after which a connection is reported in the log, once, with the place where it
        was acquired; None for no report.
    :raises InvalidArgumentError: if an argument is out of its range.
    """

    _clock = staticmethod(time.monotonic)

    def __init__(
        self,
        factory: Callable[..., C],
        options: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        initial_connections: int = 0,
        max_connections: int = 200,
        reap_expired_connections: bool = True,
        reap_interval: float = 180,
        *,
        name: str | None = None,
        min_connections: int = 0,
        max_waiting: int | None = None,
        acquire_timeout: float | None = 5.0,
        open_timeout: float | None = 10.0,
        close_timeout: float = 5.0,
        max_opening: int | None = 10,
        max_lifetime: float | None = None,
        idle_timeout: float | None = None,
        leak_threshold: float | None = None,
    ) -> None:
        # Before anything that can fail: __del__ looks at it.
        self._hub: Any = None
        if not callable(factory):
            raise InvalidArgumentError("factory", factory, "a Connection class or a callable")
        if options is not None and not isinstance(options, Mapping) and not callable(options):
            raise InvalidArgumentError(
                "options", options, "a mapping of keyword arguments or a callable that returns one"
            )
        self._settings = Settings(
            initial_connections=initial_connections,
            max_connections=max_connections,
            reap_expired_connections=reap_expired_connections,
            reap_interval=reap_interval,
            name=name,
            min_connections=min_connections,
            max_waiting=max_waiting,
            acquire_timeout=acquire_timeout,
            open_timeout=open_timeout,
            close_timeout=close_timeout,
            max_opening=max_opening,
            max_lifetime=max_lifetime,
            idle_timeout=idle_timeout,
            leak_threshold=leak_threshold,
        )
        self._factory = factory
        self._options = {} if options is None else options
        self.name = name if name is not None else getattr(factory, "__name__", type(factory).__name__)
        self._state = State(
            max_connections=max_connections,
            min_connections=min_connections,
            max_opening=max_opening,
            max_waiting=max_waiting,
            idle_timeout=idle_timeout,
        )
        self._closer = Closer(close_timeout)
        self._reaper: gevent.Greenlet | None = None
        self._changed = Event()
        self._pause = FIRST_PAUSE
        self._last_open_error: str | None = None
        tell_after_fork(self)
        if initial_connections:
            self._open_initial(initial_connections)
        if min_connections:
            self._enter()

    # Acquiring

    def acquire(self, retry: int | None = None, *, timeout: float | None = None) -> C:
        """Returns a connection that nobody else has until it is released or discarded.

        The connection used last is taken, after a check that it is still good. Without an idle one, another is opened;
        at the limit, the caller queues behind those who came before. Prefer :meth:`connection`, which can't forget to
        give back.

        :param timeout: seconds that all of this may take together; by default the pool's `acquire_timeout`; `math.inf`
            for no limit. With 0 the caller never waits: there is an idle connection or there is none, and then, if the
            limit allows, one is opened in the background for the next caller.
        :param retry: the way to say it in gsocketpool 0.1.6: to wait `retry` times 0.1 s for a connection to be
            released, while opening takes the time it takes, within `acquire_timeout`.
        :raises PoolExhaustedError: if the time is over, or `max_waiting` callers wait already.
        :raises PoolClosedError: if the pool is closed, or gets closed meanwhile.
        :raises WrongThreadError: in another thread than the one that uses the pool.
        :raises InvalidArgumentError: if `timeout` or `retry` is not a number of at least 0.

        What opening a connection raises is raised as it is.
        """
        if retry is not None:
            timeout = self._timeout_for(check_count("retry", retry))
        connection: C = self._acquire(timeout).connection
        return connection

    def connection(self, timeout: float | None = None) -> Block[C]:
        """Returns a context manager that acquires a connection and gives it back at the end of the block.

        If the block is left by an exception, the exchange may be half done and its reply still to come, so the
        connection is discarded, unless its class :meth:`knows better <Connection.is_reusable>`.

        :param timeout: as for :meth:`acquire`, whose errors it raises on entering.
        """
        return Block(self, timeout)

    def _timeout_for(self, retries: int) -> float | None:
        timeout = retries * 0.1
        limit = self._settings.acquire_timeout
        if self._state.size + len(self._state.opening) < self._state.max_connections:
            timeout = math.inf if limit is None else max(timeout, limit)
        return timeout

    def _acquire(self, timeout: float | None) -> Entry:
        hub = get_hub()
        if hub is not self._hub:
            self._enter()
        holder = getcurrent()
        state = self._state
        began = self._clock()
        if timeout is None:
            limit = self._settings.acquire_timeout
            timeout = math.inf if limit is None else limit
        else:
            check_seconds("timeout", timeout, zero=True, endless=True)

        entry = state.take(began, holder)
        if entry is not None and self._is_fit(entry, began, began + timeout):
            state.acquired_at_once += 1
        else:
            entry = self._acquire_slowly(holder, began, timeout, is_first=entry is not None)
        if self._settings.leak_threshold is not None:
            entry.where = _where.callers()
        return entry

    def _acquire_slowly(self, holder: Any, began: float, timeout: float, is_first: bool) -> Entry:
        state = self._state
        if not is_first and state.must_refuse():
            state.refused += 1
            raise self._exhausted(holder, began, timeout, "too many are waiting")
        try:
            while True:
                entry, is_new = self._take_or_wait(holder, began, timeout, is_first)
                if entry.status is Status.IN_USE and (is_new or self._is_fit(entry, self._clock(), began + timeout)):
                    state.acquired_after_wait += 1
                    return entry
                # Whoever was given a bad one has been the longest waiter, and stays it.
                is_first = True
        finally:
            state.wait_time += self._clock() - began

    def _take_or_wait(self, holder: Any, began: float, timeout: float, is_first: bool) -> tuple[Entry, bool]:
        """Returns an entry in use by the caller, and whether it is fresh from being opened."""
        self._enter()
        state = self._state
        if state.closed:
            raise self._closed()
        entry = state.take(self._clock(), holder)
        if entry is not None:
            return entry, False
        remaining = began + timeout - self._clock()
        if remaining <= 0:
            state.timed_out += 1
            if timeout:
                raise self._exhausted(holder, began, timeout, "no time is left")
            # The next one who can't wait shall be luckier.
            self._start_openings(more=1)
            raise self._exhausted(holder, began, timeout, "none is idle")
        waiter = Waiter(self._hub)
        ticket = Ticket(holder, waiter.switch)
        timer = None if remaining == math.inf else self._hub.loop.timer(remaining)
        state.enqueue(ticket, first=is_first)
        try:
            self._start_openings()
            if timer is not None:
                timer.start(waiter.switch, None)
            waiter.get()
        except BaseException:
            # What was handed over while the exception was on its way belongs to the next one.
            entry = state.withdraw(ticket)
            if entry is not None and entry.status is Status.IN_USE:
                self._put_back(entry)
            raise
        finally:
            if timer is not None:
                timer.close()
        if ticket.error is not None:
            try:
                raise ticket.error
            finally:
                # The error's traceback has this frame, and so this frame must not have the error.
                del ticket
        entry = state.withdraw(ticket)
        if entry is None:
            state.timed_out += 1
            raise self._exhausted(holder, began, timeout, "none came in time")
        return entry, entry.uses == 1

    def _is_fit(self, entry: Entry, now: float, deadline: float) -> bool:
        """Whether an entry that was idle or in use a moment ago may be handed out. One that may not is let go of."""
        if now >= entry.retire_at:
            self._retire(entry, "lifetime" if now >= entry.expires_at else "idle")
            return False
        connection = entry.connection
        try:
            if not entry.is_asked_aside:
                usable = _steps.is_usable(connection)
            elif now < deadline:
                usable = is_usable_within(deadline - now, connection)
            else:
                usable = _steps.is_usable_at_a_glance(connection)
        except BaseException:
            self._discard(entry, "interrupted")
            raise
        if usable and entry.status is Status.IN_USE:
            return True
        self._discard(entry, "unusable")
        return False

    # Giving back

    def release(self, connection: C) -> None:
        """Gives a connection back: to the longest waiter, or to lie idle. One that is not reusable is closed.

        :raises ConnectionNotFoundError: if it is not in use, or not this pool's; nothing happens then.
        """
        self._give_back(self._find(connection, Status.IN_USE), None)

    def discard(self, connection: C) -> None:
        """Gives back a connection that must not be used again: it is closed.

        :raises ConnectionNotFoundError: if it is not in use, or not this pool's; nothing happens then.
        """
        self._wait_for(self._discard(self._find(connection, Status.IN_USE), "by hand"))

    def detach(self, connection: C) -> C:
        """Takes a connection in use out of the pool, open as it is. It is the caller's from now on, and its place is
        free.

        :raises ConnectionNotFoundError: if it is not in use, or not this pool's; nothing happens then.
        """
        self._state.remove(self._find(connection, Status.IN_USE), self._clock())
        self._look_around()
        return connection

    def _find(self, connection: C, status: Status) -> Entry:
        self._enter()
        entry = self._state.find(connection, status)
        if entry is None:
            raise ConnectionNotFoundError(f"{connection!r} is not {status.value} in pool {self.name!r}")
        return entry

    def _give_back(self, entry: Entry, error: BaseException | None) -> None:
        self._enter()
        uses = entry.uses
        try:
            reusable = _steps.is_reusable(entry.connection, error)
        except BaseException:
            self._discard(entry, "interrupted")
            raise
        if entry.uses != uses or entry.status is not Status.IN_USE:
            # A step that switched, though it should not, has let somebody else give it back.
            return
        if reusable:
            self._wait_for(self._put_back(entry))
        else:
            self._wait_for(self._discard(entry, "not reusable" if error is None else "error"))

    def _put_back(self, entry: Entry) -> gevent.Greenlet | None:
        now = self._clock()
        reason = self._state.reason_to_retire(entry, now)
        if reason is not None:
            return self._retire(entry, reason)
        ticket = self._state.put_back(entry, now)
        if ticket is not None:
            self._hub.loop.run_callback(ticket.wake, None)
        return None

    def _discard(self, entry: Entry, reason: str) -> gevent.Greenlet | None:
        return self._close_entry(entry, self._state.discarded, reason)

    def _retire(self, entry: Entry, reason: str) -> gevent.Greenlet | None:
        return self._close_entry(entry, self._state.retired, reason)

    def _close_entry(self, entry: Entry, counter: Counter[str], reason: str) -> gevent.Greenlet | None:
        if entry.status is Status.GONE:
            return None
        self._state.remove(entry, self._clock())
        return self._close_removed(entry, counter, reason)

    def _close_removed(self, entry: Entry, counter: Counter[str], reason: str) -> gevent.Greenlet:
        counter[reason] += 1
        closing = self._closer.close(entry.connection)
        self._look_around()
        return closing

    def _look_around(self) -> None:
        """To be called when a place has become free, or an opening has ended."""
        self._start_openings()
        self._changed.set()

    def _wait_for(self, closing: gevent.Greenlet | None) -> None:
        # The event loop's own greenlet, in whose callbacks a connection may be released, can't wait.
        if closing is not None and getcurrent() is not self._hub:
            closing.join()

    # Opening

    def _create_connection(self) -> C:
        """Makes a connection and opens it. A subclass may override it; what it returns need not be open."""
        options = self._options() if callable(self._options) else self._options
        connection = self._factory(**options)
        if not all(callable(getattr(connection, step, None)) for step in ("open", "close", "is_connected")):
            allowed = "a callable that returns objects with open(), close() and is_connected()"
            raise InvalidArgumentError("factory", self._factory, allowed)
        entry = self._state.opening.get(getcurrent())
        if entry is not None:
            # Known from now on, so that it is not lost if opening it gets interrupted.
            entry.connection = connection
        _steps.open_what_was_made(connection)
        return connection

    def _start_openings(self, more: int = 0) -> None:
        for _ in range(self._state.openings_due(more=more)):
            self._start_opening()

    def _start_opening(self) -> gevent.Greenlet:
        opener = gevent.Greenlet(self._open)
        self._state.begin_opening(opener)
        opener.rawlink(self._opener_ended)
        opener.start()
        return opener

    def _open_initial(self, count: int) -> None:
        self._enter()
        for _ in range(count):
            opener = self._start_opening()
            opener.join()
            if opener.value is not None:
                self.close(timeout=0)
                raise opener.value

    def _open(self) -> BaseException | None:
        """Opens the connection that the state expects of the current greenlet. Returns the error that nobody waited
        for."""
        entry = self._state.opening[getcurrent()]
        began = self._clock()
        try:
            connection = open_within(self._settings.open_timeout, self._create_connection)
        except BaseException as error:
            return self._opening_failed(entry, error, began)
        self._opening_succeeded(entry, connection, began)
        return None

    def _opener_ended(self, opener: gevent.Greenlet) -> None:
        entry = self._state.opening.get(opener)
        if entry is not None:
            # Killed before it began.
            self._opening_failed(entry, gevent.GreenletExit(), self._clock())

    def _opening_succeeded(self, entry: Entry, connection: C, began: float) -> None:
        if entry.status is Status.GONE:
            # This greenlet was copied by a fork.
            _steps.forget(connection)
            return
        now = self._clock()
        entry.is_asked_aside = _steps.may_block_when_asked(connection)
        lifetime = self._settings.max_lifetime
        expires_at = math.inf if lifetime is None else now + lifetime * uniform(0.9, 1.0)
        self._state.open_time += now - began
        self._state.land(entry, connection, now, expires_at)
        self._last_open_error = None
        self._pause = FIRST_PAUSE
        self._put_back(entry)
        self._look_around()

    def _opening_failed(self, entry: Entry, error: BaseException, began: float) -> BaseException | None:
        if entry.status is Status.GONE:
            # As above.
            return None
        self._state.open_time += self._clock() - began
        ticket = self._state.fail_opening(entry, error)
        if entry.connection is not None:
            self._closer.close(entry.connection)
        if ticket is None:
            self._pause_filling()
        else:
            self._hub.loop.run_callback(ticket.wake, None)
        self._last_open_error = "".join(traceback.format_exception_only(error)).strip()
        self._look_around()
        return error if ticket is None else None

    def _pause_filling(self) -> None:
        state = self._state
        if state.size < state.min_connections and not state.filling_paused and not state.closed:
            state.filling_paused = True
            gevent.spawn_later(self._pause, _call_if_alive, weakref.WeakMethod(self._resume_filling))
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _resume_filling(self) -> None:
        self._state.filling_paused = False
        self._start_openings()

    # Keeping in order

    def drop(self, connection: C) -> None:
        """Closes an idle connection and takes it out of the pool.

        :raises ConnectionNotFoundError: if it is not idle, or not this pool's; nothing happens then.
        """
        self._wait_for(self._retire(self._find(connection, Status.IDLE), "dropped"))

    def drop_expired(self) -> None:
        """Closes every idle connection whose ``is_expired()`` answers True."""
        self._enter()
        closing = []
        for entry in self._state.idle[:]:
            if entry.status is Status.IDLE and _steps.is_expired(entry.connection) and entry.status is Status.IDLE:
                closing.append(self._retire(entry, "expired"))
        for greenlet in closing:
            self._wait_for(greenlet)

    def drain(self) -> None:
        """Retires every connection there is now: the idle ones at once, those in use or being opened on their return.

        Connections opened from now on are not concerned.
        """
        self._enter()
        self._state.generation += 1
        self._retire_removed(self._state.take_idle_out(), "drain")

    def resize(self, max_connections: int) -> None:
        """Sets a new limit. If there are more connections, idle ones are retired, then others on their return.

        :raises InvalidArgumentError: if it is not a whole number, or less than 1 or ``min_connections``.
        """
        self._enter()
        check_count("max_connections", max_connections, least=max(1, self._settings.min_connections))
        self._state.max_connections = max_connections
        self._retire_removed(self._state.take_surplus_out(), "surplus")
        self._start_openings()

    def _retire_removed(self, entries: list[Entry], reason: str) -> None:
        for closing in [self._close_removed(entry, self._state.retired, reason) for entry in entries]:
            self._wait_for(closing)

    def _sweep(self) -> None:
        """What the reaper does every time."""
        now = self._clock()
        for entry in self._state.take_overdue_out(now):
            self._close_removed(entry, self._state.retired, "lifetime" if now >= entry.expires_at else "idle")
        self._look_for_leaks(now)
        self.drop_expired()
        self._start_openings()

    def _look_for_leaks(self, now: float) -> None:
        threshold = self._settings.leak_threshold
        for entry in self._state.entries_in_use():
            if entry.status is not Status.IN_USE:
                # Logging has switched, and it came back meanwhile.
                continue
            where = _where.describe(entry.where)
            if getattr(entry.holder, "dead", False):
                self._discard(entry, "holder is dead")
                logger.error(
                    "pool %r took %r back: its greenlet has ended without releasing it. It was acquired %s",
                    self.name,
                    entry.connection,
                    where,
                )
            elif threshold is not None and not entry.is_reported and now - entry.since > threshold:
                entry.is_reported = True
                logger.warning(
                    "%r of pool %r has been in use for %.1f s, longer than leak_threshold (%s s). It was acquired %s",
                    entry.connection,
                    self.name,
                    now - entry.since,
                    threshold,
                    where,
                )

    # Beginning and ending

    def _enter(self) -> None:
        """Makes sure that this is the thread whose pool this is. The first to come makes it its own."""
        hub = get_hub()
        if hub is self._hub:
            return
        if self._hub is not None:
            raise WrongThreadError(
                f"pool {self.name!r} is in use by another thread, and its sockets belong to the event loop there;"
                " every thread needs a pool of its own"
            )
        self._hub = hub
        if self._state.closed:
            return
        if self._settings.reap_expired_connections:
            self._reaper = start_reaper(self._sweep, self._settings.sweep_interval)
        self._start_openings()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until ``min_connections`` are open.

        :param timeout: the most seconds to wait; None for no limit.
        :raises PoolNotReadyError: if they are not open by then.
        :raises PoolClosedError: if the pool is closed, or gets closed meanwhile.
        """
        if timeout is not None:
            check_seconds("timeout", timeout, zero=True)
        self._enter()
        state = self._state
        self._wait_until(lambda: state.closed or state.size >= state.min_connections, timeout)
        if state.closed:
            raise self._closed()
        if state.size < state.min_connections:
            raise PoolNotReadyError(
                f"pool {self.name!r} has {state.size} of {state.min_connections} connections open after {timeout} s"
                f"{self._open_error_note()}",
                connections=state.size,
                min_connections=state.min_connections,
                last_open_error=self._last_open_error,
            )

    def _wait_until(self, condition: Callable[[], bool], timeout: float | None) -> None:
        deadline = math.inf if timeout is None else self._clock() + timeout
        while not condition():
            remaining = deadline - self._clock()
            if remaining <= 0:
                return
            self._changed.clear()
            self._changed.wait(None if remaining == math.inf else remaining)

    def close(self, timeout: float = 5.0) -> None:
        """Closes the pool for good. To close it again does nothing.

        Those who wait for a connection, and whoever asks for one from now on, get a :exc:`PoolClosedError`. Idle
        connections are closed, and those in use as they come back. When this returns, all are closed: none takes longer
        than `close_timeout`.

        :param timeout: seconds to wait for the connections in use; what is still out then is closed under its user.
        :raises WrongThreadError: in another thread than the one that uses the pool.
        """
        check_seconds("timeout", timeout, zero=True)
        state = self._state
        if self._hub is None:
            state.closed = True
            return
        self._enter()
        state.closed = True
        if self._reaper is not None:
            self._reaper.kill(block=False)
        for ticket in state.take_waiters_out():
            ticket.error = self._closed()
            self._hub.loop.run_callback(ticket.wake, None)
        openers: list[Any] = list(state.opening)
        for opener in openers:
            opener.kill(block=False)
        for entry in state.take_idle_out():
            self._close_removed(entry, state.retired, "closed")
        self._wait_until(lambda: not state.size and not state.opening, timeout)
        for entry in state.entries_in_use():
            self._retire(entry, "closed")
        self._closer.wait()

    def __enter__(self) -> Pool[C]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # This may run anywhere, in the middle of another pool's bookkeeping or in another thread. So nothing is closed
        # here: it is left to the event loop, by a call that takes no lock.
        loop = None if self._hub is None else self._hub.loop
        if loop is None:
            # Never used, or the thread has ended and its event loop with it.
            return
        idle = [entry.connection for entry in self._state.take_idle_out()]
        if idle or self._reaper is not None:
            loop.run_callback_threadsafe(_bury, self._reaper, idle, self._settings.close_timeout)

    def _after_fork(self) -> None:
        """In a forked child: the connections are the parent's, and so are the greenlets that this pool had at work."""
        state = self._state
        helpers: list[Any] = [*state.opening, self._reaper]
        for connection in [*state.forget(), *self._closer.forget()]:
            _steps.forget(connection)
        for helper in helpers:
            if helper is not None:
                helper.kill(block=False)
        if state.waiters:
            # Their greenlets were copied by the fork, too, and go on waiting.
            self._hub.loop.run_callback(_call_if_alive, weakref.WeakMethod(self._enter))
        self._hub = self._reaper = None

    # Seeing

    @property
    def size(self) -> int:
        """How many connections are idle, in use or being opened."""
        return self._state.size + len(self._state.opening)

    def stats(self) -> PoolStats:
        """Returns a snapshot of what the pool is doing and has done."""
        state = self._state
        return PoolStats(
            name=self.name,
            max_connections=state.max_connections,
            idle=len(state.idle),
            in_use=state.in_use,
            opening=len(state.opening),
            waiting=len(state.waiters),
            acquired_at_once=state.acquired_at_once,
            acquired_after_wait=state.acquired_after_wait,
            timed_out=state.timed_out,
            refused=state.refused,
            opened=state.opened,
            open_errors=state.open_errors,
            discarded=MappingProxyType(dict(state.discarded)),
            retired=MappingProxyType(dict(state.retired)),
            wait_time=state.wait_time,
            use_time=state.use_time,
            open_time=state.open_time,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self._census()}{', closed' if self._state.closed else ''}>"

    def _census(self) -> str:
        state = self._state
        return (
            f"{state.in_use} in use, {len(state.idle)} idle, {len(state.opening)} opening,"
            f" at most {state.max_connections}; {len(state.waiters)} waiting"
        )

    def _open_error_note(self) -> str:
        return "" if self._last_open_error is None else f"; opening one last failed with {self._last_open_error}"

    def _closed(self) -> PoolClosedError:
        return PoolClosedError(f"pool {self.name!r} is closed")

    def _exhausted(self, holder: Any, began: float, timeout: float, why: str) -> PoolExhaustedError:
        state = self._state
        waited = self._clock() - began
        held = sum(entry.holder is holder for entry in state.entries_in_use())
        message = f"no connection from pool {self.name!r} within {timeout:g} s, {why}"
        message += f" (waited {waited:.3f} s): {self._census()}"
        if held:
            message += f"; the greenlet that asks holds {held} of those in use itself"
        return PoolExhaustedError(
            message + self._open_error_note(),
            in_use=state.in_use,
            idle=len(state.idle),
            opening=len(state.opening),
            waiting=len(state.waiters),
            max_connections=state.max_connections,
            timeout=None if timeout == math.inf else timeout,
            waited=waited,
            held_by_caller=held,
            last_open_error=self._last_open_error,
        )


def _call_if_alive(reference: weakref.WeakMethod[Callable[[], None]]) -> None:
    method = reference()
    if method is not None:
        method()


def _bury(reaper: gevent.Greenlet | None, connections: list[Any], close_timeout: float) -> None:
    """What is left to do, in the event loop, for a pool that has been collected."""
    if reaper is not None:
        reaper.kill(block=False)
    close_all(connections, close_timeout)
