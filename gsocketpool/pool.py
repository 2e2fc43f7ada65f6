"""The pool, as its users see it. How it works is in ``_driver.py``, and what it decides in ``_state.py``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Generic, TypeVar

import gevent
from gevent import getcurrent

from gsocketpool import _report, _steps, _where
from gsocketpool._block import Block
from gsocketpool._driver import Driver
from gsocketpool._entry import IDLE, IN_USE, Entry
from gsocketpool.exceptions import (
    ConnectionNotFoundError,
    InvalidArgumentError,
    PoolExhaustedError,
    PoolNotReadyError,
)
from gsocketpool.settings import LONGEST_WAIT, Settings, check_count, check_seconds, timer_seconds
from gsocketpool.stats import PoolStats

logger = logging.getLogger("gsocketpool")

#: The errors are here for code written for 0.1.6, which imports them from this module.
__all__ = ["ConnectionNotFoundError", "Pool", "PoolExhaustedError"]

C = TypeVar("C")


class Pool(Driver, Generic[C]):
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
        if not callable(factory):
            raise InvalidArgumentError("factory", factory, "a Connection class or a callable")
        if options is not None and not isinstance(options, Mapping) and not callable(options):
            raise InvalidArgumentError(
                "options", options, "a mapping of keyword arguments or a callable that returns one"
            )
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
        )
        super().__init__(name if name is not None else getattr(factory, "__name__", type(factory).__name__), settings)
        self._factory = factory
        self._options = {} if options is None else options
        if initial_connections:
            self._open_initial(initial_connections)
        if min_connections:
            self._enter()

    def _open_initial(self, count: int) -> None:
        while self._state.size < count and not self._state.closed:
            # Again and again, for this greenlet may have been copied by a fork.
            self._enter()
            # Those for min_connections are under way already.
            opener: Any = next(iter(self._state.opening), None)
            if opener is None:
                opener = self._start_opening()
            opener.join()
            error = self._killed_error() if isinstance(opener.value, gevent.GreenletExit) else opener.value
            if error is not None:
                self.close(timeout=0)
                raise error

    def _create_connection(self) -> C:
        """Makes a connection and opens it. A subclass may override it; what it returns need not be open."""
        options = self._options() if callable(self._options) else self._options
        if not isinstance(options, Mapping):
            raise InvalidArgumentError("options", options, "a callable that returns a mapping of keyword arguments")
        connection = self._factory(**options)
        if not all(callable(getattr(connection, step, None)) for step in ("open", "close", "is_connected")):
            allowed = "a callable that returns an object with open(), close() and is_connected()"
            raise InvalidArgumentError("factory", connection, allowed)
        entry = self._state.opening.get(getcurrent())
        if entry is not None:
            # As in _make(), and earlier: it is about to be opened here.
            entry.connection = connection
        _steps.open_what_was_made(connection)
        return connection

    # Acquiring

    def acquire(self, retry: int | None = None, *, timeout: float | None = None) -> C:
        """Returns a connection that nobody else has until it is released or discarded.

        The connection used last is taken, after a check that it is still good. Without an idle one, another is opened;
        at the limit, the caller queues behind those who came before. Prefer :meth:`connection`, which can't forget to
        give back. A connection whose greenlet ends without giving it back is taken back by the next sweep, and closed:
        if another greenlet is to use it, let that one acquire it.

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
            if timeout is not None:
                raise InvalidArgumentError("timeout", timeout, "left out where retry is given")
            timeout = self._timeout_for(check_count("retry", retry))
        connection: C = self._acquire(timeout).connection
        return connection

    def connection(self, timeout: float | None = None) -> Block[C]:
        """Returns a context manager, for one use, that acquires a connection and gives it back at the end of the block.

        If the block is left by an exception, the exchange may be half done and its reply still to come, so the
        connection is discarded, unless its class :meth:`knows better <Connection.is_reusable>`. Where a connection is
        closed at the end of its block, the block waits for that, for `close_timeout` at most.

        :param timeout: as for :meth:`acquire`, whose errors it raises on entering.
        """
        return Block(self, timeout)

    def _timeout_for(self, retries: int) -> float:
        timeout = min(retries * 0.1, LONGEST_WAIT)
        return max(timeout, self._acquire_timeout) if self.size < self._state.max_connections else timeout

    # Giving back

    def release(self, connection: C) -> None:
        """Gives a connection back: to the longest waiter, or to lie idle.

        One that is not reusable, or whose time is up, is closed; that is waited for, for `close_timeout` at most.

        :raises ConnectionNotFoundError: if it is not in use, or not this pool's; nothing happens then.
        """
        entry = self._state.entries.get(id(connection))
        if entry is None or entry.status is not IN_USE or entry.twin is not None:
            entry = self._find(connection, IN_USE)
        closing = self._hand_in(entry, entry.uses, None)
        if closing is not None:
            self._wait_for([closing])

    def discard(self, connection: C) -> None:
        """Gives back a connection that must not be used again: it is closed, within `close_timeout`.

        :raises ConnectionNotFoundError: if it is not in use, or not this pool's; nothing happens then.
        """
        self._enter()
        self._wait_for([self._discard(self._find(connection, IN_USE), "by hand")])

    def detach(self, connection: C) -> C:
        """Takes a connection in use out of the pool, open as it is. It is the caller's from now on.

        :raises ConnectionNotFoundError: if it is not in use, or not this pool's; nothing happens then.
        """
        self._enter()
        self._state.remove(self._find(connection, IN_USE), self._clock())
        self._state.detached += 1
        self._look_around()
        return connection

    # Keeping in order

    def drop(self, connection: C) -> None:
        """Closes an idle connection and takes it out of the pool.

        :raises ConnectionNotFoundError: if it is not idle, or not this pool's; nothing happens then.
        """
        self._enter()
        self._wait_for([self._retire(self._find(connection, IDLE), "dropped")])

    def drop_expired(self) -> None:
        """Closes every idle connection whose ``is_expired()`` answers True."""
        self._enter()
        closing = []
        for entry in self._state.idle[:]:
            if entry.status is IDLE and _steps.is_expired(entry.connection) and entry.status is IDLE:
                closing.append(self._retire(entry, "expired"))
        self._wait_for(closing)

    def drain(self) -> None:
        """Retires every connection there is now: the idle ones at once, those in use or being opened on their return.

        Connections opened from now on are not concerned.
        """
        self._enter()
        self._state.drain()
        self._retire_removed(self._state.take_idle_out(), "drain")

    def resize(self, max_connections: int) -> None:
        """Sets a new limit. If there are more connections, idle ones are retired, then others on their return.

        :raises InvalidArgumentError: if it is not a whole number, or less than 1 or ``min_connections``.
        """
        self._enter()
        check_count("max_connections", max_connections, least=max(1, self._settings.min_connections))
        self._retire_removed(self._state.resize(max_connections), "surplus")
        self._start_openings()

    def _retire_removed(self, entries: list[Entry], reason: str) -> None:
        self._wait_for([self._close_removed(entry, self._state.retired, reason) for entry in entries])

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
            if entry.status is not IN_USE:
                # Logging has switched, and it came back meanwhile.
                continue
            where = _where.describe(entry.where if entry.is_in(entry.noted_use) else None)
            if getattr(entry.holder, "dead", False):
                self._discard(entry, "holder is dead")
                logger.error(
                    "pool %r took %r back: its greenlet has ended without releasing it. It was acquired %s",
                    self.name,
                    entry.connection,
                    where,
                )
            elif threshold is None or not entry.is_in(entry.noted_use) or entry.reported_use == entry.uses:
                # As long as it is being checked, nobody has it yet.
                continue
            elif now - entry.since > threshold:
                entry.reported_use = entry.uses
                logger.warning(
                    "%r of pool %r has been in use for %.1f s, longer than leak_threshold (%s s). It was acquired %s",
                    entry.connection,
                    self.name,
                    now - entry.since,
                    threshold,
                    where,
                )

    # Beginning and ending

    def wait_ready(self, timeout: float | None = None) -> None:
        """Waits until ``min_connections`` are open.

        :param timeout: the most seconds to wait; None for no limit.
        :raises PoolNotReadyError: if they are not open by then.
        :raises PoolClosedError: if the pool is closed, or gets closed meanwhile.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout, zero=True)
        self._enter()
        state = self._state
        self._wait_until(lambda: state.closed or state.size >= state.min_connections, timeout)
        if state.closed:
            raise self._closed_error()
        if state.size < state.min_connections:
            raise PoolNotReadyError(
                f"pool {self.name!r} has {state.size} of {state.min_connections} connections open after {timeout} s"
                f"{_report.open_error_note(self._last_open_error)}",
                connections=state.size,
                min_connections=state.min_connections,
                last_open_error=self._last_open_error,
            )

    def _wait_until(self, condition: Callable[[], bool], timeout: float | None) -> None:
        deadline = math.inf if timeout is None else self._clock() + timeout
        while not condition():
            # Again and again, for this greenlet may have been copied by a fork.
            self._enter()
            remaining = deadline - self._clock()
            if remaining <= 0:
                return
            self._changed.clear()
            self._changed.wait(None if remaining == math.inf else timer_seconds(remaining))

    def close(self, timeout: float = 5.0) -> None:
        """Closes the pool for good. To do so again waits for the same end.

        Those who wait for a connection, and whoever asks for one from now on, get a :exc:`PoolClosedError`. Idle
        connections are closed, and those in use as they come back. When this returns, all are closed: none takes longer
        than `close_timeout`.

        :param timeout: seconds to wait for the connections in use, those of the caller's included; what is still out
            then is closed under its user.
        :raises WrongThreadError: in another thread than the one that uses the pool.
        """
        timeout = check_seconds("timeout", timeout, zero=True)
        state = self._state
        if self._hub is None and not state.waiters:
            state.close()
            return
        self._enter()
        state.close()
        if self._reaper is not None:
            self._reaper.kill(block=False)
        for ticket in state.take_waiters_out():
            ticket.error = self._closed_error()
            self._hub.loop.run_callback(ticket.wake, None)
        openers: list[Any] = list(state.opening)
        for opener in openers:
            opener.kill(block=False)
        for entry in state.take_idle_out():
            self._close_removed(entry, state.retired, "closed")
        self._wait_until(lambda: not state.size and not state.opening, timeout)
        for entry in state.entries_in_use():
            self._retire(entry, "closed")
        # An opening that does not heed being killed must not keep this from ending.
        gevent.joinall(openers, timeout=self._settings.close_timeout)
        for entry in state.opening.values():
            if entry.connection is not None:
                self._closer.close(entry.connection)
        self._closer.wait()

    def __enter__(self) -> Pool[C]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # Seeing

    @property
    def size(self) -> int:
        """How many connections are idle, in use or being opened."""
        return self._state.size + len(self._state.opening)

    def stats(self) -> PoolStats:
        """Returns a snapshot of what the pool is doing and has done."""
        return _report.snapshot(self.name, self._state)

    def __repr__(self) -> str:
        closed = ", closed" if self._state.closed else ""
        return f"<{type(self).__name__} {self.name!r}: {_report.census(self._state)}{closed}>"
