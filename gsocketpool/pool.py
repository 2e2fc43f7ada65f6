"""The pool, as its users see it. An acquire goes on in ``_core.py``; what it decides is in ``_state.py``."""

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
from gsocketpool._lifecycle import close_half_open
from gsocketpool._records import IDLE, IN_USE, PINGING, Entry
from gsocketpool._state import DETACHED, RETIRED
from gsocketpool._steps import ConnectionSteps, ConnectorSteps, Steps, open_new
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

#: The errors are here for code written for 0.1.6, which imports them from this module.
__all__ = ["ConnectionNotFoundError", "Pool", "PoolExhaustedError"]

C = TypeVar("C")

logger = logging.getLogger("gsocketpool")


class Pool(Core, Generic[C]):
    """Hands out connections to one backend, at most `max_connections` at a time.

    A pool serves the greenlets of one thread: the one that first uses it. When that thread ends, every connection is
    closed without a goodbye, in use or not, unless it is the main thread. After a fork, the child's copy of a pool
    starts empty. A pool that is collected closes its idle connections in the event loop's next turn.

    :param factory: a :class:`Connection` class, any callable that returns a connection, open or not, or a
        :class:`~gsocketpool.connectors.Connector`, which makes and handles the connections of a client library.
    :param options: the keyword arguments for the factory, or a callable that returns them, which is asked at every
        open: for credentials that rotate. A connector has options of its own.
    :param initial_connections: how many connections to open here and now; what opening raises is raised. In the event
        loop's own greenlet, which can't wait, they are opened in the background.
    :param max_connections: the limit on connections that are idle, in use, being opened, reset or pinged.
    :param reap_expired_connections: whether a background greenlet sweeps the pool: it retires idle connections whose
        time is up, closes those that have died, asks the others ``is_expired()``, and looks for leaks.
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
    :param reset: when a connection that comes back is reset, if its class or connector can do that: ``"unsettled"``, if
        something is left open, such as a transaction; ``"always"``, after each use, so that no session state, such as a
        setting or a lock, reaches the next user; ``"never"``.
    :param reset_timeout: seconds that a reset may take; then the connection is discarded.
    :param ping_timeout: seconds that :meth:`ping` may take once it has a connection, and each ping of
        `keepalive_interval`.
    :param keepalive_interval: seconds after which an idle connection that was neither used nor pinged is pinged in the
        background, one at a time, so that no server or firewall drops it for its silence; None for no pings. One that
        does not answer is discarded. A caller that finds no other idle connection waits for the ping, or for an opening
        where the limit allows. A ping is no use: `idle_timeout` goes on. Classes without a ``ping()`` are not pinged,
        and the log says so once.
    :param events: what to tell of the moments of a connection's life; None for nothing.
    :param context: returns a context manager to enter around everything that a connection is asked, such as an app's
        context, or None where there is nothing to enter.
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
        steps: Steps
        kind: Any = factory
        if isinstance(kind, type) and issubclass(kind, Connector):
            raise InvalidArgumentError("factory", factory, "an instance of a connector, not its class")
        if isinstance(factory, Connector):
            steps = ConnectorSteps(factory)
            if options is not None:
                raise InvalidArgumentError("options", type(options), "left out: a connector has options of its own")
        elif callable(factory):
            steps = ConnectionSteps()
        else:
            raise InvalidArgumentError("factory", factory, "a Connection class, a callable or a Connector")
        if options is not None and not isinstance(options, Mapping) and not callable(options):
            raise InvalidArgumentError(
                "options", type(options), "a mapping of keyword arguments or a callable that returns one"
            )
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

        :param url: ``tcp://host:port``, ``tls://host:port`` or ``unix:///path``, with options in the query as in
            ``?timeout=2``; or the URL of a client library for which there is a connector, such as ``postgresql://`` or
            ``redis://``, where ``scheme+driver://`` chooses among libraries. It may hold credentials, which are shown
            nowhere.
        :param options: keyword arguments for the connection or the connector, which override those of the URL, or a
            callable that returns them, which is asked at every open.
        :param settings: the other arguments of the pool.
        :raises InvalidURLError: if the URL can't be used.
        :raises ImportError: if the client library is not installed; it names the extra to install.
        """
        target = read_url(url, options)
        return cls(target.factory, target.options, **settings)

    def _create_connection(self) -> C:
        """Make a connection and open it. A subclass may override it; what it returns need not be open."""
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
            # Earlier than the lifecycle does: it is about to be opened here.
            self._state.note_connection(entry, connection)
        open_new(connection)
        return connection

    # Acquiring

    def acquire(self, retry: int | None = None, *, timeout: float | None = None) -> C:
        """Return a connection that the caller has to itself until it releases or discards it.

        The connection used last is taken, after a check that it is still good. Without an idle one, another is opened;
        at the limit, the caller queues behind all earlier ones. Prefer :meth:`connection`, which can't forget to
        give back. A connection whose greenlet ends without giving it back is taken back and closed; use :meth:`lease`
        and :meth:`Lease.transfer` to hand one to another greenlet.

        :param timeout: seconds that all of this may take together; by default the pool's `acquire_timeout`; `math.inf`
            for no limit. With 0 the caller never waits: there is an idle connection or there is none, and then, if the
            limit allows, one is opened in the background for the next caller. The event loop's own greenlet, in which
            callbacks and signal handlers run, never waits either.
        :param retry: the way to say it in gsocketpool 0.1.6: to wait `retry` times 0.1 s for a connection to be
            released, while opening takes the time it takes, within `acquire_timeout`.
        :raises PoolExhaustedError: if the time is over, or `max_waiting` callers wait already.
        :raises PoolClosedError: if the pool is closed, or gets closed meanwhile.
        :raises WrongThreadError: in another thread than the one that uses the pool.
        :raises InvalidArgumentError: if `timeout` or `retry` is not a number of at least 0, or both are given.

        What opening a connection raises is raised as it is.
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
        """Return a lease that acquires a connection when its ``with`` block is entered, and gives it back at the end.

        If an exception leaves the block, the exchange may be half done and its reply still to come, so the connection
        is discarded, unless its class :meth:`knows better <Connection.is_reusable>`. Catch it inside the block if the
        class guards its exchanges by :meth:`Connection.exchange` or the exchange is complete, and only then. Leaving
        the block never waits: a connection that is not kept is closed in the background.

        :param timeout: as for :meth:`acquire`, whose errors it raises on entering.
        """
        return Lease(self, timeout)

    def lease(self, timeout: float | None = None) -> Lease[C]:
        """Acquire a connection, and return the lease of it.

        :param timeout: as for :meth:`acquire`, whose errors it raises.
        """
        return self._start_lease(self._check_out(timeout))

    def _start_lease(self, entry: Entry) -> Lease[C]:
        """Return the lease of an entry that was just checked out, and tell the listener of it."""
        try:
            lease: Lease[C] = Lease(self)
            lease._adopt(entry)
            if self._tells_acquired:
                self._tell_acquired(lease)
        except RecursionError:
            self._defer(self._discard, entry, entry.generation, "interrupted")
            raise
        return lease

    def _timeout_from_retries(self, retries: int) -> float:
        timeout = min(retries * 0.1, LONGEST_WAIT)
        return max(timeout, self._acquire_timeout) if self.size < self._state.max_connections else timeout

    # Giving back

    def release(self, connection: C) -> None:
        """Give a connection back: to the longest waiter, or to be idle. This never waits.

        One that is not reusable, or whose time is up, is closed in the background.

        :raises ConnectionNotFoundError: if it is not in use, or not this pool's; nothing happens then.
        :raises WrongThreadError: in another thread than the one that uses the pool, as from all methods below.
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
        """Give back a connection that must not be used again, or take out an idle one. It is closed in the background.

        :raises ConnectionNotFoundError: if it is neither in use nor idle, or not this pool's; nothing happens then.
        """
        self._ensure_owner()
        entry = self._state.find(connection, IN_USE, self._holder()) or self._find_idle(connection)
        if entry is None:
            raise self._not_found(connection, "in use or idle")
        self._discard(entry, entry.generation)

    def detach(self, connection: C) -> C:
        """Take a connection in use out of the pool, open as it is. It is the caller's from now on.

        :raises ConnectionNotFoundError: if it is not in use, or not this pool's; nothing happens then.
        """
        self._ensure_owner()
        entry = self._find(connection, IN_USE)
        # Before the place is free, for near the recursion limit it may fail.
        self._run_callback(self._lifecycle.capacity_changed)
        self._state.remove(entry, self._clock(), DETACHED)
        return connection

    def _find(self, connection: object, status: str) -> Entry:
        entry = self._state.find(connection, status, self._holder())
        if entry is None:
            raise self._not_found(connection, status)
        return entry

    def _find_idle(self, connection: object) -> Entry | None:
        # To the caller, one that is being pinged is idle.
        return self._state.find(connection, IDLE) or self._state.find(connection, PINGING)

    def _holder(self) -> Any:
        return weakref.ref(getcurrent())

    # Keeping in order

    def drop(self, connection: C) -> None:
        """Close an idle connection and take it out of the pool. This waits for every close that is under way.

        One that :meth:`release` has closed, because it said that it was not connected, may be dropped until the next
        sweep, which does nothing.

        :raises ConnectionNotFoundError: if it is not idle, or not this pool's; nothing happens then.
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
        """Close every idle connection whose ``is_expired()`` answers True."""
        self._ensure_owner()
        self._reaper.drop_expired()
        self._wait_for_closings()

    def drain(self) -> None:
        """Retire every connection there is now: the idle ones at once, those in use or being opened on their return.

        Connections opened from now on are not concerned.
        """
        self._ensure_owner()
        self._state.drain()
        self._lifecycle.close_removed(self._state.pop_all_idle("drain"), "drain")
        self._wait_for_closings()

    def resize(self, max_connections: int) -> None:
        """Set a new limit. If there are more connections, idle ones are retired, then others on their return.

        :raises InvalidArgumentError: if it is not a whole number, or less than 1 or ``min_connections``.
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

    # Beginning and ending

    def fill(self, connections: int) -> None:
        """Open connections until there are so many, idle or in use.

        What opening one raises is raised. In the event loop's own greenlet, which can't wait, this goes on in the
        background, and a failure is logged. If :meth:`resize` lowers the limit below `connections` meanwhile, this
        returns once that limit is reached.

        :param connections: at most `max_connections`.
        :raises InvalidArgumentError: if it is not a whole number, or more than that.
        :raises PoolClosedError: if the pool is closed, or gets closed meanwhile.
        """
        state = self._state
        if check_count("connections", connections) > state.max_connections:
            raise InvalidArgumentError("connections", connections, f"at most max_connections ({state.max_connections})")
        while True:
            # Again and again, for this greenlet may have been copied by a fork.
            self._ensure_owner()
            if state.closed:
                raise self._closed_error()
            if state.size >= connections:
                return
            if getcurrent() is self._hub:
                gevent.spawn(self._fill_in_background, connections)
                return
            # Some may be under way already. One that calls this would wait for itself.
            others = (opener for opener in state.opening if opener is not getcurrent())
            # Not by its truth: a greenlet that is dead has none.
            opener: Any = next(others, None)
            if opener is None:
                opener = self._lifecycle.start_opening(more=1)
            if opener is None:
                return
            opener.join()
            if opener in state.opening:
                # It was killed before it began, and that is noticed in the event loop's next turn.
                gevent.sleep(0)
                continue
            error = opener.value
            # Killed while a listener was told, it has opened its connection all the same.
            if error is not None and not isinstance(error, gevent.GreenletExit) and not state.closed:
                try:
                    raise error
                finally:
                    # The error's traceback has this frame, and so this frame must not have the error.
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
        :raises PoolClosedError: if the pool is closed, or gets closed meanwhile.
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
        """Acquire a connection, exchange something cheap with the backend, and give the connection back.

        Only a class or a connector with a ``ping()`` exchanges anything; with others, this is an acquire.

        :param timeout: as for :meth:`acquire`, whose errors it raises. The exchange takes ``ping_timeout`` at most.
        :raises TimeoutError: if the exchange takes longer. What it raises is raised as it is, and the connection is
            discarded.
        """
        seconds = self._settings.ping_timeout
        with self.connection(timeout) as connection:
            late = TimeoutError(f"pool {self.name!r}: the backend did not answer a ping within {seconds:g} s")
            with gevent.Timeout(seconds, late):
                self._adapter.ping(connection)

    def _wait_until(self, condition: Callable[[], bool], timeout: float | None) -> None:
        deadline = math.inf if timeout is None else self._clock() + timeout
        while not condition():
            # Again and again, for this greenlet may have been copied by a fork.
            self._ensure_owner()
            remaining = deadline - self._clock()
            if remaining <= 0:
                return
            self._lifecycle.changed.clear()
            self._lifecycle.changed.wait(None if remaining == math.inf else timer_seconds(remaining))

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool for good. To do so again waits for the same end.

        The waiters, and every caller from now on, get a :exc:`PoolClosedError`. Idle connections are closed, and those
        in use as they come back. When this returns, all are closed: none takes longer than `close_timeout`. In the
        event loop's own greenlet, as in a signal handler, it returns at once and does the rest in the background.

        :param timeout: seconds to wait for the connections in use, those of the caller's included; what is still out
            then is closed under its user.
        :raises WrongThreadError: in another thread than the one that uses the pool.
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
        """Do what closing does at once. Return the greenlets whose openings it has cut short."""
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
        # An opening that does not heed being killed must not keep this from ending.
        gevent.joinall(openers, timeout=self._settings.close_timeout)
        close_half_open(state, self._closer)
        self._closer.wait()

    def __enter__(self) -> Pool[C]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"pool {self.name!r} can't be copied or pickled: its connections are sockets of this process, and its"
            " greenlets belong to one event loop; make another pool from the same arguments"
        )

    # Seeing

    @property
    def settings(self) -> Settings:
        """Return the arguments the pool was made with, defaults included. :meth:`resize` does not change them."""
        return self._settings

    @property
    def size(self) -> int:
        """How many connections are idle, in use, being opened, reset or pinged."""
        return self._state.size + len(self._state.opening)

    def stats(self) -> PoolStats:
        """Return a snapshot of what the pool is doing and has done."""
        return _report.snapshot(self.name, self._state, closing=len(self._closer), can_peek=self._adapter.can_peek)

    def __repr__(self) -> str:
        closed = ", closed" if self._state.closed else ""
        return f"<{type(self).__name__} {self.name!r}: {_report.summary(self._state)}{closed}>"
