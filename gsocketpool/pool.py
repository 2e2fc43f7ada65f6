"""The public pool. ``_core.py`` has the hot paths behind it, and ``_state.py`` makes the decisions."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

import gevent
from gevent import getcurrent

from gsocketpool import _callsite, _report
from gsocketpool._core import Core
from gsocketpool._lease import Lease
from gsocketpool._lifecycle import close_opening
from gsocketpool._records import IDLE, IN_USE, PINGING, Entry
from gsocketpool._state import DETACHED, RETIRED
from gsocketpool._steps import open_new, steps_for
from gsocketpool._threads import current
from gsocketpool.connectors import Connector
from gsocketpool.events import PoolEvents
from gsocketpool.exceptions import (
    ConnectionNotFoundError,
    InvalidArgumentError,
    PoolClosedError,
    PoolExhaustedError,
    PoolNotReadyError,
)
from gsocketpool.settings import LONGEST_WAIT, Settings, check_count, check_seconds, timer_seconds
from gsocketpool.stats import PoolStats
from gsocketpool.url import read_url

#: Code written for 0.1.6 imports the errors from this module.
__all__ = ["ConnectionNotFoundError", "Pool", "PoolExhaustedError"]

C = TypeVar("C")

logger: logging.Logger = logging.getLogger("gsocketpool")


class Pool(Core, Generic[C]):
    """Hands out connections to one backend, at most `max_connections` at a time.

    A pool serves the greenlets of one thread: the first thread that uses it. When that thread ends, the pool aborts
    every connection, in use or not; the main thread is the exception. After a fork, the child's copy of a pool starts
    empty. A pool that is garbage-collected closes its idle connections in the next turn of the event loop.

    :param factory: a :class:`Connection` class, any callable that returns a connection, open or not, or a
        :class:`~gsocketpool.connectors.Connector`, which makes and handles the connections of a client library.
    :param options: the keyword arguments for the factory, or a callable that returns them. The pool calls it for every
        new connection, so credentials may rotate. A connector has its own options.
    :param initial_connections: how many connections to open now; an error in opening one is raised. In the event loop's
        own greenlet, which can't wait, they are opened in the background.
    :param max_connections: the limit on connections that are idle, in use, being opened, reset or pinged.
    :param reap_expired_connections: whether a background greenlet sweeps the pool. A sweep retires idle connections
        that are too old, closes dead ones, calls ``is_expired()`` on the others, and looks for leaks.
    :param reap_interval: seconds between two sweeps. Sweeps come more often if `max_lifetime`, `idle_timeout` or
        `leak_threshold` is shorter.
    :param name: the pool's name in logs and errors; by default the factory's name.
    :param min_connections: how many connections the pool keeps open in the background.
    :param max_waiting: how many callers may queue for a released connection; the pool refuses the next one at once.
        None for no limit.
    :param acquire_timeout: seconds that an acquire may take in all; None for no limit.
    :param open_timeout: seconds that opening one connection may take; None for no limit.
    :param close_timeout: seconds that closing one connection may take, after which it is aborted.
    :param max_opening: how many connections may be opening at the same time; None for no limit.
    :param max_lifetime: seconds after its opening when a connection is retired, less a random share of up to 10 %, so
        that connections opened together don't end together; None for no limit.
    :param idle_timeout: seconds without use after which a connection is retired; None for no limit.
    :param leak_threshold: seconds of use after which a connection is logged once, with the place where it was acquired;
        None for no report.
    :param reset: when to reset a connection that comes back, if its class or connector can: ``"unsettled"`` if
        something is left open, such as a transaction; ``"always"`` after each use, so that no session state, such as a
        setting or a lock, reaches the next user; or ``"never"``.
    :param reset_timeout: seconds that a reset may take, after which the connection is discarded.
    :param ping_timeout: seconds that a ping may take, in :meth:`ping` and for `keepalive_interval`.
    :param keepalive_interval: seconds without use or ping after which an idle connection is pinged in the background,
        one at a time, so that no server or firewall drops it; None for no pings. A connection that does not answer is
        discarded. A caller that finds no other idle connection waits for the ping, or for a new connection if the limit
        allows one. A ping is not a use: it does not restart `idle_timeout`. Classes without a ``ping()`` are not
        pinged, and the pool logs that once.
    :param events: the listener to tell about the pool's events; None for none.
    :param context: returns a context manager to enter around user code that the pool runs, such as an app's context, or
        None to enter nothing.
    :param clock: returns the time in seconds, for tests; by default :func:`time.monotonic`. Timers keep real time.
    :raises InvalidArgumentError: if an argument is out of its range, or `keepalive_interval` is given for a connector
        that has no ``ping()``.
    """

    def __init__(
        self,
        factory: Callable[..., C] | Connector[C],
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
        reset: str = "unsettled",
        reset_timeout: float = 5.0,
        ping_timeout: float = 5.0,
        keepalive_interval: float | None = None,
        events: PoolEvents | None = None,
        context: Callable[[], AbstractContextManager[object] | None] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        steps = steps_for(factory, options)
        if events is not None and not isinstance(events, PoolEvents):
            raise InvalidArgumentError("events", events, "an instance of a subclass of PoolEvents, or None")
        for argument, given in (("context", context), ("clock", clock)):
            if given is not None and not callable(given):
                raise InvalidArgumentError(argument, given, "a callable, or None")
        settings = Settings(
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
            reset=reset,
            reset_timeout=reset_timeout,
            ping_timeout=ping_timeout,
            keepalive_interval=keepalive_interval,
        )
        if keepalive_interval is not None and isinstance(factory, Connector) and not steps.can_ping(None):
            raise InvalidArgumentError(
                "keepalive_interval", keepalive_interval, "None for a connector without a ping()"
            )
        default_name = getattr(factory, "__name__", type(factory).__name__)
        super().__init__(default_name if name is None else name, settings, events, steps, context, clock)
        self._factory = factory
        self._options = {} if options is None else options
        if initial_connections:
            try:
                self.fill(initial_connections)
            except BaseException:
                self.close(timeout=0)
                raise
        if min_connections:
            self._ensure_owner()

    @classmethod
    def from_url(
        cls,
        url: str,
        options: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> Pool[Any]:
        """Make a pool from a URL.

        :param url: ``tcp://host:port``, ``tls://host:port`` or ``unix:///path``, with options in the query, such as
            ``?timeout=2``; or the URL of a client library that has a connector, such as ``postgresql://`` or
            ``redis://``; ``scheme+driver://`` chooses one of several libraries. Credentials in it are never shown.
        :param options: keyword arguments for the connection or the connector, which override those of the URL, or a
            callable that returns them, called for every new connection.
        :param settings: the other arguments of the pool.
        :raises InvalidURLError: if the URL can't be used.
        :raises InvalidArgumentError: if a connector can't use its URL or its options.
        :raises ImportError: if the client library is not installed; the message names the extra to install.
        """
        target = read_url(url, options)
        return cls(target.factory, target.options, **settings)

    def _create_connection(self) -> C:
        """Make a connection and open it. A subclass may override this and return a connection that is not open."""
        if isinstance(self._factory, Connector):
            client: C = self._factory.connect()
            if client is None:
                raise InvalidArgumentError("factory", client, "a connector whose connect() returns an open client")
            return client
        options = self._options() if callable(self._options) else self._options
        if not isinstance(options, Mapping):
            allowed = "a callable that returns a mapping of keyword arguments"
            raise InvalidArgumentError("options", type(options), allowed)
        connection = self._factory(**options)
        if not all(callable(getattr(connection, step, None)) for step in ("open", "close", "is_connected")):
            allowed = "a callable that returns an object with open(), close() and is_connected()"
            raise InvalidArgumentError("factory", connection, allowed)
        entry = self._state.opening.get(getcurrent())
        if entry is not None:
            # Before it opens, so that an interruption can't lose it.
            self._state.note_connection(entry, connection)
        open_new(connection)
        return connection

    # Acquiring

    def acquire(self, retry: int | None = None, *, timeout: float | None = None) -> C:
        """Return a connection for the caller's sole use, until the caller releases or discards it.

        The pool checks the idle connection that was used last and hands it out. If none is idle, it opens one; at the
        limit, the caller queues behind earlier callers. Prefer :meth:`connection`, which never forgets to give back.
        If a greenlet ends without giving its connection back, the pool closes that connection; to hand one to another
        greenlet, use :meth:`lease` and :meth:`Lease.transfer`. Errors in opening a connection are raised unchanged.

        :param timeout: seconds that the whole call may take; by default the pool's `acquire_timeout`; `math.inf` for no
            limit. With 0 the caller never waits: if no connection is idle, this raises, and if the limit allows, the
            pool opens one in the background for the next caller. The event loop's own greenlet, which runs callbacks
            and signal handlers, never waits either.
        :param retry: for code written for gsocketpool 0.1.6: wait `retry` times 0.1 s for a released connection.
            Opening one may take longer, up to `acquire_timeout`.
        :raises PoolExhaustedError: if the time is over, or `max_waiting` callers already wait.
        :raises PoolClosedError: if the pool is closed, before or during the call.
        :raises WrongThreadError: in a thread other than the pool's own.
        :raises InvalidArgumentError: if `timeout` or `retry` is not a number of at least 0, or both are given.
        """
        if retry is not None:
            if timeout is not None:
                raise InvalidArgumentError("timeout", timeout, "left out where retry is given")
            timeout = self._timeout_from_retries(check_count("retry", retry))
        entry = self._check_out(timeout)
        if self._tells_acquired:
            self._start_lease(entry)
        return entry.connection  # type: ignore[no-any-return]

    def connection(self, timeout: float | None = None) -> Lease[C]:
        """Return a lease: its ``with`` block acquires a connection on entry, and gives it back at the end.

        If an exception leaves the block, its reply may still be on its way, so the pool discards the connection, unless
        its class :meth:`knows better <Connection.is_reusable>`. Catch an exception inside the block only if the class
        guards its exchanges by :meth:`Connection.exchange`, or the exchange is complete. Giving back never waits: the
        pool closes discarded connections in the background.

        :param timeout: as for :meth:`acquire`, whose errors the block raises on entry.
        """
        return Lease(self, timeout)

    def lease(self, timeout: float | None = None) -> Lease[C]:
        """Acquire a connection and return its lease.

        :param timeout: as for :meth:`acquire`, whose errors it raises.
        """
        return self._start_lease(self._check_out(timeout))

    def _start_lease(self, entry: Entry) -> Lease[C]:
        """Return the lease of an entry that was just checked out, and tell the listener."""
        try:
            lease: Lease[C] = Lease(self)
            lease._adopt(entry)
            if self._tells_acquired:
                self._tell_acquired(lease)
        except RecursionError:  # pragma: no cover - only near the recursion limit, where coverage can't measure
            self._defer(self._discard, entry, entry.generation, "interrupted")
            raise
        return lease

    def _timeout_from_retries(self, retries: int) -> float:
        timeout = min(retries * 0.1, LONGEST_WAIT)
        return max(timeout, self._acquire_timeout) if self.size < self._state.max_connections else timeout

    # Giving back

    def release(self, connection: C) -> None:
        """Give a connection back. It goes to the longest waiter or becomes idle. This never waits.

        A connection that is not reusable or is too old is closed in the background.

        :raises ConnectionNotFoundError: if it is not in use or not this pool's; nothing changes then.
        :raises WrongThreadError: in a thread other than the pool's own, as from all methods below.
        """
        entry = self._state.entries.get(id(connection))
        if entry is None or entry.status is not IN_USE or entry.duplicate is not None:
            entry = self._find(connection, IN_USE)
        if current.thread is not self._thread:
            self._ensure_owner()
        if entry.complete is not None:
            self._release(entry, entry.generation, _callsite.callers(1))
        else:
            self._check_in(entry, entry.generation, None)

    def discard(self, connection: C) -> None:
        """Close a connection that must not be used again, in use or idle. The pool closes it in the background.

        :raises ConnectionNotFoundError: if it is neither in use nor idle, or not this pool's; nothing changes then.
        """
        self._ensure_owner()
        entry = self._state.find(connection, IN_USE, self._holder()) or self._find_idle(connection)
        if entry is None:
            raise self._not_found(connection, "in use or idle")
        self._discard(entry, entry.generation)

    def detach(self, connection: C) -> C:
        """Take a connection in use out of the pool and leave it open. The caller owns it and closes it.

        :raises ConnectionNotFoundError: if it is not in use or not this pool's; nothing changes then.
        """
        self._ensure_owner()
        entry = self._find(connection, IN_USE)
        # Before the state changes, because near the recursion limit this call may fail.
        self._run_callback(self._lifecycle.capacity_changed)
        self._state.remove(entry, self._clock(), DETACHED)
        return connection

    def _find(self, connection: object, status: str) -> Entry:
        entry = self._state.find(connection, status, self._holder())
        if entry is None:
            raise self._not_found(connection, status)
        return entry

    def _find_idle(self, connection: object) -> Entry | None:
        # For the caller, a connection that is being pinged counts as idle.
        return self._state.find(connection, IDLE) or self._state.find(connection, PINGING)

    def _holder(self) -> Any:
        return weakref.ref(getcurrent())

    # Maintenance

    def drop(self, connection: C) -> None:
        """Take an idle connection out of the pool and close it. This waits for every close in progress.

        Dropping a connection that :meth:`release` has closed does nothing, until the next sweep.

        :raises ConnectionNotFoundError: if it is not idle or not this pool's; nothing changes then.
        """
        self._ensure_owner()
        entry = self._find_idle(connection)
        if entry is None:
            if self._state.forget_closed(connection):
                return
            raise self._not_found(connection, IDLE)
        self._lifecycle.remove(entry, RETIRED, "dropped")
        self._wait_for_closings()

    def drop_expired(self) -> None:
        """Close every idle connection whose ``is_expired()`` returns True."""
        self._ensure_owner()
        self._reaper.drop_expired()
        self._wait_for_closings()

    def drain(self) -> None:
        """Retire every present connection: idle ones now, those in use or being opened on their return.

        Connections opened later are not affected.
        """
        self._ensure_owner()
        self._state.drain()
        self._lifecycle.close_removed(self._state.pop_all_idle("drain"), "drain")
        self._wait_for_closings()

    def resize(self, max_connections: int) -> None:
        """Set a new limit. Surplus connections are retired: idle ones now, then others on their return.

        :raises InvalidArgumentError: if it is not a whole number, or is less than 1 or ``min_connections``.
        """
        self._ensure_owner()
        check_count("max_connections", max_connections, least=max(1, self._settings.min_connections))
        self._lifecycle.close_removed(self._state.resize(max_connections), "surplus")
        self._lifecycle.start_openings()
        self._wait_for_closings()

    def _wait_for_closings(self) -> None:
        # The event loop's own greenlet can't wait.
        if getcurrent() is self._hub:
            self._closer.start()
        else:
            self._closer.wait()

    # Starting and ending

    def fill(self, connections: int) -> None:
        """Open connections until the pool has `connections` of them, idle or in use.

        An error in opening one is raised. In the event loop's own greenlet, which can't wait, this goes on in the
        background, and a failure is logged. If :meth:`resize` lowers the limit below `connections` during the call,
        this returns when the pool is full.

        :param connections: at most `max_connections`.
        :raises InvalidArgumentError: if it is not a whole number, or more than that.
        :raises PoolClosedError: if the pool is closed, before or during the call.
        """
        state = self._state
        if check_count("connections", connections) > state.max_connections:
            raise InvalidArgumentError("connections", connections, f"at most max_connections ({state.max_connections})")
        while True:
            # On every pass, because a fork may have copied this greenlet.
            self._ensure_owner()
            if state.closed:
                raise self._closed_error()
            if state.size >= connections:
                return
            if getcurrent() is self._hub:
                gevent.spawn(self._fill_in_background, connections)
                return
            # An opener that calls this must not wait for itself.
            others = (opener for opener in state.opening if opener is not getcurrent())
            # A dead greenlet is falsy, so compare with None below.
            opener: Any = next(others, None)
            if opener is None:
                opener = self._lifecycle.start_opening(more=1)
            if opener is None:
                return
            opener.join()
            if opener in state.opening:
                # It was killed before it started, which the event loop notices in its next turn.
                gevent.sleep(0)
                continue
            error = opener.value
            # A GreenletExit means that it was killed in a listener, after it had opened its connection.
            if error is not None and not isinstance(error, gevent.GreenletExit) and not state.closed:
                try:
                    raise error
                finally:
                    # Break the cycle: the error's traceback refers to this frame.
                    del error, opener

    def _fill_in_background(self, connections: int) -> None:
        try:
            self.fill(connections)
        except PoolClosedError:
            pass
        except (Exception, gevent.Timeout):
            logger.warning("pool %r could not open %s connections", self.name, connections, exc_info=True)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until ``min_connections`` are open.

        :param timeout: the most seconds to wait; None for no limit. The event loop's own greenlet never waits.
        :raises PoolNotReadyError: if they are not open by then.
        :raises PoolClosedError: if the pool is closed, before or during the call.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout, zero=True)
        self._ensure_owner()
        if getcurrent() is self._hub:
            timeout = 0
        state = self._state
        self._wait_until(lambda: state.closed or state.size >= state.min_connections, timeout)
        if state.closed:
            raise self._closed_error()
        if state.size < state.min_connections:
            last_error = self._lifecycle.last_error
            raise PoolNotReadyError(
                f"pool {self.name!r} has {state.size} of {state.min_connections} connections open after {timeout} s"
                f"{_report.open_error_note(last_error)}",
                connections=state.size,
                min_connections=state.min_connections,
                last_open_error=last_error,
            )

    def ping(self, timeout: float | None = None) -> None:
        """Acquire a connection, call its ``ping()``, and give it back.

        If the class or connector has no ``ping()`` of its own, nothing is exchanged with the backend. If the ping
        raises, the connection is discarded and the error is raised unchanged.

        :param timeout: as for :meth:`acquire`, whose errors it raises. It does not bound the ping itself.
        :raises TimeoutError: if the ping takes longer than `ping_timeout`.
        """
        seconds = self._settings.ping_timeout
        with self.connection(timeout) as connection:
            # Not a TimeoutError, which a ping() may take for one of its socket, and handle.
            limit = gevent.Timeout(seconds)
            try:
                with limit:
                    self._adapter.ping(connection)
            except gevent.Timeout as error:
                if error is not limit:
                    raise
                late = f"pool {self.name!r}: the backend did not answer a ping within {seconds:g} s"
                raise TimeoutError(late) from None

    def _wait_until(self, condition: Callable[[], bool], timeout: float | None) -> None:
        deadline = math.inf if timeout is None else self._clock() + timeout
        while not condition():
            # As in fill().
            self._ensure_owner()
            remaining = deadline - self._clock()
            if remaining <= 0:
                return
            self._lifecycle.changed.clear()
            self._lifecycle.changed.wait(None if remaining == math.inf else timer_seconds(remaining))

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool for good.

        Waiters and later callers get a :exc:`PoolClosedError`. The pool closes its idle connections now and those in
        use when they come back. Each close is bounded by `close_timeout`, and when this returns, all are closed. In the
        event loop's own greenlet, such as in a signal handler, this returns at once and the rest goes on in the
        background.

        :param timeout: seconds to wait for connections in use, the caller's own included. The pool then closes those
            that are still out, even under their users. Another call has a timeout of its own, and the shorter one
            decides: ``close(timeout=0)`` ends the wait of a call in progress.
        :raises WrongThreadError: in a thread other than the pool's own.
        """
        timeout = check_seconds("timeout", timeout, zero=True)
        state = self._state
        if self._hub is None and not state.waiters:
            state.close()
            return
        self._ensure_owner()
        openers = self._begin_closing()
        if getcurrent() is self._hub:
            gevent.spawn(self._finish_closing, openers, timeout)
        else:
            self._finish_closing(openers, timeout)

    def _begin_closing(self) -> list[Any]:
        """Refuse callers, fail waiters and close what is idle. Return the killed openers."""
        state = self._state
        state.close()
        self._reaper.stop()
        self._lifecycle.stop()
        self._adapter.stop_checks()
        for waiter in state.fail_waiters(self._closed_error):
            self._waiters.wake(waiter)
        openers: list[Any] = list(state.opening)
        for opener in openers:
            opener.kill(block=False)
        self._lifecycle.close_removed(state.pop_all_idle("closed"), "closed")
        return openers

    def _finish_closing(self, openers: list[Any], timeout: float) -> None:
        state = self._state
        self._wait_until(lambda: not state.size and not state.opening, timeout)
        for entry in state.entries_in_use():
            self._lifecycle.remove(entry, RETIRED, "closed", cut_short=True)
        # With a timeout, because an open() may ignore the kill.
        gevent.joinall(openers, timeout=self._settings.close_timeout)
        close_opening(state, self._closer)
        self._closer.wait()

    def __enter__(self) -> Pool[C]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"pool {self.name!r} can't be copied or pickled: its sockets belong to this process, and its greenlets"
            " to one event loop; make another pool from the same arguments"
        )

    # Monitoring

    @property
    def settings(self) -> Settings:
        """The arguments that the pool was made with, defaults included. :meth:`resize` does not change them."""
        return self._settings

    @property
    def size(self) -> int:
        """The number of connections that are idle, in use, being opened, reset or pinged."""
        return self._state.size + len(self._state.opening)

    def stats(self) -> PoolStats:
        """Return a snapshot of the pool's sizes and counters."""
        return _report.snapshot(self.name, self._state, closing=len(self._closer), can_peek=self._adapter.can_peek)

    def __repr__(self) -> str:
        closed = ", closed" if self._state.closed else ""
        return f"<{type(self).__name__} {self.name!r}: {_report.summary(self._state)}{closed}>"
