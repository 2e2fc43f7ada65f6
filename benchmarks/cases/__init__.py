"""The cases to measure, one in each file."""

from __future__ import annotations

import importlib

from benchmarks.cases.base import Case

#: In the order in which they run. The kills have their own command, because they don't measure speed.
NAMES = ["uncontended", "contended", "echo", "valkey", "postgres", "mysql", "flask_route", "recovery", "memory"]


def load(name: str) -> Case:
    """Return the case of this name. Import no other: the environment of a worker may lack their packages."""
    case: Case = importlib.import_module(f"benchmarks.cases.{name}").CASE
    return case
