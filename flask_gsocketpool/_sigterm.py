"""Closing pools a while after a worker was told to end, as long as there is a process that can do it.

A server that has asked a worker to end kills it when it has waited for long enough. No code runs then, so whatever a
request that is stuck keeps in use would end without a goodbye.
"""

from __future__ import annotations

import os
import signal
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import gevent


class Closable(Protocol):
    def close(self, why: str) -> None: ...


#: Seconds between two looks at a worker. Gunicorn's own loop looks as often.
LOOK_INTERVAL = 1.0

#: The pools to close, and how many seconds after the signal. Those of a collected app leave by themselves.
_timeouts: weakref.WeakKeyDictionary[Closable, float] = weakref.WeakKeyDictionary()


def close_after_term(pools: Closable, seconds: float) -> None:
    """Call ``pools.close()`` `seconds` after SIGTERM, if :func:`listen` has been called by then."""
    _timeouts[pools] = seconds


def listen() -> None:
    """Notice SIGTERM from now on, and call the handler of before as well.

    This is quick where it has been done. Repeat it: a server may install its handler later than the app is made, and
    reset it in the processes that it forks.

    It does nothing where it can't: outside the main thread, and where no handler was installed from Python. With none
    at all the process dies at once, or ignores the signal, and so it shall stay; one of the event loop's or of C can't
    be called from here.
    """
    previous = signal.getsignal(signal.SIGTERM)
    if isinstance(previous, _Handler) or not callable(previous):
        return
    try:
        signal.signal(signal.SIGTERM, _Handler(previous))
    except ValueError:
        # Not the main thread.
        return


def watch(worker: Any) -> None:
    """Count the time also from when one of gunicorn's workers ends by itself, as after ``--max-requests``.

    Gunicorn sends no signal at that moment and calls no hook; it clears ``worker.alive``. Call this when the apps of
    the worker are made.
    """
    if _timeouts:
        gevent.spawn(_watch, worker, os.getpid())


def _watch(worker: Any, pid: int) -> None:
    while worker.alive:
        gevent.sleep(LOOK_INTERVAL)
    _count(pid, time.monotonic(), "the worker began to end")


class _Handler:
    """Note when SIGTERM comes, and call the previous handler. There is one for all apps."""

    def __init__(self, previous: Callable[[int, FrameType | None], Any]) -> None:
        self._previous = previous

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # Python calls this between any two instructions of whatever runs, in the middle of a pool's bookkeeping. So
        # nothing is done here: it is left to the event loop, by a call that takes no lock.
        gevent.get_hub().loop.run_callback_threadsafe(_count, os.getpid(), time.monotonic(), "SIGTERM")
        self._previous(number, frame)


def _count(pid: int, when: float, since: str) -> None:
    # Told again, it counts again: to close what is closed does no harm.
    for pools, seconds in list(_timeouts.items()):
        why = f"{seconds} s after {since}"
        gevent.spawn_later(max(0.0, when + seconds - time.monotonic()), _close, weakref.ref(pools), pid, why)


def _close(reference: weakref.ref[Closable], pid: int, why: str) -> None:
    pools = reference()
    # A child that was forked meanwhile has got a copy of this greenlet, but was not told to end.
    if pools is not None and os.getpid() == pid:
        pools.close(why)
