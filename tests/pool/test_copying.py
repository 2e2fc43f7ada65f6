"""A pool can't be copied or pickled, and the attempt does it no harm."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from gsocketpool import Pool
from tests.support.connections import no_hanging as no_hanging
from tests.support.scripted import Backend, Plain, numbers, settle

WAYS = [copy.copy, copy.deepcopy, pickle.dumps]


class Special(Pool[Any]):
    """A pool of a subclass."""


@pytest.mark.parametrize("kind", [Pool, Special])
@pytest.mark.parametrize("way", WAYS)
def test_copying_or_pickling_a_pool_raises_an_error_that_gives_the_reason(
    kind: type[Pool[Any]], way: Callable[[Any], object]
) -> None:
    pool = kind(Plain, name="cache", reap_expired_connections=False)
    pool.release(pool.acquire())
    with pytest.raises(TypeError, match=r"(?i)\bpool\b.*\b(connection|socket|greenlet|event loop)s?\b"):
        way(pool)


@pytest.mark.parametrize("way", WAYS)
def test_a_refused_copy_leaves_the_pool_and_its_connections_intact(
    backend: Backend, way: Callable[[Any], object]
) -> None:
    pool = Pool(backend.connect, max_connections=1, reap_expired_connections=False)
    connection = pool.acquire()
    pool.release(connection)
    # What it raises is for another test.
    with contextlib.suppress(Exception):
        way(pool)
    gc.collect()
    settle()
    assert connection.is_open
    assert numbers(pool) == (0, 1, 0, 0)
    assert pool.acquire(timeout=0) is connection
