"""Calls in threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.support.scripted import PATIENCE, end_event_loop


def in_thread(act: Callable[[], Any], *, ends_loop: bool = True) -> Any:
    """Return what a call in another thread returns, or raise what it raises.

    :param ends_loop: end the thread's event loop before the thread ends, as gevent asks a thread to do.
    """
    returned: list[Any] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(act())
        except BaseException as error:
            raised.append(error)
        finally:
            if ends_loop:
                end_event_loop()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the thread does not end"
    if raised:
        raise raised[0]
    return returned[0]
