"""README and the documentation, and the examples in them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.rst", *sorted(DOCS.rglob("*.rst"))]

#: What stands in the examples for where a server of the tests is.
POSTGRESQL, VALKEY, REDIS = "postgresql://localhost/app", "valkey://localhost:6379", "redis://localhost:6379"


def blocks(document: Path) -> list[str]:
    """The examples in Python of a document, each line where it stands in it."""
    found: list[list[str]] = []
    indent = None
    for number, line in enumerate(document.read_text().splitlines()):
        if line.strip() == ".. code-block:: python":
            indent = len(line) - len(line.lstrip()) + 4
            found.append([""] * (number + 1))
        elif indent is not None and line.strip() and len(line) - len(line.lstrip()) < indent:
            indent = None
        elif indent is not None:
            found[-1].append(line[indent:])
    return ["\n".join(lines) + "\n" for lines in found]


def joined(found: Iterable[str]) -> str:
    whole = ""
    for block in found:
        whole += "\n".join(block.split("\n")[whole.count("\n") :])
    return whole
