"""What belongs to a request: its own connections, what else it has acquired, and until when it may wait.

A scope belongs to a request, or to an app context that has none, and to a greenlet: what runs at the same time, started
with ``copy_current_request_context`` for instance, must not use the same connection.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import flask.globals
from flask import Flask, Response, current_app, g, has_request_context, request
from gevent import getcurrent

from gsocketpool import _where
from gsocketpool._block import Block
from gsocketpool._state import IN_USE, Entry
from gsocketpool.settings import check_seconds

if TYPE_CHECKING:
    from flask_gsocketpool.pool import AppPool

logger = logging.getLogger("gsocketpool")

#: The frames that are kept of the place where a request acquires a connection.
DEPTH = 6

#: Seconds that a request may take, or what tells them of a request.
RequestTimeout = float | Callable[[Any], float | None] | None


class UnreleasedConnectionWarning(RuntimeWarning):
    """A request has acquired a connection and not given it back, so it was closed at the request's end."""


class Use:
    """One use of a connection, by a request."""

    def __init__(self, pool: AppPool, entry: Entry) -> None:
        self.pool = pool
        self.entry = entry
        self._uses = entry.uses
        self.where = _where.callers(DEPTH)

    @property
    def is_over(self) -> bool:
        return self.entry.status is not IN_USE or self.entry.uses != self._uses

    def __str__(self) -> str:
        file, line, function = self.where[0] if self.where else ("nowhere", 0, "nobody")
        return f"{self.entry.connection!r} of pool {self.pool.name!r}, acquired at {file}:{line} in {function}"


class Scope:
    """The connections of one request in one greenlet."""

    def __init__(self) -> None:
        #: The request's own connection of each pool, and the block that gives it back.
        self._own: dict[str, tuple[Any, Any]] = {}
        #: Every use that may not be over, by the entry's identity.
        self._uses: dict[int, Use] = {}

    def connection(self, name: str, pool: Any) -> Any:
        """The request's own connection of `pool`, acquired now if there is none."""
        block, connection = self._own.get(name, (None, None))
        # It may have been discarded by hand. What has been put in the place of a pool may have blocks of any kind.
        if block is None or (isinstance(block, Block) and not block._is_held()):
            block = pool.connection()
            connection = block.__enter__()
            self._own[name] = block, connection
        return connection

    def note(self, use: Use) -> None:
        self._uses[id(use.entry)] = use

    def uses(self) -> list[Use]:
        """What has been acquired, and not given back."""
        return [use for use in self._uses.values() if not use.is_over]

    def end(self, error: BaseException | None) -> list[Use]:
        """Gives back the request's own connections. Returns what else it should have given back."""
        blocks = [block for block, _ in self._own.values()]
        self._own.clear()
        try:
            for block in blocks:
                block.__exit__(None if error is None else type(error), error, None)
        finally:
            left = self.uses()
            self._uses.clear()
        return left


class Scopes:
    """The scopes of an app's requests.

    :param request_timeout: seconds that a request has for all of its acquires, or what tells them of a request.
    """

    def __init__(self, app: Flask, request_timeout: RequestTimeout = None) -> None:
        # Weakly: the app's pools know this.
        self._app = weakref.ref(app)
        self._request_timeout = request_timeout
        self._of_context: weakref.WeakKeyDictionary[Any, dict[Any, Scope]] = weakref.WeakKeyDictionary()
        #: Until when a request may wait, by time.monotonic().
        self._deadlines: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        #: The requests that end with the body of their response.
        self._streaming: weakref.WeakSet[Any] = weakref.WeakSet()
        #: The places where something was acquired and not given back. Each is reported once.
        self._reported: set[_where.Place] = set()

    def current(self) -> Scope:
        """The scope of the current context, in this greenlet."""
        of_greenlets = self._of_context.setdefault(_request() or _app_globals(), {})
        return of_greenlets.setdefault(getcurrent(), Scope())

    def of_request(self) -> Scope | None:
        """That of the current request, in this greenlet. None where the app has no request to answer."""
        if current_app and _current_app() is self._app() and _request() is not None:
            return self.current()
        return None

    # What Flask is to call

    def begin_request(self) -> None:
        """The time of the current request begins now."""
        self._deadlines[_request()] = time.monotonic() + self._seconds_for_request()

    def hold_for_body(self, response: Response) -> Response:
        """Lets the scope end with the body of the response, if that is still to be made."""
        if response.is_streamed and not response.direct_passthrough:
            streaming = _request()
            self._streaming.add(streaming)
            response.response = Body(response.response, partial(self._end_body, streaming, getcurrent()))
        elif self._streaming:
            # It may take the place of one that was streamed.
            self._streaming.discard(_request())
        return response

    def end_request(self, error: BaseException | None) -> None:
        """Ends the scope of the current request, unless the body of its response is still to come."""
        if not self._of_context:
            return
        ended = _request()
        # Some versions of Flask call this before the body, others after it, and others twice.
        if error is not None or ended not in self._streaming:
            self._end(ended, getcurrent(), error)

    def end_app_context(self, error: BaseException | None) -> None:
        """Ends the scope of the current app context, if it was used without a request."""
        if self._of_context and _request() is None:
            self._end(_app_globals(), getcurrent(), error)

    def _end_body(self, streamed: Any, greenlet: Any, error: BaseException | None) -> None:
        self._streaming.discard(streamed)
        # The server may have had the body made by another greenlet than the response.
        for one in {greenlet, getcurrent()}:
            self._end(streamed, one, error)

    def _end(self, context: Any, greenlet: Any, error: BaseException | None) -> None:
        scope = self._of_context.get(context, {}).pop(greenlet, None)
        if scope is None:
            return
        left = scope.end(error)
        for use in left:
            use.pool.take_back(use.entry)
        for use in left:
            self._report(use)

    def _report(self, use: Use) -> None:
        if use.where and use.where[0] not in self._reported:
            self._reported.add(use.where[0])
            message = f"a request has not given back {use}"
            if current_app.debug or current_app.testing:
                warnings.warn(message, UnreleasedConnectionWarning, stacklevel=2)
            else:
                logger.warning("%s", message)

    # Deadlines

    def remaining(self) -> float:
        """The seconds that the current request has left for acquiring."""
        if self._request_timeout is None:
            return math.inf
        if _request() not in self._deadlines:
            # Nobody has dispatched it, as in a test.
            self.begin_request()
        return max(0.0, self._deadlines[_request()] - time.monotonic())

    def _seconds_for_request(self) -> float:
        given = self._request_timeout
        seconds = given(_request()) if callable(given) else given
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
        """What the server calls in any case, also if the client has gone before the body has ended."""
        if not self._has_begun:
            # No exchange was begun here, either. Some versions of Flask end the request when they close their part.
            self._end(None)
        try:
            if hasattr(self._source, "close"):
                self._source.close()
        finally:
            self._end(GeneratorExit())


def _request() -> Any:
    """The current request, if it is the current app's."""
    if not has_request_context():
        return None
    # Until Flask 3.2 there may be a context of another app on top of the request's.
    context = vars(flask.globals).get("request_ctx")
    if context is not None and context.app is not _current_app():
        return None
    return cast(Any, request)._get_current_object()


def _current_app() -> Flask:
    app: Flask = cast(Any, current_app)._get_current_object()
    return app


def _app_globals() -> Any:
    return g._get_current_object()
