"""Writes the reference of the configuration, from what the code says of itself."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

from flask_gsocketpool.config import APP_WIDE, DEFAULT_SETTINGS, PREFIX, TARGETS
from gsocketpool import Pool
from gsocketpool.settings import Settings


def parameters() -> dict[str, str]:
    """What a pool says of its arguments, by their names."""
    text = inspect.getdoc(Pool) or ""
    found = re.findall(r"^:param (\w+): (.*?)(?=^:|\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: " ".join(meaning.split()) for name, meaning in found}


def reference() -> str:
    """The keys as an RST table."""
    meanings = parameters()
    rows = [(name, "", meaning) for name, meaning in TARGETS.items()]
    for field in fields(Settings):
        default = "" if field.name == "name" else str(DEFAULT_SETTINGS.get(field.name, field.default))
        rows.append((field.name, default, meanings[field.name]))
    rows += [(name, "", meaning) for name, meaning in APP_WIDE.items()]
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 34 12 54", ""]
    for key, default, meaning in [("Key", "Default", "Meaning"), *rows]:
        shown = key if key == "Key" else f"``{PREFIX}{key.upper()}``"
        lines += [f"   * - {shown}", f"     - {default}", f"     - {meaning[0].upper()}{meaning[1:]}"]
    return "\n".join(lines) + "\n"
