"""Hooks for a ``gunicorn.conf.py``. Import those that you want there; each works without the other.

Nothing of gunicorn's is imported here, and nothing is connected to before a worker has started.
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

logger = logging.getLogger("gsocketpool")

#: Where middleware keeps what it is wrapped around. The last two lead from a method to its object, into a decorator.
INWARDS = ("app", "wsgi_app", "application", "wsgi", "wrapped", "__self__", "__wrapped__")

#: How many things the search for an app looks at, for some objects have any attribute that they are asked for.
FAR_ENOUGH = 100


def post_worker_init(worker: Any, *, timeout: float = 5.0, app: Flask | None = None) -> None:
    """Make all pools of the app that `worker` serves, and fill them before the first request comes.

    This opens their ``min_connections`` and ``initial_connections``.

    What can't be opened is a warning in the log, and the worker starts all the same: the requests try again, and so
    does the pool for its ``min_connections``. Under gunicorn's gthread worker this does nothing, for the threads that
    handle requests have pools of their own.

    With this hook, ``SOCKETPOOL_DRAIN_TIMEOUT`` counts as well from when the worker ends after ``--max-requests``. The
    hook warns in the log if the app was made before gevent patched Python.

    :param timeout: the most seconds that all of this may take, and no more than half of gunicorn's ``timeout``, after
        which the worker would be killed.
    :param app: the app, where it can't be found by itself: within middleware that hides it. Import it in your own hook,
        not on top of the file, which gunicorn reads before gevent patches anything.
    :raises InvalidArgumentError: if `timeout` is not a number of seconds.
    """
    timeout = check_seconds("timeout", timeout, zero=True)
    _server_check.warn_if_patched_late()
    if _is_of_threads(worker):
        logger.warning("no pool is filled: under gunicorn's gthread worker each thread has pools of its own")
        return
    apps = _apps_of(worker) if app is None else [app]
    registered = _registered(apps)
    if not registered and apps:
        names = ", ".join(f"app {found.name!r}" for found in apps)
        logger.warning("no pool is filled: the extension is not registered on %s: call GSocketPool(app)", names)
        return
    if not registered:
        logger.warning(
            "no pool is filled: no Flask app with pools was found behind %r. Say which one it is, by a hook that"
            " calls this one: post_worker_init(worker, app=...)",
            worker.wsgi,
        )
        return
    _sigterm.watch(worker)
    # Importing the app may have taken most of the time after which gunicorn kills a worker.
    worker.notify()
    # What a worker is told is half of gunicorn's setting, or 0 for no limit.
    seconds = min(timeout, worker.timeout or timeout) / len(registered)
    for found in registered:
        pools = pools_of(found)
        for name, error in pools.fill(seconds).items():
            shown = error_as_dict(error, pools.options_of(name))
            logger.warning(
                "app %r: pool %r is not filled, and the worker starts all the same: %s", found.name, name, shown
            )


def worker_exit(server: Any, worker: Any, *, app: Flask | None = None) -> None:
    """Close the pools of the app that `worker` has served, whatever is still in use.

    Without this hook they are closed a little later, by an ``atexit`` handler.

    :param app: as for :func:`post_worker_init`.
    """
    # Gunicorn calls this in its master, too, for a worker that is gone; and in one that could not load its app.
    if worker.pid != os.getpid() or not hasattr(worker, "wsgi"):
        return
    for found in _registered(_apps_of(worker) if app is None else [app]):
        pools_of(found).close()


def _is_of_threads(worker: Any) -> bool:
    return any(base.__module__ == "gunicorn.workers.gthread" for base in type(worker).__mro__)


def _registered(apps: list[Flask]) -> list[Flask]:
    return [app for app in apps if EXTENSION in app.extensions]


def _apps_of(worker: Any) -> list[Flask]:
    """Return the Flask apps that a worker serves, behind any middleware that shows what it is wrapped around."""
    found: list[Flask] = []
    # All are kept, so that no two of them have the same identity.
    seen: list[Any] = [worker.wsgi]
    for one in seen:
        if isinstance(one, Flask):
            found.append(one)
        elif len(seen) < FAR_ENOUGH:
            for inner in _within(one):
                if not any(inner is another for another in seen):
                    seen.append(inner)
    return found


def _within(outer: Any) -> list[Any]:
    inner = [_attribute(outer, name) for name in INWARDS]
    # Werkzeug's dispatcher has more than one.
    mounts = _attribute(outer, "mounts")
    if isinstance(mounts, Mapping):
        inner += mounts.values()
    return [one for one in inner if callable(one)]


def _attribute(outer: Any, name: str) -> Any:
    try:
        return getattr(outer, name, None)
    except Exception:
        # A property, and not what was looked for.
        return None
