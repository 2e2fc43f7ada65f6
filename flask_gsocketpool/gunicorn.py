"""Hooks for ``gunicorn.conf.py``. Import one or both there; each works without the other.

This module does not import gunicorn, and opens no connection before a worker has started.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from flask import Flask

from flask_gsocketpool import _server_check, _sigterm
from flask_gsocketpool._redaction import error_as_dict
from flask_gsocketpool._registry import EXTENSION, pools_of
from gsocketpool.settings import check_seconds

__all__ = ["post_worker_init", "worker_exit"]

logger: logging.Logger = logging.getLogger("gsocketpool")

#: Attributes in which middleware keeps the app that it wraps. The last two lead from a method to its object, and from a
#: decorated function to the original.
WRAPPED_ATTRIBUTES = ("app", "wsgi_app", "application", "wsgi", "wrapped", "__self__", "__wrapped__")

#: How many objects the search for an app visits at most. Some objects have every attribute that is looked up.
SEARCH_LIMIT = 100


def post_worker_init(worker: Any, *, timeout: float = 5.0, app: Flask | None = None) -> None:
    """Make all pools of the app that `worker` serves, and open their connections before the first request.

    Open their ``min_connections`` and ``initial_connections``. Log a warning for a pool that can't open them; the
    worker starts anyway. Requests try again later, and so does the pool for its ``min_connections``. Under gunicorn's
    gthread worker, do nothing but log a warning: the threads that handle requests have their own pools.

    With this hook, the time of ``SOCKETPOOL_DRAIN_TIMEOUT`` also starts when ``--max-requests`` ends the worker. The
    hook logs a warning if the app was made before gevent patched Python.

    :param timeout: how long all of this may take, in seconds. The hook takes at most half of gunicorn's ``timeout``,
        after which gunicorn would kill the worker.
    :param app: the app, if the hook can't find it because middleware hides it. Import it in your own hook, not at the
        top of the file, which gunicorn reads before gevent patches Python.
    :raises InvalidArgumentError: if `timeout` is not a number of seconds of at least 0.
    """
    timeout = check_seconds("timeout", timeout, zero=True)
    _server_check.warn_if_patched_late()
    if _is_gthread(worker):
        logger.warning("no pool is filled: under gunicorn's gthread worker, each thread has its own pools")
        return
    apps = _apps_of(worker) if app is None else [app]
    registered = _registered(apps)
    if not registered and apps:
        names = ", ".join(f"app {found.name!r}" for found in apps)
        logger.warning("no pool is filled: the extension is not registered on %s: call GSocketPool(app)", names)
        return
    if not registered:
        logger.warning(
            "no pool is filled: no Flask app with pools was found behind %r. Write a hook that passes the app to this"
            " one: post_worker_init(worker, app=...)",
            worker.wsgi,
        )
        return
    _sigterm.watch_worker(worker)
    # Importing the app may have taken most of the time after which gunicorn kills a worker.
    worker.notify()
    # A worker's timeout is half of gunicorn's setting, or 0 for no limit.
    seconds = min(timeout, worker.timeout or timeout) / len(registered)
    for found in registered:
        pools = pools_of(found)
        for name, error in pools.fill(seconds).items():
            shown = error_as_dict(error, pools.options_of(name))
            logger.warning("app %r: pool %r is not filled, but the worker starts anyway: %s", found.name, name, shown)


def worker_exit(server: Any, worker: Any, *, app: Flask | None = None) -> None:
    """Close the pools of the app that `worker` served, including connections in use.

    Without this hook, an ``atexit`` handler closes them a little later.

    :param app: as for :func:`post_worker_init`.
    """
    # Gunicorn also calls this in its master, for a dead worker, and in a worker that could not load its app.
    if worker.pid != os.getpid() or not hasattr(worker, "wsgi"):
        return
    for found in _registered(_apps_of(worker) if app is None else [app]):
        pools_of(found).close()


def _is_gthread(worker: Any) -> bool:
    return any(base.__module__ == "gunicorn.workers.gthread" for base in type(worker).__mro__)


def _registered(apps: list[Flask]) -> list[Flask]:
    return [app for app in apps if EXTENSION in app.extensions]


def _apps_of(worker: Any) -> list[Flask]:
    """Return the Flask apps that a worker serves. Look inside middleware that keeps them in a known attribute."""
    found: list[Flask] = []
    # Keep every object, so that no two of them get the same id().
    seen: list[Any] = [worker.wsgi]
    for one in seen:
        if isinstance(one, Flask):
            found.append(one)
        elif len(seen) < SEARCH_LIMIT:
            for inner in _wrapped_by(one):
                if not any(inner is another for another in seen):
                    seen.append(inner)
    return found


def _wrapped_by(outer: Any) -> list[Any]:
    inner = [_attribute(outer, name) for name in WRAPPED_ATTRIBUTES]
    # Werkzeug's DispatcherMiddleware wraps several apps.
    mounts = _attribute(outer, "mounts")
    if isinstance(mounts, Mapping):
        inner += mounts.values()
    return [one for one in inner if callable(one)]


def _attribute(outer: Any, name: str) -> Any:
    try:
        return getattr(outer, name, None)
    except Exception:
        # A property raised: it is not the app.
        return None
