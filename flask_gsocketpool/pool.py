"""A pool that knows the app it is for, and the request that uses it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import gevent
import werkzeug.local
from blinker import NamedSignal
from flask import Flask, request
from flask.globals import _cv_app
from gevent import Greenlet

from flask_gsocketpool import cooperation, signals
from flask_gsocketpool.scope import Scope, Scopes, Use
from gsocketpool import Pool, PoolExhaustedError, _where
from gsocketpool._entry import Entry
from gsocketpool.settings import check_seconds

_NOTHING = nullcontext()

# Nor is what a proxy does to find its object a place of the app's.
for file in (__file__, werkzeug.local.__file__):
    _where.pass_over(file)


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
        **settings: Any,
    ) -> None:
        # Weakly, for pools are kept in thread-local storage, through which Python collects no cycles.
        self._app = weakref.ref(app)
        self._scopes = scopes
        self._context = partial(_context_of, self._app)
        super().__init__(factory, options, **settings)

    def acquire(self, retry: int | None = None, *, timeout: float | None = None) -> Any:
        connection = super().acquire(retry, timeout=timeout)
        scope = self._scopes.of_request()
        if scope is not None:
            scope.note_by_hand()
        return connection

    def drop_expired(self) -> None:
        with self._in_context():
            super().drop_expired()

    def _acquire(self, timeout: float | None) -> Entry:
        scope = self._scopes.of_request()
        if scope is None:
            with self._in_context():
                return super()._acquire(timeout)
        if cooperation.is_unknown:
            cooperation.look(request.environ)
        if not self._state.idle or self._scopes.has_timeout:
            timeout = self._bounded(timeout, scope)
        try:
            entry = super()._acquire(timeout)
        except PoolExhaustedError as error:
            held = "".join(f"; this request holds {use}" for use in scope.uses())
            error.args = (f"{error}{held}",)
            raise
        if scope.is_over:
            # While this greenlet, one of several that share the request's context, has waited.
            scope = self._scopes.current()
        scope.note(Use(self, entry))
        return entry

    def _hand_in(self, entry: Entry, uses: int, error: BaseException | None) -> Greenlet | None:
        if self._is_in_context():
            return super()._hand_in(entry, uses, error)
        with self._context():
            return super()._hand_in(entry, uses, error)

    def _is_in_context(self) -> bool:
        """Whether the caller has the app's context, as it mostly has."""
        current = _cv_app.get(None)
        return current is not None and current.app is self._app()

    def _in_context(self) -> AbstractContextManager[object]:
        return _NOTHING if self._is_in_context() else self._context()

    def _bounded(self, timeout: float | None, scope: Scope) -> float | None:
        """What the request has left of a timeout."""
        if timeout is not None:
            timeout = check_seconds("timeout", timeout, zero=True, endless=True)
        if self._would_wait_for_itself(scope):
            return 0
        remaining = self._scopes.remaining(scope)
        if remaining == math.inf:
            return timeout
        return min(self._acquire_timeout if timeout is None else timeout, remaining)

    def _would_wait_for_itself(self, scope: Scope) -> bool:
        """Whether everything there is to wait for is given back at the end of blocks of this very request."""
        state = self._state
        is_full = not state.idle and not state.opening and state.size >= state.max_connections
        return is_full and sum(use.pool is self and not use.is_by_hand for use in scope.uses()) == state.in_use

    # Signals

    def _was_opened(self, connection: Any) -> None:
        self._send(signals.connection_opened, connection=connection)

    def _was_closed(self, connection: Any, reason: str) -> None:
        self._send(signals.connection_closed, connection=connection, reason=reason)

    def _was_exhausted(self, error: PoolExhaustedError) -> None:
        self._send(signals.pool_exhausted, error=error)

    def _send(self, signal: NamedSignal, **what: Any) -> None:
        app = self._app()
        if app is not None and signal.has_receivers_for(app):
            gevent.spawn(self._send_in_context, signal, app, what)

    def _send_in_context(self, signal: NamedSignal, app: Flask, what: Mapping[str, Any]) -> None:
        with self._context():
            signal.send(app, pool=self, **what)


class QuietPool(AppPool):
    """A pool that is not the app's own, so that nobody who listens to those is told of it."""

    def _send(self, signal: NamedSignal, **what: Any) -> None:
        pass


@contextmanager
def _context_of(app: weakref.ref[Flask]) -> Iterator[None]:
    """Makes an app context current without pushing it.

    Popping it again would run the app's teardown functions. They are for requests and commands, and one that uses the
    pool would have another connection opened, in a context of its own, and so on.
    """
    there = app()
    if there is None:
        yield
        return
    token = _cv_app.set(there.app_context())
    try:
        yield
    finally:
        _cv_app.reset(token)
