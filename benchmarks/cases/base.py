"""The interface between the runner and the cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

#: The figures of a contestant, by name. If one can't be measured, the text says why.
Figures: TypeAlias = "dict[str, float | str]"


@dataclass(frozen=True)
class Figure:
    """A number to measure."""

    name: str
    heading: str
    unit: str
    #: Whether more is better; None if neither more nor less is.
    is_more_better: bool | None = False


@dataclass(frozen=True)
class Table:
    """Figures to show together."""

    title: str
    figures: Sequence[Figure]


def is_wanted(arguments: Mapping[str, Any], *figures: str) -> bool:
    """Return whether to measure any of the figures: all are wanted, unless the arguments name some."""
    return "figures" not in arguments or not set(figures).isdisjoint(arguments["figures"])


def _no_backend() -> AbstractContextManager[dict[str, Any]]:
    return nullcontext({})


@dataclass(frozen=True)
class Case:
    """Something to measure for several contestants."""

    name: str
    #: A description for the report.
    method: str
    tables: Sequence[Table]
    contestants: Sequence[str]
    #: Measures one contestant, in its own process.
    measure: Callable[[str, float, Mapping[str, Any]], Figures]
    #: Runs the backend, and yields what the contestants need to reach it.
    backend: Callable[[], AbstractContextManager[Mapping[str, Any]]] = _no_backend
    #: Whether the runner itself calls `measure`, because the contestants are servers.
    is_from_outside: bool = False

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures of all tables, by name."""
        return {figure.name: figure for table in self.tables for figure in table.figures}
