"""The connector for redis-py."""

from __future__ import annotations

from typing import Any, ClassVar

from gsocketpool.connectors._resp import RespConnector

try:
    import redis
except ImportError as _error:
    raise ImportError("RedisConnector needs redis: pip install 'gsocketpool[redis]'") from _error

_arguments: dict[str, Any] = {}
try:
    from redis.maint_notifications import MaintNotificationsConfig
except ImportError:  # pragma: no cover - for redis-py before 6.4
    # Earlier versions don't have it.
    pass
else:
    _arguments["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)


class RedisConnector(RespConnector["redis.Redis"]):
    """Lets a pool handle clients of redis-py: ``Pool(RedisConnector("redis://localhost"))``.

    Each client has one connection, shared by its pipelines, locks and transactions.

    :param url: a ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix://`` URL, or a callable that
        returns one. None if `options` name the server.
    :param options: arguments of :class:`redis.Redis`, such as `host`, `db` or `decode_responses`; with a URL, those of
        :meth:`redis.Redis.from_url`, and they override the URL. Each may be a callable that returns the value.

    Callables are called for each new connection, so passwords may change.
    """

    _library: ClassVar = redis
    _client_class: ClassVar = redis.Redis
    _schemes: ClassVar = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}
    _arguments: ClassVar = _arguments
