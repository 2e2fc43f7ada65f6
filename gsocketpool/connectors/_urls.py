"""Reads the arguments of a client from a URL.

A URL whose password is not percent-encoded is refused, because a part of the password would be parsed, and shown, as a
port or a database.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from gsocketpool.exceptions import InvalidArgumentError

#: Replaces a value that may be a secret, in errors.
HIDDEN = "***"

#: What errors say is allowed instead of an ambiguous URL.
QUOTED = (
    "a URL whose password is quoted: / as %2F, @ as %40 (in the query, too), # as %23, ? as %3F, [ as %5B, ] as %5D"
)


def is_ambiguous(url: str) -> bool:
    """Return whether a part of the password may follow the authority of a URL, because of a /, ? or # in it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return True
    if parts.fragment or ("@" in parts.path and parts.netloc):
        return True
    if "@" not in parts.query or "@" in parts.netloc:
        return False
    # A query consists of names and values, unless it is the rest of a password.
    if any("=" not in one for one in parts.query.split("&")):
        return True
    # It may be such a rest even so, for instance in "user:12?x=34@host". An IPv6 address is no user.
    return ":" in parts.netloc and not parts.netloc.startswith("[")


def split(url: Any) -> tuple[SplitResult, int | None] | None:
    """Return the parts of a URL and its port; None if it can't be split.

    :raises InvalidArgumentError: if it is not a str, or its password may not be percent-encoded. The message never
        shows the URL.
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
    """Return the arguments in the query of a URL.

    :param texts: the names of the arguments that are text.
    :param numbers: the names of the arguments that are a number, true or false.
    :raises InvalidArgumentError: for another name, or a value that is not a number. The message never shows the value.
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
