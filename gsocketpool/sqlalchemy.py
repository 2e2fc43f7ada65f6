"""A pool for SQLAlchemy's engines: ``create_engine(url, poolclass=GeventPool)``.

SQLAlchemy makes, pings, resets and invalidates the connections, and fires its events. The pool decides which caller
gets a connection, and when.
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
    from sqlalchemy.pool.base import _ConnectionFairy, _ConnectionRecord
except ImportError as _error:
    raise ImportError("gsocketpool.sqlalchemy needs SQLAlchemy 2: pip install 'gsocketpool[sqlalchemy]'") from _error

#: psycopg's TransactionStatus.ACTIVE: a statement is under way.
ACTIVE = 1

ALWAYS_LIMITED = "; a pool always has a limit, which is pool_size + max_overflow"


class EngineExhaustedError(exc.TimeoutError, PoolExhaustedError):
    """No connection was available in time.

    This is a ``TimeoutError`` of SQLAlchemy with the attributes of a :exc:`~gsocketpool.PoolExhaustedError`.
    """

    def __init__(self, message: str, **numbers: Any) -> None:
        # SQLAlchemy's code, for the link to its page about the error.
        super().__init__(message, code="3o7r")
        vars(self).update(numbers)


class GeventPool(EnginePool):
    """The pool of an engine: ``create_engine(url, poolclass=GeventPool)``.

    The arguments of SQLAlchemy's ``QueuePool`` keep their meanings and, in ``create_engine()``, their names. Waiters
    are served first come, first served. The pool detects dead idle connections without a ping, and replaces them. Each
    thread has its own connections and its own limit.

    :param pool_size: how many idle connections the pool keeps.
    :param max_overflow: how many more may be open at the same time. They are closed when they come back, unless a
        greenlet waits.
    :param timeout: (``pool_timeout``) seconds that waiting for a connection and opening one may take together; None for
        no limit. With 0, a caller does not wait for a connection to come back, but for a new one if the limit allows.
    :param use_lifo: (``pool_use_lifo``) always True: a caller gets the idle connection that was used last.
    :param recycle: (``pool_recycle``) seconds after its opening when a connection is replaced, less a random share of
        up to 10 %; -1 for no limit.
    :param max_waiting: as for :class:`~gsocketpool.Pool`.
    :param idle_timeout: as for :class:`~gsocketpool.Pool`.
    :param open_timeout: as for :class:`~gsocketpool.Pool`.
    :param leak_threshold: as for :class:`~gsocketpool.Pool`.
    :param keepalive_interval: as for :class:`~gsocketpool.Pool`, with the dialect's ping, as for ``pre_ping``.
    :param arguments: the arguments of every SQLAlchemy pool, such as ``pre_ping``.
    :raises InvalidArgumentError: if an argument is out of its range, or would make a pool without a limit.
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
            raise InvalidArgumentError("use_lifo", use_lifo, "True")
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
            # Callers for which a connection is being opened don't count as waiting.
            self._settings.update(acquire_timeout=None, max_waiting=0)
        # gevent's version would be local to a greenlet.
        self._thread_local = get_original("threading", "local")()
        #: The pools of all threads. A list, because a WeakSet must not change while another thread iterates over it.
        self._pools: list[weakref.ref[_Pool]] = []
        # Fail early if a setting is wrong.
        self._make_pool()

    def _make_pool(self) -> _Pool:
        pool: _Pool = _Pool(_RecordConnector(weakref.ref(self)), self._pool_size, self._settings)
        self._thread_local.pool = pool
        self._pools.append(weakref.ref(pool, self._pools.remove))
        return pool

    @property
    def gevent_pool(self) -> Pool[ConnectionPoolEntry]:
        """The pool of the calling thread, for example for its ``stats()``."""
        return self._thread_pool()

    def _thread_pool(self) -> _Pool:
        try:
            pool: _Pool = self._thread_local.pool
        except AttributeError:
            return self._make_pool()
        return pool

    # Called by SQLAlchemy

    def _create_connection(self) -> ConnectionPoolEntry:
        weakly: Any = _WeakPool(self)
        return _Record(weakly)

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
        # The pool has taken it back: its greenlet had ended, or the process was forked.

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        pool = getattr(self._thread_local, "pool", None)
        # After a fork, the pool no longer has the parent's connections.
        if terminate and _is_executing(connection) and pool is not None and pool.has(connection):
            # After a mere close, the server would go on with the statement.
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
        """Close the calling thread's idle connections now, and those in use when they come back."""
        pool = self._thread_pool()
        if pool.size:
            pool.drain()
        self.logger.info("Pool disposed. %s", self.status())

    def status(self) -> str:
        """Return a description of the pool's state."""
        stats = self.gevent_pool.stats()
        return (
            f"Pool size: {self.size()}  Connections in pool: {stats.idle} Current Overflow: {self.overflow()}"
            f" Current Checked out connections: {stats.in_use} Current Waiting greenlets: {stats.waiting}"
        )

    def size(self) -> int:
        """Return how many idle connections the pool keeps."""
        return self._pool_size

    def timeout(self) -> float | None:
        """Return the seconds that a checkout may take; None for no limit."""
        return self._arguments["timeout"]

    def checkedin(self) -> int:
        """Return how many connections are idle."""
        return self.gevent_pool.stats().idle

    def checkedout(self) -> int:
        """Return how many connections are in use."""
        return self.gevent_pool.stats().in_use

    def overflow(self) -> int:
        """Return how many connections exist beyond `pool_size`; negative if there are fewer."""
        return self.gevent_pool.size - self._pool_size


class _WeakPool:
    """A weak proxy for the engine's pool, for its records, so that engines can be collected.

    Background greenlets hold the state, and the state holds the records. Once the pool is gone, ``weakref.proxy`` would
    raise even when asked for its class.
    """

    def __init__(self, pool: GeventPool) -> None:
        self._pool = weakref.ref(pool)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool(), name)


class _Record(_ConnectionRecord):
    """A connection record of SQLAlchemy that returns by itself when its user loses the proxy.

    The garbage collector may find the proxy at any point of any code. SQLAlchemy would roll back there, which switches
    greenlets. Instead, the pool takes the record back, and resets it in a greenlet.

    It also returns if an exception cuts its check-in short. SQLAlchemy would lose its place.
    """

    # Before it rolls back, SQLAlchemy 2.1 reads `needs_gc`, and 2.0 compares `fairy_ref` with its own reference. Here
    # the former says no, and the latter differs.
    needs_gc = False

    def __init__(self, pool: Any) -> None:
        # First, because SQLAlchemy connects here.
        self._weak_pool = pool
        super().__init__(pool)

    @property
    def fairy_ref(self) -> weakref.ref[_ConnectionFairy] | None:
        return self._proxy

    @fairy_ref.setter
    def fairy_ref(self, reference: weakref.ref[_ConnectionFairy] | None) -> None:
        proxy = None if reference is None else reference()
        self._proxy: weakref.ref[_ConnectionFairy] | None = None
        if proxy is not None:
            # A strong reference, like the proxy's own: the pool must outlive the proxy.
            pool: Any = proxy._pool
            self._proxy = weakref.ref(proxy, lambda _: pool._do_return_conn(self))

    def checkin(self, *arguments: Any, **options: Any) -> None:
        try:
            super().checkin(*arguments, **options)
        except BaseException as error:
            # For example a Timeout, while the isolation level is reset.
            try:
                self.invalidate(error)
            finally:
                self._weak_pool._do_return_conn(self)
            raise


class _Pool(Pool[ConnectionPoolEntry]):
    """The pool of one thread. Its connections are SQLAlchemy's connection records."""

    def __init__(self, records: _RecordConnector, pool_size: int, settings: dict[str, Any]) -> None:
        super().__init__(records, reset="unsettled", **settings)
        self._pool_size = pool_size

    def give_back(self, record: ConnectionPoolEntry) -> bool:
        """Give a record back, from any thread, without switching. Return False if it is not in use here."""
        entry = self._state.find(record, IN_USE)
        if entry is None:
            return False
        if current.thread is self._thread:
            self._give_back(entry, entry.generation)
        else:
            self._run_in_owner(entry, self._give_back, entry, entry.generation)
        return True

    def _give_back(self, entry: Entry, generation: int) -> None:
        if not entry.is_leased(generation):  # pragma: no cover - another thread's pool may have taken it back meanwhile
            return
        if self._state.changing:
            self._defer(self._give_back, entry, generation)
        elif entry.connection._is_hard_or_soft_invalidated():
            # SQLAlchemy has closed it, would close it at its next use, or has detached it.
            self._lifecycle.remove(entry, DISCARDED, "invalidated")
        elif len(self._state.idle) + self._state.resetting >= self._pool_size and not self._state.waiters:
            self._lifecycle.remove(entry, RETIRED, "surplus")
        else:
            self._check_in(entry, generation, None)

    def has(self, connection: Any) -> bool:
        """Return whether a driver connection is in use here."""
        return any(entry.connection.dbapi_connection is connection for entry in self._state.entries_in_use())

    def cancel_and_close(self, connection: Any) -> None:
        """Cancel the server's work for a driver connection, and close it, in the background. This does not switch."""
        self._closer.add(_InterruptedRecord(connection), cancel=True)
        self._run_callback(self._closer.start)


class _InterruptedRecord:
    """Replaces the record of a driver connection that SQLAlchemy terminates in the middle of a statement."""

    def __init__(self, connection: Any) -> None:
        self.dbapi_connection = connection

    def close(self) -> None:
        self.dbapi_connection.close()


class _RecordConnector(Connector[ConnectionPoolEntry]):
    """Handles records. It refers weakly to the engine's pool, so that the pool can be collected."""

    def __init__(self, pool: weakref.ref[GeventPool]) -> None:
        self._pool = pool

    def connect(self) -> ConnectionPoolEntry:
        pool = self._pool()
        if pool is None:  # pragma: no cover - it may be collected while the opening begins
            raise PoolClosedError("the engine was collected")
        record = pool._create_connection()
        if record._is_hard_or_soft_invalidated():  # type: ignore[attr-defined]
            # Meanwhile another connection was lost. SQLAlchemy would reopen this one in the caller's greenlet, without
            # a time limit.
            record.close()
            record = pool._create_connection()
        return record

    def is_settled(self, record: ConnectionPoolEntry) -> bool:
        # SQLAlchemy has reset the connections that it checked in: all except the lost ones.
        return not record.in_use

    def reset(self, record: ConnectionPoolEntry) -> None:
        pool = self._pool()
        connection: Any = record.dbapi_connection
        if pool is not None and connection is not None:  # pragma: no branch - the engine may be collected meanwhile
            lost: Any = record
            # This resets the connection as SQLAlchemy does, and checks it in, which the pool ignores.
            _ConnectionFairy(pool, connection, lost, pool._should_log_debug())._checkin()

    def is_reusable(self, record: ConnectionPoolEntry, error: BaseException | None) -> bool:
        return not _is_executing(record.dbapi_connection)

    def peek_target(self, record: ConnectionPoolEntry) -> Any:
        # SQLAlchemy would reopen an invalid one in the caller's greenlet, without a time limit.
        invalid: bool = record._is_hard_or_soft_invalidated()  # type: ignore[attr-defined]
        return -1 if invalid else _socket_of(record.dbapi_connection)

    def cancel(self, record: ConnectionPoolEntry) -> None:
        if _is_executing(record.dbapi_connection):
            _cancel(record.dbapi_connection)

    def close(self, record: ConnectionPoolEntry) -> None:
        pool = self._pool()
        if pool is not None:
            record.close()
        elif record.dbapi_connection is not None:  # pragma: no branch - SQLAlchemy may have closed it
            # Without its pool, the record can't close itself.
            record.dbapi_connection.close()

    def abort(self, record: ConnectionPoolEntry) -> None:
        _sockets.replace(_socket_of(record.dbapi_connection))

    def ping(self, record: ConnectionPoolEntry) -> None:
        pool = self._pool()
        connection: Any = record.dbapi_connection
        if pool is not None and connection is not None:  # pragma: no branch - the engine may be collected meanwhile
            dialect: Any = pool._dialect
            # Without an engine there is no dialect, and no ping.
            if hasattr(dialect, "do_ping"):
                dialect.do_ping(connection)
                # With many drivers, a ping begins a transaction.
                dialect.do_rollback(connection)


def _socket_of(connection: Any) -> Any:
    """Return the socket or descriptor of a driver connection; -1 if it is closed; None if it has none, like SQLite."""
    fileno = getattr(connection, "fileno", None)
    if callable(fileno):
        try:
            return fileno()
        except Exception:
            # psycopg raises if the connection is closed.
            return -1
    if not hasattr(connection, "_sock"):
        return None
    # PyMySQL sets _sock to None when it closes.
    return -1 if connection._sock is None else connection._sock


def _is_executing(connection: Any) -> bool:
    """Return whether the server is at work for a psycopg connection; False for other drivers, which can't tell."""
    return getattr(getattr(connection, "pgconn", None), "transaction_status", None) == ACTIVE


def _cancel(connection: Any) -> None:
    # _is_executing() is True only for psycopg connections.
    from gsocketpool.connectors.psycopg import PsycopgConnector

    PsycopgConnector().cancel(connection)
