"""Detect URLs whose password is not percent-encoded.

Parsing one would show a part of the password as a port or a database.
"""

from __future__ import annotations

from urllib.parse import urlsplit

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
