"""Writes the tables of the kills, from the results that are kept in the repository."""

from __future__ import annotations

from _performance import ROOT, about, section, table, tables

from benchmarks import results
from benchmarks.cases.kills import CASE

RESULTS = ROOT / "benchmarks" / "kills.json"


def reference(found: results.Results | None = None) -> str:
    """Return the tables, what each pool was told, and where and when it was done, as RST."""
    found = results.load(RESULTS) if found is None else found
    told = [["", "Options", "What it says of itself"]]
    told += [[name, note["options"], note["says"]] for name, note in found.about["notes"].items()]
    lines = [
        *tables(found, CASE),
        *section("What each pool was told"),
        *table(told),
        *section("Where and when"),
        *about(found),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference())
