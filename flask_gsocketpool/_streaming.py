"""Streamed bodies: the request's connections stay its own until the body has ended."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Response, request
from werkzeug.wsgi import ClosingIterator, FileWrapper

from gsocketpool import PoolExhaustedError


def is_pending(response: Response) -> bool:
    """Return whether code that may use connections has still to make the body of a response that is streamed."""
    if response.direct_passthrough and _is_file(response.response):
        return False
    if isinstance(response.response, ClosingIterator) and response.content_length is not None:
        # A response within this one, such as the page of an HTTPException, whose body is there.
        response.make_sequence()
        return False
    return True


class _Items:
    def __getitem__(self, key: int) -> Any:
        raise IndexError


#: What iterates over an object that has items only, as gunicorn's wrapper for files.
_ItemsIterator: type = type(iter(_Items()))


def _is_file(body: Any) -> bool:
    """Return whether a body is a file, as of ``send_file``. The server may know how to send that, so it must stay."""
    kinds: list[type] = [FileWrapper, io.IOBase]
    # A server has a wrapper of its own, or takes the file as it is.
    server_wrapper = request.environ.get("wsgi.file_wrapper")
    if isinstance(server_wrapper, type):
        kinds.append(server_wrapper)
    # The part of it that answers a request for a range is in one more wrapper, which keeps what iterates over the file.
    return isinstance(getattr(body, "iterable", body), (*kinds, _ItemsIterator))


class Body:
    """The body of a response. It calls `end` when it ends, perhaps more than once: the first call counts."""

    def __init__(self, parts: Iterable[Any], end: Callable[[BaseException | None], None]) -> None:
        self._source = parts
        self._parts = iter(parts)
        self._end = end
        self._has_begun = False
        self._first: Callable[[], Any] | None = None

    def begin(self) -> None:
        """Make the first part now, before the server asks for it.

        :raises PoolExhaustedError: if it gets no connection. All other errors are raised when the body is read.
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
        """End the scope. The server calls this in any case, even if the client has gone before the end of the body."""
        try:
            if not self._has_begun:
                # No exchange was begun here, either. Some versions of Flask end the request when they close their part.
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
