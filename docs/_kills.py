"""Write the tables of the kills, from the results that the repository keeps."""

from __future__ import annotations

from _performance import ROOT, about, section, table, tables

from benchmarks import results
from benchmarks.cases.kills import CASE

RESULTS = ROOT / "benchmarks" / "kills.json"


def reference(found: results.Results | None = None) -> str:
    """Return the tables, the options of each pool, and where and when it was measured, as RST."""
    found = results.load(RESULTS) if found is None else found
    told = [["", "Options", "What its documentation says"]]
    told += [[name, note["options"], note["says"]] for name, note in found.about["notes"].items()]
    lines = [
        *tables(found, CASE),
        *section("The options of each pool"),
        *table(told),
        *section("Where and when"),
        *about(found),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference())
