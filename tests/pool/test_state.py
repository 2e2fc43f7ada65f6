"""The state keeps its promises in every order of events, kills and failures that hypothesis tries."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from gsocketpool._records import DRAINED, IDLE, IN_USE, OPENING, PINGING, REMOVED, RESETTING, Entry, Waiter
from gsocketpool._state import DETACHED, DISCARDED, REMEMBERED, RETIRED, State
from gsocketpool.settings import Settings


class Connection:
    """One that is equal to every other, and can't be hashed."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


def succeed(
    state: State, opener: Hashable, connection: object, now: float = 0.0, expires_at: float = 1e9
) -> Waiter | str | None:
    """End an opening well, and give the new connection back at once, as the pool does."""
    entry = state.opening[opener]
    state.note_connection(entry, connection)
    state.opening_succeeded(opener, entry, now, 0.0, expires_at)
    return state.give_back(entry, now)


def waiter_of(holder: Hashable, came_at: float = 0.0, deadline: float = math.inf) -> Waiter:
    return Waiter(holder, came_at, deadline, None)


def begin_openings(state: State, name: Callable[[], Hashable], now: float = 0.0, more: int = 0) -> list[Hashable]:
    """Begin every opening that is due. Return who opens."""
    openers = []
    while state.is_opening_due(now, more):
        opener = name()
        assert state.begin_opening(opener, now, more) is state.opening[opener]
        openers.append(opener)
    assert state.begin_opening(name(), now, more) is None
    return openers


def names() -> Callable[[], Hashable]:
    numbers = iter(range(1000))
    return lambda: next(numbers)


def idle_state(count: int, **limits: Any) -> State:
    state = State(Settings(max_connections=count, **limits))
    for opener in range(count):
        state.begin_opening(opener, 0, more=1)
        succeed(state, opener, Connection())
    return state


def pop_idle(state: State, now: float = 0.0, holder: Hashable = "holder") -> Entry:
    entry = state.pop_idle(now, holder)
    assert entry is not None
    return entry


def test_the_entry_used_last_is_taken_first() -> None:
    state = idle_state(3)
    first, second = pop_idle(state), pop_idle(state)
    state.give_back(second, 1)
    state.give_back(first, 2)
    assert state.pop_idle(3, "c") is first


def test_connections_are_found_by_identity() -> None:
    state = idle_state(2)
    entry = pop_idle(state)
    assert state.find(entry.connection, IN_USE) is entry
    assert state.find(Connection(), IN_USE) is None
    assert state.find(Connection(), IDLE) is None


def duplicates(count: int) -> State:
    """A state all of whose connections are the same one."""
    state = State(Settings(max_connections=count))
    connection = Connection()
    for opener in range(count):
        state.begin_opening(opener, 0, more=1)
        succeed(state, opener, connection)
    return state


def test_a_connection_made_twice_has_two_entries() -> None:
    state = duplicates(3)
    assert (state.size, len(state.idle)) == (3, 3)
    entries = [pop_idle(state) for _ in range(3)]
    assert len(set(map(id, entries))) == 3
    connection = entries[0].connection
    for left in (2, 1, 0):
        entry = state.find(connection, IN_USE)
        assert entry is not None
        assert state.remove(entry, 0, DISCARDED, "explicit")
        assert state.size == left
    assert state.find(connection, IN_USE) is None
    assert not state.entries


def test_a_search_among_duplicates_finds_the_holders_own_entry() -> None:
    state = duplicates(3)
    holders = [object(), object()]
    entries = [pop_idle(state, holder=holder) for holder in holders]
    connection = entries[0].connection
    assert [state.find(connection, IN_USE, holder) for holder in holders] == entries
    assert state.find(connection, IN_USE, object()) in entries, "anyone may give back for another"
    assert state.find(connection, IDLE) is state.idle[0]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_duplicates_can_be_removed_in_any_order(order: tuple[int, ...]) -> None:
    state = duplicates(3)
    entries = state.idle[:]
    for number in order:
        state.remove(entries[number], 0, RETIRED, "dropped")
        assert set(map(id, state.all_entries())) == set(map(id, state.idle))
    assert not state.entries


def test_an_entry_is_removed_and_counted_once() -> None:
    state = idle_state(3)
    discarded, retired, detached = (pop_idle(state, now=1) for _ in range(3))
    for _ in range(2):
        state.remove(discarded, 3, DISCARDED, "error")
        state.remove(retired, 3, RETIRED, "lifetime")
        state.remove(detached, 3, DETACHED)
    assert not state.remove(discarded, 3, RETIRED, "lifetime")
    assert (state.discarded, state.retired, state.detached) == ({"error": 1}, {"lifetime": 1}, 1)
    assert state.use_time == 6
    assert state.size == 0


def test_an_entry_to_retire_stays_in_use_until_it_is_removed() -> None:
    state = idle_state(1)
    entry = pop_idle(state)
    state.drain()
    assert state.give_back(entry, 0) == "drain"
    assert entry.status is IN_USE
    assert (state.size, state.in_use) == (1, 1)


def test_an_error_of_opening_goes_to_the_longest_waiter_unless_other_openings_suffice() -> None:
    state = State(Settings(max_connections=2))
    waiters = [waiter_of(name) for name in "ab"]
    for waiter in waiters:
        assert state.enqueue(waiter, 0)
    first, second = begin_openings(state, names())
    assert state.withdraw(waiters[0]) is None
    assert state.opening_failed(first, state.opening[first], 1, OSError()) is None, "the other opening suffices"
    error = OSError()
    assert state.opening_failed(second, state.opening[second], 1, error) is waiters[1]
    assert waiters[1].error is error
    assert (state.open_errors, state.open_time) == (2, 2)


@pytest.mark.parametrize("again", [("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a")])
def test_callers_that_queue_again_keep_their_order_of_arrival(again: tuple[str, ...]) -> None:
    state = State(Settings(max_connections=1))
    waiters = {name: waiter_of(name, number) for number, name in enumerate("abcde")}
    for name in "de":
        state.enqueue(waiters[name], 0)
    for name in again:
        state.enqueue(waiters[name], 0, again=True)
    assert [waiter.holder for waiter in state.waiters] == list("abcde")


def test_a_caller_that_queues_again_is_served_before_newcomers() -> None:
    state = idle_state(1)
    entry = pop_idle(state)
    ahead, behind = waiter_of("ahead", 1), waiter_of("behind", 2)
    state.enqueue(behind, 0)
    state.enqueue(ahead, 0, again=True)
    assert state.give_back(entry, 0) is ahead
    assert ahead.is_served
    assert entry.holder == "ahead"


def test_callers_that_find_room_are_not_refused() -> None:
    state = State(Settings(max_connections=2, max_waiting=1))
    assert all(state.enqueue(waiter_of(name), 0) for name in "abc")
    assert state.refused == 0
    late = waiter_of("d")
    assert not state.enqueue(late, 0)
    assert state.refused == 1
    assert late not in state.waiters
    assert state.enqueue(late, 0, again=True), "who was in the queue already is not refused"


def test_a_caller_about_to_queue_gets_a_connection_that_has_just_become_idle() -> None:
    state = idle_state(1)
    waiter = waiter_of("a")
    assert state.enqueue(waiter, 7)
    assert waiter.is_served
    assert waiter.entry is not None
    assert (waiter.entry.holder, waiter.entry.in_use_since) == ("a", 7)
    assert not state.waiters


def test_a_waiter_that_leaves_passes_on_only_a_connection_that_it_still_has() -> None:
    state = idle_state(1)
    entry = pop_idle(state)
    first, second = waiter_of("first"), waiter_of("second")
    for waiter in (first, second):
        state.enqueue(waiter, 0)
    state.give_back(entry, 0)
    # Before the first wakes, its connection is given back for it and handed over again.
    state.give_back(entry, 0)
    assert state.withdraw(first) is None
    assert state.withdraw(second) is entry


def test_every_failed_waiter_gets_an_error_of_its_own() -> None:
    state = State(Settings())
    waiters = [waiter_of(name) for name in "abc"]
    for waiter in waiters:
        state.enqueue(waiter, 0)
    assert state.fail_waiters(OSError) == waiters
    assert len({id(waiter.error) for waiter in waiters}) == 3
    assert not state.waiters


def test_filling_is_paused_until_a_time_or_a_success() -> None:
    state = State(Settings(min_connections=1))
    assert state.is_opening_due(0)
    assert state.pause_filling(0, 5)
    assert not state.pause_filling(1, 6), "it is paused already"
    assert not state.is_opening_due(4)
    assert state.is_opening_due(4, more=1), "a caller does not wait for that"
    assert state.is_opening_due(5)
    state.resume_filling()
    assert state.is_opening_due(0)
    state.pause_filling(0, 5)
    state.begin_opening("opener", 0, more=1)
    succeed(state, "opener", Connection())
    state.remove(state.idle[0], 0, DISCARDED, "unusable")
    assert state.is_opening_due(0)


def test_pop_unchanged_leaves_entries_that_were_used_since() -> None:
    state = idle_state(3)
    asked = [(entry, entry.generation) for entry in state.idle]
    used = pop_idle(state)
    in_use = pop_idle(state)
    state.give_back(used, 0)
    assert state.pop_unchanged(asked, DISCARDED, "unusable") == [asked[0][0]]
    assert (used.status, in_use.status) == (IDLE, IN_USE)
    assert state.idle == [used]
    assert state.discarded == {"unusable": 1}


def test_a_limited_number_of_closed_connections_is_remembered_by_identity() -> None:
    state = State(Settings())
    connections = [Connection() for _ in range(REMEMBERED + 1)]
    for connection in connections:
        state.remember_closed(connection)
    assert not state.forget_closed(connections[0])
    assert not state.forget_closed(Connection())
    assert state.forget_closed(connections[-1])
    assert not state.forget_closed(connections[-1])
    state.forget_all_closed()
    assert not state.forget_closed(connections[1])


def test_an_entry_being_reset_is_neither_idle_nor_in_use_but_counts_towards_the_limit() -> None:
    state = idle_state(1)
    entry = pop_idle(state, now=1)
    generation = entry.generation
    state.begin_reset(entry, 4)
    assert (state.size, state.in_use, len(state.idle), state.resetting) == (1, 0, 0, 1)
    assert (entry.status, entry.holder, state.use_time) == (RESETTING, None, 3)
    assert not entry.is_leased(generation)
    assert state.all_entries() == [entry]
    assert state.entries_in_use() == []
    for status in (IDLE, IN_USE):
        assert state.find(entry.connection, status) is None
    assert not state.is_opening_due(4, more=1)
    assert state.end_reset(entry, 9) is None
    assert (state.size, state.in_use, len(state.idle), state.resetting) == (1, 0, 1, 0)
    assert state.use_time == 3


def test_the_longest_waiter_gets_an_entry_after_its_reset() -> None:
    state = idle_state(1)
    entry = pop_idle(state)
    first, second = waiter_of("first"), waiter_of("second")
    for waiter in (first, second):
        state.enqueue(waiter, 0)
    state.begin_reset(entry, 0)
    assert state.end_reset(entry, 0) is first
    assert (entry.holder, first.is_served, state.resetting) == ("first", True, 0)


def test_an_entry_drained_during_its_reset_is_not_kept() -> None:
    state = idle_state(1)
    entry = pop_idle(state)
    state.begin_reset(entry, 0)
    state.drain()
    assert state.end_reset(entry, 0) == "drain"
    assert state.remove(entry, 0, RETIRED, "drain")
    assert (state.size, state.resetting, state.in_use) == (0, 0, 0)


def test_an_entry_removed_during_its_reset_is_counted_once() -> None:
    state = idle_state(1)
    entry = pop_idle(state, now=1)
    state.begin_reset(entry, 3)
    assert state.remove(entry, 9, DISCARDED, "not_reset")
    assert not state.remove(entry, 9, DISCARDED, "not_reset")
    assert (state.size, state.resetting, state.in_use, state.use_time) == (0, 0, 0, 2)
    assert state.discarded == {"not_reset": 1}


def test_an_entry_being_pinged_is_not_idle_and_returns_to_its_place() -> None:
    state = idle_state(3, keepalive_interval=5, idle_timeout=50)
    first, second, third = entries = [pop_idle(state) for _ in range(3)]
    for now, entry in enumerate(entries):
        entry.can_ping = True
        state.give_back(entry, now)
    times = [(entry.idle_since, entry.retire_at) for entry in entries]
    assert state.pingable(9) == [(0, first), (1, second), (2, third)]
    assert not state.begin_ping(second, second.generation + 1)
    assert state.begin_ping(second, second.generation)
    assert not state.begin_ping(second, second.generation)
    assert (second.status, second.holder) == (PINGING, None)
    assert (state.size, state.in_use, state.resetting, state.idle) == (3, 0, 1, [first, third])
    assert state.pop_all_resetting() == []
    for status in (IDLE, IN_USE):
        assert state.find(second.connection, status) is None
    assert state.end_ping(second, 9) is None
    assert (state.in_use, state.resetting, state.idle, state.use_time) == (0, 0, entries, 3)
    assert [(entry.idle_since, entry.retire_at) for entry in entries] == times
    assert state.pingable(9) == [(0, first), (9, second), (2, third)]
    assert state.pingable(50) == [(9, second), (2, third)]
    assert state.begin_ping(second, second.generation)
    assert state.pop_all_pinging() == [second]
    assert (state.size, state.resetting, state.discarded) == (2, 0, {"not_pinged": 1})


def test_a_state_change_that_raises_is_over() -> None:
    state = State(Settings())
    state.enqueue(waiter_of("a"), 0)

    def fail() -> BaseException:
        assert state.changing
        raise RecursionError

    with pytest.raises(RecursionError):
        state.fail_waiters(fail)
    assert not state.changing


class Machine(RuleBasedStateMachine):
    """Callers, openers and a clock around one state, each doing the next thing at any time."""

    waiting = Bundle("waiting")
    using = Bundle("using")
    opening = Bundle("opening")
    resetting = Bundle("resetting")
    pinging = Bundle("pinging")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.count = 0
        self.queue: list[Waiter] = []
        self.served: list[Waiter] = []
        self.shrunk = False
        #: By the id(), so that no other entry gets it.
        self.drained: dict[int, Entry] = {}
        self.reset_expected_counts()

    def reset_expected_counts(self) -> None:
        self.removed = {DISCARDED: 0, RETIRED: 0, DETACHED: 0}
        self.opened = self.open_errors = self.timed_out = self.refused = 0

    def name(self) -> int:
        self.count += 1
        return self.count

    @initialize(
        most=st.integers(1, 4),
        least=st.integers(0, 2),
        at_once=st.none() | st.integers(1, 3),
        idle=st.none() | st.just(5),
        keepalive=st.none() | st.just(3),
    )
    def begin(self, most: int, least: int, at_once: int | None, idle: int | None, keepalive: int | None) -> None:
        self.keeps_alive = keepalive is not None
        self.state = State(
            Settings(
                max_connections=most,
                min_connections=min(least, most),
                max_opening=at_once,
                max_waiting=5,
                idle_timeout=idle,
                keepalive_interval=keepalive,
            )
        )

    # What the pool does after whatever may have freed a place

    def settle(self, more: int = 0) -> list[tuple[Hashable, Entry]]:
        openers = begin_openings(self.state, self.name, self.now, more)
        return [(opener, self.state.opening[opener]) for opener in openers]

    def wake(self, waiter: Waiter | None) -> None:
        if waiter is not None:
            assert waiter is self.queue.pop(0), "first come, first served"
            self.served.append(waiter)

    def remove(self, entry: Entry, cause: str, reason: str = "") -> None:
        assert self.state.remove(entry, self.now, cause, reason)
        assert entry.status is REMOVED
        assert not self.state.remove(entry, self.now, cause, reason), "it is removed once"
        self.removed[cause] += 1

    def give_back(self, entry: Entry, step: Callable[..., Waiter | str | None] | None = None) -> list[Any]:
        is_over, is_new, generation = self.now >= entry.expires_at, entry.is_new, entry.generation
        outcome = (step or self.state.give_back)(entry, self.now)
        if isinstance(outcome, str):
            assert outcome in ("closed", "drain", "lifetime", "surplus")
            assert entry.is_leased(generation), "nothing has happened yet"
            self.remove(entry, RETIRED, outcome)
            return self.settle()
        assert is_new or not is_over
        assert not entry.is_leased(generation)
        assert outcome is not None or entry.status is IDLE
        if outcome is not None:
            assert outcome.is_served
        self.wake(outcome)
        return []

    # Callers

    @rule(target=using)
    def acquire_idle(self) -> object:
        entry = self.state.pop_idle(self.now, self.name())
        if entry is None:
            return multiple()
        assert not self.queue, "a newcomer never overtakes"
        return (entry, entry.generation)

    @rule(target=opening, patience=st.integers(1, 20) | st.just(math.inf))
    def queue_up(self, patience: float) -> object:
        if self.state.closed or self.state.idle:
            return multiple()
        name = self.name()
        waiter = waiter_of(name, name, self.now + patience)
        is_full = len(self.queue) >= 5 + max(0, self.state.max_connections - self.state.size)
        assert self.state.enqueue(waiter, self.now) != is_full
        if is_full:
            self.refused += 1
            return multiple()
        self.queue.append(waiter)
        return multiple(*self.settle())

    @rule()
    def queue_up_where_something_has_just_become_idle(self) -> None:
        if not self.state.idle:
            return
        name = self.name()
        waiter = waiter_of(name, name)
        last = self.state.idle[-1]
        assert self.state.enqueue(waiter, self.now)
        assert waiter.is_served
        assert waiter.entry is last
        self.served.append(waiter)

    @rule(target=opening, more=st.integers(1, 2))
    def try_without_waiting(self, more: int) -> object:
        return multiple(*self.settle(more))

    @rule(target=using, which=st.integers(0, 20))
    def wake_up(self, which: int) -> object:
        if not self.served:
            return multiple()
        waiter = self.served.pop(which % len(self.served))
        assert (waiter.entry is None) != (waiter.error is None)
        if waiter.entry is None or not waiter.is_served:
            return multiple()
        assert waiter.entry.status is IN_USE
        assert waiter.entry.holder == waiter.holder
        before = self.state.acquired_after_wait
        self.state.served(waiter.entry, 1.0)
        assert self.state.acquired_after_wait == before + 1
        return (waiter.entry, waiter.generation)

    @rule(target=opening, which=st.integers(0, 20))
    def wake_up_to_something_unusable(self, which: int) -> object:
        """It fails its check: removed, and the caller goes back to where it was, before all others."""
        if not self.served:
            return multiple()
        waiter = self.served.pop(which % len(self.served))
        if waiter.entry is None or not waiter.is_served:
            return multiple()
        self.remove(waiter.entry, DISCARDED, "unusable")
        started = self.settle()
        if not self.state.closed and not self.state.idle:
            again = waiter_of(waiter.holder, waiter.came_at, waiter.deadline)
            assert self.state.enqueue(again, self.now, again=True), "it is not refused"
            self.queue = sorted([again, *self.queue], key=lambda one: one.came_at)
        return multiple(*started, *self.settle())

    @rule(which=st.integers(0, 20))
    def give_up_waiting(self, which: int) -> None:
        """By a timeout or a kill, while nothing has come."""
        if self.queue:
            waiter = self.queue.pop(which % len(self.queue))
            assert self.state.withdraw(waiter) is None

    @rule(target=opening, seconds=st.integers(1, 10))
    def the_timer_fires(self, seconds: int) -> object:
        self.now += seconds
        first = self.state.next_deadline()
        late = self.state.pop_timed_out(self.now)
        assert bool(late) == (first <= self.now)
        assert late == [waiter for waiter in self.queue if waiter.deadline <= self.now]
        assert all(waiter.entry is None and waiter.error is None for waiter in late)
        self.queue = [waiter for waiter in self.queue if waiter not in late]
        assert self.state.next_deadline() > self.now
        for waiter in late:
            assert self.state.withdraw(waiter) is None, "a kill at that moment finds nothing either"
            self.state.acquire_failed(1.0, timed_out=True)
        self.timed_out += len(late)
        # The pause after a failure may be over, too.
        return multiple(*self.settle())

    @rule(target=opening, which=st.integers(0, 20))
    def killed_while_being_served(self, which: int) -> object:
        """What was handed over already is passed on."""
        if not self.served:
            return multiple()
        waiter = self.served.pop(which % len(self.served))
        was_served = waiter.is_served
        entry = self.state.withdraw(waiter)
        assert entry is (waiter.entry if was_served else None)
        if entry is None:
            return multiple()
        return multiple(*self.give_back(entry))

    @rule(target=opening, use=consumes(using))
    def release(self, use: tuple[Entry, int]) -> object:
        entry, generation = use
        if not entry.is_leased(generation):
            return multiple()
        return multiple(*self.give_back(entry))

    # Resetting

    @rule(target=resetting, use=consumes(using))
    def begin_reset(self, use: tuple[Entry, int]) -> object:
        entry, generation = use
        if not entry.is_leased(generation):
            return multiple()
        before = self.state.resetting
        self.state.begin_reset(entry, self.now)
        assert self.state.resetting == before + 1
        assert not entry.is_leased(generation)
        assert entry.holder is None
        assert self.state.find(entry.connection, IN_USE) is self.state.find(entry.connection, IDLE) is None
        return entry

    @rule(target=opening, entry=consumes(resetting))
    def end_reset(self, entry: Entry) -> object:
        if entry.status is not RESETTING:
            return multiple()
        return multiple(*self.give_back(entry, self.state.end_reset))

    @rule(target=opening, entry=consumes(resetting))
    def fail_to_reset(self, entry: Entry) -> object:
        """It has raised, took too long, was killed, or the pool was closed."""
        if entry.status is RESETTING:
            self.remove(entry, DISCARDED, "not_reset")
        return multiple(*self.settle())

    # Pinging

    @rule(target=pinging, which=st.integers(0, 20), used=st.booleans())
    def begin_ping(self, which: int, used: bool) -> object:
        """It may have been used since it was found to be due."""
        if not self.state.idle or not self.keeps_alive:
            return multiple()
        entry = self.state.idle[which % len(self.state.idle)]
        if used:
            assert not self.state.begin_ping(entry, entry.generation - 1)
            return multiple()
        before = self.state.resetting
        assert self.state.begin_ping(entry, entry.generation)
        assert self.state.resetting == before + 1
        assert self.state.find(entry.connection, IN_USE) is self.state.find(entry.connection, IDLE) is None
        return entry

    @rule(target=opening, entry=consumes(pinging))
    def end_ping(self, entry: Entry) -> object:
        if entry.status is not PINGING:
            return multiple()
        before = self.state.use_time, entry.idle_since, entry.retire_at
        started = self.give_back(entry, self.state.end_ping)
        if entry in self.state.idle:
            assert (self.state.use_time, entry.idle_since, entry.retire_at) == before, "it is no use"
        return multiple(*started)

    @rule(target=opening, entry=consumes(pinging))
    def fail_to_ping(self, entry: Entry) -> object:
        if entry.status is PINGING:
            self.remove(entry, DISCARDED, "not_pinged")
        return multiple(*self.settle())

    @rule(target=opening, which=st.integers(0, 20))
    def given_back_for_a_waiter_that_has_not_woken(self, which: int) -> object:
        """As a second release does in the turn of a hand-over: the waiter finds that it has lost it."""
        served = [waiter for waiter in self.served if waiter.is_served]
        if not served:
            return multiple()
        waiter = served[which % len(served)]
        assert waiter.entry is not None
        started = self.give_back(waiter.entry)
        assert not waiter.is_served
        return multiple(*started)

    @rule(target=opening, use=consumes(using), cause=st.sampled_from([DISCARDED, DETACHED]))
    def discard_or_detach(self, use: tuple[Entry, int], cause: str) -> object:
        entry, generation = use
        if not entry.is_leased(generation):
            return multiple()
        self.remove(entry, cause, "explicit" if cause is DISCARDED else "")
        return multiple(*self.settle())

    @rule(use=using)
    def transfer(self, use: tuple[Entry, int]) -> None:
        entry, generation = use
        if entry.is_leased(generation):
            holder = self.name()
            self.state.transfer(entry, holder)
            assert entry.is_leased(generation), "it is still the same lease"
            assert self.state.find(entry.connection, IN_USE, holder) is entry

    # Openers

    @rule(target=opening, one=consumes(opening), lifetime=st.integers(1, 20))
    def open_well(self, one: tuple[Hashable, Entry], lifetime: int) -> object:
        opener, entry = one
        if entry.status is REMOVED:
            return multiple()
        was_drained = entry.expires_at == DRAINED
        self.state.note_connection(entry, Connection())
        self.state.opening_succeeded(opener, entry, self.now, 1.0, self.now + lifetime)
        self.opened += 1
        assert (entry.expires_at == DRAINED) == was_drained, "it may have been drained meanwhile"
        return multiple(*self.give_back(entry), *self.settle())

    @rule(target=opening, one=consumes(opening), pause=st.integers(1, 10))
    def fail_to_open(self, one: tuple[Hashable, Entry], pause: int) -> object:
        opener, entry = one
        if entry.status is REMOVED:
            return multiple()
        error = OSError()
        waiter = self.state.opening_failed(opener, entry, 1.0, error)
        self.open_errors += not self.state.closed
        assert entry.status is REMOVED
        if waiter is not None:
            assert waiter.error is error
        elif self.state.pause_filling(self.now, self.now + pause):
            assert not self.state.is_opening_due(self.now), "the other openings suffice for the waiters"
        self.wake(waiter)
        return multiple(*self.settle())

    @rule(target=opening)
    def pause_is_over(self) -> object:
        self.state.resume_filling()
        return multiple(*self.settle())

    # Everything else

    @rule(target=opening, seconds=st.integers(1, 10))
    def time_passes_and_a_sweep_comes(self, seconds: int) -> object:
        self.now += seconds
        kept = [entry for entry in self.state.idle if entry.retire_at > self.now]
        for entry in self.state.pop_expired(self.now):
            assert entry.status is REMOVED
            assert entry.retire_at <= self.now
            self.removed[RETIRED] += 1
        assert self.state.idle == kept
        return multiple(*self.settle())

    @rule(target=opening, which=st.sets(st.integers(0, 4)), used=st.booleans())
    def a_sweep_finds_some_dead(self, which: set[int], used: bool) -> object:
        """Asking them may have taken a while, in which one of them was used."""
        asked = [(entry, entry.generation) for number, entry in enumerate(self.state.idle) if number in which]
        last = None
        if used and self.state.idle:
            last = pop_idle(self.state, self.now, self.name())
        started = [] if last is None else self.give_back(last)
        popped = self.state.pop_unchanged(asked, DISCARDED, "unusable")
        self.removed[DISCARDED] += len(popped)
        assert popped == [entry for entry, _ in asked if entry is not last]
        assert all(entry.status is REMOVED for entry in popped)
        return multiple(*started, *self.settle())

    @rule(target=opening, which=st.integers(0, 20))
    def drop_one(self, which: int) -> object:
        if self.state.idle:
            self.remove(self.state.idle[which % len(self.state.idle)], RETIRED, "dropped")
        return multiple(*self.settle())

    @rule(target=opening)
    def drain(self) -> object:
        self.removed[RETIRED] += len(self.state.pop_all_idle("drain"))
        self.state.drain()
        assert not self.state.idle
        self.drained |= {id(entry): entry for entry in [*self.state.all_entries(), *self.state.opening.values()]}
        return multiple(*self.settle())

    @rule(target=opening, most=st.integers(2, 5))
    def resize(self, most: int) -> object:
        self.shrunk = self.shrunk or most < self.state.max_connections
        before = self.state.idle[:]
        surplus = self.state.resize(most)
        assert surplus == before[: len(surplus)], "those idle for longest go first"
        assert self.state.idle == before[len(surplus) :]
        self.removed[RETIRED] += len(surplus)
        return multiple(*self.settle())

    @rule(target=opening)
    def fork(self) -> object:
        """The child's side of it: all is forgotten, but for the queue."""
        waiters = list(self.state.waiters)
        entries = [*self.state.all_entries(), *self.state.opening.values()]
        connections = self.state.reset_after_fork()
        known = [entry.connection for entry in entries if entry.connection is not None]
        assert list(map(id, connections)) == list(map(id, known)), "each has to be aborted"
        assert self.state.size == len(self.state.opening) == len(self.state.idle) == self.state.resetting == 0
        assert all(entry.status is REMOVED for entry in entries)
        assert not any(waiter.is_served for waiter in self.served)
        assert list(self.state.waiters) == waiters
        self.shrunk = False
        self.reset_expected_counts()
        return multiple(*self.settle())

    @rule()
    def close(self) -> None:
        if self.count < 40:
            return
        self.state.close()
        for waiter in self.state.fail_waiters(OSError):
            assert waiter.error is not None
            self.wake(waiter)
        self.removed[RETIRED] += len(self.state.pop_all_idle("closed"))

    # What must hold whenever another greenlet can run

    @invariant()
    def limits_are_kept(self) -> None:
        if hasattr(self, "state") and not self.shrunk:
            assert self.state.size + len(self.state.opening) <= self.state.max_connections
            assert len(self.state.opening) <= self.state.max_opening

    @invariant()
    def numbers_agree(self) -> None:
        if not hasattr(self, "state"):
            return
        state = self.state
        assert not state.changing
        entries = list(state.all_entries())
        assert len(entries) == state.size == len(set(map(id, entries)))
        assert {id(entry) for entry in entries if entry.status is IDLE} == set(map(id, state.idle))
        assert len(state.entries_in_use()) == state.in_use
        busy = [entry for entry in entries if entry.status in (RESETTING, PINGING)]
        assert len(busy) == state.resetting
        assert len(state.idle) + state.in_use + state.resetting == state.size
        assert all(entry.holder is None for entry in busy)
        if self.keeps_alive:
            times = [entry.idle_since for entry in state.idle]
            assert times == sorted(times), "the last one was used last"
        assert all(entry.status is OPENING for entry in state.opening.values())
        assert not any(id(entry) in self.drained for entry in state.idle), "drained ones are not kept"
        if state.size + len(state.opening) > state.max_connections:
            assert state.has_surplus
        assert list(state.waiters) == self.queue

    @invariant()
    def everything_is_counted(self) -> None:
        if not hasattr(self, "state"):
            return
        state = self.state
        assert sum(state.discarded.values()) == self.removed[DISCARDED]
        assert sum(state.retired.values()) == self.removed[RETIRED]
        assert state.detached == self.removed[DETACHED]
        assert (state.opened, state.open_errors) == (self.opened, self.open_errors)
        assert state.opened == state.size + sum(self.removed.values())
        assert (state.refused, state.timed_out) == (self.refused, self.timed_out)

    @invariant()
    def no_caller_waits_in_vain(self) -> None:
        if hasattr(self, "state") and self.queue:
            assert not self.state.idle
            assert not self.state.closed
            assert not self.state.is_opening_due(self.now)

    @invariant()
    def no_connection_is_held_by_two(self) -> None:
        if hasattr(self, "state"):
            held = [id(waiter.entry) for waiter in self.served if waiter.is_served]
            assert len(held) == len(set(held))

    def teardown(self) -> None:
        """Whatever has happened: when all give back what they have, the whole capacity is there."""
        if not hasattr(self, "state") or self.state.closed:
            return
        for opener, entry in [*self.state.opening.items()]:
            self.state.opening_failed(opener, entry, 0.0, OSError())
        for entry in self.state.all_entries():
            if entry.status is not IDLE:
                self.state.remove(entry, self.now, DISCARDED, "explicit")
        self.state.pop_all_idle("drain")
        self.state.fail_waiters(OSError)
        self.state.max_opening = 100
        assert len(begin_openings(self.state, self.name, self.now, more=100)) == self.state.max_connections


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@pytest.mark.torture
class TestMachineForLong(Machine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=1000, stateful_step_count=60, deadline=None)
