"""Where in the user's code a connection was acquired."""

from __future__ import annotations

import functools
import sys
import traceback
from types import FrameType

#: The packages and modules whose frames are not of the user's code: these, and the proxies that look for an app's pool.
PASSED_OVER = ("gsocketpool", "flask_gsocketpool", "werkzeug.local")
_INSIDE = tuple(f"{one}." for one in PASSED_OVER)
_get = dict.get

#: A frame, as little as can be kept of it: its file, line and function.
Place = tuple[str, int, str]


def callers(depth: int = 16) -> list[Place]:
    """Return the frames that led here, the innermost first, without those of :data:`PASSED_OVER`.

    Nothing is read or formatted yet, which makes this cheap enough to be done at every acquire.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # Code that is run by exec() may have globals with anything in them, or of a class of its own.
        module = _get(frame.f_globals, "__name__")
        if type(module) is not str or not _is_passed_over(module):
            break
        frame = frame.f_back
    places: list[Place] = []
    while frame is not None and len(places) < depth:
        places.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return places


# Bounded, for a program may make up names of modules.
@functools.lru_cache(maxsize=1024)
def _is_passed_over(module: str) -> bool:
    return module in PASSED_OVER or module.startswith(_INSIDE)


def describe(places: list[Place] | None) -> str:
    """Return the frames as a traceback shows them."""
    if not places:
        return "at a place that was not recorded: set leak_threshold to have it recorded"
    summary = traceback.StackSummary.from_list([(file, line, name, None) for file, line, name in reversed(places)])
    return "here:\n" + "".join(summary.format()).rstrip()
