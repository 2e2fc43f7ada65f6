"""Connections: the base class, and connections over TCP, TLS and Unix sockets."""

from gsocketpool.connection.base import Connection
from gsocketpool.connection.stream import StreamConnection
from gsocketpool.connection.tcp import TcpConnection
from gsocketpool.connection.tls import TlsConnection
from gsocketpool.connection.unix import UnixConnection

__all__ = ["Connection", "StreamConnection", "TcpConnection", "TlsConnection", "UnixConnection"]
