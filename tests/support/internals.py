"""The private names of the two packages that tests use, each with the reason why no public name will do.

Tests of a private module (``test_state``, ``test_redaction``, ``test_server_check``) import that module themselves.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from gsocketpool import Pool

# How the pool itself looks at an idle socket: what a connector's peek_target() is for.
from gsocketpool.connection._sockets import is_readable as is_readable
from gsocketpool.connection._sockets import is_silent as is_silent

# Tells a socket from all others by its open file, as the kit's no_leaks() does.
from gsocketpool.testing import _sockets

# Forks a child and keeps a pipe to it in a patched process, too, as the torture does.
from gsocketpool.testing._forking import fork as fork
from gsocketpool.testing._sockets import identity as identity


def open_sockets() -> set[tuple[int, int]]:
    """Return what tells each socket that this process has open from all others."""
    return set(_sockets.open_sockets())


# The reaper


def sweep(pool: Any) -> None:
    """Sweep now. The reaper sweeps by real time, and so at no moment that a test could choose."""
    pool._reaper.sweep(pool)


def reaper_of(pool: Any) -> Any:
    """Return the greenlet that sweeps, or None. A test kills it, or tells a parent's from a child's."""
    return pool._reaper.greenlet


def sweep_all_the_time(pool: Any) -> Any:
    """Replace the reaper's greenlet by one that does not pause, so that a sweep is always under way. Return it."""
    from gsocketpool._reaper import _sweep_forever

    reaper = pool._reaper
    reaper.greenlet.kill()
    reaper.greenlet = gevent.spawn(_sweep_forever, reaper, weakref.ref(pool), pool.name, 0)
    return reaper.greenlet


def look_once_for_dead_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let callers look for dead holders once and no more, however long the test takes on a slow machine."""
    monkeypatch.setattr("gsocketpool._reaper.CHECK_INTERVAL", 1000.0)


# The pool's other greenlets, which tests kill, as a program does that kills every greenlet it can find


def openers_of(pool: Any) -> list[Any]:
    return list(pool._state.opening)


def closers_of(pool: Any) -> list[Any]:
    return list(pool._closer._closing)


def upkeep_of(pool: Any) -> list[Any]:
    """Return the greenlets that reset or ping a connection."""
    return list(pool._lifecycle.upkeep.running)


def idle_upkeep_of(pool: Any) -> list[Any]:
    """Return the greenlets that wait for the next connection to reset or ping."""
    return list(pool._lifecycle.upkeep.idle)


# Timers, which go by real time


#: Seconds that the packages wait for what may never come. No user need change them, and no test can wait that long.
CANCEL_TIMEOUT = "gsocketpool._closer.CANCEL_TIMEOUT"
CLOSER_GRACE = "gsocketpool._closer.GRACE"
FIRST_PAUSE = "gsocketpool._lifecycle.FIRST_PAUSE"
NO_LEAKS_GRACE = "gsocketpool.testing._leaks._GRACE"
TORTURE_GRACE = "gsocketpool.testing._checks.GRACE"
TORTURE_HANG = "gsocketpool.testing._checks.HANG"
TORTURE_ROUND = "gsocketpool.testing._worker.SHORT_ROUND"


def use_clock_for_requests(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    """Have the extension measure the time of requests by `clock`. It takes none for that, as a pool does."""
    monkeypatch.setattr("flask_gsocketpool._request_scope.time", SimpleNamespace(monotonic=clock))


def keepalive_of(pool: Any) -> Any:
    """Return what pings idle connections, or None. Its ``ping_due()`` is what its timer calls."""
    return pool._lifecycle.keepalive


def has_timer(part: Any) -> bool:
    """Return whether a pool's waiters or its keepalive have a timer armed, which would keep the event loop alive."""
    return part._timer is not None


def waiters_of(pool: Any) -> Any:
    return pool._waiters


def pause_filling(pool: Any, seconds: float) -> None:
    """Set how long the pool pauses after the next open that fails. It begins with 0.1 s."""
    pool._lifecycle._pause = seconds


# The state


def ends_of_lifetimes(pool: Any) -> list[float]:
    """Return when the idle connections will be retired. A jitter is seen in many of them, and by no public number."""
    return [entry.expires_at for entry in pool._state.idle]


def is_changing(pool: Any) -> bool:
    """Return whether the pool is changing its state, when no user code may run."""
    return bool(pool._state.changing)


@contextmanager
def changing(pool: Any) -> Iterator[None]:
    """A block in which the pool is changing its state, as when the collector gives a connection back."""
    pool._state.changing = True
    yield
    pool._state.changing = False


def state_of(pool: Any) -> Any:
    """Return the state, for a test that acts in the middle of one of its steps."""
    return pool._state


def discard_late(pool: Pool[Any], entry: Any, generation: int) -> None:
    """Discard what was leased at that generation, as a call does that was put off to the event loop."""
    pool._discard(entry, generation)


def lease_record(lease: Any) -> tuple[Any, int]:
    """Return the entry and the generation of a lease, for :func:`discard_late`."""
    return lease._entry, lease._generation


def after_fork(pool: Any) -> None:
    """Do with a pool what a fork does with it in the child."""
    pool._after_fork()
