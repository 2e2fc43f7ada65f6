"""The scope of a request: its own connections, the other leases that it has acquired, and its deadline.

A scope belongs to a request's context, or to an app context that has no request. A copy of a context, as
``copy_current_request_context`` makes one for a greenlet that runs at the same time, has a scope of its own.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, cast

import flask.globals
from flask import Flask, Response, appcontext_tearing_down, got_request_exception, has_request_context, request
from flask.globals import _cv_app
from werkzeug.local import LocalProxy

from flask_gsocketpool import _server_check
from flask_gsocketpool._streaming import Body, is_pending
from flask_gsocketpool.config import DEFAULT, PREFIX
from gsocketpool import ConnectionNotFoundError, Lease, PoolExhaustedError
from gsocketpool.exceptions import shown
from gsocketpool.settings import check_seconds

logger = logging.getLogger("gsocketpool")

# Flask's proxies for these take ten times as long. From Flask 3.2 on a request has no context apart from the app's.
_cv_request: ContextVar[Any] | None = vars(flask.globals).get("_cv_request")

#: The attribute of a context that has its scope. Flask's `g` would not do: requests within an app context share it.
SCOPE = "_flask_gsocketpool_scope"

#: The modules between the app's code and an acquire. A place is never in one of them.
OWN_MODULES = {"flask_gsocketpool.globals", "flask_gsocketpool._app_pool", __name__, "werkzeug.local", "contextlib"}

TIMEOUT_KEY = f"{PREFIX}REQUEST_TIMEOUT"

#: Seconds that a request has for all of its acquires, or a callable that returns them for a request.
RequestTimeout = float | Callable[[Any], float | None] | None


class UnreleasedConnectionWarning(RuntimeWarning):
    """A request did not give back a connection, or left something open on its own one, such as a transaction."""


class Place:
    """The line of the app's code that is being run."""

    __slots__ = ("_code", "_instruction")

    def __init__(self, frame: FrameType) -> None:
        while frame.f_back is not None and frame.f_globals.get("__name__") in OWN_MODULES:
            frame = frame.f_back
        # To look up the line takes time, and most places are never shown.
        self._code = frame.f_code
        self._instruction = frame.f_lasti

    def __str__(self) -> str:
        lines = (line for start, end, line in self._code.co_lines() if start <= self._instruction < end)
        return f"{self._code.co_filename}:{next(lines, None)} in {self._code.co_name}"


class CurrentConnection(LocalProxy[Any]):
    """The type of ``current_connection``, which tells it from every other proxy."""

    __slots__ = ()


class Own(NamedTuple):
    """A connection of the request's own."""

    block: Any
    connection: Any
    #: Kept, so that no other pool can have its identity.
    pool: Any


class Scope:
    """The connections of one request, or of one app context."""

    __slots__ = ("_manual", "_own", "_prune_at", "began", "body", "deadline", "is_over", "noted")

    def __init__(self, began: float) -> None:
        #: The body of the response, if the scope ends with that. Weakly, for the body refers to the scope.
        self.body: weakref.ref[Body] | None = None
        self.is_over = False
        #: When the request began and until when it may wait, by time.monotonic().
        self.began = began
        self.deadline: float | None = None
        #: By the name and the identity of the pool: threads that share the scope have pools of their own.
        self._own: dict[tuple[str, int], Own] = {}
        #: Every lease that may be active, those of the own connections included, in the order of acquiring.
        self.noted: list[Lease[Any]] = []
        #: Where code other than a block acquired those of them that it did, by the identity of the lease.
        self._manual: dict[int, Place] = {}
        self._prune_at = 16

    def own(self, name: str, pool: Any) -> Own | None:
        """Return the own connection of `pool`, which has that name now. None if there is none."""
        own = self._own.get((name, id(pool)))
        # It may have been given back by hand. What has been put in the place of a pool may have blocks of any kind.
        if own is None or not getattr(own.block, "is_active", True):
            return None
        return own

    def adopt(self, name: str, own: Own) -> None:
        """Make a connection the request's own, until the end."""
        self._own[name, id(own.pool)] = own
        block = own.block
        if isinstance(block, Lease) and not any(lease is block for lease in self.noted):
            # Only what is acquired in a request is noted by the app's pools themselves.
            self.note(block)

    def note(self, lease: Lease[Any], place: Place | None = None) -> None:
        """Note a lease that begins now.

        :param place: where code other than a block acquired it.
        """
        self.noted.append(lease)
        if place is not None:
            self._manual[id(lease)] = place
        if len(self.noted) > self._prune_at:
            # A request may be a long one, and use many connections one after the other.
            self.noted = self.leases()
            # Together, for another lease may get the identity of one that is not kept any more.
            self._manual = {id(lease): self._manual[id(lease)] for lease in self.noted if id(lease) in self._manual}
            self._prune_at = max(16, 2 * len(self.noted))

    def leases(self) -> list[Lease[Any]]:
        """Return the leases that are active."""
        return [lease for lease in self.noted if lease.is_active]

    def describe(self, lease: Lease[Any], connection: object) -> str:
        """Return what errors say of a lease and its connection. The lease need not be active any more."""
        return f"{shown(connection)} of pool {lease.pool.name!r}, acquired at {self._place_of(lease)}"

    def _place_of(self, lease: Lease[Any]) -> Place | None:
        return getattr(lease, "place", None) or self._manual.get(id(lease))

    def end(self, error: BaseException | None) -> list[tuple[str, str]]:
        """Give back the request's own connections, and discard what else it has not given back.

        What is left open on an own connection is reset, and never completed: a COMMIT after the response has left could
        fail unseen. Return the complaints, each with the place that it is about.
        """
        self.is_over = True
        if not self._own:
            for lease in self.noted:
                if lease.is_active:
                    break
            else:
                self.noted.clear()
                return []
        own, self._own = self._own, {}
        raised: list[BaseException] = []
        complaints: list[tuple[str, str]] = []
        for kept in own.values():
            try:
                if error is None and isinstance(kept.block, Lease) and kept.block.is_active:
                    pool = kept.block.pool
                    is_settled = pool.settings.reset == "never" or kept.block.is_settled
                    resetting = pool.stats().resetting
                    kept.block.release(warn=False)
                    # One that was lost has nothing to reset.
                    if not is_settled and pool.stats().resetting > resetting:
                        which = self.describe(kept.block, kept.connection)
                        about = f"a request has left something open, which is not completed: {which}"
                        complaints.append((f"open {self._place_of(kept.block)}", about))
                else:
                    kept.block.__exit__(None if error is None else type(error), error, None)
            except BaseException as failure:
                raised.append(failure)
        # Those of other threads are given back there, a little later.
        blocks = [kept.block for kept in own.values()]
        left = [(lease, lease.connection) for lease in self.leases() if not any(lease is block for block in blocks)]
        self.noted.clear()
        for lease, _ in left:
            _discard(lease)
        if raised:
            raise raised[0]
        for lease, connection in left:
            about = f"a request has not given back {self.describe(lease, connection)}"
            complaints.append((str(self._place_of(lease)), about))
        return complaints

    def __del__(self) -> None:
        # Flask did not end it before its context went: another teardown function has failed, or the response was never
        # sent. This may run anywhere, and so may giving back.
        if self.noted:
            for lease in self.leases():
                _discard(lease)


def _discard(lease: Lease[Any]) -> None:
    if lease.is_active:
        lease.discard("not_released")


class Scopes:
    """The scopes of an app.

    :param request_timeout: seconds that a request has for all of its acquires, or a callable that returns them.
    :param answer: returns the response to a request that gets no connection.
    """

    def __init__(
        self, app: Flask, request_timeout: RequestTimeout, answer: Callable[[PoolExhaustedError], Response]
    ) -> None:
        # Weakly: the app's pools know this.
        self._app = weakref.ref(app)
        self._request_timeout = request_timeout
        self._answer = answer
        self.has_timeout = request_timeout is not None
        #: The places where something was acquired and not given back. Each is reported once.
        self._reported: set[str] = set()
        self._watches_app_contexts = False
        got_request_exception.connect(self.drop_body, app)

    def current(self) -> Scope:
        """Return the scope of the current context."""
        context = _request_context()
        if context is None:
            self._watch_app_contexts()
            context = _cv_app.get()
        return self._scope_of(context)

    def _watch_app_contexts(self) -> None:
        """Have Flask end the scopes of app contexts, from the first that has one: it would ask at each request, too."""
        if not self._watches_app_contexts:
            self._watches_app_contexts = True
            # Sent after the app's own functions, which may use a connection, and also if one of them is running now.
            appcontext_tearing_down.connect(self.end_app_context, cast(Any, self._app()))

    def of_request(self) -> Scope | None:
        """Return the scope of the current request, or None outside of the app's requests."""
        # Written out, as all that each request passes through.
        current = _cv_app.get(None)
        app = self._app()
        if current is None or current.app is not app:
            return None
        context = (current if has_request_context() else None) if _cv_request is None else _cv_request.get(None)
        if context is None or context.app is not app:
            return None
        scope: Scope | None = getattr(context, SCOPE, None)
        return self._begin_scope(context) if scope is None else scope

    def note(self, scope: Scope, lease: Lease[Any], place: Place | None = None) -> None:
        """Note a lease that begins now, in a request that had this scope when it began to acquire."""
        if scope.is_over:
            # It has ended meanwhile: other greenlets may share the context.
            scope = self.of_request() or scope
        scope.note(lease, place)
        if _server_check.is_unknown:
            _server_check.look(request.environ)

    def _scope_of(self, context: Any) -> Scope:
        scope: Scope | None = getattr(context, SCOPE, None)
        return self._begin_scope(context) if scope is None else scope

    def _begin_scope(self, context: Any) -> Scope:
        scope = Scope(time.monotonic() if self.has_timeout else 0.0)
        setattr(context, SCOPE, scope)
        return scope

    def connection(self, name: str, pool: Any) -> Any:
        """Return the own connection of `pool` that the current scope has, acquired now if it has none."""
        own = self.current().own(name, pool)
        if own is None:
            block = pool.connection()
            connection = block.__enter__()
            # Meanwhile the scope may have ended, or have got one by another greenlet that shares its context.
            own = self.current().own(name, pool)
            if own is None:
                self.current().adopt(name, Own(block, connection, pool))
                return connection
            block.__exit__(None, None, None)
        return own.connection

    # What Flask calls

    def begin_request(self) -> None:
        """Begin to count the time of the current request."""
        self.current()

    def hold_for_body(self, response: Response) -> Response:
        """Let the scope end with the body of the response, if that is pending."""
        if response.is_streamed and is_pending(response):
            context = _context()
            scope = self._scope_of(context)
            response.response = body = Body(response.response, partial(self._end, context, scope))
            scope.body = weakref.ref(body)
            if _server_check.server_of(request.environ) is not None:
                # A server has sent nothing before the first part. The client of a test reads it when it likes.
                try:
                    body.begin()
                except PoolExhaustedError as error:
                    response.close()
                    return self._answer(error)
        return response

    def drop_body(self, app: Flask, exception: BaseException, **_: Any) -> None:
        """Close the body of a response in whose place Flask answers with an error.

        What runs after :meth:`hold_for_body` may fail: saving the session, for one. Once it has begun, a body has its
        context pushed, so that Flask would not end the request.
        """
        scope: Scope | None = getattr(_context(), SCOPE, None)
        body = None if scope is None or scope.body is None else scope.body()
        if body is not None:
            body.drop(exception)

    def end_request(self, error: BaseException | None) -> None:
        """End the scope of the current request, unless the body of its response is still to come."""
        # Flask has made it the current one.
        context = _cv_app.get() if _cv_request is None else _cv_request.get()
        scope: Scope | None = getattr(context, SCOPE, None)
        # Some versions of Flask call this before the body, others after it, and others twice.
        if scope is not None and (error is not None or scope.body is None):
            # Written out: _end() has more to look at.
            delattr(context, SCOPE)
            scope.body = None
            if complaints := scope.end(error):
                self._report(complaints)

    def end_app_context(self, app: Flask, exc: BaseException | None, **_: Any) -> None:
        """End the scope of the current app context, if it has one: code outside of a request has used a connection."""
        context = _cv_app.get()
        scope: Scope | None = getattr(context, SCOPE, None)
        if scope is not None and (exc is not None or scope.body is None):
            self._end(context, scope, exc)

    def _end(self, context: Any, scope: Scope, error: BaseException | None) -> None:
        if getattr(context, SCOPE, None) is scope:
            delattr(context, SCOPE)
        scope.body = None
        self._report(scope.end(error))

    def _report(self, complaints: list[tuple[str, str]]) -> None:
        app = self._app()
        of_app = "" if app is None else f"app {app.name!r}: "
        for place, complaint in complaints:
            if place in self._reported:
                continue
            self._reported.add(place)
            message = f"{of_app}{complaint}"
            if app is not None and (app.debug or app.testing):
                warnings.warn(message, UnreleasedConnectionWarning, stacklevel=2)
            else:
                logger.warning("%s", message)

    # Deadlines

    def remaining(self, scope: Scope) -> float:
        """Return the seconds that the current request, whose scope it is, has left for acquiring."""
        if not self.has_timeout:
            return math.inf
        if scope.deadline is None:
            scope.deadline = scope.began + self._seconds_for_request()
        return max(0.0, scope.deadline - time.monotonic())

    def used_up(self, scope: Scope) -> str:
        """Return what an error says of a request that has no time left for acquiring, or nothing if it has."""
        if scope.deadline is None or time.monotonic() < scope.deadline:
            return ""
        return f"; {TIMEOUT_KEY} ({scope.deadline - scope.began:g} s) is used up"

    def _seconds_for_request(self) -> float:
        given = self._request_timeout
        seconds = given(cast(Any, request)._get_current_object()) if callable(given) else given
        return math.inf if seconds is None else check_seconds(TIMEOUT_KEY, seconds, zero=True)


def _request_context() -> Any:
    """Return the context of the current request, if there is one and it is the current app's."""
    app_context = _cv_app.get(None)
    if app_context is None:
        return None
    if _cv_request is None:
        return app_context if has_request_context() else None
    context = _cv_request.get(None)
    # There may be a context of another app on top of the request's.
    return context if context is not None and context.app is app_context.app else None


def _context() -> Any:
    """Return the context of the current request, or else the current app context, or None if there is none either."""
    return _request_context() or _cv_app.get(None)


def unwrapped(connection: Any, pool: Any) -> Any:
    """Return the request's own connection of `pool` for ``current_connection``, and anything else as it is.

    :raises ConnectionNotFoundError: if the request has none, or none any more: the proxy would acquire another one.
    """
    # Its class is what isinstance() would ask.
    if type(connection) is not CurrentConnection:
        return connection
    scope: Scope | None = getattr(_context(), SCOPE, None)
    own = None if scope is None else scope.own(DEFAULT, pool)
    if own is None:
        raise ConnectionNotFoundError("current_connection was not acquired yet, or was given back already")
    return own.connection
