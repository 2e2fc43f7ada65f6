"""A warning where the server does not run requests in greenlets."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

from flask import Flask, request, request_started
from gevent import getcurrent, monkey
from gevent.hub import Hub

logger = logging.getLogger("gsocketpool")

#: Whether no request of a server's has used a pool yet. One is enough, for a process has one server.
is_unknown = True

#: Where the environ of a request says whether that began in a greenlet of gevent's.
BEGAN_IN_GREENLET = "flask_gsocketpool.began_in_greenlet"

# Threads may come here at the same time: the first one tells.
_tellers = itertools.count()

#: Whether an app was made before gevent had patched what client libraries wait by, and no warning has said so yet.
_is_made_unpatched = False


def watch() -> None:
    """Note where each request begins, until one has used a pool, perhaps in a greenlet or a thread that it starts.

    Note also whether gevent has patched Python when an app is made.
    """
    global _is_made_unpatched
    _is_made_unpatched = _is_made_unpatched or not _is_patched()
    if is_unknown:
        # Not before_request(): what is registered there would be called for good.
        request_started.connect(_request_begins)


def _request_begins(app: Flask, **_: Any) -> None:
    note(request.environ)


def note(environ: MutableMapping[str, Any]) -> None:
    """Note whether a request begins in a greenlet of gevent's."""
    environ[BEGAN_IN_GREENLET] = _is_in_greenlet()


def look(environ: Mapping[str, Any]) -> None:
    """Warn in the log, once a process, if the current request did not begin in a greenlet of gevent's.

    Call this in a request that uses a pool, as long as :data:`is_unknown`.

    :param environ: the request's. One that was made without a server, as by a test client, tells nothing, and nor does
        one that has not begun, which happens in a context that was pushed by hand.
    """
    global is_unknown
    server = server_of(environ)
    if server is None or BEGAN_IN_GREENLET not in environ:
        return
    if not environ[BEGAN_IN_GREENLET] and next(_tellers) == 0:
        logger.warning(
            "a pool is used under %s, which does not run requests in greenlets: each thread has pools of its own, a"
            " request blocks its thread while it waits, and connections end with their thread. That will do for"
            " development; deploy with: gunicorn -k gevent",
            server,
        )
    is_unknown = False
    request_started.disconnect(_request_begins)
    warn_if_patched_late()


def warn_if_patched_late() -> None:
    """Warn in the log, once a process, if gevent has patched Python after an app was made.

    Where nothing is patched there is no warning: our own connections need no patch.
    """
    global _is_made_unpatched
    if _is_made_unpatched and _is_patched():
        # The log may switch.
        _is_made_unpatched = False
        logger.warning(
            "the app was made before gevent patched Python, as by gunicorn's --preload: a client library that was"
            " imported with it can block the whole process. Begin gunicorn.conf.py with:"
            " from gevent import monkey; monkey.patch_all()"
        )


def _is_patched() -> bool:
    return bool(monkey.is_module_patched("select") and monkey.is_module_patched("socket"))


def server_of(environ: Mapping[str, Any]) -> str | None:
    """Return the name that the server gives itself, or None without a server."""
    if "SERVER_SOFTWARE" in environ:
        return str(environ["SERVER_SOFTWARE"])
    # It has no other name for itself.
    return "uWSGI" if "uwsgi.version" in environ else None


def _is_in_greenlet() -> bool:
    # All that the event loop runs descends from it, also what others have made of plain greenlets.
    greenlet = getcurrent()
    while greenlet is not None and not isinstance(greenlet, Hub):
        greenlet = greenlet.parent
    return greenlet is not None
