"""Rarer ways to use the clients of valkey-py and redis-py."""

from __future__ import annotations

from typing import Any

import pytest

from gsocketpool import InvalidArgumentError, Pool
from gsocketpool.connectors.redis import RedisConnector
from gsocketpool.connectors.valkey import ValkeyConnector


@pytest.mark.parametrize("url", ["redis://[::1/0?password=hunter2", "redis://:hunter2@[::1/0"])
@pytest.mark.parametrize("kind", [ValkeyConnector, RedisConnector])
def test_a_malformed_url_is_refused_without_its_password(kind: Any, url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="url must be a") as caught:
        kind(url)
    assert "hunter2" not in str(caught.value)


def test_an_error_of_the_library_that_names_no_option_lists_all_options() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ValkeyConnector(host="localhost", port="x")  # type: ignore[arg-type]
    assert str(caught.value) == "options must be valid for valkey.Valkey, not ['host', 'port']"


def test_a_reset_sends_no_greeting_that_connect_did_not_send(valkey_url: str) -> None:
    pool = Pool(ValkeyConnector(valkey_url, lib_name=None, lib_version=None), max_connections=1, reset="always")
    for _ in range(3):
        with pool.connection() as client:
            assert client.client_info()["lib-name"] == ""
    pool.close()
    assert pool.stats().opened == 1


def test_a_reset_calls_the_connect_function_of_the_caller_again(valkey_url: str) -> None:
    greeted = []

    def greet(connection: Any) -> None:
        greeted.append(connection)
        connection.on_connect()
        connection.send_command("CLIENT", "SETNAME", "mine")
        connection.read_response()

    pool = Pool(ValkeyConnector(valkey_url, valkey_connect_func=greet), max_connections=1, reset="always")
    for times in (1, 2):
        with pool.connection() as client:
            assert client.client_getname() in ("mine", b"mine")
            assert len(greeted) == times
    pool.close()
    assert pool.stats().opened == 1


def test_disconnecting_a_client_after_its_block_does_not_close_the_connection(valkey_url: str) -> None:
    pool = Pool(ValkeyConnector(valkey_url), max_connections=1)
    with pool.connection() as client:
        kept = client.connection_pool
    kept.disconnect()
    with pool.connection() as client:
        assert client.ping()
    assert pool.stats().opened == 1
    pool.close()


def test_a_select_given_as_a_memoryview_is_reset(valkey_url: str) -> None:
    pool = Pool(ValkeyConnector(valkey_url), max_connections=1)
    with pool.connection() as client:
        client.execute_command("SELECT", memoryview(b"1"))
        client.set("only in database 1", 1)
    with pool.connection() as client:
        assert client.get("only in database 1") is None, "SELECT was reset"
    pool.close()
