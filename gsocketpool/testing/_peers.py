"""Finds the process at the other end of a local connection. This works on Linux only."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import Any

from gevent.monkey import get_original

_socket = get_original("socket", "socket")

# From Linux' <sys/socket.h>, <linux/netlink.h>, <linux/sock_diag.h> and <linux/inet_diag.h>.
_AF_UNIX, _AF_INET, _AF_NETLINK = 1, 2, 16
_SOCK_STREAM, _SOCK_RAW, _IPPROTO_TCP = 1, 3, 6
_SOL_SOCKET, _SO_PEERCRED = 1, 17
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1


def peer_pid(accepted: Any) -> int | None:
    """Return the process at the other end of an accepted socket; None if it can't be found."""
    try:
        if accepted.family == _AF_UNIX:
            pid, _, _ = struct.unpack("3i", accepted.getsockopt(_SOL_SOCKET, _SO_PEERCRED, 12))
            return int(pid)
        inode = _inode(accepted.getpeername(), accepted.getsockname())
    except OSError:  # pragma: no cover - the client may be gone by now
        return None
    if not inode:
        # The client has closed it by now.
        return None
    pid = next((pid for pid in _processes() if _has_open(pid, inode)), None)
    if pid is not None:  # pragma: no branch - the client may be gone by now
        _found.pop(pid, None)
        _found[pid] = None
    return pid


def _inode(local: tuple[str, int], remote: tuple[str, int]) -> int:
    """Return the inode of the TCP socket with these IPv4 addresses, by sock_diag(7).

    /proc/net/tcp lists it, too, but takes milliseconds to read on a machine that has closed a few thousand connections.
    """
    ends = struct.pack("!HH16s16s", local[1], remote[1], _packed(local[0]), _packed(remote[0]))
    wanted = (
        struct.pack("=BBBxI", _AF_INET, _IPPROTO_TCP, 0, 0xFFFFFFFF)
        + ends
        + struct.pack("=III", 0, -1 & 0xFFFFFFFF, -1 & 0xFFFFFFFF)
    )
    header = struct.pack("=IHHII", 16 + len(wanted), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    with _socket(_AF_NETLINK, _SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(header + wanted)
        answer = kernel.recv(4096)
    _, kind, *_ = struct.unpack_from("=IHHII", answer)
    if kind != _SOCK_DIAG_BY_FAMILY:  # pragma: no cover - the client may be gone by now
        raise OSError(f"the kernel knows no connection from {local} to {remote}")
    # After the header: struct inet_diag_msg, whose last member is the inode.
    (inode,) = struct.unpack_from("=I", answer, 16 + 68)
    return int(inode)


def _packed(address: str) -> bytes:
    return bytes(map(int, address.split(".")))


#: The processes found so far, the most recent last.
_found: dict[int, None] = {}


def _processes() -> Iterator[int]:
    """Yield all processes, the likely ones first: looking at every one takes tens of milliseconds.

    Likely are the processes found before, then the youngest, such as a child that was just forked.
    """
    likely = [os.getpid(), *reversed(_found)]
    yield from likely
    others = {int(name) for name in os.listdir("/proc") if name.isdecimal()}.difference(likely)
    yield from sorted(others, reverse=True)


def _has_open(pid: int, inode: int) -> bool:
    directory = f"/proc/{pid}/fd"
    # The process may have exited, or belong to another user.
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(directory):
            with contextlib.suppress(OSError):
                if os.readlink(f"{directory}/{descriptor}") == f"socket:[{inode}]":
                    return True
    return False
