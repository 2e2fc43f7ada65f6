"""URLs with a password that is not quoted. Parsed all the same, they show a part of it as a port or a database."""

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
    # A query has the form of names and values, unless it is the rest of a password.
    return "@" in parts.query and "@" not in parts.netloc and any("=" not in one for one in parts.query.split("&"))
