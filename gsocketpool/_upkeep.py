"""Resets and pings connections between two uses, in the background."""

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

#: How many idle greenlets are kept, because making one takes longer than the rest of a reset.
MAX_IDLE_GREENLETS = 16


def always() -> str:
    """Admit every log message."""
    return ""


@dataclass(frozen=True)
class Task:
    """A kind of upkeep, and its name in the log, such as "resetting" and "reset"."""

    doing: str
    done: str
    #: Returns whether a connection may be kept; None if it was dead before. It may block and raise.
    step: Callable[[Any], bool | None]
    #: Seconds that the step may take.
    timeout: float
    #: Called after the step with the entry and the step's result. By then the entry's status may have changed.
    ended: Callable[[Entry, bool | None], None]
    #: Returns a suffix for a log message; None to suppress the message.
    admit: Callable[[], str | None] = always


class Upkeep:
    """Runs the tasks for the connections of one pool, each in a greenlet.

    :param tasks: the tasks by the status that an entry has while its task runs.
    """

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._tasks = tasks
        self._hub: Any = None
        self.running: dict[gevent.Greenlet, Entry] = {}
        #: The greenlets that wait for their next entry.
        self.idle: list[gevent.Greenlet] = []

    def attach(self, hub: Any) -> None:
        """Use the event loop of `hub`."""
        self._hub = hub

    def start(self, entry: Entry) -> None:
        """Run the task for the status of an entry. The event loop calls this."""
        if entry.status not in self._tasks:
            return
        # A program may have killed some.
        while self.idle and self.idle[-1].dead:
            self.idle.pop()
        greenlet = self.idle.pop() if self.idle else gevent.Greenlet(self._work)
        self.running[greenlet] = entry
        # Not start(), which would take another turn of the event loop.
        greenlet.switch()

    def kill(self) -> None:
        """Kill all greenlets, which ends the running tasks."""
        for greenlet in (*self.running, *self.idle):
            greenlet.kill(block=False)
        self.idle.clear()

    def after_fork(self) -> None:
        """Forget the parent's greenlets, in a forked child."""
        self.kill()
        self.running.clear()

    def _work(self) -> None:
        greenlet = getcurrent()
        while greenlet in self.running:  # pragma: no branch - only a fork's copy of the greenlet is not
            entry = self.running[greenlet]
            is_original = self._run_task(self._tasks[entry.status], entry, greenlet)
            # A copy in a forked child is about to be killed.
            if not is_original or len(self.idle) >= MAX_IDLE_GREENLETS:
                return
            self.idle.append(greenlet)
            try:
                self._hub.switch()
            except ENDS:
                raise
            except BaseException:
                # It was thrown at a task that has ended since.
                return

    def _run_task(self, task: Task, entry: Entry, greenlet: gevent.Greenlet) -> bool:
        """Run a task. Return False if a fork has copied this greenlet since."""
        status, connection = entry.status, entry.connection
        answer: bool | None = False
        is_original = False
        more: str | None = None
        try:
            answer, error, is_late = self._run_step(task, connection, greenlet)
            # Not if the entry was removed during the step, by close() for instance, or a fork has copied this greenlet.
            if answer is False and entry.status is status:
                more = task.admit()
        finally:
            is_original = self.running.pop(greenlet, None) is entry
            if is_original:
                task.ended(entry, answer)
        try:
            # Last, because a log handler may block, and the entry must not wait for it.
            if more is not None:
                _complain(task, connection, error, is_late, more)
        finally:
            if error is not None:
                # The traceback would keep the locals of the step alive.
                error.__traceback__ = None
        return is_original

    def _run_step(
        self, task: Task, connection: Any, greenlet: gevent.Greenlet
    ) -> tuple[bool | None, BaseException | None, bool]:
        """Return a step's answer (None if the connection was dead before), its error, and whether it was late."""
        # Not a gevent.Timeout, which would take ten times as long.
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
            # True even if the step has swallowed the Timeout, because it did not get what it waited for.
            is_late = not limit.active
            limit.close()
        return False if is_late else answer, error, is_late


def _complain(task: Task, connection: Any, error: BaseException | None, is_late: bool, more: str) -> None:
    if is_late:
        logger.warning("%s %r took longer than %s s%s", task.doing, connection, task.timeout, more)
    elif error is None:
        logger.warning("%r was %s, and still can't be used again%s", connection, task.done, more)
    else:
        logger.warning("%s %r failed%s", task.doing, connection, more, exc_info=error)
