"""A pool that knows its app and the current request."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import gevent
from blinker import NamedSignal
from flask import Flask
from flask.globals import _cv_app
from gevent import getcurrent

from flask_gsocketpool import _server_check, signals
from flask_gsocketpool._place import Place, place_of
from flask_gsocketpool._request_scope import Scope, Scopes, unwrapped
from gsocketpool import InvalidArgumentError, Lease, Pool, PoolEvents, PoolExhaustedError
from gsocketpool.connectors import Connector
from gsocketpool.settings import check_count, check_seconds


class AppEvents(PoolEvents):
    """Sends the app's signals, and adds the request's connections to a :exc:`PoolExhaustedError`."""

    def __init__(self, app: weakref.ref[Flask], scopes: Scopes) -> None:
        self._app = app
        self._scopes = scopes

    def opened(self, pool: Pool[Any], connection: Any) -> None:
        self._send(signals.connection_opened, pool, connection=connection)

    def closed(self, pool: Pool[Any], connection: Any, reason: str) -> None:
        self._send(signals.connection_closed, pool, connection=connection, reason=reason)

    def exhausted(self, pool: Pool[Any], error: PoolExhaustedError) -> None:
        scope = self._scopes.of_request()
        if scope is not None:
            # List them all before describing any: that runs user code, which may give back another.
            held = [(lease, lease.connection) for lease in scope.leases()]
            holds = "".join(f"; this request holds {scope.describe(*pair)}" for pair in held)
            error.args = (f"{error}{self._scopes.used_up(scope)}{holds}",)
        self._send(signals.pool_exhausted, pool, error=error)

    def _send(self, signal: NamedSignal, pool: Pool[Any], **what: Any) -> None:
        app = self._app()
        if app is not None and signal.has_receivers_for(app):
            gevent.spawn(self._send_in_context, signal, app, {"pool": pool, **what})

    def _send_in_context(self, signal: NamedSignal, app: Flask, what: Mapping[str, Any]) -> None:
        with context_of(self._app, self._scopes) or nullcontext():
            signal.send(app, _async_wrapper=app.ensure_sync, **what)


class QuietEvents(AppEvents):
    """Sends no signals, for a pool that is not one of the app's."""

    def _send(self, signal: NamedSignal, pool: Pool[Any], **what: Any) -> None:
        pass


class AppPool(Pool[Any]):
    """A pool of an app.

    It opens, checks and closes connections in the app's context, and sends the app's signals. It notes what each
    request acquires, and waits no longer than the request may.
    """

    def __init__(
        self,
        app: Flask,
        scopes: Scopes,
        factory: Callable[..., Any] | Connector[Any],
        options: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        events: type[AppEvents] = AppEvents,
        **settings: Any,
    ) -> None:
        # A weak reference: pools are kept in thread-local storage, and Python collects no cycles through that.
        reference = weakref.ref(app)
        given = None if isinstance(factory, Connector) else options
        super().__init__(
            factory, given, events=events(reference, scopes), context=partial(context_of, reference, scopes), **settings
        )
        self.scopes = scopes
        default = self.settings.acquire_timeout
        self._default_timeout = math.inf if default is None else default

    def acquire(self, retry: int | None = None, *, timeout: float | None = None) -> Any:
        if retry is not None:
            if timeout is not None:
                raise InvalidArgumentError("timeout", timeout, "left out where retry is given")
            timeout = check_count("retry", retry) * 0.1
            if self.size < self.stats().max_connections:
                # `retry` bounds the wait for a connection in use, not the opening of a new one.
                timeout = max(timeout, self._default_timeout)
        return self.lease(timeout).connection

    def lease(self, timeout: float | None = None) -> Lease[Any]:
        scope = self.scopes.of_request()
        if scope is None:
            return super().lease(timeout)
        lease = super().lease(self.bounded(timeout, scope))
        self.scopes.note(scope, lease, place_of(sys._getframe(1)))
        return lease

    def connection(self, timeout: float | None = None) -> Lease[Any]:
        return Block(self, timeout)

    def release(self, connection: Any) -> None:
        super().release(unwrapped(connection, self))

    def discard(self, connection: Any) -> None:
        super().discard(unwrapped(connection, self))

    def detach(self, connection: Any) -> Any:
        return super().detach(unwrapped(connection, self))

    def drop(self, connection: Any) -> None:
        super().drop(unwrapped(connection, self))

    def bounded(self, timeout: float | None, scope: Scope) -> float | None:
        """Return `timeout`, shortened to the time that the current request has left. `scope` is the request's."""
        if scope.noted and self._would_wait_for_itself(scope):
            return 0
        if not self.scopes.has_timeout:
            return timeout
        if timeout is None:
            timeout = self._default_timeout
        return min(check_seconds("timeout", timeout, zero=True, endless=True), self.scopes.remaining(scope))

    def _would_wait_for_itself(self, scope: Scope) -> bool:
        """Return whether the pool is full, and the calling greenlet is inside the blocks of all its connections."""
        # The cheap check comes first: this runs at every acquire of a request but its first.
        if self.size > len(scope.noted):
            return False
        stats = self.stats()
        if stats.idle or stats.opening or stats.in_use < stats.max_connections:
            return False
        caller = getcurrent()
        held = sum(isinstance(lease, Block) and lease.pool is self and lease.holder is caller for lease in scope.noted)
        return held == stats.in_use


class Block(Lease[Any]):
    """A lease that its request notes, and whose timeout it shortens, when its block is entered."""

    __slots__ = ("place",)

    #: The line of the app's code that entered the block.
    place: Place

    def __enter__(self) -> Any:
        pool: Any = self.pool
        scopes: Scopes = pool.scopes
        self.place = place_of(sys._getframe(1))
        scope = scopes.of_request()
        if scope is None:
            return Lease.__enter__(self)
        if scope.noted or scopes.has_timeout:
            self.timeout = pool.bounded(self.timeout, scope)
        connection = Lease.__enter__(self)
        if scope.is_over or _server_check.is_unchecked:
            scopes.note(scope, self)
        else:
            scope.note(self)
        return connection


def context_of(app: weakref.ref[Flask], scopes: Scopes) -> AbstractContextManager[object] | None:
    """Return a context manager that makes a context of `app` current, or None if one already is."""
    wanted = app()
    current = _cv_app.get(None)
    if wanted is None or (current is not None and current.app is wanted):
        return None
    return _current_context(wanted, scopes)


@contextmanager
def _current_context(app: Flask, scopes: Scopes) -> Iterator[None]:
    """Make an app context current without pushing it.

    Popping a pushed context runs the app's teardown functions, which are for requests and commands. If one of them used
    the pool, that could open another connection, in another context, and so on without end.
    """
    token = _cv_app.set(app.app_context())
    raised: BaseException | None = None
    try:
        yield
    except BaseException as error:
        raised = error
        raise
    finally:
        try:
            # No teardown function does this, because the context is not pushed.
            scopes.end_app_context(app, raised)
        finally:
            _cv_app.reset(token)
