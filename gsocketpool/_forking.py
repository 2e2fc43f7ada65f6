"""Telling pools about a fork.

An at-fork handler can't be taken back, so there is a single one, for every object that wants to know.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forgetful(Protocol):
    def _after_fork(self) -> None: ...


_forgetful: weakref.WeakSet[Forgetful] = weakref.WeakSet()


def tell_after_fork(listener: Forgetful) -> None:
    """Has ``listener._after_fork()`` called in every forked child, for as long as the listener is alive."""
    _forgetful.add(listener)


def _tell_all() -> None:
    for listener in list(_forgetful):
        listener._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell_all)
