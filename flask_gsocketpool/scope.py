"""What belongs to a request: its own connections, what else it has acquired, and until when it may wait.

A scope belongs to a request's context, or to an app context that has no request. A copy of a context, as
``copy_current_request_context`` makes one for a greenlet that runs at the same time, has a scope of its own.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import flask.globals
from flask import Flask, Response, has_request_context, request
from flask.globals import _cv_app

from gsocketpool import Lease, _callsite
from gsocketpool.settings import check_seconds

logger = logging.getLogger("gsocketpool")

# Flask's proxies for these take ten times as long. From Flask 3.2 on a request has no context apart from the app's.
_cv_request: ContextVar[Any] | None = vars(flask.globals).get("_cv_request")

#: The attribute of a context that has its scope. Flask's `g` would not do: requests within an app context share it.
SCOPE = "_flask_gsocketpool_scope"

#: Seconds that a request may take, or what tells them of a request.
RequestTimeout = float | Callable[[Any], float | None] | None


class UnreleasedConnectionWarning(RuntimeWarning):
    """A request has acquired a connection and not given it back, so it was closed at the request's end."""


class NotedLease:
    """One use of a connection, by a request."""

    __slots__ = ("connection", "is_manual", "lease", "pool", "where")

    def __init__(self, lease: Lease[Any]) -> None:
        self.lease = lease
        self.pool: Any = lease.pool
        self.connection = lease.connection
        #: The line that acquired it.
        self.where = _callsite.callers(1)
        #: Whether more than the end of a block, or of the request, may give it back.
        self.is_manual = False

    @property
    def is_over(self) -> bool:
        return not self.lease.is_active

    def discard(self) -> None:
        if self.lease.is_active:
            self.lease.discard("not_released")

    def __str__(self) -> str:
        file, line, function = self.where[0] if self.where else ("an unknown file", 0, "an unknown function")
        return f"{self.connection!r} of pool {self.pool.name!r}, acquired at {file}:{line} in {function}"


class Scope:
    """The connections of one request, or of one app context."""

    def __init__(self) -> None:
        #: Whether it ends with the body of the response.
        self.is_streaming = False
        #: When the request began and until when it may wait, by time.monotonic().
        self.began = time.monotonic()
        self.deadline: float | None = None
        #: The request's own connection of each pool, and the block that gives it back.
        self._own: dict[str, tuple[Any, Any]] = {}
        #: Every use that may not be over, those of the own connections included, in the order of acquiring.
        self._noted: list[NotedLease] = []
        self._prune_at = 16
        self.is_over = False

    def own(self, name: str) -> tuple[Any, Any] | None:
        """The own connection of the pool of that name, behind its block. None if there is none, or none any more."""
        own = self._own.get(name)
        # It may have been discarded by hand. What has been put in the place of a pool may have blocks of any kind.
        if own is None or (isinstance(own[0], Lease) and not own[0].is_active):
            return None
        return own

    def adopt(self, name: str, pool: Any, block: Any, connection: Any) -> None:
        """Make a connection the request's own, until the end."""
        self._own[name] = block, connection
        if isinstance(block, Lease) and not any(use.lease is block for use in self.leases()):
            # Only what is acquired in a request is noted by the app's pools themselves.
            self.note(NotedLease(block))

    def note(self, use: NotedLease) -> None:
        if len(self._noted) >= self._prune_at:
            # A request may be a long one, and use many connections one after the other.
            self._noted = self.leases()
            self._prune_at = max(16, 2 * len(self._noted))
        self._noted.append(use)

    def mark_manual(self) -> None:
        """Note that code other than a block acquired the last connection."""
        self._noted[-1].is_manual = True

    def leases(self) -> list[NotedLease]:
        """Return the leases that are not over."""
        return [use for use in self._noted if not use.is_over]

    def end(self, error: BaseException | None) -> list[NotedLease]:
        """Give back the request's own connections, and discard what else it has not given back, which is returned."""
        self.is_over = True
        own, self._own = self._own, {}
        raised: list[BaseException] = []
        for block, _ in own.values():
            try:
                block.__exit__(None if error is None else type(error), error, None)
            except BaseException as failure:
                raised.append(failure)
        left = self.leases()
        self._noted.clear()
        for use in left:
            use.discard()
        if raised:
            raise raised[0]
        return left

    def __del__(self) -> None:
        # Flask did not end it before its context went: another teardown function has failed, or the response was never
        # sent. This may run anywhere, and so may giving back.
        for use in self.leases():
            use.discard()


class Scopes:
    """The scopes of an app.

    :param request_timeout: seconds that a request has for all of its acquires, or what tells them of a request.
    """

    def __init__(self, app: Flask, request_timeout: RequestTimeout = None) -> None:
        # Weakly: the app's pools know this.
        self._app = weakref.ref(app)
        self._request_timeout = request_timeout
        self.has_timeout = request_timeout is not None
        #: The places where something was acquired and not given back. Each is reported once.
        self._reported: set[tuple[_callsite.Place, ...]] = set()

    def current(self) -> Scope:
        """The scope of the current context."""
        return _scope_of(_context())

    def of_request(self) -> Scope | None:
        """Return the scope of the current request; None where the app has no request to answer."""
        context = _request_context()
        return None if context is None or context.app is not self._app() else _scope_of(context)

    def connection(self, name: str, pool: Any) -> Any:
        """The own connection of `pool` that the current scope has, acquired now if it has none."""
        own = self.current().own(name)
        if own is None:
            block = pool.connection()
            connection = block.__enter__()
            # Meanwhile the scope may have ended, or have got one by another greenlet that shares its context.
            own = self.current().own(name)
            if own is None:
                self.current().adopt(name, pool, block, connection)
                return connection
            block.__exit__(None, None, None)
        return own[1]

    # What Flask is to call

    def begin_request(self) -> None:
        """The time of the current request begins now."""
        self.current()

    def hold_for_body(self, response: Response) -> Response:
        """Let the scope end with the body of the response, if that is still to be made."""
        if response.is_streamed and not response.direct_passthrough:
            scope = self.current()
            scope.is_streaming = True
            response.response = Body(response.response, partial(self._end, _context(), scope))
        elif hasattr(_context(), SCOPE):
            # It may take the place of one that was streamed.
            self.current().is_streaming = False
        return response

    def end_request(self, error: BaseException | None) -> None:
        """End the scope of the current request, unless the body of its response is still to come."""
        self._end_unless_streaming(_context(), error)

    def end_app_context(self, error: BaseException | None) -> None:
        """End the scope of the current app context, which has one if it was used without a request."""
        self._end_unless_streaming(_cv_app.get(), error)

    def _end_unless_streaming(self, context: Any, error: BaseException | None) -> None:
        scope = getattr(context, SCOPE, None)
        # Some versions of Flask call this before the body, others after it, and others twice.
        if scope is not None and (error is not None or not scope.is_streaming):
            self._end(context, scope, error)

    def _end(self, context: Any, scope: Scope, error: BaseException | None) -> None:
        if getattr(context, SCOPE, None) is scope:
            delattr(context, SCOPE)
        scope.is_streaming = False
        for use in scope.end(error):
            self._report(use)

    def _report(self, use: NotedLease) -> None:
        where = tuple(use.where)
        if where in self._reported:
            return
        self._reported.add(where)
        app = self._app()
        message = f"a request has not given back {use}"
        if app is not None and (app.debug or app.testing):
            warnings.warn(message, UnreleasedConnectionWarning, stacklevel=2)
        else:
            logger.warning("%s", message)

    # Deadlines

    def remaining(self, scope: Scope) -> float:
        """The seconds that the current request, whose scope it is, has left for acquiring."""
        if not self.has_timeout:
            return math.inf
        if scope.deadline is None:
            scope.deadline = scope.began + self._seconds_for_request()
        return max(0.0, scope.deadline - time.monotonic())

    def _seconds_for_request(self) -> float:
        given = self._request_timeout
        seconds = given(cast(Any, request)._get_current_object()) if callable(given) else given
        return math.inf if seconds is None else check_seconds("SOCKETPOOL_REQUEST_TIMEOUT", seconds, zero=True)


class Body:
    """The body of a response, which says how it has ended: the first time counts."""

    def __init__(self, parts: Iterable[Any], end: Callable[[BaseException | None], None]) -> None:
        self._source = parts
        self._parts = iter(parts)
        self._end = end
        self._has_begun = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            part = next(self._parts)
        except StopIteration:
            self._end(None)
            raise
        except BaseException as error:
            self._end(error)
            raise
        self._has_begun = True
        return part

    def close(self) -> None:
        """End the scope. The server calls this in any case, also if the client has gone before the body has ended."""
        if not self._has_begun:
            # No exchange was begun here, either. Some versions of Flask end the request when they close their part.
            self._end(None)
        try:
            if hasattr(self._source, "close"):
                self._source.close()
        finally:
            self._end(GeneratorExit())


def _scope_of(context: Any) -> Scope:
    scope: Scope | None = getattr(context, SCOPE, None)
    if scope is None:
        scope = Scope()
        setattr(context, SCOPE, scope)
    return scope


def _request_context() -> Any:
    """The context of the current request, if there is one and it is the current app's."""
    app_context = _cv_app.get(None)
    if app_context is None:
        return None
    if _cv_request is None:
        return app_context if has_request_context() else None
    context = _cv_request.get(None)
    # There may be a context of another app on top of the request's.
    return context if context is not None and context.app is app_context.app else None


def _context() -> Any:
    """The context of the current request, or the app context where there is no request of the current app's."""
    return _request_context() or _cv_app.get()
