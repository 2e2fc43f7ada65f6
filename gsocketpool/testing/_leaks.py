"""What a test must not leave behind."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import gevent
from gevent.monkey import get_original

from gsocketpool import Pool

T = TypeVar("T")

#: Seconds that what is on its way to end gets for that.
_GRACE = 2.0


@contextmanager
def no_leaks() -> Iterator[None]:
    """Makes sure that nothing is left at the end of the block that was not there at its beginning.

    That is: sockets of this process, greenlets that have not ended, and connections in use. A pool that was used in the
    block must be closed there, or no longer be referred to.

    :raises AssertionError: if there is something, after two seconds in which it may go away by itself. It says what.
    """
    sockets, greenlets, in_use = set(open_sockets()), set(map(id, _running_greenlets())), _connections_in_use()

    def left() -> list[str]:
        return [
            *(f"an open socket: {what}" for which, what in open_sockets().items() if which not in sockets),
            *(f"a greenlet: {one!r}" for one in _running_greenlets() if id(one) not in greenlets),
            *(f"connections in use: {pool!r}" for pool, n in _connections_in_use().items() if n > in_use.get(pool, 0)),
        ]

    yield
    with gevent.Timeout(_GRACE, False):
        while left():
            gevent.sleep(0.01)
    found = left()
    if found:
        raise AssertionError("something was left behind:\n" + "\n".join(found))


def open_sockets() -> dict[tuple[int, int], str]:
    """Each socket that this process has open, by what tells it from all others, and in words."""
    found = {}
    for descriptor in map(int, os.listdir("/dev/fd")):
        # It may be the one that the directory was read by.
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                found[identity(descriptor)] = _describe(descriptor)
    return found


def identity(descriptor: int) -> tuple[int, int]:
    """What tells the open file behind a descriptor from all others."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _describe(descriptor: int) -> str:
    ends = []
    with get_original("socket", "socket")(fileno=os.dup(descriptor)) as copy:
        for end in (copy.getsockname, copy.getpeername):
            try:
                ends.append(str(end()))
            except OSError:
                ends.append("nowhere")
        family = socket.AddressFamily(copy.family).name
    return f"{family} from {ends[0]} to {ends[1]}"


def _running_greenlets() -> list[gevent.Greenlet]:
    return [one for one in _instances(gevent.Greenlet) if one.started and not one.ready()]


def _connections_in_use() -> dict[Pool[Any], int]:
    return {pool: pool.stats().in_use for pool in _instances(Pool)}


def _instances(kind: type[T]) -> list[T]:
    gc.collect()
    # By its type: isinstance() asks the object, which may be a proxy for something that is not there.
    is_one: Callable[[object], bool] = lambda candidate: issubclass(type(candidate), kind)  # noqa: E731
    return [candidate for candidate in gc.get_objects() if is_one(candidate)]
