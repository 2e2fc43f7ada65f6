"""README and the documentation, and the examples in them."""

from __future__ import annotations

import re
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


#: The page whose module the examples of the other pages on Flask continue.
FLASK = DOCS / "flask" / "start.rst"


def name_of(document: Path) -> str:
    return str(document.relative_to(DOCS if document.is_relative_to(DOCS) else ROOT))


def module_of_the_guide() -> str:
    """Return what the pages on Flask call ``module.py``."""
    (module,) = [block for block in blocks(FLASK) if "def create_app" in block]
    return module


def is_of_tests(block: str) -> bool:
    return "def test_" in block


def is_of_another_process(block: str) -> bool:
    """Return whether an example patches its process, takes a library that is not here, or connects to a server."""
    return (
        "patch_all(" in block
        or needs_a_database(block)
        or re.search("^(from (celery|flask_sock) import|import psycopg)", block, re.MULTILINE) is not None
    )


def needs_a_database(block: str) -> bool:
    """Return whether an example uses a connector, whose client library waits only where gevent has patched."""
    return re.search(r"\b(Psycopg|Valkey|Redis|PyMySQL|Pymemcache)Connector\(", block) is not None


def examples(document: Path) -> str:
    """Those examples that are no tests and run in this process, one after the other."""
    return joined(block for block in blocks(document) if not is_of_tests(block) and not is_of_another_process(block))


def examples_of_tests(document: Path) -> str:
    return joined(filter(is_of_tests, blocks(document)))
