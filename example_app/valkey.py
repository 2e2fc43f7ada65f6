"""A small client for Valkey, and the model for teaching a pool a protocol.

The base class knows about sockets; what is left to say is how a command is sent, how a reply is read, and when the
connection may be used again.
"""

from __future__ import annotations

from typing import TypeAlias

from gsocketpool import LimitExceededError, TcpConnection

#: What a reply can be. An error is raised instead, except inside of a list.
Reply: TypeAlias = "str | int | bytes | ValkeyError | list[Reply] | None"

#: After these the server treats the connection's later commands differently, so nobody else should get it.
LASTING_COMMANDS = frozenset(
    ["AUTH", "CLIENT", "HELLO", "MONITOR", "MULTI", "PSUBSCRIBE", "SELECT", "SSUBSCRIBE", "SUBSCRIBE", "WATCH"]
)


class ValkeyError(Exception):
    """The server refused a command. The connection is as good as before."""


class ValkeyConnection(TcpConnection):
    """A connection to a Valkey server, which speaks RESP2. The parameters are those of `TcpConnection`."""

    _is_altered = False

    def open(self) -> None:
        """Connects. The object may have been open before, so what it knows of that is forgotten."""
        self._is_altered = False
        super().open()

    def is_reusable(self, error: BaseException | None) -> bool:
        """Returns whether every reply has been read, and the server keeps no state for this connection.

        The default is to throw a connection away when any exception has left the block, because it may have interrupted
        an exchange. This class guards its exchanges, so the exception is of no interest: a `ValkeyError` comes after
        its reply has been read, and so may the caller's own errors.
        """
        return not self._is_altered and super().is_reusable(None)

    def command(self, name: str, *arguments: bytes | str | int | float) -> Reply:
        """Sends a command and returns its reply.

        :raises ValkeyError: if the reply is an error.
        :raises ConnectionError: if the connection ends, or what comes is no reply.
        """
        request = _encode(name, *arguments)
        if name.upper() in LASTING_COMMANDS:
            self._is_altered = True
        # What is interrupted in here is half done, and the pool keeps no connection like that.
        with self.exchange():
            self.send(request)
            try:
                reply = self._read_reply()
            except (ValueError, LimitExceededError) as error:
                raise ConnectionError(f"{self!r} sent what is no reply") from error
        if isinstance(reply, ValkeyError):
            raise reply
        return reply

    def _read_reply(self) -> Reply:
        line = self.recv_until(b"\r\n")[:-2]
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            return ValkeyError(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.recv_exactly(size + 2)[:-2]
        if kind == b"*":
            count = int(rest)
            return None if count < 0 else [self._read_reply() for _ in range(count)]
        raise ValueError(f"no reply starts with {kind!r}")


def _encode(*words: bytes | str | int | float) -> bytes:
    """Returns a command as it is sent: an array of strings, each with its length before it."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        if not isinstance(word, bytes | str | int | float):
            raise TypeError(f"a command is made of bytes, str and numbers, not {type(word).__name__}")
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)
