"""What views use: the pools of the app that handles the request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flask import current_app
from werkzeug.local import LocalProxy

from flask_gsocketpool.config import DEFAULT
from flask_gsocketpool.extension import Pools, pools_of
from gsocketpool import Pool


def _pools() -> Pools:
    if not current_app:
        raise RuntimeError(
            "There is no application context here, and so no app whose pools these could be."
            " In a view there is one; in a generator that streams use stream_with_context(), and elsewhere"
            " `with app.app_context():`."
        )
    return pools_of(current_app)


def _default_pool() -> Pool[Any]:
    return _pools()[DEFAULT]


class CurrentPools(Mapping[str, Pool[Any]]):
    """The pools of the current app by name."""

    # No LocalProxy: Python would turn the error of one that is iterated over without a context into "is not iterable".

    def __getitem__(self, name: str) -> Pool[Any]:
        return _pools()[name]

    def __contains__(self, name: object) -> bool:
        return name in _pools()

    def __iter__(self) -> Iterator[str]:
        return iter(_pools())

    def __len__(self) -> int:
        return len(_pools())


#: The pools of the current app by name: ``current_pools["cache"]``.
current_pools = CurrentPools()

#: The current app's default pool, that of the plain ``SOCKETPOOL_*`` keys.
current_pool: Pool[Any] = LocalProxy(_default_pool)  # type: ignore[assignment]
