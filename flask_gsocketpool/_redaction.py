"""What may be shown of where a pool connects to, and with what: never a credential."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from gsocketpool.exceptions import shown

MASK = "***"

#: A secret that is shorter is none, and masking it would leave nothing legible.
SHORTEST = 3

_WORDS = r"pass|pwd|secret|token|(?<!val)key|cred|auth|private|dsn|conninfo|cookie|login|sasl"
_SECRET_NAME = re.compile(_WORDS, re.IGNORECASE)
#: Up to the last @ before a blank or a quote. These may be in a password: it is one if no port follows the colon.
#: Bounded, lest a long text take for ever.
_USER_IN_URL = re.compile(r"://(?:[^\s'\"]{0,1000}|[^\s/:@'\"]{0,200}:[^\d\s/@][^@\n]{0,1000})@")
#: As in ``password=…``, ``password: …``, ``Authorization: Bearer …``, and a mapping that is shown: ``'password': …``.
_ASSIGNMENT = re.compile(
    rf"((?:{_WORDS})\w*(?:\s*=\s*|['\"]?\s*:\s*)(?:(?:Basic|Bearer)\s+)?)(?:b?\"(?:\\.|[^\"\\])*\"|b?'(?:\\.|[^'\\])*'|[^\s,;&)\]}}]+)",
    re.IGNORECASE,
)


def looks_secret(name: object) -> bool:
    """Return whether a value called `name` may be a secret. A part of the name decides, rather too often than not."""
    return _SECRET_NAME.search(str(name)) is not None


def address_of(options: Mapping[str, Any]) -> str | None:
    """Return where a pool with these options connects to: ``host:port``, a path, or None if they don't say."""
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
    """Return what may be shown of the option called `name`, as a value for JSON.

    Of a value that is neither a str, a number, nor made of those, this is the type.
    """
    if value is None or isinstance(value, bool):
        return value
    if looks_secret(name):
        return MASK
    if isinstance(value, int | float):
        # There is no infinity in JSON.
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
    """Return a URL without its user and password, and without the secrets in its query."""
    target, mark, query = url.partition("?")
    shown = []
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        # One that holds a URL, or a mapping as JSON, may have a secret inside.
        is_legible = not equals or masked_value(unquote_plus(name), unquote_plus(value)) == unquote_plus(value)
        shown.append(part if is_legible else f"{name}={MASK}")
    return masked_text(target, {"url": target}) + mark + "&".join(shown)


def masked_text(text: str, options: Mapping[str, Any] | None = None) -> str:
    """Return a text, such as an error's, without the secrets in it.

    These are the secrets among `options`, users and passwords in URLs, and values with the name of a secret:
    ``password=…``.
    """
    if options is not None:
        for secret in sorted(set(_secrets("", options)), key=len, reverse=True):
            for spelling in _spellings(secret):
                if spelling.isdigit():
                    # Not within another number, a port for instance.
                    text = re.sub(rf"(?<!\w){spelling}(?!\w)", MASK, text)
                else:
                    text = text.replace(spelling, MASK)
    return _ASSIGNMENT.sub(rf"\1{MASK}", _USER_IN_URL.sub(f"://{MASK}@", text))


def _spellings(secret: str) -> set[str]:
    """Return the spellings of a secret in a text: as it is, and quoted for Python, for JSON or for a URL."""
    as_literals = {literal(secret)[1:-1] for literal in (repr, ascii, json.dumps)}
    in_urls = {quoted(secret, safe=safe, errors="replace") for quoted in (quote, quote_plus) for safe in ("", "/")}
    return {secret, *as_literals, *in_urls}


def error_as_dict(error: BaseException, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the type and the message of an error that a pool with these `options` has raised, for JSON."""
    # In this order, for a secret may have spaces and line breaks, too.
    return {"type": type(error).__name__, "message": " ".join(masked_text(_text_of(error), options).split())}


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return shown(error)


def _is_pair(value: Sequence[Any]) -> bool:
    """Return whether a sequence is the name and the value of a secret, as headers are often given."""
    return len(value) == 2 and isinstance(value[0], str) and looks_secret(value[0])


def _secrets(name: object, value: object) -> Iterator[str]:
    """Yield the secrets in an option, as a text would have them."""
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
        # As its repr shows it.
        yield from _secrets(name, repr(bytes(value))[2:-1])
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        text = str(value)
        found = [*_passwords_in_urls(text), *([text] if looks_secret(name) else [])]
        yield from (secret for secret in found if len(secret) >= SHORTEST)


def _passwords_in_urls(text: str) -> Iterator[str]:
    """Yield the passwords in the URLs of an option, and in the option as one URL: a password may have :// inside.

    A password that is not quoted may have an @ inside, too, and so may a path.
    """
    _, *urls = text.split("://")
    for url in (*urls, "://".join(urls)):
        for before, at, _ in (url.partition("@"), url.rpartition("@")):
            if at:
                password = before.partition(":")[2]
                yield from (password, unquote(password), unquote_plus(password))
