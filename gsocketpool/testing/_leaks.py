"""Checks that a test leaves nothing behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent

from gsocketpool import Pool
from gsocketpool._upkeep import Upkeep
from gsocketpool.testing._server import serving
from gsocketpool.testing._sockets import open_sockets

#: Seconds that leftovers get to go away by themselves.
_GRACE = 2.0


@contextmanager
def no_leaks() -> Iterator[None]:
    """Check that the block leaves nothing behind: no open sockets, no running greenlets, no connections in use.

    A pool used in the block must be closed there or no longer be referenced. Sockets and greenlets of a
    :class:`~gsocketpool.testing.FlakyServer` that was running before the block do not count.

    :raises AssertionError: if something is left two seconds after the end of the block. The message lists it.
    """
    sockets, greenlets = set(open_sockets()), weakref.WeakSet(_running_greenlets())
    in_use = weakref.WeakKeyDictionary(_connections_in_use())
    servers = list(serving)

    def left() -> list[str]:
        sockets_there, greenlets_there = set(sockets), set(greenlets)
        for server in servers:
            sockets_there |= server._own_sockets()
            greenlets_there |= set(server._greenlets)
        return [
            *(f"an open socket: {what}" for which, what in open_sockets().items() if which not in sockets_there),
            *(f"a greenlet: {one!r}" for one in _running_greenlets() if one not in greenlets_there),
            *(f"connections in use: {pool!r}" for pool, n in _connections_in_use().items() if n > in_use.get(pool, 0)),
        ]

    yield
    waited, pause = 0.0, 0.01
    while (found := left()) and waited < _GRACE:
        # Garbage may still have destructors to run.
        gc.collect()
        gevent.sleep(pause)
        # Only the pauses count, because looking takes long in a large process on a busy machine.
        waited += pause
        pause *= 4
    if found:
        raise AssertionError("something was left behind:\n" + "\n".join(found))


def _running_greenlets() -> list[gevent.Greenlet]:
    # A pool keeps idle greenlets for its next resets; these are no leak.
    found = _instances(Upkeep, gevent.Greenlet)
    kept = {greenlet for upkeep in found if isinstance(upkeep, Upkeep) for greenlet in upkeep.idle}
    greenlets = (one for one in found if isinstance(one, gevent.Greenlet))
    return [one for one in greenlets if one.started and not one.ready() and one not in kept]


def _connections_in_use() -> dict[Pool[Any], int]:
    # A pool whose __init__ failed may still be alive in a traceback, without a state.
    return {pool: pool.stats().in_use for pool in _instances(Pool) if "_state" in vars(pool)}


def _instances(*kinds: type[Any]) -> list[Any]:
    # By type: isinstance() asks the object, which may be a proxy whose target is gone.
    return [candidate for candidate in gc.get_objects() if issubclass(type(candidate), kinds)]
