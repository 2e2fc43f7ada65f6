"""Resets and pings connections between two uses, behind the callers' backs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gevent
from gevent import getcurrent

from gsocketpool._adapter import ENDS
from gsocketpool._records import Entry

logger = logging.getLogger("gsocketpool")

#: How many greenlets are kept for the next tasks: to make one takes longer than all the rest of a reset.
MAX_IDLE_GREENLETS = 16


def always() -> str:
    """Let every complaint pass."""
    return ""


@dataclass(frozen=True)
class Task:
    """Something that is done to connections, and what to say of it in the log."""

    doing: str
    done: str
    #: Returns whether a connection may be kept; None if it had died before. It may block and raise.
    step: Callable[[Any], bool | None]
    #: Seconds that it may take.
    timeout: float
    #: Called with an entry whose task is over, and what the step has returned. Its status may be another by then.
    ended: Callable[[Entry, bool | None], None]
    #: Returns what to add to a complaint; None to hold it back.
    admit: Callable[[], str | None] = always


class Upkeep:
    """Does the tasks for the connections of one pool, each in a greenlet.

    :param tasks: by the status that an entry has meanwhile.
    """

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._tasks = tasks
        self._hub: Any = None
        self.running: dict[gevent.Greenlet, Entry] = {}
        #: Greenlets that wait for an entry.
        self.idle: list[gevent.Greenlet] = []

    def attach(self, hub: Any) -> None:
        """Work in the event loop of `hub` from now on."""
        self._hub = hub

    def start(self, entry: Entry) -> None:
        """Do what the status of an entry asks for. The event loop calls this."""
        if entry.status not in self._tasks:
            return
        # One that was killed is dead.
        while self.idle and self.idle[-1].dead:
            self.idle.pop()
        greenlet = self.idle.pop() if self.idle else gevent.Greenlet(self._work)
        self.running[greenlet] = entry
        # At once: to start it would take another turn of the event loop.
        greenlet.switch()

    def kill(self) -> None:
        """Cut short the tasks that are under way, and end the greenlets."""
        for greenlet in (*self.running, *self.idle):
            greenlet.kill(block=False)
        self.idle.clear()

    def after_fork(self) -> None:
        """Forget the parent's greenlets, in a forked child."""
        self.kill()
        self.running.clear()

    def _work(self) -> None:
        greenlet = getcurrent()
        while greenlet in self.running:
            entry = self.running[greenlet]
            is_original = self._run_task(self._tasks[entry.status], entry, greenlet)
            # One that a fork has copied is about to be killed.
            if not is_original or len(self.idle) >= MAX_IDLE_GREENLETS:
                return
            self.idle.append(greenlet)
            try:
                self._hub.switch()
            except ENDS:
                raise
            except BaseException:
                # Thrown at a task that had ended by then.
                return

    def _run_task(self, task: Task, entry: Entry, greenlet: gevent.Greenlet) -> bool:
        """Do a task. Return False if a fork has copied this greenlet meanwhile."""
        status = entry.status
        answer: bool | None = False
        is_original = False
        try:
            answer = self._run_step(task, entry, status, greenlet)
        finally:
            is_original = self.running.pop(greenlet, None) is entry
            if is_original:
                task.ended(entry, answer)
        return is_original

    def _run_step(self, task: Task, entry: Entry, status: str, greenlet: gevent.Greenlet) -> bool | None:
        """Return whether the connection may be kept; None if it had died before."""
        connection = entry.connection
        # A gevent.Timeout for each would take ten times as long.
        limit = self._hub.loop.timer(task.timeout)
        limit.start(greenlet.throw, gevent.Timeout, update=True)
        answer: bool | None = False
        error: BaseException | None = None
        try:
            answer = task.step(connection)
        except ENDS:
            raise
        except BaseException as raised:
            error = raised
        finally:
            # A step that has swallowed the Timeout has lost what it waited for.
            is_late = not limit.active
            limit.close()
        if answer is not False and not is_late:
            return answer
        # Otherwise it was taken out meanwhile, as when the pool is closed, or a fork has copied this greenlet.
        more = task.admit() if entry.status is status else None
        if more is None:
            pass
        elif is_late:
            logger.warning("%s %r took longer than %s s%s", task.doing, connection, task.timeout, more)
        elif error is None:
            logger.warning("%r was %s, and still can't be used again%s", connection, task.done, more)
        else:
            logger.warning("%s %r failed%s", task.doing, connection, more, exc_info=error)
        if error is not None:
            # Its traceback would keep what the step had in its locals.
            error.__traceback__ = None
        return False
