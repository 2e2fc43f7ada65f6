"""For the clients of valkey-py."""

from __future__ import annotations

from typing import ClassVar

from gsocketpool.connectors._resp import RespConnector

try:
    import valkey
except ImportError as error:
    raise ImportError("ValkeyConnector needs valkey: pip install 'gsocketpool[valkey]'") from error


class ValkeyConnector(RespConnector["valkey.Valkey"]):
    """Hands out clients of valkey-py: ``Pool(ValkeyConnector("valkey://localhost"))``.

    Each client has one connection, which its pipelines, locks and transactions use, too.

    :param url: ``valkey://``, ``valkeys://``, ``redis://``, ``rediss://`` or ``unix://``, or a callable that returns
        it. None if `options` say where the server is.
    :param options: arguments of :class:`valkey.Valkey`, such as `host`, `db` or `decode_responses`; with a URL, those
        of :meth:`valkey.Valkey.from_url`. Each may be a callable that returns the value.

    The callables are asked at each connect, so that passwords may change.
    """

    _library: ClassVar = valkey
    _client_class: ClassVar = valkey.Valkey
    _schemes: ClassVar = {scheme: scheme for scheme in ("valkey", "valkeys", "redis", "rediss", "unix")}
