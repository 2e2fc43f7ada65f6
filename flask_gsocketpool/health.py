"""What load balancers and monitors ask a worker: whether it lives, whether its pools give connections, what they do.

It is off until an app registers it: ``app.register_blueprint(blueprint, url_prefix="/health")``. The statistics are for
the inside only: ``make_blueprint(guard)`` returns a blueprint with a guard in front of them.
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

#: Seconds in which each pool has to give a connection, all of them at the same time.
READY_TIMEOUT = 1.0


def make_blueprint(guard: Callable[[], ResponseReturnValue | None] | None = None) -> Blueprint:
    """Return a blueprint like :data:`blueprint`, with a guard in front of ``/pools``.

    :param guard: called without arguments before the statistics are shown. It may abort the request, or return the
        response in their place; if it returns None, they are shown. None for no guard.
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
    """Answer with status 200: the worker lives."""
    return jsonify(ok=True, pid=os.getpid())


def ready() -> tuple[Response, int]:
    """Answer with status 200 if there are pools and each gives a connection within a second, or else with 503."""
    app: Flask = cast(Any, current_app)._get_current_object()
    pools = pools_of(app)
    # In greenlets, which are not the request: they don't use up its time, and hold nothing of its.
    probes = {name: gevent.spawn(_probe, app, pools, name) for name in pools}
    gevent.joinall(list(probes.values()), timeout=READY_TIMEOUT)
    answers = {name: _answer_of(probe, pools, name) for name, probe in probes.items()}
    # What has not ended is not waited for: a connection that is closed, or initial ones being opened.
    gevent.killall(list(probes.values()), block=False)
    is_ready = bool(answers) and all(answer["ok"] for answer in answers.values())
    return jsonify(ok=is_ready, pid=os.getpid(), pools=answers), 200 if is_ready else 503


def pools() -> Response:
    """Answer with the statistics of each pool that this worker has made so far."""
    known = pools_of(current_app)
    every = known.shown().items()
    shown = {name: {"address": address_of(known.options_of(name)), **pool.stats().as_dict()} for name, pool in every}
    return jsonify(pid=os.getpid(), pools=shown)


def _probe(app: Flask, pools: Pools, name: str) -> BaseException | None:
    """Return the error if the pool gives no connection, or the backend does not answer a ping.

    Raised here, it would be printed as well.
    """
    deadline = time.monotonic() + READY_TIMEOUT
    try:
        with app.app_context():
            pool = pools[name]
            # A little less than the time there is, for the pool's own error says more than that it was over.
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


#: Without a guard.
blueprint = make_blueprint()
