"""Connection pools for a Flask app under gevent, configured by ``SOCKETPOOL_*`` keys."""

try:
    import flask as _flask  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "flask":
        raise
    raise ImportError("flask_gsocketpool needs Flask: pip install 'gsocketpool[flask]'") from _error

from flask_gsocketpool.exceptions import ConfigurationError, UnknownPoolError, UnreleasedConnectionWarning
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
