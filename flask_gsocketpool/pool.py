"""A pool that knows the app it is for, and the request that uses it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import gevent
import werkzeug.local
from blinker import NamedSignal
from flask import Flask

from flask_gsocketpool import signals
from flask_gsocketpool.scope import Scope, Scopes, Use
from gsocketpool import Pool, PoolExhaustedError, _where
from gsocketpool._state import Entry
from gsocketpool.settings import check_seconds

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

    def take_back(self, entry: Entry) -> None:
        """Closes a connection that a request has not given back."""
        self._wait_for([self._discard(entry, "not released")])

    def _sweep(self) -> None:
        with self._context():
            super()._sweep()

    def _acquire(self, timeout: float | None) -> Entry:
        scope = self._scopes.of_request()
        if scope is None:
            return super()._acquire(timeout)
        try:
            entry = super()._acquire(self._bounded(timeout, scope))
        except PoolExhaustedError as error:
            held = "".join(f"; this request holds {use}" for use in scope.uses())
            error.args = (f"{error}{held}",)
            raise
        scope.note(Use(self, entry))
        return entry

    def _bounded(self, timeout: float | None, scope: Scope) -> float:
        """What the request has left of a timeout."""
        if timeout is None:
            timeout = self._acquire_timeout
        else:
            check_seconds("timeout", timeout, zero=True, endless=True)
        return 0 if self._would_wait_for_itself(scope) else min(timeout, self._scopes.remaining())

    def _would_wait_for_itself(self, scope: Scope) -> bool:
        """Whether this very request holds everything there is to wait for."""
        state = self._state
        is_full = not state.idle and not state.opening and state.size >= state.max_connections
        return is_full and sum(use.pool is self for use in scope.uses()) == state.in_use

    # Signals

    def _was_opened(self, connection: Any) -> None:
        self._send(signals.connection_opened, connection=connection)

    def _was_closed(self, connection: Any, reason: str) -> None:
        self._send(signals.connection_closed, connection=connection, reason=reason)

    def _was_exhausted(self, error: PoolExhaustedError) -> None:
        self._send(signals.pool_exhausted, error=error)

    def _send(self, signal: NamedSignal, **what: Any) -> None:
        if signal.has_receivers_for(self._app()):
            gevent.spawn(self._send_in_context, signal, what)

    def _send_in_context(self, signal: NamedSignal, what: Mapping[str, Any]) -> None:
        with self._context():
            signal.send(self._app(), pool=self, **what)


def _context_of(app: weakref.ref[Flask]) -> AbstractContextManager[object]:
    there = app()
    return nullcontext() if there is None else there.app_context()
