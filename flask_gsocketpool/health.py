"""Health checks for load balancers and monitors: is the worker alive, are its pools ready, what are their statistics.

An app turns them on: ``app.register_blueprint(blueprint, url_prefix="/health")``. Don't expose the statistics to the
public: ``make_blueprint(guard)`` returns a blueprint that guards them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, cast

import gevent
from flask import Blueprint, Flask, Response, current_app, jsonify
from flask.typing import ResponseReturnValue

from flask_gsocketpool._redaction import address_of, error_as_dict
from flask_gsocketpool._registry import Pools, pools_of

__all__ = ["blueprint", "make_blueprint"]

#: How long each pool may take to answer a ping, in seconds. All pools are checked at the same time.
READY_TIMEOUT = 1.0


def make_blueprint(guard: Callable[[], ResponseReturnValue | None] | None = None) -> Blueprint:
    """Return a blueprint like :data:`blueprint`, with a guard in front of ``/pools``.

    :param guard: called without arguments before ``/pools`` answers. It may abort the request, or return a response to
        send instead. If it returns None, ``/pools`` answers. None for no guard.
    """

    def guarded_pools() -> ResponseReturnValue:
        answer = None if guard is None else current_app.ensure_sync(guard)()
        return pools() if answer is None else answer

    checks = Blueprint("socketpool_health", __name__)
    checks.after_request(_forbid_storing)
    checks.get("/live")(live)
    checks.get("/ready")(ready)
    checks.get("/pools", endpoint="pools")(guarded_pools)
    return checks


def _forbid_storing(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


def live() -> Response:
    """Answer with status 200: the worker is alive."""
    return jsonify(ok=True, pid=os.getpid())


def ready() -> tuple[Response, int]:
    """Answer with status 200 if the app has pools and each answers a ping within a second, or else with 503."""
    app: Flask = cast(Any, current_app)._get_current_object()
    pools = pools_of(app)
    # In greenlets of their own, outside the request: they don't use up its time, and it holds no connection.
    probes = {name: gevent.spawn(_probe, app, pools, name) for name in pools}
    gevent.joinall(list(probes.values()), timeout=READY_TIMEOUT)
    answers = {name: _answer_of(probe, pools, name) for name, probe in probes.items()}
    # Don't wait for unfinished probes: they may be closing a connection, or opening initial ones.
    gevent.killall(list(probes.values()), block=False)
    is_ready = bool(answers) and all(answer["ok"] for answer in answers.values())
    return jsonify(ok=is_ready, pid=os.getpid(), pools=answers), 200 if is_ready else 503


def pools() -> Response:
    """Answer with the statistics of each pool that this worker has used so far."""
    app_pools = pools_of(current_app)
    answer = {
        name: {"address": address_of(app_pools.options_of(name)), **pool.stats().as_dict()}
        for name, pool in app_pools.shown().items()
    }
    return jsonify(pid=os.getpid(), pools=answer)


def _probe(app: Flask, pools: Pools, name: str) -> BaseException | None:
    """Return the error if the pool gives no connection, or the backend does not answer a ping.

    Raised here, the error would be printed, too.
    """
    deadline = time.monotonic() + READY_TIMEOUT
    try:
        with app.app_context():
            pool = pools[name]
            # Leave time for the pool's own error, which says more than a timeout here.
            pool.ping(timeout=max(0.0, deadline - time.monotonic() - READY_TIMEOUT / 10))
            return None
    except (Exception, gevent.Timeout) as error:
        return error


def _answer_of(probe: gevent.Greenlet, pools: Pools, name: str) -> dict[str, Any]:
    error = probe.exception if probe.value is None else probe.value
    if not probe.ready():
        error = TimeoutError(f"no connection, or no answer to a ping, within {READY_TIMEOUT:g} s")
    if error is None:
        return {"ok": True}
    return {"ok": False, "error": error_as_dict(error, pools.options_of(name))}


#: The blueprint with ``/live``, ``/ready`` and ``/pools``, without a guard.
blueprint: Blueprint = make_blueprint()
