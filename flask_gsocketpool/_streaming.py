"""Keep a request's connections until its streamed body has ended."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Response, request
from werkzeug.wsgi import ClosingIterator, FileWrapper

from gsocketpool import PoolExhaustedError

#: The longest body that counts as a complete page, in bytes. Another WSGI app may be streaming a longer one.
MAX_PAGE_LENGTH = 65536


def is_pending(response: Response) -> bool:
    """Return whether the app's code has yet to produce the body of a streamed response, and may use connections."""
    if response.direct_passthrough and _is_file(response.response):
        return False
    length = response.content_length
    if isinstance(response.response, ClosingIterator) and length is not None and length <= MAX_PAGE_LENGTH:
        # This response wraps another one with a complete body, such as the page of an HTTPException.
        response.make_sequence()
        return False
    return True


class _Items:
    def __getitem__(self, key: int) -> Any:
        raise IndexError  # pragma: no cover - iter() only looks whether it is there


#: The type of an iterator over an object that has only ``__getitem__``, such as gunicorn's file wrapper.
_ItemsIterator: type = type(iter(_Items()))


def _is_file(body: Any) -> bool:
    """Return whether a body is a file, as from ``send_file``. A server may send an unwrapped file faster."""
    kinds: list[type] = [FileWrapper, io.IOBase]
    # A server may have its own wrapper, or accept the file itself.
    server_wrapper = request.environ.get("wsgi.file_wrapper")
    if isinstance(server_wrapper, type):
        kinds.append(server_wrapper)
    # The answer to a range request has one more wrapper, which holds an iterator over the file.
    return isinstance(getattr(body, "iterable", body), (*kinds, _ItemsIterator))


class Body:
    """The body of a response. It calls `end` when it ends, possibly more than once; the first call counts."""

    def __init__(self, parts: Iterable[Any], end: Callable[[BaseException | None], None]) -> None:
        self._source = parts
        self._parts = iter(parts)
        self._end = end
        self._has_begun = False
        self._first: Callable[[], Any] | None = None

    def begin(self) -> None:
        """Produce the first part now, before the server asks for it.

        :raises PoolExhaustedError: if it gets no connection. Any other error is raised when the body is read.
        """
        self._has_begun = True
        try:
            part = next(self._parts)
        except PoolExhaustedError as error:
            self._end(error)
            raise
        except Exception as error:
            failure = error

            def fail() -> Any:
                raise failure

            self._first = fail
        else:
            self._first = lambda: part

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        first, self._first = self._first, None
        try:
            part = next(self._parts) if first is None else first()
        except StopIteration:
            self._end(None)
            raise
        except BaseException as error:
            self._end(error)
            raise
        self._has_begun = True
        return part

    def close(self) -> None:
        """End the scope. The server always calls this, even if the client leaves before the end of the body."""
        try:
            if not self._has_begun:
                # No exchange has begun: end without an error. Some Flask versions end the request in their own close().
                self._end(None)
        finally:
            self.drop(GeneratorExit())

    def drop(self, error: BaseException) -> None:
        """Close the source of the body, and end the scope with an error."""
        try:
            if hasattr(self._source, "close"):
                self._source.close()
        finally:
            self._end(error)
