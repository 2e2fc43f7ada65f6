"""For the clients of redis-py."""

from __future__ import annotations

from typing import Any, ClassVar

from gsocketpool.connectors._resp import RespConnector

try:
    import redis
except ImportError as error:
    raise ImportError("RedisConnector needs redis: pip install 'gsocketpool[redis]'") from error

_arguments: dict[str, Any] = {}
try:
    from redis.maint_notifications import MaintNotificationsConfig
except ImportError:
    # Earlier versions know of none.
    pass
else:
    _arguments["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)


class RedisConnector(RespConnector["redis.Redis"]):
    """Hands out clients of redis-py: ``Pool(RedisConnector("redis://localhost"))``.

    Each client has one connection, which its pipelines, locks and transactions use, too.

    :param url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix://``, or a callable that returns
        it. None if `options` say where the server is.
    :param options: arguments of :class:`redis.Redis`, such as `host`, `db` or `decode_responses`; with a URL, those of
        :meth:`redis.Redis.from_url`. Each may be a callable that returns the value.

    The callables are asked at each connect, so that passwords may change.
    """

    _library: ClassVar = redis
    _client_class: ClassVar = redis.Redis
    _schemes: ClassVar = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}
    _arguments: ClassVar = _arguments
