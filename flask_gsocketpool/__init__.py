"""Pools of connections for a Flask app under gevent, made out of its ``SOCKETPOOL_*`` configuration."""

try:
    import flask as _flask  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "flask":
        raise
    raise ImportError("flask_gsocketpool needs Flask: pip install 'gsocketpool[flask]'") from error

from flask_gsocketpool.config import ConfigurationError
from flask_gsocketpool.extension import GSocketPool, UnknownPoolError
from flask_gsocketpool.globals import current_pool, current_pools

__all__ = ["ConfigurationError", "GSocketPool", "UnknownPoolError", "current_pool", "current_pools"]
