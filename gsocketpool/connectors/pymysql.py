"""The connector for PyMySQL, for MySQL and MariaDB."""

from __future__ import annotations

import configparser
import functools
import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias
from urllib.parse import unquote

import gevent.socket

try:
    import pymysql
except ImportError as _error:
    raise ImportError("PyMySQLConnector needs PyMySQL: pip install 'gsocketpool[pymysql]'") from _error

from gsocketpool.connection import _sockets
from gsocketpool.connectors import Connector, _urls
from gsocketpool.connectors._urls import HIDDEN
from gsocketpool.exceptions import InvalidArgumentError

PyMySQLConnection: TypeAlias = "pymysql.connections.Connection[Any]"

_Base: Any = pymysql.connections.Connection
_write_bytes: Callable[..., None] = _Base._write_bytes

_SCHEMES = ("mysql", "mariadb")
#: The protocol's command to reset a session, which PyMySQL does not define.
_COM_RESET_CONNECTION = 0x1F
_IN_TRANSACTION = pymysql.constants.SERVER_STATUS.SERVER_STATUS_IN_TRANS

#: The arguments that reprs, and errors, may show. All others may be secrets.
_DISPLAYABLE = ("host", "port", "unix_socket", "user", "database")
_DISPLAYABLE_IN_ERRORS = (*_DISPLAYABLE, "charset", "connect_timeout", "read_timeout", "write_timeout")

#: Arguments that are a number, true or false in a URL.
_NUMBERS = {
    *("port", "connect_timeout", "read_timeout", "write_timeout", "max_allowed_packet", "client_flag"),
    *("autocommit", "local_infile", "use_unicode", "ssl_disabled", "ssl_verify_cert", "ssl_verify_identity"),
}
#: Arguments that a URL can't hold.
_OBJECTS = {"auth_plugin_map", "conv", "cursorclass", "server_public_key", "ssl"}
_UNSUPPORTED = {"self": "left out", "defer_connect": "left out: the pool opens connections when it needs them"}
_KNOWN = set(inspect.signature(_Base.__init__).parameters)

_NOT_COMMITTED = "nothing is committed: within the transaction, a statement was cut short or the connection was closed"

#: Overrides for the connection that kills the session of another one.
_KILL_ARGS: dict[str, Any] = {
    "autocommit": None,
    "database": None,
    "db": None,
    "init_command": None,
    "sql_mode": None,
}


def _exchange(method: Any) -> Any:
    """Decorate a method that makes an exchange, to track whether one is in progress, and how it ends."""

    @functools.wraps(method)
    def wrapper(self: _Connection, *args: Any, **options: Any) -> Any:
        if not self._exchanges:
            # An exchange first reads what the last one has left unread.
            self._is_under_way = self.is_busy()
        self._exchanges += 1
        try:
            if len(args) == 1 and not options:
                # As query() is called. A call with stars takes longer.
                return method(self, args[0])
            return method(self, *args, **options)
        except BaseException as error:
            self._note_error(error)
            raise
        finally:
            self._exchanges -= 1

    return wrapper


class _Connection(_Base):  # type: ignore[misc]
    """A connection that knows whether an exchange is in progress, and how the last one ended."""

    _result: Any
    #: How many exchanges are in progress.
    _exchanges = 0
    #: Whether the current exchange, or the last one, has sent or read anything.
    _is_under_way = False
    #: Whether ``server_status`` is up to date. Replies with rows and errors do not update it.
    _is_status_known = True
    #: Whether an exchange was interrupted, so that the server may still be at work for it.
    _was_interrupted = False
    #: The local port; None for a Unix socket.
    _local_port: int | None = None
    #: The settings when it was connected.
    _initial_settings: tuple[Any, ...] = ()
    #: Returns the arguments for another connection like this one.
    _arguments: Callable[[], dict[str, Any]]
    #: The TLS context shared by all connections without TLS arguments.
    _default_tls: Any = None

    query = _exchange(_Base.query)
    next_result = _exchange(_Base.next_result)
    begin = _exchange(_Base.begin)
    commit = _exchange(_Base.commit)
    rollback = _exchange(_Base.rollback)
    ping = _exchange(_Base.ping)
    select_db = _exchange(_Base.select_db)
    set_character_set = _exchange(_Base.set_character_set)
    show_warnings = _exchange(_Base.show_warnings)
    kill = _exchange(_Base.kill)
    _send_autocommit_mode = _exchange(_Base._send_autocommit_mode)

    @_exchange
    def reset_session(self) -> None:
        """Reset the session on the server, and repeat in one statement the settings that PyMySQL made at connect."""
        self._execute_command(_COM_RESET_CONNECTION, "")
        self._read_ok_packet()
        self.cursorclass, self.charset, self.collation, autocommit = self._initial_settings
        self.encoding = pymysql.charset.charset_by_name(self.charset).encoding
        settings = [f"NAMES {self.charset} COLLATE {self.collation}" if self.collation else f"NAMES {self.charset}"]
        if self.get_autocommit() != autocommit:
            settings.append(f"autocommit = {autocommit:d}")
        if self.sql_mode is not None:
            settings.append(f"sql_mode = {self.escape(self.sql_mode)}")
        self._execute_command(pymysql.constants.COMMAND.COM_QUERY, f"SET {', '.join(settings)}")
        self._read_ok_packet()

    def is_busy(self) -> bool:
        """Return whether a reply is outstanding or unread, or was interrupted."""
        result = self._result
        is_unread = result is not None and bool(result.unbuffered_active or result.has_next)
        return self._exchanges > 0 or is_unread or self._was_interrupted

    def may_be_in_transaction(self) -> bool:
        return bool(self.server_status & _IN_TRANSACTION) or not self._is_status_known

    def settings(self) -> tuple[Any, ...]:
        """Return the settings that callers can change."""
        return self.cursorclass, self.charset, self.collation, self.get_autocommit()

    def close(self) -> None:
        """Close the connection. A greenlet that waits for a reply or a row gets an error."""
        self._was_interrupted = self.is_busy()
        super().close()

    def abandon_rows(self) -> None:
        """Leave the rest of a result unread. Otherwise its cursor or finalizer would wait for rows."""
        result, self._result = self._result, None
        if result is not None and (result.unbuffered_active or result.has_next):
            result.unbuffered_active = False
            # Without this, a cursor that is still in use would seem to have reached the last row.
            result._read_rowdata_packet_unbuffered = _raise_lost
            self._was_interrupted = True

    def _note_error(self, error: BaseException) -> None:
        if not self._is_under_way:
            # For example, a statement that can't be encoded: the server knows nothing of it.
            return
        self._is_status_known = False
        if not isinstance(error, pymysql.err.MySQLError):
            # PyMySQL itself closes it after an interrupted read, but not after an interrupted write or conversion.
            self._was_interrupted = True
            self._force_close()
        elif self._sock is None and isinstance(error.__context__, TimeoutError):
            self._was_interrupted = True

    def _read_query_result(self, unbuffered: bool = False) -> Any:
        rows = super()._read_query_result(unbuffered)
        # With autocommit, a query that returns rows begins no transaction; unread results may.
        is_harmless = self._is_status_known and not unbuffered and self.get_autocommit()
        self._is_status_known = self._result.server_status is not None or is_harmless
        return rows

    def _read_ok_packet(self) -> Any:
        ok = super()._read_ok_packet()
        self._is_status_known = True
        return ok

    def _write_bytes(self, data: bytes) -> None:
        self._is_under_way = True
        _write_bytes(self, data)

    def _force_close(self) -> None:
        self.abandon_rows()
        if isinstance(self._sock, gevent.socket.socket):
            # Nothing else wakes another greenlet that reads. The plain socket's method, because that of TLS makes the
            # greenlet raise a ValueError.
            with suppress(OSError):
                gevent.socket.socket.shutdown(self._sock, gevent.socket.SHUT_RDWR)
        # It is raised while another greenlet reads, which closes the connection itself then.
        with suppress(RuntimeError):
            super()._force_close()

    def _create_ssl_ctx(self, sslp: Any) -> Any:
        if sslp:
            return super()._create_ssl_ctx(sslp)
        # Shared, because making one blocks the process for 50 ms. One made before gevent patched Python is replaced.
        if type(_Connection._default_tls) is not pymysql.connections.ssl.SSLContext:
            _Connection._default_tls = super()._create_ssl_ctx(sslp)
        return _Connection._default_tls


class PyMySQLConnector(Connector[PyMySQLConnection]):
    """Lets a pool handle PyMySQL's connections: ``Pool(PyMySQLConnector("mysql://user@localhost/app"))``.

    A block commits when it ends well, and rolls back when an exception leaves it.

    :param url: ``mysql://user:password@host:port/database``, or the same with ``mariadb://``. Its query may have other
        arguments, such as ``?unix_socket=/run/mysqld/mysqld.sock``. None if `options` name the server.
    :param options: arguments of ``pymysql.connect()``, which override those of the URL. `url` and each option may be a
        callable, called for each new connection: ``password=read_password``. Objects are passed on uncalled:
        ``auth_plugin_map``, ``conv``, ``cursorclass``, ``server_public_key`` and ``ssl``.
    :raises InvalidArgumentError: for arguments that ``pymysql.connect()`` would refuse. It never shows a secret.
    """

    def __init__(self, url: str | Callable[[], str] | None = None, **options: Any) -> None:
        for name in options:
            if name not in _KNOWN or name in _UNSUPPORTED:
                allowed = _UNSUPPORTED.get(name, "left out: pymysql.connect() has no such argument")
                raise InvalidArgumentError(name, HIDDEN, allowed)
        self._url = url
        self._options = options
        if url is not None and not callable(url):
            _parse_url(url)
        if not callable(url) and not any(map(_is_callable, options.items())):
            # A file, such as a certificate, may be created later.
            with suppress(OSError):
                _make_client(self._arguments())

    def __repr__(self) -> str:
        given = {} if self._url is None or callable(self._url) else _parse_url(self._url)
        given.update(self._options)
        shown = [
            f"{name}={given[name]}"
            for name in _DISPLAYABLE
            if given.get(name) is not None and not callable(given[name])
        ]
        return f"{type(self).__name__}({' '.join(shown)})"

    def connect(self) -> PyMySQLConnection:
        """Return an open client. This calls the URL and options that are callables."""
        connection = _open_connection(self._arguments())
        connection._initial_settings = connection.settings()
        connection._arguments = self._arguments
        return connection

    def is_settled(self, connection: PyMySQLConnection) -> bool:
        """Return whether no transaction is open, and the client's settings are those of :meth:`connect`.

        A transaction with nothing but SELECT counts as open, because it keeps its view of the data and its locks.
        """
        return not connection.may_be_in_transaction() and connection.settings() == connection._initial_settings

    def complete(self, connection: PyMySQLConnection) -> None:
        """Commit. If the block caught an exception that interrupted a transaction, such as a Timeout, this raises.

        With autocommit there is nothing to commit unless the block has begun a transaction.
        """
        is_in_exchange = connection._sock is None or connection.is_busy()
        if is_in_exchange and connection.get_autocommit() and not connection.server_status & _IN_TRANSACTION:
            # All complete statements are committed. A COMMIT would first read all rows that the block has left.
            return
        if connection.may_be_in_transaction():
            if connection._sock is None:
                raise pymysql.err.OperationalError(pymysql.constants.CR.CR_SERVER_LOST, _NOT_COMMITTED)
            connection.commit()

    def reset(self, connection: PyMySQLConnection) -> None:
        """Roll back, and restore the client's settings."""
        if connection.may_be_in_transaction():
            connection.rollback()
        connection.cursorclass, charset, collation, autocommit = connection._initial_settings
        if (connection.charset, connection.collation) != (charset, collation):
            connection.set_character_set(charset, collation)
        if connection.get_autocommit() != autocommit:
            connection.autocommit(autocommit)

    def reset_session(self, connection: PyMySQLConnection) -> None:
        """Reset the session: variables, temporary tables, locks, prepared statements and the database.

        This also resets the settings that PyMySQL made when it connected, so they are made again.
        """
        # Sending all commands before the first reply would be faster, but fails with Aurora 2 and ProxySQL.
        connection.reset_session()
        if connection.db:
            connection.select_db(connection.db)
        with connection.cursor(pymysql.cursors.Cursor) as cursor:
            if not connection.db:
                cursor.execute("SELECT DATABASE()")
                if cursor.fetchone() != (None,):  # pragma: no cover - depends on the server's version
                    raise pymysql.err.InterfaceError("a database that was selected can't be left")
            if connection.init_command is not None:
                cursor.execute(connection.init_command)
        *_, autocommit = connection._initial_settings
        if connection.get_autocommit() != autocommit:
            connection.autocommit(autocommit)
        if connection.may_be_in_transaction():
            connection.rollback()

    def is_reusable(self, connection: PyMySQLConnection, error: BaseException | None) -> bool:
        """Return whether the connection is open and no reply is outstanding, whatever error has left the block."""
        if connection._sock is not None and not connection.is_busy():
            return True
        connection.abandon_rows()
        return False

    def peek_target(self, connection: PyMySQLConnection) -> Any:
        """Return the socket; -1 if the connection is closed."""
        sock = connection._sock
        return -1 if sock is None else sock

    def close(self, connection: PyMySQLConnection) -> None:
        """Close the connection, unless it is closed, in which case PyMySQL would raise."""
        if connection._sock is not None:
            connection.close()

    def abort(self, connection: PyMySQLConnection) -> None:
        """Cut the connection off without a goodbye."""
        super().abort(connection)
        connection.abandon_rows()

    def cancel(self, connection: PyMySQLConnection) -> None:
        """Kill the session on the server if it may still be at work, because it does not notice a closed connection."""
        if not connection.is_busy():
            return
        known = {**connection._arguments(), **_KILL_ARGS}
        with _open_connection(known) as other, other.cursor(pymysql.cursors.Cursor) as cursor:
            session = connection.thread_id()
            cursor.execute("SELECT HOST FROM information_schema.PROCESSLIST WHERE ID = %s", (session,))
            # After a restart, or on another server at the same address, another client's session may have this id.
            if any(_port(host) == connection._local_port for (host,) in cursor.fetchall()):
                other.kill(session)

    def ping(self, connection: PyMySQLConnection) -> None:
        """Send PING, and wait for the answer."""
        # By default, older versions would reconnect.
        connection.ping(False)

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments for a connection. This calls those that are callables."""
        url = self._url() if callable(self._url) else self._url
        options = {name: value() if _is_callable((name, value)) else value for name, value in self._options.items()}
        return {**({} if url is None and not callable(self._url) else _parse_url(url)), **options}


def _is_callable(option: tuple[str, Any]) -> bool:
    return option[0] not in _OBJECTS and callable(option[1])


def _open_connection(arguments: dict[str, Any]) -> Any:
    connection = _make_client(arguments)
    try:
        connection.connect()
    except BaseException as error:
        # For example after an interrupted TLS handshake.
        _sockets.close_half_open(error)
        raise
    if not connection.unix_socket:
        connection._local_port = connection._sock.getsockname()[1]
    return connection


def _make_client(arguments: dict[str, Any]) -> _Connection:
    """Return a connection that is still closed."""
    try:
        return _Connection(**arguments, defer_connect=True)
    except (TypeError, ValueError, LookupError, NotImplementedError, AttributeError, configparser.Error) as error:
        # PyMySQL raises a LookupError or AttributeError for an unknown charset.
        kinds = {
            LookupError: "charset",
            AttributeError: "charset",
            UnicodeError: "password",
            configparser.Error: "read_default_file",
        }
        name = next((name for kind, name in kinds.items() if isinstance(error, kind)), None)
        names = [name] if name in arguments else [one for one in arguments if one in str(error)]
    # Outside the except clause: the error may quote the password, and must not even be the context.
    wrong = names[0] if names else "options"
    given = arguments[wrong] if wrong in _DISPLAYABLE_IN_ERRORS else HIDDEN
    raise InvalidArgumentError(wrong, given, "a value that pymysql.connect() accepts")


def _raise_lost() -> None:
    raise pymysql.err.OperationalError(pymysql.constants.CR.CR_SERVER_LOST, "the connection was given back or closed")


def _port(host: str) -> int | None:
    """Return the port in the HOST column of the server's process list, which has the form ``host:port``."""
    _, _, port = host.rpartition(":")
    return int(port) if port.isdecimal() else None


def _parse_url(url: Any) -> dict[str, Any]:
    """Return the arguments in a URL."""
    split = _urls.split(url)
    # A longer path is the rest of a password with an unquoted /.
    if split is None or split[0].scheme not in _SCHEMES or "/" in split[0].path[1:]:
        raise InvalidArgumentError("url", HIDDEN, "a URL like mysql://user:password@host:3306/database")
    parts, port = split
    given = {
        "host": parts.hostname,
        "port": port,
        "user": parts.username and unquote(parts.username),
        "password": parts.password and unquote(parts.password),
        "database": unquote(parts.path[1:]),
    }
    arguments = {name: value for name, value in given.items() if value}
    return {**arguments, **_urls.read_query(parts.query, _KNOWN - _OBJECTS - set(_UNSUPPORTED), _NUMBERS)}
