"""Draw the results, for the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import cases
from benchmarks.cases.contended import CONNECTIONS
from benchmarks.contestants import OURS, OWN_CONNECTION
from benchmarks.report import number
from benchmarks.results import Results

#: The panels: a case, one of its figures, and a title.
PANELS = [
    ("uncontended", "pair, alone", "acquire and release, ns (less is better)"),
    ("contended", "rate, 500", "500 greenlets over 10 connections,\nuses a second (more is better)"),
    ("contended", "longest, 500", "500 greenlets over 10 connections,\nlongest wait in ms (less is better)"),
    ("echo", "tcp", "echo over TCP, a second (more is better)"),
    ("valkey", "get", "GET of Valkey, a second\n(more is better)"),
    ("postgres", "select", "SELECT 1 of PostgreSQL, a second\n(more is better)"),
]
OUR_NAMES = {OURS.name, OWN_CONNECTION.name}
OUR_COLOUR, THEIR_COLOUR = "#3776ab", "#b8b8b8"


def draw(results: Results, file: Path) -> None:
    """Write a chart. The suffix of the file name decides its format."""
    import matplotlib
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if results.contestants(panel[0], panel[1])]
    rows = max(1, (len(panels) + 1) // 2)
    # With a fixed salt and no date, the same results make the same file.
    with matplotlib.rc_context({"svg.hashsalt": "gsocketpool", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(10, 3 * rows), layout="constrained")
        axes: list[Any] = list(figure.subplots(rows, 2, squeeze=False).flat)
        for axis, (case, name, title) in zip(axes, panels, strict=False):
            _bars(axis, results, case, name)
            # Over the names of the bars: the layout makes no room for a title that is wider than its axis.
            axis.set_title(title, loc="right")
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _bars(axis: Any, results: Results, case: str, name: str) -> None:
    summaries = {who: results.summary(case, name, who) for who in results.contestants(case, name)}
    found = {who: summary for who, summary in summaries.items() if summary is not None}
    is_more_better = cases.load(case).figures[name].is_more_better
    names = sorted(found, key=lambda who: found[who].median, reverse=not is_more_better)
    heights = [found[who].median for who in names]
    spreads = [found[who].quartiles for who in names]
    errors = [
        [height - low for height, (low, _) in zip(heights, spreads, strict=True)],
        [high - height for height, (_, high) in zip(heights, spreads, strict=True)],
    ]
    colours = [OUR_COLOUR if who in OUR_NAMES else THEIR_COLOUR for who in names]
    shown = [f"{who}{_remark(results, case, name, who)}" for who in names]
    bars = axis.barh(shown, heights, xerr=errors, color=colours, error_kw={"elinewidth": 0.8})
    axis.bar_label(bars, [number(height) for height in heights], padding=4)
    axis.margins(x=0.2)
    # Each bar shows its number.
    axis.xaxis.set_visible(False)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    for label in axis.get_yticklabels():
        if label.get_text() in OUR_NAMES:
            label.set(fontweight="bold", color=OUR_COLOUR)


def _remark(results: Results, case: str, name: str, who: str) -> str:
    """Return a remark for a contestant whose bar can't be compared with the others."""
    crowd = name.partition(", ")[2]
    if results.median(case, f"refused, {crowd}", who):
        return " (refuses some)"
    if (results.median(case, f"open, {crowd}", who) or 0) > CONNECTIONS:
        return " (no limit)"
    return ""
