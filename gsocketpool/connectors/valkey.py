"""The connector for valkey-py."""

from __future__ import annotations

from typing import ClassVar

from gsocketpool.connectors._resp import RespConnector

try:
    import valkey
except ImportError as _error:
    raise ImportError("ValkeyConnector needs valkey: pip install 'gsocketpool[valkey]'") from _error


class ValkeyConnector(RespConnector["valkey.Valkey"]):
    """Lets a pool handle clients of valkey-py: ``Pool(ValkeyConnector("valkey://localhost"))``.

    Each client has one connection, shared by its pipelines, locks and transactions.

    :param url: a ``valkey://``, ``valkeys://``, ``redis://``, ``rediss://`` or ``unix://`` URL, or a callable that
        returns one. None if `options` name the server.
    :param options: arguments of :class:`valkey.Valkey`, such as `host`, `db` or `decode_responses`; with a URL, those
        of :meth:`valkey.Valkey.from_url`, and they override the URL. Each may be a callable that returns the value.

    Callables are called for each new connection, so passwords may change.
    """

    _library: ClassVar = valkey
    _client_class: ClassVar = valkey.Valkey
    _schemes: ClassVar = {scheme: scheme for scheme in ("valkey", "valkeys", "redis", "rediss", "unix")}
