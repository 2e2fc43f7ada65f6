"""Warn if the server does not run requests in greenlets, or if gevent patches Python too late."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

from flask import Flask, request, request_started
from gevent import getcurrent, monkey
from gevent.hub import Hub

logger = logging.getLogger("gsocketpool")

#: Whether the server is still to be checked, by the first request that uses a pool. A process has one server.
is_unchecked = True

#: The key in a request's environ that says whether the request began in a gevent greenlet.
BEGAN_IN_GREENLET = "flask_gsocketpool.began_in_greenlet"

# Threads may warn at the same time: the first one does.
_warnings = itertools.count()

#: Whether an app was made before gevent patched the modules that client libraries use, and no warning was logged yet.
_is_made_unpatched = False


def watch_requests() -> None:
    """Record where each request begins, until a request has used a pool, perhaps in a greenlet or thread it starts.

    Record also whether gevent has patched Python by now, when an app is made.
    """
    global _is_made_unpatched
    _is_made_unpatched = _is_made_unpatched or not _is_patched()
    if is_unchecked:
        # Not before_request(): Flask would call such a function for good.
        request_started.connect(_request_begins)


def _request_begins(app: Flask, **_: Any) -> None:
    record_start(request.environ)


def record_start(environ: MutableMapping[str, Any]) -> None:
    """Record whether a request begins in a gevent greenlet."""
    environ[BEGAN_IN_GREENLET] = _is_in_greenlet()


def check_server(environ: Mapping[str, Any]) -> None:
    """Warn in the log, once a process, if the current request did not begin in a gevent greenlet.

    Call this in a request that uses a pool, while :data:`is_unchecked` is true.

    :param environ: the request's. Ignored if it comes from no server, as a test client's does, or if the request never
        started, as in a context pushed by hand.
    """
    global is_unchecked
    server = server_of(environ)
    if server is None or BEGAN_IN_GREENLET not in environ:
        return
    if not environ[BEGAN_IN_GREENLET] and next(_warnings) == 0:
        logger.warning(
            "a pool is used under %s, which does not run requests in greenlets: each thread has its own pools, a"
            " waiting request blocks its thread, and connections end with their thread. That is fine for development;"
            " deploy with: gunicorn -k gevent",
            server,
        )
    is_unchecked = False
    request_started.disconnect(_request_begins)
    warn_if_patched_late()


def warn_if_patched_late() -> None:
    """Warn in the log, once a process, if gevent patched Python after an app was made.

    Don't warn if nothing is patched: our own connections need no patching.
    """
    global _is_made_unpatched
    if _is_made_unpatched and _is_patched():
        # Reset first: logging may switch greenlets.
        _is_made_unpatched = False
        logger.warning(
            "the app was made before gevent patched Python, as happens with gunicorn's --preload: client libraries"
            " imported with the app can block the whole process. Begin gunicorn.conf.py with:"
            " from gevent import monkey; monkey.patch_all()"
        )


def _is_patched() -> bool:
    return bool(monkey.is_module_patched("select") and monkey.is_module_patched("socket"))


def server_of(environ: Mapping[str, Any]) -> str | None:
    """Return the server's name for itself, or None without a server."""
    if "SERVER_SOFTWARE" in environ:
        return str(environ["SERVER_SOFTWARE"])
    # uWSGI does not set SERVER_SOFTWARE.
    return "uWSGI" if "uwsgi.version" in environ else None


def _is_in_greenlet() -> bool:
    # Every greenlet that the event loop runs descends from the hub, including plain ones that a library started.
    greenlet = getcurrent()
    while greenlet is not None and not isinstance(greenlet, Hub):
        greenlet = greenlet.parent
    return greenlet is not None
