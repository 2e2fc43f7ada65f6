"""The scope of a request: its own connections, its other leases, and its deadline.

A scope belongs to a request context, or to an app context without a request. A copy of a context, such as
``copy_current_request_context`` makes for another greenlet, has its own scope.
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
from typing import Any, NamedTuple, cast

import flask.globals
from flask import Flask, Response, appcontext_tearing_down, got_request_exception, has_request_context, request
from flask.globals import _cv_app
from werkzeug.local import LocalProxy

from flask_gsocketpool import _server_check
from flask_gsocketpool._place import Place, shown_place
from flask_gsocketpool._streaming import Body, is_pending
from flask_gsocketpool.config import DEFAULT, PREFIX
from flask_gsocketpool.exceptions import UnreleasedConnectionWarning
from gsocketpool import ConnectionNotFoundError, Lease, PoolExhaustedError
from gsocketpool.exceptions import shown
from gsocketpool.settings import check_seconds

logger = logging.getLogger("gsocketpool")

# Flask's proxies for these are ten times slower. From Flask 3.2 on, a request has no context apart from the app's.
_cv_request: ContextVar[Any] | None = vars(flask.globals).get("_cv_request")

#: The attribute of a context that holds its scope. Flask's `g` won't do: requests within one app context share it.
SCOPE = "_flask_gsocketpool_scope"

TIMEOUT_KEY = f"{PREFIX}REQUEST_TIMEOUT"

#: The key in a request's environ that says when the request began.
BEGAN = "flask_gsocketpool.began"

#: How long all acquires of a request may take together, in seconds, or a callable that returns it for a request.
RequestTimeout = float | Callable[[Any], float | None] | None


class CurrentConnection(LocalProxy[Any]):
    """The type of ``current_connection``. No other proxy has it."""

    __slots__ = ()


class Own(NamedTuple):
    """A request's own connection."""

    block: Any
    connection: Any
    #: Held, so that no other pool can get its id().
    pool: Any


class Scope:
    """The connections of one request, or of one app context."""

    # Class attributes, because setting them for every request would take time.
    #: The body of the response, if the scope ends with it. A weak reference, since the body refers to the scope.
    body: weakref.ref[Body] | None = None
    is_over = False
    #: Until when the request may wait, by time.monotonic().
    deadline: float | None = None
    _prune_at = 16

    def __init__(self, began: float) -> None:
        #: When the request began, by time.monotonic().
        self.began = began
        #: By name and id() of the pool: threads that share the scope have different pools of that name.
        self._own: dict[tuple[str, int], Own] = {}
        #: Every lease that may be active, in the order of acquiring, including those of the own connections.
        self.noted: list[Lease[Any]] = []
        #: Where the leases without a block were acquired, by id() of the lease.
        self._manual: dict[int, Place] = {}

    def own(self, name: str, pool: Any) -> Own | None:
        """Return the request's own connection of `pool`, which is called `name` now, or None."""
        own = self._own.get((name, id(pool)))
        # The app may have given it back by hand. The blocks of an overriding pool may be of any kind.
        if own is None or not getattr(own.block, "is_active", True):
            return None
        return own

    def adopt(self, name: str, own: Own) -> None:
        """Make a connection the request's own until the scope ends."""
        self._own[name, id(own.pool)] = own
        block = own.block
        if isinstance(block, Lease) and not any(lease is block for lease in self.noted):
            # The app's pools note leases themselves only in a request.
            self.note(block)

    def note(self, lease: Lease[Any], place: Place | None = None) -> None:
        """Note a new lease.

        :param place: where it was acquired, if not by a block.
        """
        self.noted.append(lease)
        if place is not None:
            self._manual[id(lease)] = place
        if len(self.noted) > self._prune_at:
            # A long request may use many connections one after the other.
            self.noted = self.leases()
            # Prune this, too: a new lease may get the id() of a forgotten one.
            self._manual = {id(lease): self._manual[id(lease)] for lease in self.noted if id(lease) in self._manual}
            self._prune_at = max(16, 2 * len(self.noted))

    def leases(self) -> list[Lease[Any]]:
        """Return the active leases."""
        return [lease for lease in self.noted if lease.is_active]

    def describe(self, lease: Lease[Any], connection: object) -> str:
        """Return a description of a lease and its connection for errors. The lease may have ended."""
        return f"{shown(connection)} of pool {lease.pool.name!r}, acquired at {self._shown_place_of(lease)}"

    def _shown_place_of(self, lease: Lease[Any]) -> str:
        return shown_place(getattr(lease, "place", None) or self._manual.get(id(lease)))

    def end(self, error: BaseException | None) -> list[tuple[str, str]]:
        """Give back the request's own connections, and discard its other active leases.

        Work left open on an own connection is reset, never completed: a COMMIT after the response was sent could fail
        unnoticed.

        :returns: complaints, each as a key that identifies its place, and a text.
        """
        self.is_over = True
        if not self._own:
            for lease in self.noted:
                if lease.is_active:
                    break
            else:
                self.noted.clear()
                return []
        try:
            complaints = self.give_back_own(error)
        finally:
            left = [(lease, lease.connection) for lease in self.leases()]
            self.noted.clear()
            for lease, _ in left:
                _discard(lease)
        for lease, connection in left:
            about = f"a request has not given back {self.describe(lease, connection)}"
            complaints.append((self._shown_place_of(lease), about))
        return complaints

    def give_back_own(self, error: BaseException | None) -> list[tuple[str, str]]:
        """Give back the request's own connections.

        :returns: complaints, as from :meth:`end`.
        """
        own, self._own = self._own, {}
        # Now, because connections of other threads are given back there, a little later.
        self.noted = [lease for lease in self.noted if not any(lease is kept.block for kept in own.values())]
        raised: list[BaseException] = []
        complaints: list[tuple[str, str]] = []
        for kept in own.values():
            try:
                if error is None and isinstance(kept.block, Lease) and kept.block.is_active:
                    pool = kept.block.pool
                    is_settled = pool.settings.reset == "never" or kept.block.is_settled
                    resetting = pool.stats().resetting
                    kept.block.release(warn=False)
                    # A lost connection has nothing to reset.
                    if not is_settled and pool.stats().resetting > resetting:
                        which = self.describe(kept.block, kept.connection)
                        about = f"a request or command left work open, which is reset, not completed: {which}"
                        complaints.append((f"open {self._shown_place_of(kept.block)}", about))
                else:
                    kept.block.__exit__(None if error is None else type(error), error, None)
            except BaseException as failure:
                raised.append(failure)
        if raised:
            raise raised[0]
        return complaints

    def __del__(self) -> None:
        # Flask dropped the context without ending the scope: another teardown function failed, or the response was not
        # sent. A finalizer may run anywhere, and discarding is safe anywhere.
        if self.noted:
            for lease in self.leases():
                _discard(lease)


def _discard(lease: Lease[Any]) -> None:
    if lease.is_active:  # pragma: no branch - another thread may have given it back in this very moment
        lease.discard("not_released")


class Scopes:
    """The scopes of an app.

    :param request_timeout: how long all acquires of a request may take together, in seconds, or a callable that returns
        it. None for no limit.
    :param answer: returns the response to a request that gets no connection.
    """

    def __init__(
        self, app: Flask, request_timeout: RequestTimeout, answer: Callable[[PoolExhaustedError], Response]
    ) -> None:
        # A weak reference, since the app's pools refer to this object.
        self._app = weakref.ref(app)
        self._request_timeout = request_timeout
        self._answer = answer
        self.has_timeout = request_timeout is not None
        #: The keys of complaints reported so far. Each is reported once.
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
        """Have Flask end the scopes of app contexts.

        Start with the first app context that has a scope, because Flask calls the receiver after every request, too.
        """
        if not self._watches_app_contexts:
            self._watches_app_contexts = True
            # Flask sends this signal after the app's teardown functions, which may use a connection. It does so even if
            # one of them is running now.
            appcontext_tearing_down.connect(self.end_app_context, cast(Any, self._app()))

    def of_request(self) -> Scope | None:
        """Return the scope of the current request, or None outside of the app's requests."""
        # Written out, without helper calls: every acquire in a request runs this.
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
        """Note a new lease of the request that had this scope when it began to acquire."""
        if scope.is_over:
            # The scope ended meanwhile. Other greenlets may share the context.
            scope = self.of_request() or scope
        scope.note(lease, place)
        if _server_check.is_unchecked:
            _server_check.check_server(request.environ)

    def _scope_of(self, context: Any) -> Scope:
        scope: Scope | None = getattr(context, SCOPE, None)
        return self._begin_scope(context) if scope is None else scope

    def _begin_scope(self, context: Any) -> Scope:
        scope = Scope(_began() if self.has_timeout else 0.0)
        setattr(context, SCOPE, scope)
        return scope

    def connection(self, name: str, pool: Any) -> Any:
        """Return the current scope's own connection of `pool`. Acquire it if there is none."""
        own = self.current().own(name, pool)
        if own is None:
            block = pool.connection()
            connection = block.__enter__()
            # Meanwhile, the scope may have ended, or another greenlet with the same context may have acquired one.
            own = self.current().own(name, pool)
            if own is None:
                self.current().adopt(name, Own(block, connection, pool))
                return connection
            block.__exit__(None, None, None)
        return own.connection

    # What Flask calls

    def begin_request(self) -> None:
        """Start the clock of the current request."""
        self.current()

    def exception_left_view(self, error: BaseException) -> None:
        """Give back the request's own connections, which may be in an exchange, even if the app handles the error."""
        scope: Scope | None = getattr(_context(), SCOPE, None)
        if scope is not None:
            self._report(scope.give_back_own(error))

    def hold_for_body(self, response: Response) -> Response:
        """Let the scope end with the body of the response, if the app has yet to produce that."""
        # Most bodies are lists, and checking that first saves a call.
        if type(response.response) is not list and response.is_streamed and is_pending(response):
            context = _context()
            scope = self._scope_of(context)
            response.response = body = Body(response.response, partial(self._end, context, scope))
            scope.body = weakref.ref(body)
            if _server_check.server_of(request.environ) is not None:
                # Make the first part now: the server has not sent the status yet. A test client reads the body later.
                try:
                    body.begin()
                except PoolExhaustedError as error:
                    response.close()
                    return self._answer(error)
        return response

    def drop_body(self, app: Flask, exception: BaseException, **_: Any) -> None:
        """Close the body of a response that Flask replaces by an error.

        Code that runs after :meth:`hold_for_body` may fail, such as saving the session. A body that has begun keeps its
        context pushed, so Flask would not end the request.
        """
        scope: Scope | None = getattr(_context(), SCOPE, None)
        body = None if scope is None or scope.body is None else scope.body()
        if body is not None:
            body.drop(exception)

    def end_request(self, error: BaseException | None) -> None:
        """End the scope of the current request, unless the body of its response is still pending."""
        # Flask has made the request's context the current one.
        context = _cv_app.get() if _cv_request is None else _cv_request.get()
        scope: Scope | None = getattr(context, SCOPE, None)
        # Depending on its version, Flask calls this before the body, after it, or twice.
        if scope is not None and (error is not None or scope.body is None):
            # Written out: _end() would check more.
            delattr(context, SCOPE)
            scope.body = None
            if complaints := scope.end(error):
                self._report(complaints)

    def end_app_context(self, app: Flask, exc: BaseException | None, **_: Any) -> None:
        """End the scope of the current app context. It has one if code outside a request used a connection."""
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
        """Return how many seconds the current request, to which `scope` belongs, may still spend in acquires."""
        if scope.deadline is None:
            scope.deadline = scope.began + self._seconds_for_request()
        return max(0.0, scope.deadline - time.monotonic())

    def used_up(self, scope: Scope) -> str:
        """Return a text for an error if the request has no time left for acquires, or an empty string."""
        if scope.deadline is None or time.monotonic() < scope.deadline:
            return ""
        return f"; {TIMEOUT_KEY} ({scope.deadline - scope.began:g} s) is used up"

    def _seconds_for_request(self) -> float:
        given = self._request_timeout
        seconds = given(cast(Any, request)._get_current_object()) if callable(given) else given
        return math.inf if seconds is None else check_seconds(TIMEOUT_KEY, seconds, zero=True)


def _began() -> float:
    """Return when the current request began, by time.monotonic(). Outside of a request, this is now."""
    now = time.monotonic()
    if not has_request_context():
        return now
    # Copies of a request's context share the environ.
    began: float = request.environ.setdefault(BEGAN, now)
    return began


def _request_context() -> Any:
    """Return the context of the current request if it belongs to the current app, or None."""
    app_context = _cv_app.get(None)
    if app_context is None:
        return None
    if _cv_request is None:  # pragma: no cover - from Flask 3.2 on, there is one context for both
        return app_context if has_request_context() else None
    context = _cv_request.get(None)
    # The context of another app may lie on top of the request's.
    return context if context is not None and context.app is app_context.app else None


def _context() -> Any:
    """Return the context of the current request, else the current app context, else None."""
    return _request_context() or _cv_app.get(None)


def unwrapped(connection: Any, pool: Any) -> Any:
    """Return the request's own connection of `pool` for ``current_connection``, and any other object unchanged.

    :raises ConnectionNotFoundError: if the request has no own connection now. The proxy would acquire a new one.
    """
    # Not isinstance(): it would ask the proxy for its connection's class.
    if type(connection) is not CurrentConnection:
        return connection
    scope: Scope | None = getattr(_context(), SCOPE, None)
    own = None if scope is None else scope.own(DEFAULT, pool)
    if own is None:
        raise ConnectionNotFoundError(
            "the request has no current_connection: it was not acquired yet, or was already given back"
        )
    return own.connection
