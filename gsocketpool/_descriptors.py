"""What can be seen of, and done to, a socket without using it."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import gevent.socket
import gevent.ssl
from gevent.monkey import get_original

# gevent's own poll() switches, and takes ten times as long.
_poll = get_original("select", "poll")
_SOCKETS = (gevent.socket.socket, get_original("socket", "socket"))
_READABLE = 0x001  # POLLIN; errors and hang-ups are reported without being asked for


def is_socket(candidate: Any) -> bool:
    return isinstance(candidate, _SOCKETS)


def is_silent(candidate: Any) -> bool:
    """Whether there is nothing to read from a socket, not even the end of the stream. True for what is not a socket.

    It never switches.
    """
    if not isinstance(candidate, _SOCKETS):
        return True
    descriptor = candidate.fileno()
    if descriptor < 0:
        return False
    poll = _poll()
    poll.register(descriptor, _READABLE)
    readable = poll.poll(0)
    if not isinstance(candidate, gevent.ssl.SSLSocket):
        return not readable
    return not candidate.pending() and (not readable or _is_tls_silent(candidate))


def _is_tls_silent(candidate: Any) -> bool:
    # TLS sends records of its own, session tickets for one, which are no message. Only reading tells. The descriptor
    # under a gevent socket never blocks, and its TLS object is asked directly because the socket's own read() would
    # wait.
    try:
        candidate._sslobj.read(1)
    except gevent.ssl.SSLWantReadError:
        return True
    except OSError:
        return False
    return False


def say_goodbye(candidate: gevent.ssl.SSLSocket) -> None:
    """Tells the other side of a TLS connection that it ends, as far as that can be done without waiting."""
    # What TLS has sent by itself is taken out first: closing a socket with bytes unread resets the connection, and the
    # other side may lose what was sent to it.
    for step in (lambda: candidate._sslobj.read(1), candidate._sslobj.shutdown):
        with contextlib.suppress(OSError):
            step()


def let_go(candidate: Any) -> None:
    """Closes a socket that another process goes on using. It never switches, and nothing is sent.

    First another file takes the descriptor's place: a greenlet that the fork has copied may be about to read from it,
    and closing alone would let it until the event loop has come round.
    """
    if not is_socket(candidate):
        return
    descriptor = candidate.fileno()
    if descriptor < 0:
        return
    # Where there is no descriptor to spare for that, closing must do.
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR)
        try:
            os.dup2(null, descriptor, inheritable=False)
        finally:
            os.close(null)
    candidate.close()
