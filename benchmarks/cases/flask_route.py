"""What a pool gains in a Flask app: a page that needs an answer from a backend."""

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
#: The modules of :mod:`benchmarks.apps`, by contestant.
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
    f" it. {load.CLIENTS} HTTP connections request the page, with wrk if it is installed, or else with a client over"
    " gevent. Each round starts new servers.",
    # The slowest requests are not shown: they depend on whom gunicorn answers first, and vary tenfold even alone.
    tables=[Table("A page", [Figure("rate", "requests a second", "/s", is_more_better=True)])],
    contestants=list(APPS),
    measure=measure,
    backend=lambda: servers.gunicorns(APPS, by_hand=BY_HAND),
    is_from_outside=True,
)
