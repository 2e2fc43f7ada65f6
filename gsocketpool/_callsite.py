"""Where in the user's code a connection was acquired."""

from __future__ import annotations

import functools
import sys
import traceback
from types import FrameType

#: The packages and modules whose frames are not of the user's code: these, and the proxies that look for an app's pool.
SKIPPED = ("gsocketpool", "flask_gsocketpool", "werkzeug.local")
_SKIPPED_PREFIXES = tuple(f"{one}." for one in SKIPPED)
_get = dict.get

#: A frame, as little as can be kept of it: its file, line and function.
Frame = tuple[str, int, str]


def callers(depth: int = 16) -> list[Frame]:
    """Return the frames that led here, the innermost first, without those of :data:`PASSED_OVER`.

    Nothing is read or formatted yet, which makes this cheap enough to be done at every acquire.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # Code that is run by exec() may have globals with anything in them, or of a class of its own.
        module = _get(frame.f_globals, "__name__")
        if type(module) is not str or not _is_skipped(module):
            break
        frame = frame.f_back
    frames: list[Frame] = []
    while frame is not None and len(frames) < depth:
        frames.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return frames


# Bounded, for a program may make up names of modules.
@functools.lru_cache(maxsize=1024)
def _is_skipped(module: str) -> bool:
    return module in SKIPPED or module.startswith(_SKIPPED_PREFIXES)


def describe(frames: list[Frame] | None) -> str:
    """Return the frames as a traceback shows them."""
    if not frames:
        return "at a place that was not recorded: set leak_threshold to have it recorded"
    summary = traceback.StackSummary.from_list([(file, line, name, None) for file, line, name in reversed(frames)])
    return "here:\n" + "".join(summary.format()).rstrip()
