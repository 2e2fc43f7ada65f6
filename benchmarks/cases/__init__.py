"""What is measured, each case in a file of its own."""

from __future__ import annotations

import importlib

from benchmarks.cases.base import Case

#: In the order in which they run. The kills have a command of their own, for they measure no speed.
NAMES = ["uncontended", "contended", "echo", "valkey", "postgres", "mysql", "flask_route", "recovery", "memory"]


def load(name: str) -> Case:
    """The case of this name. A worker imports no other: its environment may lack what they need."""
    case: Case = importlib.import_module(f"benchmarks.cases.{name}").CASE
    return case
