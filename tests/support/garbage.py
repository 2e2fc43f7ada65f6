"""Garbage that is collected at a chosen moment, and the errors that reach no caller."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from gevent.hub import Hub

import gsocketpool

PACKAGE = os.path.dirname(gsocketpool.__file__) + os.sep


def is_in_package(frame: FrameType | None) -> bool:
    """Return whether code of the package runs, or waits for what runs."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return True
        frame = frame.f_back
    return False


@pytest.fixture
def errors_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The errors of greenlets, callbacks and finalizers, which reach no caller."""
    errors: list[str] = []
    monkeypatch.setattr(Hub, "print_exception", lambda *arguments: errors.append(repr(arguments[3])))
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: errors.append(repr(unraisable.exc_value)))
    return errors


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Turn the collector off, after it has collected what is there."""
    before = gc.get_threshold()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.enable()


@contextmanager
def at_line(line: int, act: Callable[[], object]) -> Iterator[None]:
    """A block in which `act` is called at the given one of the lines that the package runs, counted from 1."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return trace_lines if frame.f_code.co_filename.startswith(PACKAGE) else None

    def trace_lines(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == line:
                act()
        return trace_lines

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
