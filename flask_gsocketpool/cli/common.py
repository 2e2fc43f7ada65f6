"""What the commands share: options, the app and its pools, and printing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import click
from flask import Flask, current_app

from flask_gsocketpool._registry import Pools, pools_of
from gsocketpool.settings import LONGEST_WAIT

Command = TypeVar("Command", bound=Callable[..., Any])

NO_POOLS = "The app has no pools: set SOCKETPOOL_URL, SOCKETPOOL_FACTORY or SOCKETPOOL_POOLS."


class Seconds(click.FloatRange):
    """A finite number of seconds above 0."""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the seconds, at most as many as a timer of gevent can wait."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a finite number of seconds.", param, ctx)
        return min(seconds, LONGEST_WAIT)


def as_json_option(command: Command) -> Command:
    """Add the option ``--json`` to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, to stdout.")(command)


def app_and_pools() -> tuple[Flask, Pools]:
    """Return the current app and its pools."""
    app: Flask = cast(Any, current_app)._get_current_object()
    return app, pools_of(app)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2))


def printable(text: str) -> str:
    """Return a text unchanged, or as a JSON string if it has line breaks or control characters."""
    return text if text.isprintable() else json.dumps(text).replace("\x7f", r"\u007f")


def print_table(*rows: Sequence[str]) -> None:
    """Print rows of cells in aligned columns."""
    rows = tuple([printable(cell) for cell in row] for row in rows)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds, as text."""
    return f"{seconds * 1000:.2f} ms"
