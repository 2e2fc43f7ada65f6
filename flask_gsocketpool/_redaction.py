"""Mask credentials in addresses, options, URLs and error texts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from gsocketpool.exceptions import shown

MASK = "***"

#: Shorter values are not treated as secrets: masking each of their occurrences would make texts unreadable.
MIN_SECRET_LENGTH = 3

_WORDS = r"pass|pwd|secret|token|(?<!val)key|cred|auth|private|dsn|conninfo|cookie|login|sasl"
_SECRET_NAME = re.compile(_WORDS, re.IGNORECASE)
#: User and password in a URL, up to the last @ before a blank or a quote. A password may contain these: text after the
#: colon that does not start like a port is a password. The lengths are bounded to bound the time.
_USER_IN_URL = re.compile(r"://(?:[^\s'\"]{0,1000}|[^\s/:@'\"]{0,200}:[^\d\s/@][^@\n]{0,1000})@")
#: ``password=…``, ``password: …``, ``Authorization: Bearer …``, and the repr of a mapping: ``'password': …``.
_ASSIGNMENT = re.compile(
    rf"((?:{_WORDS})\w*(?:\s*=\s*|['\"]?\s*:\s*)(?:(?:Basic|Bearer)\s+)?)(?:b?\"(?:\\.|[^\"\\])*\"|b?'(?:\\.|[^'\\])*'|[^\s,;&)\]}}]+)",
    re.IGNORECASE,
)


def looks_secret(name: object) -> bool:
    """Return whether `name` suggests a secret. Any part of the name counts, so some harmless names match, too."""
    return _SECRET_NAME.search(str(name)) is not None


def address_of(options: Mapping[str, Any]) -> str | None:
    """Return the address in these options: ``host:port``, a path, a URL without its query, or None."""
    host, port, path = (options.get(name) for name in ("host", "port", "path"))
    if isinstance(host, str) and host:
        if port is None:
            return masked_text(host, options)
        return masked_text(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", options)
    if isinstance(path, str) and path:
        return masked_text(path, options)
    url = options.get("url")
    return masked_url(url).partition("?")[0] if isinstance(url, str) and url else None


def masked_value(name: object, value: object) -> Any:
    """Return the value of the option called `name` as JSON data with its secrets masked.

    A value that JSON has no type for is replaced by the name of its type.
    """
    if value is None or isinstance(value, bool):
        return value
    if looks_secret(name):
        return MASK
    if isinstance(value, int | float):
        # JSON has no infinity.
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return masked_text(value, {str(name): value})
    if isinstance(value, Mapping):
        return {str(key): masked_value(key, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        if _is_pair(value):
            return [value[0], masked_value(*value)]
        return [masked_value(name, inner) for inner in value]
    return f"<{type(value).__name__}>"


def masked_url(url: str) -> str:
    """Return a URL with its user and password, and the secrets in its query, masked."""
    target, mark, query = url.partition("?")
    shown = []
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        # A value that is a URL, or a mapping as JSON, may contain a secret.
        is_public = not equals or masked_value(unquote_plus(name), unquote_plus(value)) == unquote_plus(value)
        shown.append(part if is_public else f"{name}={MASK}")
    return masked_text(target, {"url": target}) + mark + "&".join(shown)


def masked_text(text: str, options: Mapping[str, Any] | None = None) -> str:
    """Return a text, such as an error message, with the secrets in it masked.

    Secrets are those among `options`, users and passwords in URLs, and values after a secret's name, as in
    ``password=…``.
    """
    if options is not None:
        for secret in sorted(set(_secrets("", options)), key=len, reverse=True):
            for spelling in _spellings(secret):
                if spelling.isdigit():
                    # Only as a whole number, not as part of another one, such as a port.
                    text = re.sub(rf"(?<!\w){spelling}(?!\w)", MASK, text)
                else:
                    text = text.replace(spelling, MASK)
    return _ASSIGNMENT.sub(rf"\1{MASK}", _USER_IN_URL.sub(f"://{MASK}@", text))


def _spellings(secret: str) -> set[str]:
    """Return how a text may spell a secret: plain, or quoted for Python, JSON or a URL."""
    as_literals = {literal(secret)[1:-1] for literal in (repr, ascii, json.dumps)}
    in_urls = {quoted(secret, safe=safe, errors="replace") for quoted in (quote, quote_plus) for safe in ("", "/")}
    return {secret, *as_literals, *in_urls}


def error_as_dict(error: BaseException, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the type and the masked message of an error of a pool with these `options`, for JSON."""
    # Mask before joining lines: a secret may contain spaces and line breaks.
    return {"type": type(error).__name__, "message": " ".join(masked_text(_text_of(error), options).split())}


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return shown(error)


def _is_pair(value: Sequence[Any]) -> bool:
    """Return whether a sequence is the name and value of a secret, as libraries often pass headers."""
    return len(value) == 2 and isinstance(value[0], str) and looks_secret(value[0])


def _secrets(name: object, value: object) -> Iterator[str]:
    """Yield the secrets in an option, as they would appear in a text."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _secrets(name if looks_secret(name) else key, inner)
    elif isinstance(value, list | tuple | set | frozenset):
        if isinstance(value, list | tuple) and _is_pair(value):
            yield from _secrets(*value)
        else:
            for inner in value:
                yield from _secrets(name, inner)
    elif isinstance(value, bytes | bytearray):
        yield from _secrets(name, value.decode("utf-8", "replace"))
        # As its repr shows it, too.
        yield from _secrets(name, repr(bytes(value))[2:-1])
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        # An integer of thousands of digits has no text.
        text = value if isinstance(value, str) else shown(value)
        found = [*_passwords_in_urls(text), *([text] if looks_secret(name) else [])]
        yield from (secret for secret in found if len(secret) >= MIN_SECRET_LENGTH)


def _passwords_in_urls(text: str) -> Iterator[str]:
    """Yield the passwords in the URLs of an option.

    Read the option also as one URL, because a password may contain ://. Look for the first and for the last @, because
    an unquoted password, or a path, may contain one.
    """
    _, *urls = text.split("://")
    for url in (*urls, "://".join(urls)):
        for before, at, _ in (url.partition("@"), url.rpartition("@")):
            if at:
                password = before.partition(":")[2]
                yield from (password, unquote(password), unquote_plus(password))
