"""A user's module, which type checkers read and nothing runs: mypy in a test, pyright in ``.ci/run``."""

from __future__ import annotations

from http.client import HTTPConnection
from typing import Any, assert_type

import psycopg
import valkey

from flask_gsocketpool import named_pool
from gsocketpool import Lease, Pool
from gsocketpool.connectors import Connector
from gsocketpool.connectors.psycopg import PsycopgConnector
from gsocketpool.connectors.valkey import ValkeyConnector


class HttpConnector(Connector[HTTPConnection]):
    def connect(self) -> HTTPConnection:
        return HTTPConnection("localhost", 2000)

    def is_settled(self, connection: HTTPConnection) -> bool:
        return connection.sock is not None


db = named_pool("db", psycopg.Connection)


def use_postgresql() -> int:
    pool = Pool(PsycopgConnector("postgresql://localhost/app", autocommit=True), max_connections=4)
    assert_type(pool, Pool[psycopg.Connection[Any]])
    with pool.connection() as conn, conn.transaction():
        assert_type(conn, psycopg.Connection[Any])
        return conn.execute("SELECT 1").rowcount


def use_valkey() -> object:
    pool = Pool(ValkeyConnector("valkey://localhost", decode_responses=True), reset="always")
    assert_type(pool, Pool[valkey.Valkey])
    with pool.connection() as client:
        assert_type(client, valkey.Valkey)
        return client.get("key")


def use_a_url() -> Any:
    pool = Pool.from_url("redis://localhost", max_connections=4)
    assert_type(pool, Pool[Any])
    with pool.connection() as client:
        return client.get("key")


def use_a_named_pool() -> int:
    with db.connection(timeout=1) as conn:
        return conn.execute("SELECT 1").rowcount


def use_a_connector_of_ones_own() -> bytes:
    lease = Pool(HttpConnector()).lease()
    assert_type(lease, Lease[HTTPConnection])
    lease.connection.request("GET", "/")
    return lease.connection.getresponse().read()
