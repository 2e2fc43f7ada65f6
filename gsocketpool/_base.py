"""What a pool asks of a connection: the class to derive from."""

from __future__ import annotations

import logging
from typing import Any

from gsocketpool import _descriptors

logger = logging.getLogger("gsocketpool")


class Connection:
    """A connection to some backend. Derive from it to teach a pool a protocol.

    A subclass defines :meth:`open`, :meth:`close` and :meth:`is_connected`, and :meth:`get` if there is a socket to
    look at. The other steps have defaults that suit most protocols. Every step may raise; the pool then takes the safe
    way. Which steps a connection has of its own is looked up once, when it has been opened.
    """

    def open(self) -> None:
        """Connects, and says hello if the protocol wants that. It may block; a failure is raised.

        The pool calls it in a greenlet of its own and bounds it by ``open_timeout``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no open()")

    def close(self) -> None:
        """Says goodbye if the protocol wants that, and disconnects. It may block, for ``close_timeout`` at most.

        The pool asks :meth:`is_connected` before it calls this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no close()")

    def get(self) -> Any:
        """Returns the raw connection: a socket, or the client object that is wrapped.

        If it is a socket, the default steps use it to see whether the connection is still good, and to let go of it
        after a fork.
        """
        raise NotImplementedError(f"{type(self).__name__} has no get()")

    def is_connected(self) -> bool:
        """Returns whether the connection is open, from what this object knows: it must not block.

        It is asked whenever the connection is acquired or released.
        """
        raise NotImplementedError(f"{type(self).__name__} has no is_connected()")

    def is_expired(self) -> bool:
        """Returns whether the connection is too old to be kept: False by default. It must not block.

        The reaper asks it of idle connections, and nobody else does: an expired connection may be handed out until
        then. Use ``max_lifetime`` of the pool for a limit that always holds.
        """
        return False

    def is_usable(self) -> bool:
        """Returns whether the connection may be handed out. It may block, within the time of the acquire.

        By default an open connection is usable if nothing can be read from its socket: what could be read is the end of
        the stream or bytes that nobody asked for. That costs one system call and no switch. Override it where that
        isn't enough, to send a ping for instance; whatever it raises counts as False. An acquire with ``timeout=0`` has
        no time for that, and goes by the default.
        """
        return self.is_connected() and _descriptors.is_silent(raw_connection(self))

    def is_reusable(self, error: BaseException | None) -> bool:
        """Returns whether the connection may be kept when it is given back. It must not block.

        By default it may if it is open and `error` is None.

        :param error: the exception that left the block ``with pool.connection()``; None if the block ended well or
            :meth:`Pool.release() <gsocketpool.Pool.release>` was called. An exchange that was interrupted may be half
            done, so only a class that knows the exchange to be complete should answer True to an error.
        """
        return error is None and self.is_connected()

    def let_go(self) -> None:
        """Lets go of the connection without a word. It must not block, nor write anything.

        The pool calls it in a forked child, since the connection is the parent's there, and where :meth:`close` was not
        enough. By default the socket's descriptor is closed, without a shutdown, which a parent can't notice.
        """
        _descriptors.let_go(raw_connection(self))

    def reconnect(self) -> None:
        """Closes the connection if it is open and opens it anew. A failure is logged; ask :meth:`is_connected`."""
        try:
            if self.is_connected():
                self.close()
            self.open()
        except Exception:
            logger.exception("could not reconnect %r", self)


def raw_connection(connection: Connection) -> Any:
    """What ``get()`` returns; None where a class has none to give."""
    if type(connection).get is Connection.get:
        return None
    try:
        return connection.get()
    except Exception:
        return None
