"""For views: the pools of the current app, and the request's own connections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from flask.globals import _cv_app
from werkzeug.local import LocalProxy

from flask_gsocketpool._registry import EXTENSION, Pools, pools_of
from flask_gsocketpool._request_scope import CurrentConnection, unwrapped
from flask_gsocketpool.config import DEFAULT
from gsocketpool import Lease, Pool

C = TypeVar("C")


def _pools() -> Pools:
    # The proxy current_app would be ten times slower.
    context = _cv_app.get(None)
    if context is None:
        raise RuntimeError(
            "There is no application context here, and pools belong to an app. A view has a context. In a generator"
            " that streams a response, use stream_with_context(); elsewhere, use `with app.app_context():`."
        )
    return pools_of(context.app)


def _default_pool() -> Pool[Any]:
    context = _cv_app.get(None)
    pools: Pools | None = None if context is None else context.app.extensions.get(EXTENSION)
    # _pools() raises if there is no context or no extension.
    return (_pools() if pools is None else pools)[DEFAULT]


class _CurrentPool(LocalProxy[Pool[Any]]):
    """The proxy for the default pool.

    ``connection()``, which most views call, skips the proxy's slow lookup. The methods below it accept
    ``current_connection``, even if a test has put another pool in place.
    """

    __slots__ = ()

    def connection(self, *arguments: Any, **keywords: Any) -> Lease[Any]:
        pool = _default_pool()
        # Pass only what was given: an overriding pool may not accept every argument.
        return pool.connection(*arguments, **keywords) if arguments or keywords else pool.connection()

    def release(self, connection: Any) -> None:
        pool = _default_pool()
        pool.release(unwrapped(connection, pool))

    def discard(self, connection: Any) -> None:
        pool = _default_pool()
        pool.discard(unwrapped(connection, pool))

    def detach(self, connection: Any) -> Any:
        pool = _default_pool()
        return pool.detach(unwrapped(connection, pool))

    def drop(self, connection: Any) -> None:
        pool = _default_pool()
        pool.drop(unwrapped(connection, pool))


def _connection(name: str) -> Any:
    pools = _pools()
    return pools.scopes.connection(name, pools[name])


def _default_connection() -> Any:
    return _connection(DEFAULT)


class _ByName(Mapping[str, Any]):
    """A mapping with an item for each pool of the current app."""

    # Not a LocalProxy: without a context, iterating over one fails with a misleading "is not iterable".

    def __contains__(self, name: object) -> bool:
        return name in _pools()

    def get(self, name: str, default: Any = None) -> Any:
        # Mapping's would return the default if opening a connection raises a KeyError.
        if name not in self:
            return default
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_pools())

    def __len__(self) -> int:
        return len(_pools())


class CurrentPools(_ByName):
    """The pools of the current app by name."""

    def __getitem__(self, name: str) -> Pool[Any]:
        return _pools()[name]


class CurrentConnections(_ByName):
    """The request's own connections by pool name."""

    def __getitem__(self, name: str) -> Any:
        return _connection(name)


#: The pools of the current app by name: ``current_pools["cache"]``.
current_pools: CurrentPools = CurrentPools()

#: The current app's default pool, which the plain ``SOCKETPOOL_*`` keys describe.
current_pool: Pool[Any] = _CurrentPool(_default_pool)  # type: ignore[assignment]


def named_pool(name: str, kind: type[C] | None = None) -> Pool[C]:
    """Return a proxy for the pool called `name` of the current app.

    Write ``db = named_pool("db", psycopg.Connection)`` at the top of a module, and ``with db.connection() as conn:`` in
    a view. The proxy looks the pool up at each use, and raises :exc:`UnknownPoolError` if the app has none.

    :param name: the pool's name in ``SOCKETPOOL_POOLS``, or ``"default"``.
    :param kind: the type of the pool's connections, for type checkers only.
    """
    proxy: Any = LocalProxy(lambda: _pools()[name])
    pool: Pool[C] = proxy
    return pool


#: The request's own connection of each pool: ``current_connections["cache"]``.
current_connections: CurrentConnections = CurrentConnections()

#: The request's own connection of the default pool. It is acquired when first used, and given back when the response is
#: done.
current_connection: Any = CurrentConnection(_default_connection)
