"""The place in the app's code where a connection was acquired."""

from __future__ import annotations

from types import CodeType, FrameType

#: The modules between the app's code and an acquire. A place is never in any of them.
_OWN_MODULES = {
    *(f"flask_gsocketpool.{name}" for name in ("globals", "_app_pool", "_request_scope")),
    "werkzeug.local",
    "contextlib",
}

#: A line of the app's code, as the code object and the offset of an instruction. Looking up the line takes time, and
#: most places are never shown.
Place = tuple[CodeType, int]


def place_of(frame: FrameType) -> Place:
    """Return the line that the app's code is running, in `frame` or one of its callers."""
    while frame.f_globals.get("__name__") in _OWN_MODULES and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code, frame.f_lasti


def shown_place(place: Place | None) -> str:
    """Return a description of a place for errors."""
    if place is None:
        return "an unknown place"
    code, instruction = place
    lines = (line for start, end, line in code.co_lines() if start <= instruction < end)
    return f"{code.co_filename}:{next(lines, None)} in {code.co_name}"
