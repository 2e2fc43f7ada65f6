"""From a URL to the arguments of a client.

A URL whose password is not percent-encoded is refused. Parsing it would show a part of the password as a port or a
database.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from gsocketpool.exceptions import InvalidArgumentError

#: Stands for a value that may be a secret, in errors.
HIDDEN = "***"

#: What errors say instead.
QUOTED = "a URL whose password is quoted: / as %2F, @ as %40, # as %23, ? as %3F"


def is_ambiguous(url: str) -> bool:
    """Return whether the end of a password may stand behind the authority of a URL: it has a /, ? or # inside."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return True
    if parts.fragment or ("@" in parts.path and parts.netloc):
        return True
    if "@" not in parts.query or "@" in parts.netloc:
        return False
    # A query has the form of names and values, unless it is the rest of a password.
    if any("=" not in one for one in parts.query.split("&")):
        return True
    host, colon, port = parts.netloc.rpartition(":")
    return bool(colon) and not parts.netloc.endswith("]") and not (host and port.isdecimal())


def split(url: Any) -> tuple[SplitResult, int | None] | None:
    """Return the parts of a URL, and its port; None if it can't be split.

    :raises InvalidArgumentError: if it is no str, or its password may not be percent-encoded. It never shows the URL.
    """
    if not isinstance(url, str):
        raise InvalidArgumentError("url", type(url), "a URL, a callable that returns one, or None")
    if is_ambiguous(url):
        raise InvalidArgumentError("url", HIDDEN, QUOTED)
    parts = urlsplit(url)
    try:
        return parts, parts.port
    except ValueError:
        return None


def read_query(query: str, texts: Collection[str], numbers: Collection[str]) -> dict[str, Any]:
    """Return the arguments that the query of a URL gives.

    :param texts: the names of the arguments that are text.
    :param numbers: those of the arguments that are numbers, true or false.
    :raises InvalidArgumentError: for another name, and for what is no number. It never shows the value.
    """
    arguments: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in texts and name not in numbers:
            raise InvalidArgumentError(name, HIDDEN, "left out of the URL")
        arguments[name] = _read_number(name, value) if name in numbers else value
    return arguments


def _read_number(name: str, value: str) -> int | float:
    try:
        number = json.loads(value.lower())
    except (ValueError, RecursionError):
        number = None
    if not isinstance(number, int | float):
        raise InvalidArgumentError(name, HIDDEN, "a number, true or false")
    return number
