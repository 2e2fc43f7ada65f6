"""Near the recursion limit no connection is lost, and none is left open and unknown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.processes import run_python

pytestmark = pytest.mark.unmeasured

# The recursion limit and everything that is on the stack are those of a process of its own.
SCRIPT = """
import inspect, json, logging, sys
from gsocketpool import Pool, PoolEvents
from tests.support.scripted import Plain, settle

ways, settings, levels = json.loads(sys.argv[1])
logging.disable()
made = []

class Listening(PoolEvents):
    def acquired(self, lease):
        pass

    def released(self, pool, connection):
        pass

    def closed(self, pool, connection, reason):
        pass

if settings.pop("listens", False):
    settings["events"] = Listening()

class Noted(Plain):
    def open(self):
        made.append(self)
        self.is_open = True

    def is_connected(self):
        return deep(levels, lambda: self.is_open)

    def is_expired(self):
        return True

class Settling(Noted):
    is_begun = False

    def is_settled(self):
        return not self.is_begun

    def complete(self):
        self.is_begun = False

    def reset(self):
        self.is_begun = False

kind = Settling if settings.pop("settles", False) else Noted

def deep(levels, function):
    return deep(levels - 1, function) if levels else function()

def block():
    with pool.connection() as connection:
        connection.is_begun = True

def failing_block():
    with pool.connection():
        raise LookupError

def discard():
    pool.discard(held)

def release():
    held.is_begun = True
    pool.release(held)

def acquire():
    pool.acquire()

def acquire_new():
    pool.acquire()

def lease():
    pool.lease()

def drop():
    pool.drop(held)

def drop_expired():
    pool.drop_expired()

def drain():
    pool.drain()

def resize():
    pool.resize(1)

found = {}
for way in ways:
    outcomes, lost, unknown = set(), [], []
    for left in range(1, 40):
        made.clear()
        is_given_back = way in ("discard", "release")
        pool = Pool(kind, max_connections=2 if way == "resize" else 1, reap_expired_connections=False, **settings)
        held = pool.acquire()
        if way == "resize":
            pool.release(pool.acquire())
        if not is_given_back:
            pool.release(held)
        if way == "acquire_new":
            pool.drop(held)
        outcome = "well"
        try:
            deep(sys.getrecursionlimit() - len(inspect.stack(0)) - left, globals()[way])
        except (RecursionError, LookupError) as error:
            outcome = type(error).__name__
        outcomes.add(outcome)
        settle()
        in_use = int(way in ("acquire", "acquire_new", "lease") and outcome == "well")
        if not is_given_back and pool.stats().in_use > in_use:
            # What could not even be put off is done when a caller waits.
            pool.release(pool.acquire(timeout=1))
            settle()
        stats = pool.stats()
        is_open = sum(connection.is_open for connection in made)
        is_whole = (stats.in_use, stats.opening, stats.waiting) == (in_use, 0, 0)
        if not is_given_back and not (is_whole and stats.idle + stats.in_use == is_open):
            lost.append(left)
        if is_open > stats.idle + stats.in_use:
            unknown.append(left)
    found[way] = [sorted(outcomes), lost, unknown]
print(json.dumps(found))
"""


#: What the pool is set to, and how many calls deep a connection looks whether it is open.
CASES: dict[str, tuple[dict[str, float | str], int]] = {
    "plain": ({}, 0),
    "with places": ({"leak_threshold": 60}, 0),
    "with a time for being idle": ({"idle_timeout": 60}, 0),
    "with a check that takes much of the stack": ({}, 10),
    "with listeners": ({"listens": True}, 0),
    "with something to complete": ({"settles": True}, 0),
    "with something to reset after each use": ({"settles": True, "reset": "always"}, 0),
}


WAITING = """
import inspect, json, logging, sys
import gevent
from gsocketpool import Pool
from tests.support.scripted import Plain

ways, = json.loads(sys.argv[1])
logging.disable()
made = []

class Noted(Plain):
    def open(self):
        made.append(self)
        self.is_open = True

def deep(levels, function):
    return deep(levels - 1, function) if levels else function()

class Steps:
    detach = lambda lease: pool.detach(lease.connection)
    release = lambda lease: lease.release()
    discard = lambda lease: lease.discard()
    block = lambda lease: lease.__exit__(None, None, None)

def wait():
    with pool.connection(timeout=0.2) as connection:
        return connection

found = {}
for way in ways:
    stranded = []
    for left in range(1, 40):
        pool = Pool(Noted, max_connections=1, reap_expired_connections=False)
        lease = pool.lease()
        held = lease.connection
        waiter = gevent.spawn(wait)
        gevent.sleep(0)
        step = getattr(Steps, way)
        try:
            deep(sys.getrecursionlimit() - len(inspect.stack(0)) - left, lambda: step(lease))
        except RecursionError:
            # Then nothing has happened, and it can be done again.
            step(lease)
        waiter.join(5)
        if waiter.value is None:
            stranded.append(left)
    found[way] = stranded
print(json.dumps(found))
"""


def run_script(script: str, *arguments: Any, loop: str = "") -> Any:
    run = run_python(script, json.dumps(arguments), **({"GEVENT_LOOP": loop} if loop else {}))
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


WELL, ILL = ["RecursionError", "well"], ["LookupError", "RecursionError"]
BLOCKS = {"block": WELL, "failing_block": ILL}
GIVING_BACK = dict.fromkeys(["discard", "release"], WELL)
OTHERS = dict.fromkeys(["acquire", "acquire_new", "lease", "drop", "drop_expired", "drain", "resize"], WELL)

#: What is tried of each case, and how it ends near the limit. Otherwise it was not near, or always above it.
WAYS: dict[str, dict[str, list[str]]] = {
    **dict.fromkeys(CASES, BLOCKS),
    "plain": {**BLOCKS, **GIVING_BACK, **OTHERS},
    "with listeners": {**BLOCKS, **OTHERS},
    "with something to complete": {**BLOCKS, **GIVING_BACK},
    "with something to reset after each use": {**BLOCKS, **GIVING_BACK},
}


@pytest.mark.parametrize("name", CASES)
def test_no_connection_is_lost_or_left_open_however_little_of_the_stack_is_left(name: str) -> None:
    """All ways of using a pool share a process: how much is left to them is counted from where each begins."""
    found = run_script(SCRIPT, list(WAYS[name]), *CASES[name])
    assert found.keys() == WAYS[name].keys()
    for way, (outcomes, lost, unknown) in found.items():
        if outcomes != WAYS[name][way]:
            pytest.fail(f"unexpected outcomes of {way}: {outcomes}")
        # How much was left to those that left a connection open, or lost it.
        assert unknown == [], way
        if way not in GIVING_BACK:
            assert lost == [], way


@pytest.mark.parametrize(
    ("loop", "ways"),
    [
        ("libev-cext", ["detach", "release", "discard", "block"]),
        # Where asking the event loop for a call takes more of the stack than giving back.
        ("libuv", ["detach", "release", "block"]),
    ],
)
def test_giving_back_near_the_recursion_limit_leaves_no_waiter_waiting(loop: str, ways: list[str]) -> None:
    assert run_script(WAITING, ways, loop=loop) == {way: [] for way in ways}
