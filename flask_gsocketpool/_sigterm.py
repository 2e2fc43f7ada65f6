"""Close an app's pools some time after a worker was told to stop, before the server kills it.

A server kills a worker that does not stop in time. Then no code runs, so the connections of a stuck request would end
without a goodbye.
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
    """The pools of an app."""

    def close(self, why: str) -> None:
        """Close all pools. Log `why` for those that still have connections in use."""


#: How often to check whether a worker still runs, in seconds. Gunicorn's own loop checks as often.
POLL_INTERVAL = 1.0

#: The pools to close, and how many seconds after the signal. An app that is collected disappears from here.
_timeouts: weakref.WeakKeyDictionary[Closable, float] = weakref.WeakKeyDictionary()


def close_after_term(pools: Closable, seconds: float) -> None:
    """Call ``pools.close()`` `seconds` after SIGTERM, if :func:`install_handler` was called before the signal."""
    _timeouts[pools] = seconds


def install_handler() -> None:
    """Handle SIGTERM from now on, and call the previous handler as well.

    Call this repeatedly: a server may install its own handler after the app is made, or reset it in a forked process.
    Installing it again is quick, and does nothing.

    Do nothing outside the main thread, or if Python has no handler for the signal. Without a handler, the process dies
    at once or ignores the signal, and that must not change. Handlers of the event loop or of C can't be called from
    here.
    """
    previous = signal.getsignal(signal.SIGTERM)
    if isinstance(previous, _Handler) or not callable(previous):
        return
    try:
        signal.signal(signal.SIGTERM, _Handler(previous))
    except ValueError:
        # Not the main thread.
        return


def watch_worker(worker: Any) -> None:
    """Close the pools also `seconds` after a gunicorn worker stops on its own, as after ``--max-requests``.

    Gunicorn then sends no signal and calls no hook: it clears ``worker.alive``. Call this when the worker's apps are
    made.
    """
    if _timeouts:
        gevent.spawn(_watch, worker, os.getpid())


def _watch(worker: Any, pid: int) -> None:
    while worker.alive:
        gevent.sleep(POLL_INTERVAL)
    _schedule_close(pid, time.monotonic(), "the worker began to stop")


class _Handler:
    """Schedules the closing of the pools, and calls the previous handler. One handler serves all apps."""

    def __init__(self, previous: Callable[[int, FrameType | None], Any]) -> None:
        self._previous = previous

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # Python may call this between any two instructions, even in the middle of a pool's bookkeeping. So leave the
        # work to the event loop, by a call that takes no lock.
        gevent.get_hub().loop.run_callback_threadsafe(_schedule_close, os.getpid(), time.monotonic(), "SIGTERM")
        self._previous(number, frame)


def _schedule_close(pid: int, when: float, since: str) -> None:
    # A second signal schedules a second close. Closing closed pools does no harm.
    for pools, seconds in list(_timeouts.items()):
        why = f"{seconds} s after {since}"
        gevent.spawn_later(max(0.0, when + seconds - time.monotonic()), _close, weakref.ref(pools), pid, why)


def _close(reference: weakref.ref[Closable], pid: int, why: str) -> None:
    pools = reference()
    # A child that was forked meanwhile has a copy of this greenlet, but was not told to stop.
    if pools is not None and os.getpid() == pid:
        pools.close(why)
