"""Follow greenlets from switch to switch, so that a test can act wherever one waits."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gevent
import greenlet


@dataclass
class Slice:
    """What a greenlet runs at a stretch: the event loop switches to it, and it switches back."""

    #: What the greenlet runs.
    what: str
    #: The others that have begun by then and have not ended, by their places in :attr:`Switches.greenlets`.
    others: list[int]
    #: Whether the greenlet waits for something at the end, and has not ended itself.
    waits: bool = False


class Switches:
    """The slices, in their order, of all greenlets that begin while this follows them.

    :param strangers: greenlets that are not to be followed.
    :param before_slice: called with the number of a slice that is about to run, and its greenlet.
    :param after_switch: called after every switch, those of the strangers included.
    """

    def __init__(
        self,
        strangers: weakref.WeakSet[Any],
        before_slice: Callable[[int, Any], object] | None = None,
        after_switch: Callable[[], object] | None = None,
    ) -> None:
        self.slices: list[Slice] = []
        #: In the order of their beginning.
        self.greenlets: list[Any] = []
        self._strangers = strangers
        self._before_slice = before_slice
        self._after_switch = after_switch
        self._errors: list[BaseException] = []

    @property
    def names(self) -> set[str]:
        """What the greenlets run."""
        return {one.what for one in self.slices}

    @contextmanager
    def following(self) -> Iterator[Switches]:
        before = greenlet.settrace(self._trace)
        try:
            yield self
        finally:
            greenlet.settrace(before)
        # Python ignores what a trace function raises, but for not calling it any more.
        assert not self._errors, self._errors

    def _trace(self, event: str, arguments: tuple[Any, Any]) -> None:
        origin, target = arguments
        try:
            if origin in self.greenlets:
                self.slices[-1].waits = not origin.ready()
            # The event loop and the test itself are not of this class.
            if isinstance(target, gevent.Greenlet) and target not in self._strangers:
                self._begin(target)
            if self._after_switch is not None:
                self._after_switch()
        except BaseException as error:
            self._errors.append(error)

    def _begin(self, target: Any) -> None:
        if target not in self.greenlets:
            target.name = getattr(target._run, "__name__", repr(target._run))
            self.greenlets.append(target)
        others = [place for place, other in enumerate(self.greenlets) if other is not target and not other.ready()]
        self.slices.append(Slice(target.name, others))
        if self._before_slice is not None:
            self._before_slice(len(self.slices) - 1, target)


def greenlets_there_are() -> weakref.WeakSet[Any]:
    """Return every greenlet of the process, also one that another test has left sleeping."""
    # By type(), because isinstance() asks a weak proxy for its object, which may be dead.
    return weakref.WeakSet(one for one in gc.get_objects() if issubclass(type(one), gevent.Greenlet))
