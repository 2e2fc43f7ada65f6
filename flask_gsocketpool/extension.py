"""The extension: it registers the pools, handlers and commands on an app."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from typing import Any, cast

from flask import Flask, Response, current_app, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import ServiceUnavailable

from flask_gsocketpool import _logging, _server_check, cli
from flask_gsocketpool._registry import EXTENSION, Pools, pools_of
from flask_gsocketpool._request_scope import Scopes
from flask_gsocketpool.config import read_app_config
from flask_gsocketpool.globals import current_pool, current_pools
from gsocketpool import Pool, PoolExhaustedError
from gsocketpool.throttle import Throttle

logger: logging.Logger = logging.getLogger("gsocketpool")


class GSocketPool:
    """Gives a Flask app the pools that its ``SOCKETPOOL_*`` configuration describes.

    One object may serve any number of apps. The state of an app is in ``app.extensions["gsocketpool"]``.

    :param app: the app to register on now. Without it, call :meth:`init_app` later.
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Register on `app`. Open no connection: a pool does so when it is first used.

        From now on, the extension answers a :exc:`~gsocketpool.PoolExhaustedError` with status 503, unless a view or a
        handler of the app catches it. At the end of a request, it closes connections that the request did not give
        back.

        :raises ConfigurationError: if the configuration can't be used. The error names the key.
        :raises RuntimeError: if the extension is already registered on the app.
        """
        if EXTENSION in app.extensions:
            raise RuntimeError(f"GSocketPool is already registered on app {app.name!r}")
        config = read_app_config(app.config)
        scopes = Scopes(app, config.request_timeout, _respond_to_exhaustion)
        if _handler_of(app, PoolExhaustedError) is None:
            app.register_error_handler(PoolExhaustedError, _ExhaustionHandler())
        if config.request_timeout is not None:
            # Before the app's own functions: they may use a pool, and their time counts, too.
            app.before_request_funcs[None].insert(0, scopes.begin_request)
        _watch_exceptions(app, scopes)
        _logging.use_default_handler()
        _server_check.watch_requests()
        # After the app's own functions, even those registered later: they may replace the response, and use a
        # connection. Flask calls the first function last.
        app.after_request_funcs.setdefault(None, []).insert(0, scopes.hold_for_body)
        app.teardown_request_funcs.setdefault(None, []).insert(0, scopes.end_request)
        app.shell_context_processor(_shell_context)
        app.cli.add_command(cli.group)
        app.extensions[EXTENSION] = Pools(app, config, scopes)

    @staticmethod
    def show(app: Flask, name: str, pool: Callable[[], Pool[Any]]) -> None:
        """Let ``/health/pools`` show a pool that is not the app's own, such as the pool of a SQLAlchemy engine.

        :param app: an app on which the extension is registered.
        :param name: the name to show the pool under.
        :param pool: a callable that returns the pool. It is called in the context of the request.
        :raises InvalidArgumentError: if another pool has that name.
        :raises RuntimeError: if the extension is not registered on `app`.
        """
        pools_of(app).show(name, pool)


def _watch_exceptions(app: Flask, scopes: Scopes) -> None:
    """Tell `scopes` about each exception that leaves a view. Flask has a signal only for those that no code handles."""
    handle = app.handle_user_exception

    @wraps(handle)
    def handle_user_exception(*arguments: Any) -> ResponseReturnValue:
        # The last argument, because from Flask 3.2 on the first one is the context.
        scopes.exception_left_view(arguments[-1])
        return handle(*arguments)

    app.handle_user_exception = handle_user_exception  # type: ignore[method-assign, assignment]


def _respond_to_exhaustion(error: PoolExhaustedError) -> Response:
    """Return the response to a request whose streamed body gets no connection for its first part."""
    handler: Any = current_app._find_error_handler(error, request.blueprints)
    return current_app.make_response(current_app.ensure_sync(handler)(error))


def _shell_context() -> dict[str, Any]:
    return {"current_pool": current_pool, "current_pools": current_pools}


class _ExhaustionHandler:
    """The handler of a PoolExhaustedError that the app does not handle.

    It uses the app's handler of a base class if there is one, else the app's handler of status 503, else the default
    503 page.
    """

    def __init__(self) -> None:
        #: Limits the log lines about each pool, by its name.
        self._complaints: defaultdict[str | None, Throttle] = defaultdict(Throttle)

    def __call__(self, error: PoolExhaustedError) -> ResponseReturnValue:
        for kind in type(error).__mro__:
            handler = _handler_of(current_app, kind)
            if handler is not None and handler is not self:
                answer: ResponseReturnValue = current_app.ensure_sync(handler)(error)
                return answer
        suffix = self._complaints[error.pool_name].admit()
        if suffix is not None:
            logger.warning("app %r: answered 503: %s%s", current_app.name, error, suffix)
        unavailable = ServiceUnavailable(retry_after=1)
        # Not handle_http_exception(): from Flask 3.2 on, it also takes the context.
        handler = current_app._find_error_handler(unavailable, request.blueprints)
        page: Any = unavailable if handler is None else current_app.ensure_sync(handler)(unavailable)
        return cast(ResponseReturnValue, page)


def _handler_of(app: Flask, kind: type) -> Any:
    # An index would create entries in Flask's defaultdicts.
    return app.error_handler_spec.get(None, {}).get(None, {}).get(kind)
