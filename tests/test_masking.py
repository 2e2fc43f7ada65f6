"""What is shown of options, URLs and errors."""

from __future__ import annotations

from typing import Any

import pytest

from flask_gsocketpool.masking import address_of, error_as_dict, masked_text, masked_url, masked_value


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({"host": "db", "port": 2000}, "db:2000"),
        ({"host": "::1", "port": 2000}, "[::1]:2000"),
        ({"host": "db"}, "db"),
        ({"path": "/run/sock"}, "/run/sock"),
        ({"host": "http://me:hunter2@db", "port": 1}, "[http://***@db]:1"),
        ({"host": ["one", "two"], "port": 2000}, None),
        ({"port": 2000}, None),
        ({}, None),
    ],
)
def test_addresses(options: dict[str, Any], address: str | None) -> None:
    assert address_of(options) == address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("connection refused by db:2000", "connection refused by db:2000"),
        ("authentication failed: no such user", "authentication failed: no such user"),
        ("redis://me:hunter2@db:1/0 is down", "redis://***@db:1/0 is down"),
        ("dbname=x password=hunter2 user=me", "dbname=x password=*** user=me"),
        ("{'password': 'hunter\\'2', 'host': 'db'}", "{'password': ***, 'host': 'db'}"),
        ("{'api_token': b'hunter2'}", "{'api_token': ***}"),
        ("f(secret='hunter2', port=1)", "f(secret=***, port=1)"),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert masked_text(text) == shown


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("hunter2", "login hunter2 refused"),
        ("hun'ter\\2", repr("hun'ter\\2") + " refused"),
        ("hun/ter 2", "http://db/hun%2Fter%202 refused"),
        (b"hunter2", f"{b'hunter2'!r} refused"),
        (("me", "hunter2"), "hunter2 refused"),
        ({"inner": ["hunter2"]}, "hunter2 refused"),
        (271828, "271828 refused"),
    ],
)
def test_secrets_of_the_options_in_texts(secret: object, text: str) -> None:
    shown = masked_text(text, {"nested": {"password": secret}, "host": "db"})
    assert "***" in shown
    assert shown.endswith("refused")
    assert not any(part in shown for part in ("hunter", "hun", "271828"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("tcp://db:1", "tcp://db:1"),
        ("tcp://db:1?timeout=2&x", "tcp://db:1?timeout=2&x"),
        ("tcp://db:1?password=hunter2&timeout=2", "tcp://db:1?password=***&timeout=2"),
        ("tcp://me:hunter2@db:1?%74oken=a", "tcp://***@db:1?%74oken=***"),
        ("unix:///run/sock?AUTH=", "unix:///run/sock?AUTH=***"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    assert masked_url(url) == shown


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("timeout", 2.5, 2.5),
        ("timeout", float("inf"), "inf"),
        ("keepalive", True, True),
        ("password", None, None),
        ("password", "hunter2", "***"),
        ("hosts", ("one", "two"), ["one", "two"]),
        ("raw", b"hunter2", "<bytes>"),
    ],
)
def test_options(name: str, value: object, shown: object) -> None:
    assert masked_value(name, value) == shown


PEM = "-----BEGIN KEY-----\nabc  def\n-----END KEY-----"


@pytest.mark.parametrize(
    ("options", "message", "secret"),
    [
        ({"private_key": PEM}, f"can't parse {PEM}", "abc"),
        ({"password": "hun  ter2"}, "bad password 'hun  ter2'", "ter2"),
        ({"headers": [("Authorization", "Bearer hunter2")]}, "sent Bearer hunter2", "hunter2"),
        ({"url": "redis://u:hunter2@h"}, "AUTH hunter2 refused for u", "hunter2"),
        ({}, "Authorization: Bearer hunter2", "hunter2"),
        ({}, "password: hunter2", "hunter2"),
    ],
)
def test_no_secret_is_in_the_message_of_an_error(options: dict[str, Any], message: str, secret: str) -> None:
    assert secret not in error_as_dict(ValueError(message), options)["message"]


def test_a_secret_number_is_not_looked_for_within_others() -> None:
    shown = error_as_dict(ValueError("refused 10.0.0.1:63790, pin 379"), {"key_size": 379, "port": 63790})
    assert shown["message"] == "refused 10.0.0.1:63790, pin ***"


def test_secrets_in_pairs_are_masked() -> None:
    shown = masked_value("headers", [("Authorization", "Bearer hunter2"), ("Accept", "all")])
    assert shown == [["Authorization", "***"], ["Accept", "all"]]
