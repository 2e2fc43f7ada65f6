"""A process that measures one contestant: it reads requests from its standard input, one JSON object a line.

It is started in the contestant's own Python environment, which may have another gsocketpool than the one here. It
imports nothing else than what the case at hand needs.
"""

from __future__ import annotations

from gevent import monkey

# As under ``gunicorn -k gevent``, for all alike: most pools are made for threads and wait by their locks.
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
    """The figures that are asked for; the error, if there are none."""
    Nothing.forget()
    try:
        case = cases.load(request["case"])
        return {"figures": case.measure(request["contestant"], request["effort"], request["arguments"])}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    # Some pools print; what they do must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable()
    # gevent would wait for input in its event loop, and the event loop belongs to the contestant.
    read_line = monkey.get_original("builtins", "open")(0, closefd=False).readline
    while line := read_line():
        # In a greenlet, as requests are answered in one.
        found = gevent.spawn(answer, json.loads(line)).get()
        print(json.dumps(found), file=answers, flush=True)
        sys.stderr.flush()
