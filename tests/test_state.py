"""The bookkeeping, in every order of events that hypothesis can think of: kills and failures at every step."""

from __future__ import annotations

import math
from collections.abc import Hashable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from gsocketpool._entry import GONE, IDLE, IN_USE, OPENING, Entry, Ticket
from gsocketpool._state import State


class Connection:
    """One that is equal to every other, and can't be hashed."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


def land(
    state: State, opener: object, connection: object, now: float = 0.0, expires_at: float = 1e9
) -> Ticket | str | None:
    entry = state.opening[opener]
    state.land(entry, connection, now, expires_at)
    return state.put_back(entry, now)


def ticket_of(holder: Hashable, came_at: float = 0.0, deadline: float = math.inf) -> Ticket:
    return Ticket(holder, came_at, deadline, print)


def idle_state(count: int, **limits: int) -> State:
    state = State(max_connections=count, **limits)
    for number in range(count):
        state.begin_opening(number)
        land(state, number, Connection())
    return state


def test_the_entry_used_last_is_taken_first() -> None:
    state = idle_state(3)
    first, second = state.take(0, "a"), state.take(0, "b")
    assert first is not None
    assert second is not None
    state.put_back(second, 1)
    state.put_back(first, 2)
    assert state.take(3, "c") is first


def test_connections_are_known_by_identity() -> None:
    state = idle_state(2)
    entry = state.take(0, "a")
    assert entry is not None
    assert state.find(entry.connection, IN_USE) is entry
    assert state.find(Connection(), IN_USE) is None
    assert state.find(Connection(), IDLE) is None


def test_a_connection_made_twice_has_two_entries() -> None:
    state = State(max_connections=3)
    connection = Connection()
    for opener in "abc":
        state.begin_opening(opener)
        land(state, opener, connection)
    assert (state.size, len(state.idle)) == (3, 3)
    entries = [state.take(0, holder) for holder in "abc"]
    assert len(set(map(id, entries))) == 3
    for left in (2, 1, 0):
        entry = state.find(connection, IN_USE)
        assert entry is not None
        state.remove(entry, 0)
        assert state.size == left
    assert state.find(connection, IN_USE) is None
    assert not state.entries


@pytest.mark.parametrize("closing_order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_twins_leave_in_any_order(closing_order: tuple[int, ...]) -> None:
    state = State(max_connections=3)
    connection = Connection()
    for opener in range(3):
        state.begin_opening(opener)
        land(state, opener, connection)
    entries = state.idle[:]
    for number in closing_order:
        state.remove(entries[number], 0)
        assert set(map(id, state.all_entries())) == set(map(id, state.idle))
    assert not state.entries


def test_a_failed_opening_goes_to_the_longest_waiter_unless_others_suffice() -> None:
    state = State(max_connections=2)
    tickets = [ticket_of(name) for name in "ab"]
    for ticket in tickets:
        state.enqueue(ticket)
    openings = [state.begin_opening(opener) for opener in range(state.openings_due())]
    assert len(openings) == 2
    assert state.withdraw(tickets[0]) is None
    assert state.fail_opening(openings[0], OSError()) is None, "the other opening is enough for the waiter that is left"
    error = OSError()
    assert state.fail_opening(openings[1], error) is tickets[1]
    assert tickets[1].error is error


@pytest.mark.parametrize("again", [("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a")])
def test_those_who_queue_again_do_so_in_the_order_of_their_coming(again: tuple[str, ...]) -> None:
    state = State(max_connections=1)
    tickets = {name: ticket_of(name, number) for number, name in enumerate("abcde")}
    for name in "de":
        state.enqueue(tickets[name])
    for name in again:
        state.enqueue_again(tickets[name])
    assert [ticket.holder for ticket in state.waiters] == list("abcde")


def test_who_queues_again_is_served_before_newcomers() -> None:
    state = idle_state(1)
    entry = state.take(0, "holder")
    assert entry is not None
    ahead, behind = ticket_of("ahead", 1), ticket_of("behind", 2)
    state.enqueue(behind)
    state.enqueue_again(ahead)
    assert state.put_back(entry, 0) is ahead


def test_callers_for_whom_there_is_room_are_not_refused() -> None:
    state = State(max_connections=2, max_waiting=1)
    for name in "abc":
        assert not state.must_refuse()
        state.enqueue(ticket_of(name))
    assert state.must_refuse()


class Machine(RuleBasedStateMachine):
    """Callers, openers and a clock around one state, each doing the next thing at any time."""

    waiting = Bundle("waiting")
    using = Bundle("using")
    opening = Bundle("opening")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.count = 0
        self.queue: list[Ticket] = []
        self.served: list[Ticket] = []
        self.shrunk = False
        #: By the id(), so that no other entry gets it.
        self.drained: dict[int, Entry] = {}

    def name(self) -> int:
        self.count += 1
        return self.count

    @initialize(
        most=st.integers(1, 4),
        least=st.integers(0, 2),
        at_once=st.none() | st.integers(1, 3),
        idle=st.none() | st.just(5),
    )
    def begin(self, most: int, least: int, at_once: int | None, idle: int | None) -> None:
        self.state = State(
            max_connections=most,
            min_connections=min(least, most),
            max_opening=at_once,
            max_waiting=5,
            idle_timeout=idle,
        )

    # What the driver does after whatever may have freed a place

    def settle(self) -> list[Entry]:
        return [self.state.begin_opening(self.name()) for _ in range(self.state.openings_due())]

    def wake(self, ticket: Ticket | None) -> None:
        if ticket is not None:
            assert ticket is self.queue.pop(0), "first come, first served"
            self.served.append(ticket)

    def give_back(self, entry: Entry) -> list[Entry]:
        is_over, is_new = self.now >= entry.expires_at, entry.is_new
        outcome = self.state.put_back(entry, self.now)
        if isinstance(outcome, str):
            assert outcome in ("closed", "drain", "lifetime", "surplus")
            assert entry.status is IN_USE, "nothing has happened yet"
            self.state.remove(entry, self.now)
            return self.settle()
        assert is_new or not is_over
        self.wake(outcome)
        return []

    # Callers

    @rule(target=using)
    def acquire_idle(self) -> object:
        entry = self.state.take(self.now, self.name())
        if entry is None:
            return multiple()
        assert not self.queue, "a newcomer never overtakes"
        return (entry, entry.uses)

    @rule(target=opening, patience=st.integers(1, 20) | st.just(math.inf))
    def queue_up(self, patience: float) -> object:
        if self.state.closed or self.state.idle or self.state.must_refuse():
            return multiple()
        name = self.name()
        ticket = ticket_of(name, name, self.now + patience)
        self.state.enqueue(ticket)
        self.queue.append(ticket)
        return multiple(*self.settle())

    @rule(target=opening, more=st.integers(1, 2))
    def try_without_waiting(self, more: int) -> object:
        return multiple(*[self.state.begin_opening(self.name()) for _ in range(self.state.openings_due(more=more))])

    @rule(target=using, which=st.integers(0, 20))
    def wake_up(self, which: int) -> object:
        if not self.served:
            return multiple()
        ticket = self.served.pop(which % len(self.served))
        assert (ticket.entry is None) != (ticket.error is None)
        if ticket.entry is None or ticket.entry.status is GONE:
            return multiple()
        assert ticket.entry.status is IN_USE
        assert ticket.entry.holder == ticket.holder
        return (ticket.entry, ticket.entry.uses)

    @rule(target=opening, which=st.integers(0, 20))
    def wake_up_to_something_unusable(self, which: int) -> object:
        """It fails its check: closed, and the caller goes back to where it was, before all others."""
        if not self.served:
            return multiple()
        ticket = self.served.pop(which % len(self.served))
        if ticket.entry is None or ticket.entry.status is GONE:
            return multiple()
        self.state.remove(ticket.entry, self.now)
        started = self.settle()
        if not self.state.closed and not self.state.idle:
            again = ticket_of(ticket.holder, ticket.came_at, ticket.deadline)
            self.state.enqueue_again(again)
            self.queue = sorted([again, *self.queue], key=lambda one: one.came_at)
        return multiple(*started, *self.settle())

    @rule(which=st.integers(0, 20))
    def give_up_waiting(self, which: int) -> None:
        """By a timeout or a kill, while nothing has come."""
        if self.queue:
            ticket = self.queue.pop(which % len(self.queue))
            assert self.state.withdraw(ticket) is None

    @rule(seconds=st.integers(1, 10))
    def the_alarm_rings(self, seconds: int) -> None:
        self.now += seconds
        first = self.state.next_deadline()
        overdue = self.state.take_overdue_waiters_out(self.now)
        assert bool(overdue) == (first <= self.now)
        assert overdue == [ticket for ticket in self.queue if ticket.deadline <= self.now]
        assert all(ticket.entry is None and ticket.error is None for ticket in overdue)
        self.queue = [ticket for ticket in self.queue if ticket not in overdue]
        assert self.state.next_deadline() > self.now

    @rule(target=opening, which=st.integers(0, 20))
    def killed_while_being_served(self, which: int) -> object:
        """What was handed over already is passed on."""
        if not self.served:
            return multiple()
        ticket = self.served.pop(which % len(self.served))
        entry = self.state.withdraw(ticket)
        assert entry is ticket.entry
        if entry is None or entry.status is not IN_USE:
            return multiple()
        return multiple(*self.give_back(entry))

    @rule(target=opening, use=consumes(using))
    def release(self, use: tuple[Entry, int]) -> object:
        entry, uses = use
        if entry.status is not IN_USE or entry.uses != uses:
            return multiple()
        return multiple(*self.give_back(entry))

    @rule(target=opening, use=consumes(using))
    def discard_or_detach(self, use: tuple[Entry, int]) -> object:
        entry, uses = use
        if entry.status is not IN_USE or entry.uses != uses:
            return multiple()
        self.state.remove(entry, self.now)
        return multiple(*self.settle())

    # Openers

    @rule(target=opening, entry=consumes(opening), lifetime=st.integers(1, 20))
    def open_well(self, entry: Entry, lifetime: int) -> object:
        if entry.status is GONE:
            return multiple()
        self.state.land(entry, Connection(), self.now, self.now + lifetime)
        return multiple(*self.give_back(entry), *self.settle())

    @rule(target=opening, entry=consumes(opening))
    def fail_to_open(self, entry: Entry) -> object:
        if entry.status is GONE:
            return multiple()
        error = OSError()
        ticket = self.state.fail_opening(entry, error)
        if ticket is None:
            self.state.filling_paused = True
        else:
            assert ticket.error is error
        self.wake(ticket)
        return multiple(*self.settle())

    @rule(target=opening)
    def pause_is_over(self) -> object:
        self.state.filling_paused = False
        return multiple(*self.settle())

    # Everything else

    @rule(target=opening, seconds=st.integers(1, 10))
    def time_passes_and_a_sweep_comes(self, seconds: int) -> object:
        self.now += seconds
        for entry in self.state.take_overdue_out(self.now):
            assert entry.status is GONE
            assert entry.retire_at <= self.now
        assert all(entry.retire_at > self.now for entry in self.state.idle)
        return multiple(*self.settle())

    @rule(target=opening, which=st.integers(0, 20))
    def drop_one(self, which: int) -> object:
        if self.state.idle:
            self.state.remove(self.state.idle[which % len(self.state.idle)], self.now)
        return multiple(*self.settle())

    @rule(target=opening)
    def drain(self) -> object:
        self.state.take_idle_out()
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
        return multiple(*self.settle())

    @rule(target=opening)
    def fork(self) -> object:
        """The child's side of it: all is forgotten, but for the queue."""
        waiters = list(self.state.waiters)
        self.state.forget()
        assert self.state.size == len(self.state.opening) == 0
        assert all(ticket.entry is None or ticket.entry.status is GONE for ticket in self.served)
        assert list(self.state.waiters) == waiters
        self.shrunk = False
        return multiple(*self.settle())

    @rule()
    def close(self) -> None:
        if self.count < 40:
            return
        self.state.close()
        for ticket in self.state.take_waiters_out():
            ticket.error = OSError()
            self.wake(ticket)
        self.state.take_idle_out()

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
        entries = list(state.all_entries())
        assert len(entries) == state.size == len(set(map(id, entries)))
        assert {id(entry) for entry in entries if entry.status is IDLE} == set(map(id, state.idle))
        assert len(state.entries_in_use()) == state.in_use
        assert all(entry.status is OPENING for entry in state.opening.values())
        assert not any(id(entry) in self.drained for entry in state.idle), "drained ones are not kept"
        if state.size + len(state.opening) > state.max_connections:
            assert state.has_surplus
        assert list(state.waiters) == self.queue

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        if hasattr(self, "state") and self.queue:
            assert not self.state.idle
            assert not self.state.closed
            assert not self.state.openings_due()

    @invariant()
    def no_connection_is_held_by_two(self) -> None:
        if hasattr(self, "state"):
            held = [id(t.entry) for t in self.served if t.entry is not None and t.entry.status is IN_USE]
            assert len(held) == len(set(held))

    def teardown(self) -> None:
        """Whatever has happened: when all give back what they have, the whole capacity is there."""
        if not hasattr(self, "state") or self.state.closed:
            return
        for entry in [*self.state.opening.values()]:
            self.state.fail_opening(entry, OSError())
        for entry in self.state.entries_in_use():
            self.state.remove(entry, self.now)
        self.state.take_idle_out()
        self.state.take_waiters_out()
        self.state.max_opening = 100
        assert self.state.openings_due(more=100) == self.state.max_connections


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
