"""The connector for psycopg 3, for PostgreSQL."""

from __future__ import annotations

import functools
import os
import time
import traceback
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, TypeAlias

try:
    import psycopg
except ImportError as _error:
    raise ImportError("PsycopgConnector needs psycopg: pip install 'gsocketpool[psycopg]'") from _error

from gevent.socket import wait_read, wait_readwrite
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import ConnStatus, ExecStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

from gsocketpool.connection import _sockets
from gsocketpool.connectors import Connector
from gsocketpool.connectors._base import CANCEL_TIMEOUT
from gsocketpool.connectors._urls import HIDDEN, QUOTED, is_ambiguous
from gsocketpool.exceptions import InvalidArgumentError
from gsocketpool.settings import check_count

PsycopgConnection: TypeAlias = "psycopg.Connection[Any]"

#: Seconds between two cancel requests, if the query has not ended.
CANCEL_PAUSE = 0.2

#: The options that a repr may show. All others may be secrets.
_DISPLAYABLE = ("service", "host", "hostaddr", "port", "user", "dbname")

#: Options of psycopg that are callables. They are passed on, not called.
_FACTORIES = ("row_factory", "cursor_factory")

#: The attributes that callers can set on a client without an exchange.
_SETTINGS = (
    *("autocommit", "isolation_level", "read_only", "deferrable"),
    *("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold", "prepared_max"),
)
_get_settings: Callable[[PsycopgConnection], tuple[Any, ...]] = attrgetter(*_SETTINGS)

#: The statuses of results that come one per statement. Others, such as those of a COPY, may come without end.
_COMPLETE = (ExecStatus.FATAL_ERROR, ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)

# Plain numbers: looking up an Enum member takes longer than comparing it, and comparing it longer than a number.
_IDLE, _INTRANS = TransactionStatus.IDLE.value, TransactionStatus.INTRANS.value
_INERROR, _ACTIVE = TransactionStatus.INERROR.value, TransactionStatus.ACTIVE.value
_UNKNOWN = TransactionStatus.UNKNOWN.value
_PIPELINE_OFF, _BAD = PipelineStatus.OFF.value, ConnStatus.BAD.value
_REUSABLE = (_IDLE, _INTRANS, _INERROR)

#: Its first result is whether prepared statements must end, too, because the caller prepared some by SQL or used
#: temporary tables. psycopg's own statements would fail on another table of the same name.
_RESET_SESSION = b"""
SELECT pg_catalog.pg_my_temp_schema() <> 0
    OR EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql);
CLOSE ALL;
SET SESSION AUTHORIZATION DEFAULT;
RESET ALL;
SELECT pg_catalog.pg_advisory_unlock_all();
DISCARD TEMP;
DISCARD SEQUENCES;
"""

_wait: Callable[..., Any] = psycopg.Connection.wait

#: Sets an attribute of a client without marking its settings as changed. Setting it in the client's __dict__ would make
#: all its attributes slower.
_set_unmarked = object.__setattr__


def _marks_changed(method: Callable[..., None]) -> Callable[..., None]:
    """Return a method that also marks the client's settings as changed."""

    @functools.wraps(method)
    def marking(self: _Connection, *arguments: Any) -> None:
        method(self, *arguments)
        self._may_have_changed = True

    return marking


class _Connection(psycopg.Connection[Any]):
    """psycopg's connection, which also notes whether its settings may have changed, and its transaction's last status.

    Comparing all settings after each use would take as long as all other work of giving a connection back. A statement
    that is cut short, or a lost connection, hides whether a transaction was open.
    """

    #: Its settings when it was connected.
    _initial_settings: tuple[Any, ...]
    #: Whether any attribute was set, or any handler added or removed, since the settings were last compared.
    _may_have_changed = True
    #: The transaction's status before the last exchange that began between two statements. A transaction of
    #: ``transaction()`` does not count, because that raises by itself.
    _last_status = _IDLE
    # Defaults for psycopg's own attributes, which not every version has.
    _num_transactions = 0
    _tpc = None
    _notifies_backlog: Any = None

    add_notice_handler = _marks_changed(psycopg.Connection.add_notice_handler)
    remove_notice_handler = _marks_changed(psycopg.Connection.remove_notice_handler)
    add_notify_handler = _marks_changed(psycopg.Connection.add_notify_handler)
    remove_notify_handler = _marks_changed(psycopg.Connection.remove_notify_handler)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        super().__setattr__("_may_have_changed", True)

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        status = self.pgconn.transaction_status
        if status != self._last_status and status in _REUSABLE and not self._num_transactions:
            _set_unmarked(self, "_last_status", status)
        # This runs for each statement, mostly without other arguments. super() or a call with stars would take longer.
        if arguments or options:
            return _wait(self, gen, *arguments, **options)
        return _wait(self, gen)


class PsycopgConnector(Connector[PsycopgConnection]):
    """Lets a pool handle psycopg's connections: ``Pool(PsycopgConnector("postgresql://…"))``.

    A block commits when it ends well, and rolls back when an exception leaves it. Import psycopg after gevent has
    patched Python; otherwise its waits block the process.

    :param conninfo: a URL or a key=value string, as for ``psycopg.connect()``.
    :param autocommit: whether each statement is a transaction of its own. If False, a block that only reads costs a
        BEGIN and a COMMIT.
    :param listens: True for connections that LISTEN while they are idle. The pool then can't notice that an idle
        connection has died, and ``reset="always"`` keeps the channels.
    :param configure: called with each new connection. Its work is committed, and a reset restores the settings that it
        makes on the client, such as ``row_factory``.
    :param options: other arguments of ``psycopg.connect()``. `conninfo` and each option, except ``row_factory`` and
        ``cursor_factory``, may be a callable, called for each new connection: ``password=read_password``.
    :raises InvalidArgumentError: for arguments that ``psycopg.connect()`` would refuse. It never shows a secret.
    """

    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        *,
        autocommit: bool | Callable[[], bool] = False,
        listens: bool = False,
        configure: Callable[[PsycopgConnection], object] | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(listens, bool):
            raise InvalidArgumentError("listens", listens, "True or False")
        if configure is not None and not callable(configure):
            raise InvalidArgumentError("configure", configure, "a callable or None")
        self._conninfo = conninfo
        self._options = {"autocommit": autocommit, **options}
        self._listens = listens
        self._configure = configure
        if not callable(conninfo):
            _check_conninfo(conninfo)
        for name, value in self._options.items():
            _check_name(name)
            if name in _FACTORIES or not callable(value):
                _check_option(name, value)

    def __repr__(self) -> str:
        given = {} if callable(self._conninfo) else conninfo_to_dict(self._conninfo)
        given.update({name: value for name, value in self._options.items() if value is not None})
        shown = [
            f"{name}={_displayed(given[name])}" for name in _DISPLAYABLE if name in given and not callable(given[name])
        ]
        return f"{type(self).__name__}({' '.join(shown)})"

    def connect(self) -> PsycopgConnection:
        """Return an open client. This calls `conninfo` and options that are callables."""
        conninfo = self._conninfo
        if callable(conninfo):
            conninfo = _check_conninfo(conninfo())
        options = {name: _option_value(name, value) for name, value in self._options.items()}
        try:
            connection = _Connection.connect(conninfo, **options)
        except BaseException as error:
            # The half-open socket is a local variable there, and gevent keeps the exception for a while.
            traceback.clear_frames(error.__traceback__)
            raise
        try:
            if self._configure is not None:
                self._configure(connection)
                self.complete(connection)
            settings, *handlers = _current_settings(connection)
            connection._initial_settings = (settings, *map(list, handlers))
        except BaseException:
            connection.close()
            raise
        return connection

    def is_settled(self, connection: PsycopgConnection) -> bool:
        """Return whether no transaction is open, and the client's settings are those of :meth:`connect`.

        Unless connections listen, no notification may be left, either.
        """
        if connection.pgconn.transaction_status != _IDLE:
            return False
        if connection._may_have_changed:  # type: ignore[attr-defined]
            if _current_settings(connection) != connection._initial_settings:  # type: ignore[attr-defined]
                return False
            _set_unmarked(connection, "_may_have_changed", False)
        ours: Any = connection
        return self._listens or not ours._notifies_backlog

    def complete(self, connection: PsycopgConnection) -> None:
        """Commit. As in psycopg's own ``with`` block, this rolls back if a statement in the transaction has failed.

        If the block caught an exception that interrupted an exchange, such as a Timeout, or left a ``stream()``
        unfinished, this raises, and nothing is committed. In autocommit mode, it does so if the block has said BEGIN.
        """
        status = connection.pgconn.transaction_status
        # Without a transaction, there is nothing to commit.
        if status == _IDLE:
            return
        # In autocommit mode, all complete statements are committed, unless the block has said BEGIN.
        is_over = status in (_ACTIVE, _UNKNOWN)
        if is_over and connection.autocommit and connection._last_status == _IDLE:  # type: ignore[attr-defined]
            return
        # If the block has closed the connection, the server has rolled back.
        if connection.closed and not connection.broken:
            return
        if connection.lock.locked():
            # commit() would wait for the lock, for ever if a generator holds it that the caller keeps.
            raise psycopg.OperationalError("nothing is committed: a stream or a statement has not ended")
        connection.commit()

    def reset(self, connection: PsycopgConnection) -> None:
        """Roll back, restore the client's settings and, unless connections listen, drop notifications."""
        if connection.pgconn.transaction_status != _IDLE:
            connection.rollback()
        self._restore(connection)
        if not self._listens:
            _drop_notifications(connection)

    def reset_session(self, connection: PsycopgConnection) -> None:
        """Reset the session: settings, advisory locks, temporary tables, LISTEN, prepared statements and sequences.

        Statements that psycopg itself has prepared are kept, unless a temporary table was used.
        """
        if not self.is_settled(connection):
            self.reset(connection)
        must_forget, *_ = _execute(connection, _RESET_SESSION if self._listens else _RESET_SESSION + b"UNLISTEN *;")
        if must_forget.get_value(0, 0) != b"f":
            _execute(connection, b"BEGIN; DEALLOCATE ALL")
            # This makes psycopg forget its own statements. No other public way exists in all of its versions.
            connection.rollback()
        if not self._listens:
            _drop_notifications(connection)

    def is_reusable(self, connection: PsycopgConnection, error: BaseException | None) -> bool:
        """Return whether the connection is open and no reply is outstanding, whatever error has left the block."""
        pgconn = connection.pgconn
        return (
            # The status is UNKNOWN if the connection is closed.
            pgconn.transaction_status in _REUSABLE
            and pgconn.pipeline_status == _PIPELINE_OFF
            # A suspended generator, such as that of notifies(), holds the lock.
            and not connection.lock.locked()
            # In transaction() and in a two-phase transaction, psycopg refuses both commit() and rollback().
            and not connection._num_transactions
            and connection._tpc is None
        )

    def peek_target(self, connection: PsycopgConnection) -> int | None:
        """Return the descriptor; -1 if the connection is closed; None if it may receive notifications while idle."""
        if self._listens:
            return None
        try:
            return connection.pgconn.socket
        except psycopg.OperationalError:
            return -1

    def abort(self, connection: PsycopgConnection) -> None:
        """Cut a connection off without a goodbye."""
        _sockets.replace(_descriptor(connection))

    def cancel(self, connection: PsycopgConnection) -> None:
        """Cancel the running query, if libpq can do so without blocking the process, as version 17 and later can."""
        # Repeatedly, because a busy server ignores a request that arrives before the query has started.
        while connection.pgconn.transaction_status == _ACTIVE and _can_cancel():
            connection.cancel_safe(timeout=CANCEL_TIMEOUT)
            if _ends_soon(connection.pgconn):
                return

    def ping(self, connection: PsycopgConnection) -> None:
        """Send an empty query outside of any transaction."""
        autocommit = connection.autocommit
        if not autocommit:
            connection.autocommit = True
        connection.execute("")
        # After an error the connection is discarded, so no finally.
        if not autocommit:
            connection.autocommit = False

    def _restore(self, connection: PsycopgConnection) -> None:
        settings, *given = connection._initial_settings  # type: ignore[attr-defined]
        for name, value in zip(_SETTINGS, settings, strict=True):
            if getattr(connection, name) != value:
                setattr(connection, name, value)
        _, *present = _current_settings(connection)
        for kind, handlers, wanted in zip(("notice", "notify"), present, given, strict=True):
            for handler in list(handlers):
                getattr(connection, f"remove_{kind}_handler")(handler)
            for handler in wanted:
                getattr(connection, f"add_{kind}_handler")(handler)


def _current_settings(connection: PsycopgConnection) -> tuple[Any, ...]:
    """Return the settings of a client that callers can change: :data:`_SETTINGS`, and the lists of its handlers."""
    return (
        _get_settings(connection),
        # There is no public list of handlers.
        getattr(connection, "_notice_handlers", []),
        getattr(connection, "_notify_handlers", []),
    )


def _execute(connection: PsycopgConnection, script: bytes) -> list[PGresult]:
    """Execute statements and return their results.

    This is faster than a cursor, whose class callers may have replaced, and than psycopg's own way to wait.
    """
    pgconn = connection.pgconn
    pgconn.send_query(script)
    while pgconn.flush():  # pragma: no cover - the scripts fit into the socket's buffer, unless a caller has filled it
        wait_readwrite(pgconn.socket)
        pgconn.consume_input()
    results: list[PGresult] = []
    while True:
        while pgconn.is_busy():
            wait_read(pgconn.socket)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return results
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result)
        results.append(result)


def _ends_soon(pgconn: PGconn) -> bool:
    """Return whether the running query ends within :data:`CANCEL_PAUSE`."""
    deadline = time.monotonic() + CANCEL_PAUSE
    while (left := deadline - time.monotonic()) > 0:
        try:
            wait_read(pgconn.socket, timeout=left)
        except TimeoutError:
            break
        pgconn.consume_input()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            # A COPY would return results without end.
            if result is None or result.status not in _COMPLETE:
                return True
    return False


def _drop_notifications(connection: PsycopgConnection) -> None:
    """Drop the notifications received so far, which were meant for the last caller."""
    while connection.pgconn.notifies():
        pass
    # Newer versions also keep a backlog of notifications received during statements.
    ours: Any = connection
    if ours._notifies_backlog:
        ours._notifies_backlog.clear()


def _descriptor(connection: PsycopgConnection) -> int:
    pgconn = connection.pgconn
    return -1 if pgconn.status == _BAD else pgconn.socket


def _displayed(value: object) -> str:
    """Return a value for a repr, hidden if it may be a connection string, which libpq accepts as a dbname."""
    return HIDDEN if "://" in str(value) or "=" in str(value) else str(value)


def _can_cancel() -> bool:
    capabilities = getattr(psycopg, "capabilities", None)
    return capabilities is not None and capabilities.has_cancel_safe()


def _option_value(name: str, value: Any) -> Any:
    """Return the value of an option, by calling it if it is a callable."""
    return _check_option(name, value()) if callable(value) and name not in _FACTORIES else value


def _check_conninfo(conninfo: Any) -> str:
    if not isinstance(conninfo, str):
        raise InvalidArgumentError("conninfo", type(conninfo), "a str, or a callable that returns one")
    if not _is_parsed(conninfo, {}):
        raise InvalidArgumentError("conninfo", HIDDEN, "a URL or a key=value string that libpq can read")
    # Each host has a port, which may be empty.
    ports = str(conninfo_to_dict(conninfo).get("port") or "").replace(",", "")
    is_url = "://" in conninfo.partition("=")[0]
    if is_url and (is_ambiguous(conninfo) or (ports and not ports.isdigit())):
        raise InvalidArgumentError("conninfo", HIDDEN, QUOTED)
    return conninfo


def _check_name(name: str) -> None:
    if name not in ("autocommit", "prepare_threshold", "context", *_FACTORIES) and not _is_parsed("", {name: ""}):
        raise InvalidArgumentError(name, HIDDEN, "an option of psycopg.connect() or a parameter of libpq")


def _check_option(name: str, value: Any) -> Any:
    if name == "autocommit":
        if not isinstance(value, bool):
            raise InvalidArgumentError(name, value, "True or False, or a callable that returns one")
    elif name == "prepare_threshold":
        if value is not None:
            check_count(name, value, otherwise=", or None to prepare nothing")
    elif name in _FACTORIES:
        if value is not None and not callable(value):
            raise InvalidArgumentError(name, value, "a callable or None")
    elif name != "context" and not isinstance(value, str | int | float | os.PathLike | None):
        # Only the type, because the value may be a password.
        raise InvalidArgumentError(name, type(value), "a str, a number or None, or a callable that returns one")
    return value


def _is_parsed(conninfo: str, options: Mapping[str, str]) -> bool:
    # libpq's error may quote a password, and must not even be the context of ours.
    try:
        make_conninfo(conninfo, **options)
    except psycopg.Error:
        return False
    return True
