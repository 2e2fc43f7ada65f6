"""Where in the user's code a connection was acquired."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from types import FrameType

#: The directories whose frames are not of the user's code.
_ours = {os.path.dirname(__file__)}

#: A frame, as little as can be kept of it: its file, line and function.
Place = tuple[str, int, str]


def pass_over(file: str) -> None:
    """Pass over what is in the directory of `file`, too."""
    _ours.add(os.path.dirname(file))
    _is_ours.cache_clear()


@functools.cache
def _is_ours(file: str) -> bool:
    return os.path.dirname(file) in _ours


def callers(depth: int = 16) -> list[Place]:
    """Return the frames that led here, the innermost first, without those of this package and of :func:`pass_over`.

    Nothing is read or formatted yet, which makes this cheap enough to be done at every acquire.
    """
    places: list[Place] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(places) < depth:
        filename = frame.f_code.co_filename
        if places or not _is_ours(filename):
            places.append((filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return places


def describe(places: list[Place] | None) -> str:
    """Return the frames as a traceback shows them."""
    if not places:
        return "at a place that was not recorded: set leak_threshold to have it recorded"
    summary = traceback.StackSummary.from_list([(file, line, name, None) for file, line, name in reversed(places)])
    return "here:\n" + "".join(summary.format()).rstrip()
