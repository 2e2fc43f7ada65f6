"""However little of the stack is left to the caller: no connection is lost, and none is left open and unknown."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from tests.scripted import PATIENCE

# The recursion limit and everything that is on the stack are those of a process of its own.
SCRIPT = """
import inspect, json, logging, sys
from gsocketpool import Pool, PoolEvents
from tests.scripted import Plain, settle

way, settings, levels = json.loads(sys.argv[1])
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
    stats = pool.stats()
    in_use = int(way in ("acquire", "acquire_new", "lease") and outcome == "well")
    is_open = sum(connection.is_open for connection in made)
    is_whole = (stats.in_use, stats.opening, stats.waiting) == (in_use, 0, 0)
    if not is_given_back and not (is_whole and stats.idle + stats.in_use == is_open):
        lost.append(left)
    if is_open > stats.idle + stats.in_use:
        unknown.append(left)
print(json.dumps({"outcomes": sorted(outcomes), "lost": lost, "unknown": unknown}))
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
from tests.scripted import Plain

way, = json.loads(sys.argv[1])
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

outcomes, stranded = set(), []
for left in range(1, 40):
    pool = Pool(Noted, max_connections=1, reap_expired_connections=False)
    lease = pool.lease()
    held = lease.connection
    waiter = gevent.spawn(wait)
    gevent.sleep(0)
    step = getattr(Steps, way)
    outcome = "well"
    try:
        deep(sys.getrecursionlimit() - len(inspect.stack(0)) - left, lambda: step(lease))
    except RecursionError:
        outcome = "RecursionError"
        # Then nothing has happened, and it can be done again.
        step(lease)
    outcomes.add(outcome)
    waiter.join(5)
    if waiter.value is None:
        stranded.append(left)
print(json.dumps({"outcomes": sorted(outcomes), "lost": stranded, "unknown": []}))
"""


def run_script(script: str, *arguments: Any, loop: str = "") -> tuple[list[str], list[int], list[int]]:
    root = pathlib.Path(__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-c", script, json.dumps(arguments)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **({"GEVENT_LOOP": loop} if loop else {})},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=True,
    )
    found = json.loads(run.stdout)
    return found["outcomes"], found["lost"], found["unknown"]


@functools.cache
def near_the_limit(way: str, name: str = "plain") -> tuple[list[str], list[int], list[int]]:
    """Uses a pool with less and less of the stack left.

    Returns how the uses ended; and how much was left to those that lost a connection, and that left one open.
    """
    return run_script(SCRIPT, way, *CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_a_block_loses_no_connection(name: str) -> None:
    outcomes, lost, unknown = near_the_limit("block", name)
    # Otherwise it was not near the limit, or always above it.
    if outcomes != ["RecursionError", "well"]:
        pytest.fail(f"unexpected outcomes: {outcomes}")
    assert lost == []
    assert unknown == []


@pytest.mark.parametrize("name", CASES)
def test_a_block_left_by_an_error_loses_no_connection(name: str) -> None:
    outcomes, lost, _ = near_the_limit("failing_block", name)
    if outcomes != ["LookupError", "RecursionError"]:
        pytest.fail(f"unexpected outcomes: {outcomes}")
    assert lost == []


@pytest.mark.parametrize("name", CASES)
def test_a_block_left_by_an_error_leaves_no_connection_open(name: str) -> None:
    outcomes, _, unknown = near_the_limit("failing_block", name)
    if outcomes != ["LookupError", "RecursionError"]:
        pytest.fail(f"unexpected outcomes: {outcomes}")
    assert unknown == []


@pytest.mark.parametrize("name", ["plain", "with something to complete", "with something to reset after each use"])
@pytest.mark.parametrize("way", ["discard", "release"])
def test_giving_back_leaves_no_connection_open(way: str, name: str) -> None:
    outcomes, _, unknown = near_the_limit(way, name)
    if outcomes != ["RecursionError", "well"]:
        pytest.fail(f"unexpected outcomes: {outcomes}")
    assert unknown == []


@pytest.mark.parametrize("name", ["plain", "with listeners"])
@pytest.mark.parametrize("way", ["acquire", "acquire_new", "lease", "drop", "drop_expired", "drain", "resize"])
def test_acquiring_and_keeping_in_order_lose_no_connection(way: str, name: str) -> None:
    outcomes, lost, unknown = near_the_limit(way, name)
    if outcomes != ["RecursionError", "well"]:
        pytest.fail(f"unexpected outcomes: {outcomes}")
    assert lost == []
    assert unknown == []


@pytest.mark.parametrize(
    ("way", "loop"),
    [
        *((way, "libev-cext") for way in ("detach", "release", "discard", "block")),
        # On libuv, where asking the event loop for a call takes more of the stack than giving back.
        *((way, "libuv") for way in ("detach", "release", "block")),
    ],
)
def test_giving_back_leaves_no_waiter_behind(way: str, loop: str) -> None:
    _, stranded, _ = run_script(WAITING, way, loop=loop)
    assert stranded == []
