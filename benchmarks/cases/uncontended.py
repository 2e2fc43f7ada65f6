"""What it costs to acquire and release without waiters, for any number of connections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import repeat
from typing import Any

from benchmarks.cases.base import Case, Figure, Figures, Table, is_wanted
from benchmarks.connections import Nothing
from benchmarks.contestants import ALL, FLOORS, OURS, RIVALS
from benchmarks.timing import per_call

SIZES = [200, 2000, 10000]


def pairs(acquire: Callable[[], Any], release: Callable[[Any], object]) -> Callable[[int], None]:
    def loop(count: int) -> None:
        for _ in repeat(None, count):
            release(acquire())

    return loop


def blocks(block: Callable[[], AbstractContextManager[Any]]) -> Callable[[int], None]:
    def loop(count: int) -> None:
        for _ in repeat(None, count):
            with block():
                pass

    return loop


def measure(name: str, effort: float, arguments: Mapping[str, Any]) -> Figures:
    figures: Figures = {}
    for state in ("in use", "idle"):
        for others in SIZES if state == "idle" else [0, *SIZES]:
            where = f"{others} {state}" if others else "alone"
            if not is_wanted(arguments, f"pair, {where}", f"with, {where}"):
                continue
            try:
                figures.update(_measure(name, effort, others, state == "idle", where))
            except Exception as error:
                figures[f"pair, {where}"] = figures[f"with, {where}"] = f"{type(error).__name__}: {error}"
    return figures


def _measure(name: str, effort: float, others: int, are_idle: bool, where: str) -> Figures:
    pool = ALL[name].open_pool(others + 1, Nothing)
    try:
        held = [pool.acquire() for _ in range(others)]
        # Open one more connection, which stays idle, so that acquiring it opens none.
        pool.release(pool.acquire())
        while are_idle and held:
            pool.release(held.pop(0))
        figures: Figures = {f"pair, {where}": per_call(pairs(pool.acquire, pool.release), effort)}
        if pool.block is not None:
            figures[f"with, {where}"] = per_call(blocks(pool.block), effort)
        while held:
            pool.release(held.pop(0))
        return figures
    finally:
        pool.close()


def _figures(what: str) -> list[Figure]:
    return [
        Figure(f"{what}, alone", "no others", "ns"),
        *(Figure(f"{what}, {size} in use", f"{size:,} in use", "ns") for size in SIZES),
        *(Figure(f"{what}, {size} idle", f"{size:,} idle", "ns") for size in SIZES),
    ]


CASE = Case(
    name="uncontended",
    method="One greenlet acquires a connection to nowhere and releases it, again and again, while other connections of"
    " the pool are in use or idle. There is no socket to check: pools that check ask the connection whether it is"
    " open.",
    tables=[
        Table("Acquire and release", _figures("pair")),
        Table("A with block, by the pool's own context manager", _figures("with")),
    ],
    contestants=[each.name for each in [OURS, *RIVALS, *FLOORS]],
    measure=measure,
)
