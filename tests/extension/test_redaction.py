"""Options, URLs and errors are shown without their secrets."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from flask_gsocketpool._redaction import (
    MIN_SECRET_LENGTH,
    address_of,
    error_as_dict,
    masked_text,
    masked_url,
    masked_value,
)


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({"host": "db", "port": 2000}, "db:2000"),
        ({"host": "valkey", "port": 6379}, "valkey:6379"),
        ({"host": "::1", "port": 2000}, "[::1]:2000"),
        ({"host": "db"}, "db"),
        ({"path": "/run/sock"}, "/run/sock"),
        ({"host": "http://me:hunter2@db", "port": 1}, "[http://***@db]:1"),
        ({"host": ["one", "two"], "port": 2000}, None),
        ({"port": 2000}, None),
        ({}, None),
    ],
)
def test_address_of_shows_the_address_in_the_options(options: dict[str, Any], address: str | None) -> None:
    assert address_of(options) == address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("connection refused by db:2000", "connection refused by db:2000"),
        ("authentication failed: no such user", "authentication failed: no such user"),
        ("redis://me:hunter2@db:1/0 is down", "redis://***@db:1/0 is down"),
        ("redis://me@db:1/0 is down", "redis://***@db:1/0 is down"),
        ("valkey://me:hunter2@db:1/0 is down", "valkey://***@db:1/0 is down"),
        ("valkey://db:1/0 and valkeys://db:1 are down", "valkey://db:1/0 and valkeys://db:1 are down"),
        ("valkey_key: //hunter2", "valkey_key: ***"),
        ("pool 'valkey': the backend did not answer", "pool 'valkey': the backend did not answer"),
        ("redis://db:1 is down, says me@example.com", "redis://db:1 is down, says me@example.com"),
        ("dbname=x password=hunter2 user=me", "dbname=x password=*** user=me"),
        ("{'password': 'hunter\\'2', 'host': 'db'}", "{'password': ***, 'host': 'db'}"),
        ("{'api_token': b'hunter2'}", "{'api_token': ***}"),
        ("f(secret='hunter2', port=1)", "f(secret=***, port=1)"),
    ],
)
def test_secrets_in_a_text_are_masked(text: str, shown: str) -> None:
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
def test_secrets_of_the_options_are_masked_in_a_text(secret: object, text: str) -> None:
    shown = masked_text(text, {"nested": {"password": secret}, "host": "db"})
    assert "***" in shown
    assert shown.endswith("refused")
    assert not any(part in shown for part in ("hunter", "hun", "271828"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("tcp://db:1", "tcp://db:1"),
        ("tcp://db:1?timeout=2&x", "tcp://db:1?timeout=2&x"),
        ("valkey://db:1/0?db=1", "valkey://db:1/0?db=1"),
        ("valkey://valkey:6379/0", "valkey://valkey:6379/0"),
        ("tcp://db:1?password=hunter2&timeout=2", "tcp://db:1?password=***&timeout=2"),
        ("tcp://me:hunter2@db:1?%74oken=a", "tcp://***@db:1?%74oken=***"),
        ("tcp://me:hun'ter 2@db:1", "tcp://***@db:1"),
        ("tcp://me@db:1", "tcp://***@db:1"),
        ("tcp://db:1?via=http://me:hun'ter+2@proxy&x=1", "tcp://db:1?via=***&x=1"),
        ("unix:///run/sock?AUTH=", "unix:///run/sock?AUTH=***"),
    ],
)
def test_url_secrets_are_masked(url: str, shown: str) -> None:
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
        ("target", "redis://me:hun'ter 2@db", "redis://***@db"),
        ("target", "redis://me:1 2'3@db", "redis://***@db"),
        ("target", "redis://me@db", "redis://***@db"),
    ],
)
def test_secrets_in_the_options_are_masked(name: str, value: object, shown: object) -> None:
    assert masked_value(name, value) == shown


PEM = "-----BEGIN KEY-----\nabc  def\n-----END KEY-----"


@pytest.mark.parametrize(
    ("options", "message", "secret"),
    [
        ({"private_key": PEM}, f"can't parse {PEM}", "abc"),
        ({"password": "hun  ter2"}, "bad password 'hun  ter2'", "ter2"),
        ({"headers": [("Authorization", "Bearer hunter2")]}, "sent Bearer hunter2", "hunter2"),
        ({"url": "redis://u:hunter2@h"}, "AUTH hunter2 refused for u", "hunter2"),
        ({"dsn": "redis://u:hunter2@h"}, "AUTH hunter2 refused for u", "hunter2"),
        ({"url": b"redis://u:hunter2@h"}, "AUTH hunter2 refused for u", "hunter2"),
        ({"urls": "http://one,redis://u:hunter2@two"}, "AUTH hunter2 refused for u", "hunter2"),
        ({"url": "https://u:hunter2@h/@scope"}, "AUTH hunter2 refused for u", "hunter2"),
        ({}, "can't connect to redis://u:hun'ter 2@h:1", "ter"),
        ({}, "Authorization: Bearer hunter2", "hunter2"),
        ({}, "password: hunter2", "hunter2"),
        ({"password": "top/hunter 2"}, f"refused {quote('top/hunter 2')}", "hunter"),
        ({"password": "top/hunter 2"}, f"refused {quote_plus('top/hunter 2')}", "hunter"),
        ({"password": 'top"hunter2'}, "refused " + json.dumps('top"hunter2'), "hunter2"),
        ({"password": "tøphunter2"}, "refused " + json.dumps("tøphunter2"), "hunter2"),
        ({"password": "tøphunter2"}, "refused " + ascii("tøphunter2"), "hunter2"),
        ({"password": b"top\xffhunter2"}, "refused b'top\\xffhunter2'", "hunter2"),
        ({"password": bytearray(b"hunter2")}, "refused hunter2", "hunter2"),
        ({"passwords": {"hunter2"}}, "refused hunter2", "hunter2"),
    ],
)
def test_the_message_of_an_error_shows_no_secret(options: dict[str, Any], message: str, secret: str) -> None:
    assert secret not in error_as_dict(ValueError(message), options)["message"]


def test_a_secret_number_is_not_masked_inside_other_numbers() -> None:
    shown = error_as_dict(ValueError("refused 10.0.0.1:63790, pin 379"), {"key_size": 379, "port": 63790})
    assert shown["message"] == "refused 10.0.0.1:63790, pin ***"


def test_masking_a_long_text_takes_a_short_time() -> None:
    began = time.process_time()
    masked_text("://" * 100_000)
    assert time.process_time() - began < 5


def test_secrets_in_pairs_are_masked() -> None:
    shown = masked_value("headers", [("Authorization", "Bearer hunter2"), ("Accept", "all")])
    assert shown == [["Authorization", "***"], ["Accept", "all"]]


# No asterisk, which a mask is made of.
PASSWORDS = st.text(
    st.sampled_from("'\" \n\\:/@%+?#&=[],;\0\udcff") | st.characters(exclude_characters="*"), min_size=MIN_SECRET_LENGTH
)
URL = "redis://me:{}@db:1/0"


@given(
    PASSWORDS,
    st.sampled_from([None, str, quote, quote_plus]),
    st.sampled_from(["login {} refused", "'{}' is wrong", f"can't reach {URL}"]),
)
@example("pa'ss word", str, f"can't reach {URL}")
@example("a+b!", lambda password: "a+b%21", "login {} refused")
@settings(deadline=None, max_examples=500, database=None)
def test_no_password_is_shown(password: str, in_url: Any, text: str) -> None:
    # By chance it may be a part of what is shown besides.
    rest = " ".join(text.format("***").split())
    assume(password not in rest and password not in URL)
    try:
        options = {"password": password} if in_url is None else {"url": URL.format(in_url(password))}
    except UnicodeEncodeError:
        assume(False)
    assert password not in error_as_dict(OSError(text.format(password)), options)["message"]
    assert set(masked_value("options", options).values()) <= {"***", URL.replace("me:{}", "***")}
