"""A connection pool for gevent."""

from gsocketpool._lease import Lease
from gsocketpool.connection import Connection, StreamConnection, TcpConnection, TlsConnection, UnixConnection
from gsocketpool.events import PoolEvents
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
    "Lease",
    "LimitExceededError",
    "Pool",
    "PoolClosedError",
    "PoolError",
    "PoolEvents",
    "PoolExhaustedError",
    "PoolNotReadyError",
    "PoolStats",
    "StreamConnection",
    "TcpConnection",
    "TlsConnection",
    "UnixConnection",
    "WrongThreadError",
]
