"""What views use: the pools of the app that handles the request, and the request's own connections."""

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
    # current_app, which is a proxy for this, takes ten times as long.
    context = _cv_app.get(None)
    if context is None:
        raise RuntimeError(
            "There is no application context here, and so no app whose pools these could be."
            " In a view there is one; in a generator that streams use stream_with_context(), and elsewhere"
            " `with app.app_context():`."
        )
    return pools_of(context.app)


def _default_pool() -> Pool[Any]:
    context = _cv_app.get(None)
    pools: Pools | None = None if context is None else context.app.extensions.get(EXTENSION)
    # Without any, this raises.
    return (_pools() if pools is None else pools)[DEFAULT]


class _CurrentPool(LocalProxy[Pool[Any]]):
    """The proxy for the default pool.

    What every view calls does without the detour through the proxy. Whatever the pool is, ``current_connection`` may be
    given back.
    """

    __slots__ = ()

    def connection(self, *arguments: Any, **keywords: Any) -> Lease[Any]:
        pool = _default_pool()
        # As given, for what has taken the place of a pool need not take all that a pool does.
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
    """What there is for each pool of the current app."""

    # No LocalProxy: Python would turn the error of one that is iterated over without a context into "is not iterable".

    def __contains__(self, name: object) -> bool:
        return name in _pools()

    def __iter__(self) -> Iterator[str]:
        return iter(_pools())

    def __len__(self) -> int:
        return len(_pools())


class CurrentPools(_ByName):
    """The pools of the current app by name."""

    def __getitem__(self, name: str) -> Pool[Any]:
        return _pools()[name]


class CurrentConnections(_ByName):
    """The request's own connections by the names of their pools."""

    def __getitem__(self, name: str) -> Any:
        return _connection(name)


#: The pools of the current app by name: ``current_pools["cache"]``.
current_pools = CurrentPools()

#: The current app's default pool, that of the plain ``SOCKETPOOL_*`` keys.
current_pool: Pool[Any] = _CurrentPool(_default_pool)  # type: ignore[assignment]


def named_pool(name: str, kind: type[C] | None = None) -> Pool[C]:
    """Return a stand-in for the pool called `name` of the current app, for a module to keep.

    ``db = named_pool("db", psycopg.Connection)`` at the top of a module, and ``with db.connection() as conn:`` in a
    view.

    :param kind: the type of the pool's connections, for type checkers.
    """
    proxy: Any = LocalProxy(lambda: _pools()[name])
    stand_in: Pool[C] = proxy
    return stand_in


#: The request's own connection of each pool: ``current_connections["cache"]``.
current_connections = CurrentConnections()

#: The request's own connection of the default pool. It is acquired when it is first touched, and given back when the
#: response is done.
current_connection: Any = CurrentConnection(_default_connection)
