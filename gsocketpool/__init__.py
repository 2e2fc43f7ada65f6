"""A connection pool for gevent."""

from gsocketpool.connection import Connection, StreamConnection, TcpConnection, TlsConnection, UnixConnection
from gsocketpool.exceptions import (
    ConnectionClosedError,
    ConnectionNotFoundError,
    InvalidArgumentError,
    LimitExceededError,
    PoolClosedError,
    PoolError,
    PoolExhaustedError,
    PoolNotReadyError,
    WrongThreadError,
)
from gsocketpool.pool import Pool
from gsocketpool.stats import PoolStats

__all__ = [
    "Connection",
    "ConnectionClosedError",
    "ConnectionNotFoundError",
    "InvalidArgumentError",
    "LimitExceededError",
    "Pool",
    "PoolClosedError",
    "PoolError",
    "PoolExhaustedError",
    "PoolNotReadyError",
    "PoolStats",
    "StreamConnection",
    "TcpConnection",
    "TlsConnection",
    "UnixConnection",
    "WrongThreadError",
]
