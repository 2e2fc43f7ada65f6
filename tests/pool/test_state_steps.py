"""Each step of the state says that it changes something, and what it counts and returns."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from gsocketpool._records import FOREIGN, IDLE, IN_USE, RESETTING, Entry, Waiter
from gsocketpool._state import DISCARDED, RETIRED, State
from gsocketpool.settings import Settings
from tests.pool.test_state import Connection, duplicates, idle_state, pop_idle, succeed, waiter_of

MUTATORS = ("append", "clear", "insert", "pop", "popleft", "remove", "__delitem__", "__setitem__")


def guarded(container: Any, check: Callable[[str], None]) -> Any:
    """Return a copy of a container that calls `check` before it changes."""
    kind = type(container)

    def guard(name: str) -> Callable[..., Any]:
        def change(self: Any, *arguments: Any) -> Any:
            check(name)
            return getattr(kind, name)(self, *arguments)

        return change

    copy_of = type(kind.__name__, (kind,), {name: guard(name) for name in MUTATORS if hasattr(kind, name)})
    return copy_of(container, container.maxlen) if kind is deque else copy_of(container)


class Watched(State):
    """A state that must not be changed outside of a step."""

    is_watched = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("changing", "is_watched"):
            self.check(name)
            if type(value) in (dict, list, deque):
                value = guarded(value, lambda change: self.check(f"{name}.{change}()"))
        super().__setattr__(name, value)

    def check(self, what: str) -> None:
        assert not self.is_watched or self.changing, f"{what} outside of a step"


class Busy:
    """A watched state with an entry of each kind, and waiters."""

    def __init__(self) -> None:
        self.state = state = Watched(Settings(max_connections=6, keepalive_interval=5, min_connections=6))
        for opener in range(5):
            state.begin_opening(opener, 0, more=1)
            succeed(state, opener, Connection())
        self.in_use, self.resetting = pop_idle(state), pop_idle(state)
        state.begin_reset(self.resetting, 0)
        self.pinging, self.idle, self.other = state.idle
        state.begin_ping(self.pinging, self.pinging.generation)
        begun = state.begin_opening("opener", 0, more=1)
        assert begun is not None
        self.opening = begun
        state.note_connection(self.opening, Connection())
        self.closed = Connection()
        state.remember_closed(self.closed)

        class WatchedEntry(Entry):
            __slots__ = ()

            def __setattr__(self, name: str, value: Any) -> None:
                state.check(f"an entry's {name}")
                super().__setattr__(name, value)

        for entry in (*state.all_entries(), self.opening):
            entry.__class__ = WatchedEntry
        state.is_watched = True

    def wait(self) -> Waiter:
        """Queue a caller although something is idle: no step but that of a caller looks at both."""
        waiter = waiter_of("waiter", deadline=1)
        self.state.changing = True
        self.state.waiters.append(waiter)
        self.state.changing = False
        return waiter


STEPS: dict[str, Callable[[Busy], object]] = {
    "give_back": lambda busy: busy.state.give_back(busy.in_use, 0),
    "give_back to a waiter": lambda busy: (busy.wait(), busy.state.give_back(busy.in_use, 0)),
    "begin_reset": lambda busy: busy.state.begin_reset(busy.in_use, 0),
    "end_reset": lambda busy: busy.state.end_reset(busy.resetting, 0),
    "begin_ping": lambda busy: busy.state.begin_ping(busy.idle, busy.idle.generation),
    "end_ping": lambda busy: busy.state.end_ping(busy.pinging, 0),
    "end_ping for a waiter": lambda busy: (busy.wait(), busy.state.end_ping(busy.pinging, 0)),
    "remove": lambda busy: busy.state.remove(busy.idle, 0, RETIRED, "dropped"),
    "transfer": lambda busy: busy.state.transfer(busy.in_use, "another"),
    "note_callsite": lambda busy: busy.state.note_callsite(busy.in_use, []),
    "note_reported": lambda busy: busy.state.note_reported(busy.in_use),
    "note_connection": lambda busy: busy.state.note_connection(busy.opening, Connection()),
    "remember_closed": lambda busy: busy.state.remember_closed(Connection()),
    "forget_closed": lambda busy: busy.state.forget_closed(busy.closed),
    "forget_all_closed": lambda busy: busy.state.forget_all_closed(),
    "enqueue": lambda busy: (busy.state.pop_all_idle("x"), busy.state.enqueue(waiter_of("a"), 0)),
    "enqueue again": lambda busy: (busy.state.pop_all_idle("x"), busy.state.enqueue(waiter_of("a"), 0, again=True)),
    "enqueue where one is idle": lambda busy: busy.state.enqueue(waiter_of("a"), 0),
    "withdraw": lambda busy: busy.state.withdraw(busy.wait()),
    "pop_timed_out": lambda busy: (busy.wait(), busy.state.pop_timed_out(2)),
    "fail_waiters": lambda busy: (busy.wait(), busy.state.fail_waiters(OSError)),
    "forget_waiters": lambda busy: (busy.wait(), busy.state.forget_waiters()),
    "acquire_failed": lambda busy: busy.state.acquire_failed(1, timed_out=True),
    "begin_opening": lambda busy: (
        busy.state.remove(busy.idle, 0, RETIRED, "dropped"),
        busy.state.begin_opening("another", 0, more=2),
    ),
    "opening_succeeded": lambda busy: busy.state.opening_succeeded("opener", busy.opening, 0, 1),
    "opening_failed": lambda busy: busy.state.opening_failed("opener", busy.opening, 1, OSError()),
    "pause_filling": lambda busy: (
        busy.state.remove(busy.idle, 0, RETIRED, "dropped"),
        busy.state.pause_filling(0, 5),
        busy.state.resume_filling(),
    ),
    "resume_filling": lambda busy: busy.state.resume_filling(),
    "close": lambda busy: busy.state.close(),
    "resize": lambda busy: busy.state.resize(1),
    "pop_all_idle": lambda busy: busy.state.pop_all_idle("drain"),
    "pop_all_resetting": lambda busy: busy.state.pop_all_resetting(),
    "pop_all_pinging": lambda busy: busy.state.pop_all_pinging(),
    "pop_expired": lambda busy: (busy.state.drain(), busy.state.pop_expired(math.inf)),
    "pop_unchanged": lambda busy: busy.state.pop_unchanged([(busy.idle, busy.idle.generation)], DISCARDED, "unusable"),
    "forget_entries": lambda busy: busy.state.forget_entries(),
    "reset_after_fork": lambda busy: busy.state.reset_after_fork(),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_state_changes_only_inside_steps_and_every_step_ends(step: Callable[[Busy], object]) -> None:
    """What the collector finds in the middle of a step must see that one is under way."""
    busy = Busy()
    step(busy)
    assert not busy.state.changing


def test_a_lowered_limit_retires_returned_entries_until_it_is_kept() -> None:
    state = idle_state(4)
    entries = [pop_idle(state) for _ in range(3)]
    assert [entry.status for entry in state.resize(2)] == ["removed"]
    assert state.retired == {"surplus": 1}
    assert state.give_back(entries[0], 0) == "surplus"
    assert state.remove(entries[0], 0, RETIRED, "surplus")
    assert state.retired == {"surplus": 2}
    assert [state.give_back(entry, 0) for entry in entries[1:]] == [None, None]
    assert not state.has_surplus
    assert state.size == 2


def test_a_lowered_limit_retires_no_entry_in_use_if_idle_ones_suffice() -> None:
    state = idle_state(3)
    entry = pop_idle(state)
    assert len(state.resize(1)) == 2
    assert not state.has_surplus
    assert state.give_back(entry, 0) is None


def test_an_opening_counts_towards_a_lowered_limit() -> None:
    state = idle_state(2)
    entry = pop_idle(state)
    state.remove(state.idle[0], 0, RETIRED, "dropped")
    state.begin_opening("opener", 0, more=1)
    assert state.resize(1) == []
    assert state.give_back(entry, 0) == "surplus"


def test_a_closed_pool_keeps_no_returned_entry() -> None:
    state = idle_state(1)
    entry = pop_idle(state)
    state.close()
    assert state.give_back(entry, 0) == "closed"
    assert state.remove(entry, 0, RETIRED, "closed")
    assert not state.is_opening_due(0, more=1)


@pytest.mark.parametrize(("settings", "noted"), [({}, 0), ({"idle_timeout": 9}, 7), ({"keepalive_interval": 9}, 7)])
def test_idle_since_is_recorded_only_if_a_setting_needs_it(settings: dict[str, Any], noted: int) -> None:
    state = idle_state(1, **settings)
    entry = pop_idle(state)
    state.give_back(entry, 7)
    assert entry.idle_since == noted
    assert entry.retire_at == (16 if "idle_timeout" in settings else entry.expires_at)


def test_an_entry_drained_during_its_ping_is_not_kept() -> None:
    state = idle_state(1, keepalive_interval=5)
    entry = state.idle[0]
    assert state.begin_ping(entry, entry.generation)
    state.drain()
    assert state.end_ping(entry, 0) == "drain"
    assert state.idle == []


def test_the_longest_waiter_gets_an_entry_after_its_ping() -> None:
    state = idle_state(1, keepalive_interval=5)
    entry = state.idle[0]
    assert state.begin_ping(entry, entry.generation)
    waiter = waiter_of("waiter")
    state.enqueue(waiter, 3)
    assert state.end_ping(entry, 4) is waiter
    assert (entry.status, entry.in_use_since, state.use_time) == (IN_USE, 4, 0)


def test_a_new_entry_records_how_its_connection_is_checked() -> None:
    state = State(Settings())
    entry = state.begin_opening("opener", 3, more=1)
    assert entry is not None
    ways = (bool, FOREIGN, print, True)
    state.opening_succeeded("opener", entry, 3, 2, 50, *ways)
    assert (entry.check, entry.return_mode, entry.complete, entry.can_ping) == ways
    assert (entry.status, entry.in_use_since, entry.expires_at, entry.retire_at) == (IN_USE, 3, 50, 50)
    assert (state.opened, state.open_time) == (1, 2)


def test_entries_removed_all_at_once_are_counted_by_their_reason() -> None:
    busy = Busy()
    state = busy.state
    assert state.pop_all_resetting() == [busy.resetting]
    assert state.resetting == 1
    assert state.pop_all_pinging() == [busy.pinging]
    assert state.resetting == 0
    assert state.discarded == {"not_reset": 1, "not_pinged": 1}
    assert state.pop_all_idle("drain") == [busy.idle, busy.other]
    assert state.pop_all_idle("drain") == []
    assert state.retired == {"drain": 2}
    assert (state.size, state.in_use) == (1, 1)


def test_a_child_starts_with_empty_counts_and_no_remembered_connections() -> None:
    busy = Busy()
    state = busy.state
    state.is_watched = False
    state.remove(busy.idle, 0, DISCARDED, "unusable")
    state.acquire_failed(2, timed_out=True)
    state.served(busy.in_use, 2)
    state.opening_failed("opener", busy.opening, 1, OSError())
    assert state.pause_filling(0, 99)
    state.resize(1)
    assert len(state.reset_after_fork()) == 3
    assert not state.forget_closed(busy.closed)
    assert state.is_opening_due(0), "the parent's pause is not the child's"
    assert not state.has_surplus
    assert (state.size, state.resetting, state.in_use, state.idle) == (0, 0, 0, [])
    counts = [state.acquired_at_once, state.acquired_after_wait, state.timed_out, state.refused, state.opened]
    counts += [state.open_errors, state.detached]
    assert (counts, state.discarded, state.retired) == ([0] * 7, {}, {})
    assert (state.wait_time, state.use_time, state.open_time) == (0, 0, 0)


def test_duplicates_are_unlinked_in_the_child() -> None:
    state = duplicates(3)
    entries = state.idle[:]
    assert len(state.reset_after_fork()) == 3
    assert all(entry.duplicate is None for entry in entries)


def test_a_wait_is_counted_however_it_ends() -> None:
    state = idle_state(1)
    state.acquire_failed(2)
    state.acquire_failed(3, timed_out=True)
    entry = pop_idle(state)
    entry.is_new = True
    state.served(entry, 4)
    assert (state.wait_time, state.timed_out, state.acquired_after_wait, entry.is_new) == (9, 1, 1, False)


def test_a_waiter_waits_until_its_deadline_and_no_longer() -> None:
    state = State(Settings(max_connections=1))
    waiters = [waiter_of(number, deadline=number) for number in (3, 4, 5)]
    for waiter in waiters:
        state.enqueue(waiter, 0)
    assert state.next_deadline() == 3
    assert state.pop_timed_out(2) == []
    assert state.pop_timed_out(4) == waiters[:2]
    assert list(state.waiters) == waiters[2:]
    assert state.next_deadline() == 5


def test_an_entry_retired_while_idle_is_counted_by_the_limit_that_it_has_reached() -> None:
    state = State(Settings(max_connections=2, idle_timeout=3))
    for opener, expires_at in (("old", 7), ("idle", 50)):
        entry = state.begin_opening(opener, 0, more=2)
        assert entry is not None
        state.note_connection(entry, Connection())
        state.opening_succeeded(opener, entry, 4, 0, expires_at)
        state.give_back(entry, 4)
    assert state.pop_expired(6) == []
    assert len(state.pop_expired(7)) == 2
    assert state.retired == {"lifetime": 1, "idle": 1}


def test_a_sweep_does_not_pop_an_entry_whose_ping_began_after_its_check() -> None:
    busy = Busy()
    asked = [(entry, entry.generation) for entry in (busy.pinging, busy.idle)]
    assert busy.state.pop_unchanged(asked, DISCARDED, "unusable") == [busy.idle]


def test_a_new_connection_serves_one_use_even_after_the_end_of_its_lifetime() -> None:
    state = State(Settings(max_connections=1))
    entry = state.begin_opening("opener", 0, more=1)
    assert entry is not None
    state.opening_succeeded("opener", entry, 0, 0, expires_at=5)
    assert entry.is_new
    assert state.give_back(entry, 5) is None
    assert not entry.is_new
    assert pop_idle(state) is entry
    assert state.give_back(entry, 4) is None
    assert pop_idle(state) is entry
    assert state.give_back(entry, 5) == "lifetime"


def test_removing_an_entry_being_reset_or_pinged_lowers_the_count_of_resetting() -> None:
    busy = Busy()
    state = busy.state
    for entry, resetting in [(busy.idle, 2), (busy.in_use, 2), (busy.pinging, 1), (busy.resetting, 0)]:
        assert state.remove(entry, 0, DISCARDED, "explicit")
        assert state.resetting == resetting
    assert state.discarded == {"explicit": 4}
    assert state.all_entries() == [busy.other]
    assert entries_of(state, IDLE) == [busy.other]
    assert entries_of(state, RESETTING) == []


def entries_of(state: State, status: str) -> list[Entry]:
    return [entry for entry in state.all_entries() if entry.status is status]
