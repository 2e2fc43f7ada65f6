"""What is left of it all in a Flask app: a page for which a backend has to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import load, servers
from benchmarks.cases.base import Case, Figure, Figures, Table

EXTENSION, POOL_BY_HAND, BY_HAND, CONNECTING, ALONE = (
    "the extension",
    "gsocketpool by hand",
    "gsocketpool 0.1.6 by hand",
    "connecting each time",
    "no backend",
)
#: By the names of those who take part, modules of :mod:`benchmarks.apps`.
APPS = {
    EXTENSION: "extension",
    POOL_BY_HAND: "pool_by_hand",
    BY_HAND: "by_hand",
    CONNECTING: "connecting",
    ALONE: "alone",
}
SPAN = 2.0


def measure(name: str, effort: float, arguments: Mapping[str, Any]) -> Figures:
    if name not in arguments:
        return {"rate": "not started"}
    return {"rate": load.ask(arguments[name], SPAN * effort)}


CASE = Case(
    name="flask_route",
    method="Flask under gunicorn -k gevent, one worker. A view exchanges one message with an echo server and returns"
    f" it. {load.CLIENTS} HTTP connections ask for it, by wrk where it is installed and otherwise by a client over"
    " gevent. All are started anew for each round.",
    # How long the slowest take says more about whom gunicorn answers first: it swings tenfold, also without a backend.
    tables=[Table("A page", [Figure("rate", "requests a second", "/s", is_more_better=True)])],
    contestants=list(APPS),
    measure=measure,
    backend=lambda: servers.gunicorns(APPS, by_hand=BY_HAND),
    is_from_outside=True,
)
