"""This version of gsocketpool. It always checks a connection before it hands it out."""

from __future__ import annotations

from typing import Any

from benchmarks.connections import context_trusting
from benchmarks.contestants.base import PATIENCE, OpenPool
from gsocketpool import Connection, Pool, TcpConnection, TlsConnection, UnixConnection


def open_pool(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    return _open(type("Pooled", (kind, Connection), {}), options, size)


def open_own(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    """Return a pool with gsocketpool's own connections instead of `kind`. The options are those of a Wire."""
    return _open(*_own(**options), size)


def _own(kind: str, address: Any, authority: str = "") -> tuple[type[Connection], dict[str, Any]]:
    if kind == "unix":
        return UnixConnection, {"path": address}
    host, port = address
    if kind == "tls":
        trust = {"ssl_context": context_trusting(authority), "server_hostname": "localhost"}
        return TlsConnection, {"host": host, "port": port, **trust}
    return TcpConnection, {"host": host, "port": port}


def _open(pooled: type[Any], options: dict[str, Any], size: int) -> OpenPool:
    pool: Pool[Any] = Pool(pooled, options, max_connections=size, acquire_timeout=PATIENCE)
    return OpenPool(pool.acquire, pool.release, lambda: pool.close(timeout=0), pool.connection)
