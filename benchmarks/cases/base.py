"""What the runner knows about a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

#: What was measured, by the names of the figures. What a contestant can't do is a text that says why.
Figures: TypeAlias = "dict[str, float | str]"


@dataclass(frozen=True)
class Figure:
    """One number that is measured."""

    name: str
    heading: str
    unit: str
    #: Whether more is better; None where it is neither.
    is_more_better: bool | None = False


@dataclass(frozen=True)
class Table:
    """Figures that are shown together."""

    title: str
    figures: Sequence[Figure]


def is_wanted(arguments: Mapping[str, Any], *figures: str) -> bool:
    """Whether one of the figures is to be measured: all are, unless the arguments name those that are."""
    return "figures" not in arguments or not set(figures).isdisjoint(arguments["figures"])


def _no_backend() -> AbstractContextManager[dict[str, Any]]:
    return nullcontext({})


@dataclass(frozen=True)
class Case:
    """Something to be measured for several contestants."""

    name: str
    #: What is done, for the report.
    method: str
    tables: Sequence[Table]
    contestants: Sequence[str]
    #: Measures one contestant, in a process that belongs to this contestant alone.
    measure: Callable[[str, float, Mapping[str, Any]], Figures]
    #: What runs beside the contestants, and how they find it.
    backend: Callable[[], AbstractContextManager[Mapping[str, Any]]] = _no_backend
    #: Whether `measure` is called by the runner itself, since the contestants are servers.
    is_from_outside: bool = False

    @property
    def figures(self) -> dict[str, Figure]:
        return {figure.name: figure for table in self.tables for figure in table.figures}
