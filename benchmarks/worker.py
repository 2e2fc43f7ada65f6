"""A process that measures one contestant. It reads requests from its standard input, one JSON object a line.

It runs in the contestant's own Python environment, which may have another version of gsocketpool. It imports only what
the current case needs.
"""

from __future__ import annotations

from gevent import monkey

# As under ``gunicorn -k gevent``, for all contestants: most pools are written for threads, and wait with their locks.
monkey.patch_all()

import json
import logging
import os
import sys
import traceback
from typing import Any

import gevent

from benchmarks import cases
from benchmarks.connections import Nothing


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the requested figures, or the error."""
    Nothing.forget()
    try:
        case = cases.load(request["case"])
        return {"figures": case.measure(request["contestant"], request["effort"], request["arguments"])}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Answer requests until the standard input ends."""
    # Some pools print. Their output must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable()
    # Read unpatched: gevent would wait for input in the event loop, which belongs to the contestant.
    read_line = monkey.get_original("builtins", "open")(0, closefd=False).readline
    while line := read_line():
        # In a greenlet, as under a web server.
        found = gevent.spawn(answer, json.loads(line)).get()
        print(json.dumps(found), file=answers, flush=True)
        sys.stderr.flush()
