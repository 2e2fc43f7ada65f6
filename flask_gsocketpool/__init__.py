"""Pools of connections for a Flask app under gevent, made out of its ``SOCKETPOOL_*`` configuration."""

try:
    import flask as _flask  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "flask":
        raise
    raise ImportError("flask_gsocketpool needs Flask: pip install 'gsocketpool[flask]'") from error

from flask_gsocketpool._registry import UnknownPoolError
from flask_gsocketpool._request_scope import UnreleasedConnectionWarning
from flask_gsocketpool.config import ConfigurationError
from flask_gsocketpool.extension import GSocketPool
from flask_gsocketpool.globals import current_connection, current_connections, current_pool, current_pools, named_pool
from flask_gsocketpool.signals import connection_closed, connection_opened, pool_exhausted

__all__ = [
    "ConfigurationError",
    "GSocketPool",
    "UnknownPoolError",
    "UnreleasedConnectionWarning",
    "connection_closed",
    "connection_opened",
    "current_connection",
    "current_connections",
    "current_pool",
    "current_pools",
    "named_pool",
    "pool_exhausted",
]
