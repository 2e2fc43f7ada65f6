"""The extension itself: what is registered on an app."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
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

logger = logging.getLogger("gsocketpool")


class GSocketPool:
    """Give a Flask app its pools, as its ``SOCKETPOOL_*`` configuration describes them.

    One object may serve any number of apps; what belongs to an app is kept in ``app.extensions["gsocketpool"]``.

    :param app: the app to register on now; without it, call :meth:`init_app` later.
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Register on `app`. Nothing is connected before a pool is used for the first time.

        A :exc:`~gsocketpool.PoolExhaustedError` that no view and no handler of the app's catches is answered with
        status 503 from now on, and what a request has acquired and not given back is closed at its end.

        :raises ConfigurationError: if the configuration can't be used; it names the key.
        :raises RuntimeError: if the app has been registered already.
        """
        if EXTENSION in app.extensions:
            raise RuntimeError(f"GSocketPool is registered on app {app.name!r} already")
        config = read_app_config(app.config)
        scopes = Scopes(app, config.request_timeout, _respond_to_exhaustion)
        if _handler_of(app, PoolExhaustedError) is None:
            app.register_error_handler(PoolExhaustedError, _ExhaustionHandler())
        if config.request_timeout is not None:
            # Before the functions of the app, which may use a pool, and whose time counts, too.
            app.before_request_funcs[None].insert(0, scopes.begin_request)
        _logging.use_default_handler()
        _server_check.watch()
        # Behind the functions of the app, whenever these are registered: they may replace the response, and use a
        # connection. Flask calls the first one last.
        app.after_request_funcs.setdefault(None, []).insert(0, scopes.hold_for_body)
        app.teardown_request_funcs.setdefault(None, []).insert(0, scopes.end_request)
        app.shell_context_processor(_names_for_the_shell)
        app.cli.add_command(cli.group)
        app.extensions[EXTENSION] = Pools(app, config, scopes)

    @staticmethod
    def show(app: Flask, name: str, pool: Callable[[], Pool[Any]]) -> None:
        """Have ``/health/pools`` show a pool that is not the app's own, such as that of an engine of SQLAlchemy's.

        :param app: an app that was registered.
        :param name: what to show it as.
        :param pool: a callable that returns the pool. It is called in the context of the request.
        :raises InvalidArgumentError: if another pool has that name.
        """
        pools_of(app).show(name, pool)


def _respond_to_exhaustion(error: PoolExhaustedError) -> Response:
    """Return the response to a request whose stream gets no connection for its first part."""
    handler: Any = current_app._find_error_handler(error, request.blueprints)
    return current_app.make_response(current_app.ensure_sync(handler)(error))


def _names_for_the_shell() -> dict[str, Any]:
    return {"current_pool": current_pool, "current_pools": current_pools}


class _ExhaustionHandler:
    """An app's handler of a PoolExhaustedError that no other handles.

    The app's own handler of something more general goes first; then its handler of status 503, or the plain page.
    """

    def __init__(self) -> None:
        #: For each pool, by its name.
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
        # handle_http_exception() would do, but takes the context as well from Flask 3.2 on.
        handler = current_app._find_error_handler(unavailable, request.blueprints)
        page: Any = unavailable if handler is None else current_app.ensure_sync(handler)(unavailable)
        return cast(ResponseReturnValue, page)


def _handler_of(app: Flask, kind: type) -> Any:
    # Flask's defaultdicts would create what they are asked for by index.
    return app.error_handler_spec.get(None, {}).get(None, {}).get(kind)
