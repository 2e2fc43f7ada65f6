"""psycopg_pool, with connections that are not psycopg's."""

from __future__ import annotations

from typing import Any

from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool

from benchmarks.contestants.base import PATIENCE, OpenPool


class _Psycopg:
    """What psycopg_pool needs of a connection."""

    autocommit = True

    @property
    def pgconn(self: Any) -> Any:
        return self

    @property
    def transaction_status(self: Any) -> TransactionStatus:
        return TransactionStatus.IDLE if self.is_connected() else TransactionStatus.UNKNOWN

    @property
    def closed(self: Any) -> bool:
        return not self.is_connected()

    @classmethod
    def connect(cls: Any, conninfo: str, **options: Any) -> Any:
        connection = cls(**options)
        connection.open()
        return connection

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _check(connection: Any) -> None:
    if not connection.is_alive():
        connection.close()
        raise ConnectionError("the connection is dead")


def open_pool(size: int, kind: type[Any], is_checked: bool, options: dict[str, Any]) -> OpenPool:
    pooled: Any = type("Pooled", (_Psycopg, kind), {})
    pool = ConnectionPool(
        "",
        connection_class=pooled,
        kwargs=options,
        min_size=0,
        max_size=size,
        timeout=PATIENCE,
        check=_check if is_checked else None,
        open=True,
    )
    return OpenPool(pool.getconn, pool.putconn, pool.close, pool.connection)
