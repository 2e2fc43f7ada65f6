"""The sockets of this process."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from gevent.monkey import get_original


def open_sockets() -> dict[tuple[int, int], str]:
    """Return a description of each socket that this process has open, by its :func:`identity`."""
    found = {}
    for descriptor in map(int, os.listdir("/dev/fd")):
        # One descriptor was that of the directory, and is closed by now.
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                found[identity(descriptor)] = _describe(descriptor)
    return found


def identity(descriptor: int) -> tuple[int, int]:
    """Return what distinguishes the open file behind a descriptor from all others."""
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
