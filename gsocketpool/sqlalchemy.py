"""A pool for SQLAlchemy's engines: ``create_engine(url, poolclass=GeventPool)``.

SQLAlchemy keeps what it does well: it makes the connections, pings, resets and invalidates them, and tells its events.
The pool below decides who gets which connection and when.
"""

from __future__ import annotations

import weakref
from typing import Any

from gevent.monkey import get_original

from gsocketpool._records import IN_USE, Entry
from gsocketpool._state import DISCARDED, RETIRED
from gsocketpool._threads import current
from gsocketpool.connection import _sockets
from gsocketpool.connectors import Connector
from gsocketpool.exceptions import InvalidArgumentError, PoolClosedError, PoolExhaustedError
from gsocketpool.pool import Pool
from gsocketpool.settings import NO_LIMIT, check_count, check_seconds

try:
    from sqlalchemy import exc
    from sqlalchemy.pool import ConnectionPoolEntry
    from sqlalchemy.pool import Pool as EnginePool
except ImportError as error:
    raise ImportError("gsocketpool.sqlalchemy needs SQLAlchemy 2: pip install 'gsocketpool[sqlalchemy]'") from error

#: psycopg's TransactionStatus.ACTIVE: a statement is under way.
ACTIVE = 1

ALWAYS_LIMITED = "; a pool always has a limit, which is pool_size + max_overflow"


class EngineExhaustedError(exc.TimeoutError, PoolExhaustedError):
    """No connection could be had in time.

    It is SQLAlchemy's own ``TimeoutError``, and has what a :exc:`~gsocketpool.PoolExhaustedError` tells.
    """

    def __init__(self, message: str, **numbers: Any) -> None:
        # This is SQLAlchemy's code for its page about the error.
        super().__init__(message, code="3o7r")
        vars(self).update(numbers)


class GeventPool(EnginePool):
    """Gives an engine its connections: ``create_engine(url, poolclass=GeventPool)``.

    The arguments of SQLAlchemy's ``QueuePool`` keep their meaning and, for ``create_engine()``, their names. Waiting
    greenlets are served in the order in which they came. An idle connection that has died is noticed without a ping,
    and replaced. Each thread has connections, and a limit, of its own.

    :param pool_size: how many idle connections are kept.
    :param max_overflow: how many more may be open at the same time. They are closed when they come back, unless a
        greenlet waits.
    :param timeout: (``pool_timeout``) seconds that waiting for a connection and opening one may take together; None for
        no limit. With 0 a caller waits for none to come back, but has one opened where the limit allows.
    :param use_lifo: (``pool_use_lifo``) always True: the connection that was used last is taken.
    :param recycle: (``pool_recycle``) seconds from its opening after which a connection is replaced, less a random
        share of up to 10 %; -1 for no limit.
    :param max_waiting: as for :class:`~gsocketpool.Pool`.
    :param idle_timeout: as for :class:`~gsocketpool.Pool`.
    :param open_timeout: as for :class:`~gsocketpool.Pool`.
    :param leak_threshold: as for :class:`~gsocketpool.Pool`.
    :param keepalive_interval: as for :class:`~gsocketpool.Pool`; the ping is that of the dialect, as for ``pre_ping``.
    :param arguments: those of every pool of SQLAlchemy's, such as ``pre_ping``.
    :raises InvalidArgumentError: if an argument is out of its range, or asks for a pool without a limit.
    """

    _is_asyncio = False

    def __init__(
        self,
        creator: Any,
        pool_size: int = 5,
        max_overflow: int = 10,
        timeout: float | None = 30.0,
        use_lifo: bool = True,
        recycle: float = -1,
        max_waiting: int | None = None,
        idle_timeout: float | None = None,
        open_timeout: float | None = 10.0,
        leak_threshold: float | None = None,
        keepalive_interval: float | None = None,
        **arguments: Any,
    ) -> None:
        check_count("pool_size", pool_size, least=1, otherwise=ALWAYS_LIMITED)
        check_count("max_overflow", max_overflow, otherwise=ALWAYS_LIMITED)
        if use_lifo is not True:
            raise InvalidArgumentError("use_lifo", use_lifo, "True: the connection that was used last is taken")
        if timeout is not None:
            check_seconds("timeout", timeout, zero=True, otherwise=NO_LIMIT)
        if recycle != -1:
            check_seconds("recycle", recycle, zero=True, otherwise=", or -1 for no limit")
        super().__init__(creator, recycle=recycle, **arguments)  # type: ignore[arg-type]
        self._pool_size = pool_size
        #: What :meth:`recreate` needs.
        self._arguments = {
            "pool_size": pool_size,
            "max_overflow": max_overflow,
            "timeout": timeout,
            "recycle": recycle,
            "max_waiting": max_waiting,
            "idle_timeout": idle_timeout,
            "open_timeout": open_timeout,
            "leak_threshold": leak_threshold,
            "keepalive_interval": keepalive_interval,
        }
        self._settings: dict[str, Any] = {
            "name": self._orig_logging_name or "sqlalchemy",
            "max_connections": pool_size + max_overflow,
            "acquire_timeout": timeout,
            "max_waiting": max_waiting,
            "max_lifetime": recycle if recycle > 0 else None,
            "idle_timeout": idle_timeout,
            "open_timeout": open_timeout,
            "leak_threshold": leak_threshold,
            "keepalive_interval": keepalive_interval,
        }
        if timeout == 0:
            # Those that a connection is opened for don't count as waiting.
            self._settings.update(acquire_timeout=None, max_waiting=0)
        # Patched, it would be local to a greenlet.
        self._thread_local = get_original("threading", "local")()
        #: The pools of all threads. A list, for a WeakSet must not lose a member while another thread reads it.
        self._pools: list[weakref.ref[_Pool]] = []
        # What is wrong with a setting is said now.
        self._make_pool()

    def _make_pool(self) -> _Pool:
        pool: _Pool = _Pool(_RecordConnector(weakref.ref(self)), self._pool_size, self._settings)
        self._thread_local.pool = pool
        self._pools.append(weakref.ref(pool, self._pools.remove))
        return pool

    @property
    def gevent_pool(self) -> Pool[ConnectionPoolEntry]:
        """The pool of the calling thread, for its ``stats()``."""
        return self._thread_pool()

    def _thread_pool(self) -> _Pool:
        try:
            pool: _Pool = self._thread_local.pool
        except AttributeError:
            return self._make_pool()
        return pool

    # What SQLAlchemy calls

    def _create_connection(self) -> ConnectionPoolEntry:
        weakly: Any = _WeakPool(self)
        return EnginePool._create_connection(weakly)

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return self._thread_pool().acquire()
        except PoolExhaustedError as error:
            raise EngineExhaustedError(str(error), **vars(error)) from None

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        pool = getattr(self._thread_local, "pool", None)
        if pool is not None and pool.give_back(record):
            return
        for reference in self._pools[:]:
            pool = reference()
            if pool is not None and pool.give_back(record):
                return
        # It was taken back: its greenlet has ended, or the process was forked.

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        pool = getattr(self._thread_local, "pool", None)
        # After a fork, the pool does not have those of the parent any more.
        if terminate and _is_executing(connection) and pool is not None and pool.has(connection):
            # Closing alone would leave the server at work.
            pool.cancel_and_close(connection)
        else:
            super()._close_connection(connection, terminate=terminate)

    def recreate(self) -> GeventPool:
        """Return a new pool with the same arguments."""
        self.logger.info("Pool recreating")
        return type(self)(
            self._creator,
            **self._arguments,  # type: ignore[arg-type]
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        """Close the idle connections of the calling thread, and those in use when they come back."""
        pool = self._thread_pool()
        if pool.size:
            pool.drain()
        self.logger.info("Pool disposed. %s", self.status())

    def status(self) -> str:
        """Return what the pool is doing, in words."""
        stats = self.gevent_pool.stats()
        return (
            f"Pool size: {self.size()}  Connections in pool: {stats.idle} Current Overflow: {self.overflow()}"
            f" Current Checked out connections: {stats.in_use} Current Waiting greenlets: {stats.waiting}"
        )

    def size(self) -> int:
        """Return how many idle connections are kept."""
        return self._pool_size

    def timeout(self) -> float | None:
        """Return the seconds that a checkout may take."""
        return self._arguments["timeout"]

    def checkedin(self) -> int:
        """Return how many connections are idle."""
        return self.gevent_pool.stats().idle

    def checkedout(self) -> int:
        """Return how many connections are in use."""
        return self.gevent_pool.stats().in_use

    def overflow(self) -> int:
        """Return how many connections there are beyond `pool_size`; a negative number if there are fewer."""
        return self.gevent_pool.size - self._pool_size


class _WeakPool:
    """Stands for an engine's pool in its records.

    These belong to the state, which greenlets in the background hold: otherwise no engine would be collected. Python's
    own proxy does not even let itself be asked for its type once the object has gone.
    """

    def __init__(self, pool: GeventPool) -> None:
        self._pool = weakref.ref(pool)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool(), name)


class _Pool(Pool[ConnectionPoolEntry]):
    """The records of one thread. A record is SQLAlchemy's own object for a connection."""

    def __init__(self, records: _RecordConnector, pool_size: int, settings: dict[str, Any]) -> None:
        super().__init__(records, reset="never", **settings)
        self._pool_size = pool_size

    def give_back(self, record: ConnectionPoolEntry) -> bool:
        """Give a record back, from any thread. Return False if it is not in use here. This does not switch."""
        entry = self._state.find(record, IN_USE)
        if entry is None:
            return False
        if current.thread is self._thread:
            self._give_back(entry, entry.generation)
        else:
            self._run_in_owner(entry, self._give_back, entry, entry.generation)
        return True

    def _give_back(self, entry: Entry, generation: int) -> None:
        if not entry.is_leased(generation):
            return
        if self._state.changing:
            self._defer(self._give_back, entry, generation)
        elif entry.connection._is_hard_or_soft_invalidated():
            # SQLAlchemy has closed it or would at its next use, or the caller has detached it.
            self._lifecycle.remove(entry, DISCARDED, "invalidated")
        elif len(self._state.idle) + self._state.resetting >= self._pool_size and not self._state.waiters:
            self._lifecycle.remove(entry, RETIRED, "surplus")
        else:
            self._check_in(entry, generation, None)

    def has(self, connection: Any) -> bool:
        """Return whether a connection of the driver's is in use here."""
        return any(entry.connection.dbapi_connection is connection for entry in self._state.entries_in_use())

    def cancel_and_close(self, connection: Any) -> None:
        """Have the server cancel what it does for a connection of the driver's, and close that. It does not switch."""
        self._closer.add(_InterruptedRecord(connection), cancel=True)
        self._run_callback(self._closer.start)


class _InterruptedRecord:
    """Stands for the record of a connection that SQLAlchemy has given up in the middle of a statement."""

    def __init__(self, connection: Any) -> None:
        self.dbapi_connection = connection

    def close(self) -> None:
        self.dbapi_connection.close()


class _RecordConnector(Connector[ConnectionPoolEntry]):
    """Handles records. It knows the engine's pool weakly, so that this can be collected."""

    def __init__(self, pool: weakref.ref[GeventPool]) -> None:
        self._pool = pool

    def connect(self) -> ConnectionPoolEntry:
        pool = self._pool()
        if pool is None:
            raise PoolClosedError("the engine was collected")
        return pool._create_connection()

    def is_settled(self, record: ConnectionPoolEntry) -> bool:
        # SQLAlchemy has reset it.
        return True

    def is_reusable(self, record: ConnectionPoolEntry, error: BaseException | None) -> bool:
        return not _is_executing(record.dbapi_connection)

    def peek_target(self, record: ConnectionPoolEntry) -> Any:
        # SQLAlchemy would open an invalid one anew in the caller's greenlet, for as long as that takes.
        invalid: bool = record._is_hard_or_soft_invalidated()  # type: ignore[attr-defined]
        return -1 if invalid else _socket_of(record.dbapi_connection)

    def cancel(self, record: ConnectionPoolEntry) -> None:
        if _is_executing(record.dbapi_connection):
            _cancel(record.dbapi_connection)

    def close(self, record: ConnectionPoolEntry) -> None:
        pool = self._pool()
        if pool is not None:
            record.close()
        elif record.dbapi_connection is not None:
            # Without its pool, the record can't.
            record.dbapi_connection.close()

    def abort(self, record: ConnectionPoolEntry) -> None:
        _sockets.replace(_socket_of(record.dbapi_connection))

    def ping(self, record: ConnectionPoolEntry) -> None:
        pool = self._pool()
        connection: Any = record.dbapi_connection
        if pool is not None and connection is not None:
            dialect: Any = pool._dialect
            # Without an engine there is no dialect, and no ping.
            if hasattr(dialect, "do_ping"):
                dialect.do_ping(connection)
                # With many drivers a ping begins a transaction.
                dialect.do_rollback(connection)


def _socket_of(connection: Any) -> Any:
    """Return the socket or the descriptor of a driver's connection; None if it has none to show, as SQLite's.

    It is -1 if the connection is closed.
    """
    fileno = getattr(connection, "fileno", None)
    if callable(fileno):
        try:
            return fileno()
        except Exception:
            # That of psycopg, for one.
            return -1
    if not hasattr(connection, "_sock"):
        return None
    # PyMySQL has none once it is closed.
    return -1 if connection._sock is None else connection._sock


def _is_executing(connection: Any) -> bool:
    """Return whether the server is still at work for a connection of psycopg's. Other drivers can't tell."""
    return getattr(getattr(connection, "pgconn", None), "transaction_status", None) == ACTIVE


def _cancel(connection: Any) -> None:
    # Only psycopg's connections come here.
    from gsocketpool.connectors.psycopg import PsycopgConnector

    PsycopgConnector().cancel(connection)
