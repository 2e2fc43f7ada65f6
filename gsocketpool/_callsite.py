"""Finds where user code acquired a connection."""

from __future__ import annotations

import functools
import sys
import traceback
from types import FrameType

#: Packages and modules whose frames are not user code: ours, and the proxies that find an app's pool.
SKIPPED = ("gsocketpool", "flask_gsocketpool", "werkzeug.local")
_SKIPPED_PREFIXES = tuple(f"{one}." for one in SKIPPED)
_get = dict.get

#: The file, line and function of a frame.
Frame = tuple[str, int, str]


def callers(depth: int = 16) -> list[Frame]:
    """Return the calling frames, the innermost first, starting with user code.

    This reads no file and formats nothing, so it is cheap enough for every acquire.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # The globals of exec() may hold anything, and be of any dict subclass.
        module = _get(frame.f_globals, "__name__")
        if type(module) is not str or not _is_skipped(module):
            break
        frame = frame.f_back
    frames: list[Frame] = []
    while frame is not None and len(frames) < depth:
        frames.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return frames


# Bounded, because a program may generate module names.
@functools.lru_cache(maxsize=1024)
def _is_skipped(module: str) -> bool:
    return module in SKIPPED or module.startswith(_SKIPPED_PREFIXES)


def describe(frames: list[Frame] | None) -> str:
    """Return the frames in the format of a traceback."""
    if not frames:
        return "at a place that was not recorded: set leak_threshold to have it recorded"
    summary = traceback.StackSummary.from_list([(file, line, name, None) for file, line, name in reversed(frames)])
    return "here:\n" + "".join(summary.format()).rstrip()
