"""However little of the stack is left to the caller: no connection is lost, and none is left open and unknown."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.scripted import PATIENCE

# The recursion limit and everything that is on the stack are those of a process of its own.
SCRIPT = """
import inspect, json, logging, sys
from gsocketpool import Pool
from tests.scripted import Plain, settle

way, leak_threshold = json.loads(sys.argv[1])
logging.disable()
made = []

class Noted(Plain):
    def open(self):
        made.append(self)
        self.is_open = True

def deep(levels, function):
    return deep(levels - 1, function) if levels else function()

def block():
    with pool.connection():
        pass

def failing_block():
    with pool.connection():
        raise LookupError

def discard():
    pool.discard(held)

def release():
    pool.release(held)

outcomes, lost, unknown = set(), [], []
for left in range(1, 40):
    made.clear()
    pool = Pool(Noted, max_connections=1, reap_expired_connections=False, leak_threshold=leak_threshold)
    held = pool.acquire()
    is_block = way in ("block", "failing_block")
    if is_block:
        pool.release(held)
    try:
        deep(sys.getrecursionlimit() - len(inspect.stack(0)) - left, globals()[way])
        outcomes.add("well")
    except (RecursionError, LookupError) as error:
        outcomes.add(type(error).__name__)
    settle()
    stats = pool.stats()
    if is_block and stats.in_use:
        lost.append(left)
    if sum(connection.is_open for connection in made) > stats.idle + stats.in_use:
        unknown.append(left)
print(json.dumps({"outcomes": sorted(outcomes), "lost": lost, "unknown": unknown}))
"""


@functools.cache
def near_the_limit(way: str, leak_threshold: float | None) -> tuple[list[str], list[int], list[int]]:
    """Uses a pool with less and less of the stack left.

    Returns how the uses ended; and how much was left to those that lost a connection, and that left one open.
    """
    root = pathlib.Path(__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([way, leak_threshold])],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=True,
    )
    found = json.loads(run.stdout)
    return found["outcomes"], found["lost"], found["unknown"]


LOST = pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="if leaving the block fails, its connection stays in use"
)
UNKNOWN = pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="the pool forgets a connection, and then fails to start closing it"
)
UNRECORDED = pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="a connection is lost if the place of its acquire can't be recorded"
)


@pytest.mark.parametrize(
    "leak_threshold", [pytest.param(None, id="without places"), pytest.param(60, id="with places", marks=UNRECORDED)]
)
def test_a_block_loses_no_connection(leak_threshold: float | None) -> None:
    outcomes, lost, unknown = near_the_limit("block", leak_threshold)
    # Otherwise it was not near the limit, or always above it.
    if outcomes != ["RecursionError", "well"]:
        pytest.fail(f"unexpected outcomes: {outcomes}")
    assert lost == []
    assert unknown == []


@pytest.mark.parametrize("leak_threshold", [None, 60], ids=["without places", "with places"])
@LOST
def test_a_block_left_by_an_error_loses_no_connection(leak_threshold: float | None) -> None:
    outcomes, lost, _ = near_the_limit("failing_block", leak_threshold)
    if outcomes != ["LookupError", "RecursionError"]:
        pytest.fail(f"unexpected outcomes: {outcomes}")
    assert lost == []


@pytest.mark.parametrize("leak_threshold", [None, 60], ids=["without places", "with places"])
@UNKNOWN
def test_a_block_left_by_an_error_leaves_no_connection_open(leak_threshold: float | None) -> None:
    outcomes, _, unknown = near_the_limit("failing_block", leak_threshold)
    if outcomes != ["LookupError", "RecursionError"]:
        pytest.fail(f"unexpected outcomes: {outcomes}")
    assert unknown == []


@pytest.mark.parametrize("way", [pytest.param("discard", marks=UNKNOWN), "release"])
def test_giving_back_leaves_no_connection_open(way: str) -> None:
    outcomes, _, unknown = near_the_limit(way, None)
    if outcomes != ["RecursionError", "well"]:
        pytest.fail(f"unexpected outcomes: {outcomes}")
    assert unknown == []
