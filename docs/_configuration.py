"""Writes the tables of the configuration, from what the code says of itself."""

from __future__ import annotations

import inspect
import re
from dataclasses import Field, fields
from typing import Any

from flask_gsocketpool.config import APP_WIDE, DEFAULT, DEFAULT_SETTINGS, PREFIX, TARGETS
from gsocketpool import Pool
from gsocketpool.settings import Settings

#: Which keys stand together.
GROUPS = {
    "Where to connect": [*TARGETS],
    "How many": ["max_connections", "min_connections", "initial_connections", "max_waiting", "max_opening"],
    "How long": ["acquire_timeout", "open_timeout", "close_timeout"],
    "When to retire a connection": ["max_lifetime", "idle_timeout", "reap_expired_connections", "reap_interval"],
    "Between two uses": ["reset", "reset_timeout", "keepalive_interval", "ping_timeout"],
    "In the log": ["name", "leak_threshold"],
    "The app as a whole": [*APP_WIDE],
}

#: The keys that turn something on.
SWITCHES = {"leak_threshold", "keepalive_interval", "drain_timeout"}

#: Where the pools of an app differ from what :class:`Pool` says.
OF_APPS = {"name": "what the pool is called in logs and errors."}


def reference() -> str:
    """Return the keys as RST, a table for each group."""
    meanings = {**_parameters(), **TARGETS, **APP_WIDE, **OF_APPS}
    defaults = _defaults()
    lines = []
    for title, keys in GROUPS.items():
        lines += [title, "-" * len(title), "", ".. list-table::", "   :header-rows: 1", "   :widths: 41 12 47"]
        lines += ["   :class: keys", "", "   * - Key", "     - Default", "     - Meaning"]
        for key in keys:
            meaning = meanings[key].replace(":meth:`ping`", ":meth:`~gsocketpool.Pool.ping`")
            lines += [f"   * - ``{PREFIX}{key.upper()}``", f"     - {defaults[key]}".rstrip()]
            lines += [f"     - {meaning[0].upper()}{meaning[1:]}"]
        lines.append("")
    return "\n".join(lines)


def _parameters() -> dict[str, str]:
    """Return what a pool says of its arguments, by their names."""
    text = inspect.getdoc(Pool) or ""
    found = re.findall(r"^:param (\w+): (.*?)(?=^:|\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: " ".join(meaning.split()) for name, meaning in found}


def _defaults() -> dict[str, str]:
    """Return the default of each key, as a reader says it."""
    return {
        **dict.fromkeys(TARGETS, ""),
        "factory": "by the URL",
        **{field.name: _default(field) for field in fields(Settings)},
        "name": f"``{DEFAULT}``",
        "pools": "none",
        "request_timeout": "no limit",
        "drain_timeout": "off",
    }


def _default(field: Field[Any]) -> str:
    default = DEFAULT_SETTINGS.get(field.name, field.default)
    if default is None:
        return "off" if field.name in SWITCHES else "no limit"
    if isinstance(default, str | bool):
        return f"``{default}``"
    return f"{default:g} s" if "float" in str(field.type) else str(default)
