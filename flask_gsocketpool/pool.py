"""A pool that knows the app it is for, and the request that uses it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import gevent
from blinker import NamedSignal
from flask import Flask, request
from flask.globals import _cv_app

from flask_gsocketpool import cooperation, signals
from flask_gsocketpool.scope import NotedLease, Scope, Scopes
from gsocketpool import Lease, Pool, PoolEvents, PoolExhaustedError
from gsocketpool.settings import check_seconds

_NOTHING = nullcontext()


class AppEvents(PoolEvents):
    """Sends an app's signals, and notes what its requests acquire."""

    def __init__(self, app: weakref.ref[Flask], scopes: Scopes) -> None:
        self._app = app
        self._scopes = scopes

    def acquired(self, lease: Lease[Any]) -> None:
        scope = self._scopes.of_request()
        if scope is not None:
            scope.note(NotedLease(lease))

    def opened(self, pool: Pool[Any], connection: Any) -> None:
        self._send(signals.connection_opened, pool, connection=connection)

    def closed(self, pool: Pool[Any], connection: Any, reason: str) -> None:
        self._send(signals.connection_closed, pool, connection=connection, reason=reason)

    def exhausted(self, pool: Pool[Any], error: PoolExhaustedError) -> None:
        scope = self._scopes.of_request()
        if scope is not None:
            held = "".join(f"; this request holds {use}" for use in scope.leases())
            error.args = (f"{error}{held}",)
        self._send(signals.pool_exhausted, pool, error=error)

    def _send(self, signal: NamedSignal, pool: Pool[Any], **what: Any) -> None:
        app = self._app()
        if app is not None and signal.has_receivers_for(app):
            gevent.spawn(self._send_in_context, signal, app, {"pool": pool, **what})

    def _send_in_context(self, signal: NamedSignal, app: Flask, what: Mapping[str, Any]) -> None:
        with context_of(self._app):
            signal.send(app, **what)


class QuietEvents(AppEvents):
    """The events of a pool that is not the app's own: the receivers of the app's signals are not told of it."""

    def _send(self, signal: NamedSignal, pool: Pool[Any], **what: Any) -> None:
        pass


class AppPool(Pool[Any]):
    """A pool of an app: connections are opened, checked and closed in the app's context, and its signals are sent.

    What a request acquires is noted, and bounded by the time that the request has left.
    """

    def __init__(
        self,
        app: Flask,
        scopes: Scopes,
        factory: Callable[..., Any],
        options: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        events: type[AppEvents] = AppEvents,
        **settings: Any,
    ) -> None:
        # Weakly, for pools are kept in thread-local storage, through which Python collects no cycles.
        reference = weakref.ref(app)
        super().__init__(
            factory, options, events=events(reference, scopes), context=partial(context_of, reference), **settings
        )
        self._scopes = scopes

    def acquire(self, retry: int | None = None, *, timeout: float | None = None) -> Any:
        connection = super().acquire(retry, timeout=timeout)
        self._mark_manual()
        return connection

    def lease(self, timeout: float | None = None) -> Lease[Any]:
        lease = super().lease(timeout)
        self._mark_manual()
        return lease

    def _mark_manual(self) -> None:
        scope = self._scopes.of_request()
        if scope is not None:
            scope.mark_manual()

    def _check_out(self, timeout: float | None) -> Any:
        scope = self._scopes.of_request()
        return super()._check_out(timeout if scope is None else self._bounded(timeout, scope))

    def _bounded(self, timeout: float | None, scope: Scope) -> float | None:
        """Return what the request has left of a timeout."""
        if cooperation.is_unknown:
            cooperation.look(request.environ)
        if self._state.idle and not self._scopes.has_timeout:
            return timeout
        if timeout is not None:
            timeout = check_seconds("timeout", timeout, zero=True, endless=True)
        if self._would_wait_for_itself(scope):
            return 0
        remaining = self._scopes.remaining(scope)
        if remaining == math.inf:
            return timeout
        return min(self._acquire_timeout if timeout is None else timeout, remaining)

    def _would_wait_for_itself(self, scope: Scope) -> bool:
        """Return whether all that there is to wait for is given back at the end of blocks of this very request."""
        state = self._state
        is_full = not state.idle and not state.opening and state.size >= state.max_connections
        return is_full and sum(use.pool is self and not use.is_manual for use in scope.leases()) == state.in_use


def context_of(app: weakref.ref[Flask]) -> AbstractContextManager[object]:
    """Return what makes an app's context current, unless it is so already."""
    there = app()
    current = _cv_app.get(None)
    if there is None or (current is not None and current.app is there):
        return _NOTHING
    return _pushed(there)


@contextmanager
def _pushed(app: Flask) -> Iterator[None]:
    """Make an app context current without pushing it.

    Popping it again would run the app's teardown functions. They are for requests and commands, and one that uses the
    pool would have another connection opened, in a context of its own, and so on.
    """
    token = _cv_app.set(app.app_context())
    try:
        yield
    finally:
        _cv_app.reset(token)
