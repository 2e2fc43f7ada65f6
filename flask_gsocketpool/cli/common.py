"""What the commands have in common: options, the app that they are about, and how they print."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, cast

import click
from flask import Flask, current_app

from flask_gsocketpool._registry import Pools, pools_of
from gsocketpool.settings import LONGEST_WAIT

NO_POOLS = "The app has no pools: set SOCKETPOOL_URL or another of the keys."


class Seconds(click.FloatRange):
    """A number of seconds above 0, and not infinite."""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return min(seconds, LONGEST_WAIT)


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")


def app_and_pools() -> tuple[Flask, Pools]:
    app: Flask = cast(Any, current_app)._get_current_object()
    return app, pools_of(app)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def printable(text: str) -> str:
    """Return a text as it is, or as a JSON string if it would break its line or change the terminal."""
    return text if text.isprintable() else json.dumps(text).replace("\x7f", r"\u007f")


def print_table(*rows: Sequence[str]) -> None:
    rows = tuple([printable(cell) for cell in row] for row in rows)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
