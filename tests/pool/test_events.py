"""Which events a pool reports to its listener, and when."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocketpool import InvalidArgumentError, Lease, Pool, PoolClosedError, PoolError, PoolEvents, PoolExhaustedError
from tests.support.callers import check_whole, ended_by
from tests.support.callers import thrown as thrown
from tests.support.connections import no_hanging as no_hanging
from tests.support.connections import outcome, without_switching
from tests.support.scripted import (
    PATIENCE,
    Backend,
    Clock,
    ScriptedConnection,
    eventually,
    numbers,
    settle,
    spawn_acquire,
)

Act = Callable[[Pool[Any]], object]

EVENTS = ["opened", "closed", "acquired", "released", "waiting", "exhausted", "leaked"]


class Recorder(PoolEvents):
    """Notes every event in a line."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def opened(self, pool: Pool[Any], connection: Any) -> None:
        self.told.append(f"{pool.name}: opened {connection.number}")

    def closed(self, pool: Pool[Any], connection: Any, reason: str) -> None:
        self.told.append(f"{pool.name}: closed {connection.number}, {reason}")

    def acquired(self, lease: Lease[Any]) -> None:
        self.told.append(f"{lease.pool.name}: acquired {lease.connection.number}")

    def released(self, pool: Pool[Any], connection: Any) -> None:
        self.told.append(f"{pool.name}: released {connection.number}")

    def waiting(self, pool: Pool[Any]) -> None:
        self.told.append(f"{pool.name}: waiting")

    def exhausted(self, pool: Pool[Any], error: PoolExhaustedError) -> None:
        self.told.append(f"{pool.name}: exhausted")

    def leaked(self, pool: Pool[Any], connection: Any) -> None:
        self.told.append(f"{pool.name}: leaked {connection.number}")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def listening(**methods: Callable[..., object]) -> PoolEvents:
    """A listener that overrides these methods and no others. They are called without the listener itself."""
    overridden = {name: staticmethod(method) for name, method in methods.items()}
    return type("Listening", (PoolEvents,), overridden)()  # type: ignore[no-any-return]


def pool_of(backend: Backend, events: PoolEvents | None = None, **settings: Any) -> Pool[Any]:
    usual: dict[str, Any] = {"max_connections": 1, "reap_expired_connections": False, "name": "a"}
    return Pool(backend.connect, events=events, **{**usual, **settings})


def acquire_and_die(pool: Pool[Any]) -> None:
    gevent.spawn(pool.acquire).join()


def use_a_block(pool: Pool[Any]) -> None:
    with pool.connection():
        pass


def fail_in_a_block(pool: Pool[Any]) -> None:
    with contextlib.suppress(LookupError), pool.connection():
        raise LookupError


def be_refused(pool: Pool[Any]) -> None:
    """Acquire all that there is, and one more."""
    taken = [pool.acquire(timeout=PATIENCE) for _ in range(pool.stats().max_connections)]
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    for connection in taken:
        pool.release(connection)


def lose_to_a_dead_holder(pool: Pool[Any]) -> None:
    for _ in range(pool.stats().max_connections):
        acquire_and_die(pool)
    pool.release(pool.acquire(timeout=PATIENCE))


#: What makes a pool tell of an event, and leaves nothing in use.
PROVOCATIONS: dict[str, Act] = {
    "opened": use_a_block,
    "closed": fail_in_a_block,
    "acquired": use_a_block,
    "released": use_a_block,
    "waiting": use_a_block,
    "exhausted": be_refused,
    "leaked": lose_to_a_dead_holder,
}

#: The ways to acquire: each returns what it got.
WAYS: dict[str, Act] = {
    "a block": lambda pool: pool.connection().__enter__(),
    "acquire": lambda pool: pool.acquire(),
    "lease": lambda pool: pool.lease().connection,
}


# The order of events


def test_listeners_hear_events_in_order(backend: Backend, recorder: Recorder) -> None:
    pool = pool_of(backend, recorder)
    for _ in range(2):
        use_a_block(pool)
        settle()
    pool.discard(pool.acquire())
    settle()
    assert recorder.told == [
        "a: waiting",
        "a: opened 0",
        "a: acquired 0",
        "a: released 0",
        "a: acquired 0",
        "a: released 0",
        "a: acquired 0",
        "a: closed 0, explicit",
    ]


def test_listeners_hear_waiting_before_exhausted(backend: Backend, recorder: Recorder) -> None:
    pool = pool_of(backend, recorder)
    held = pool.acquire()
    recorder.told.clear()
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0.001)
    pool.release(held)
    settle()
    assert recorder.told == ["a: waiting", "a: exhausted", "a: released 0"]


def test_listeners_hear_released_and_acquired_for_a_hand_over(backend: Backend, recorder: Recorder) -> None:
    pool = pool_of(backend, recorder)
    held = pool.acquire()
    waiting = spawn_acquire(pool)
    recorder.told.clear()
    pool.release(held)
    waiting.join()
    settle()
    assert sorted(recorder.told) == ["a: acquired 0", "a: released 0"]


def test_listeners_hear_opened_before_acquired_for_a_connection_opened_in_the_background(
    backend: Backend, recorder: Recorder
) -> None:
    pool = pool_of(backend, recorder, min_connections=1)
    pool.wait_ready(PATIENCE)
    assert recorder.told == ["a: opened 0"]
    pool.acquire()
    assert recorder.told == ["a: opened 0", "a: acquired 0"]


def test_listeners_hear_opened_for_initial_connections(backend: Backend, recorder: Recorder) -> None:
    pool_of(backend, recorder, initial_connections=2, max_connections=2)
    assert recorder.told == ["a: opened 0", "a: opened 1"]


def test_listeners_hear_neither_opened_nor_closed_for_a_failed_opening(backend: Backend, recorder: Recorder) -> None:
    pool = pool_of(backend, recorder)
    backend.failures.append(OSError("not today"))
    with pytest.raises(OSError, match="not today"):
        pool.acquire()
    settle()
    assert recorder.told == ["a: waiting"]


def test_one_listener_serves_several_pools(backend: Backend, recorder: Recorder) -> None:
    first, second = pool_of(backend, recorder), pool_of(backend, recorder, name="b")
    for pool in (first, second):
        use_a_block(pool)
        settle()
    first.close()
    settle()
    assert recorder.told == [
        "a: waiting",
        "a: opened 0",
        "a: acquired 0",
        "a: released 0",
        "b: waiting",
        "b: opened 1",
        "b: acquired 1",
        "b: released 1",
        "a: closed 0, closed",
    ]


# What is not overridden


@pytest.mark.parametrize("overridden", [None, *EVENTS])
def test_methods_that_are_not_overridden_are_never_called(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, overridden: str | None
) -> None:
    called: list[str] = []
    told: list[object] = []
    for event in EVENTS:
        monkeypatch.setattr(PoolEvents, event, lambda *arguments, event=event: called.append(event))
    events = PoolEvents() if overridden is None else listening(**{overridden: lambda *arguments: told.append(True)})
    pool = pool_of(backend, events)
    for provoke in PROVOCATIONS.values():
        provoke(pool)
        settle()
    check_whole(pool)
    assert not called
    assert bool(told) is (overridden is not None)


def test_overridden_methods_are_looked_up_when_the_pool_is_made(backend: Backend) -> None:
    class Changing(PoolEvents):
        pass

    told: list[object] = []
    pool = pool_of(backend, Changing())
    Changing.acquired = lambda self, lease: told.append(lease)  # type: ignore[method-assign]
    use_a_block(pool)
    assert not told


def test_a_method_inherited_from_another_listener_counts_as_overridden(backend: Backend) -> None:
    class Derived(Recorder):
        def waiting(self, pool: Pool[Any]) -> None:
            super().waiting(pool)

    derived = Derived()
    pool = pool_of(backend, derived)
    use_a_block(pool)
    settle()
    assert derived.told == ["a: waiting", "a: opened 0", "a: acquired 0", "a: released 0"]


# Each event


def test_opened_and_closed_get_the_pool_and_the_connection(backend: Backend) -> None:
    told: list[tuple[Any, ...]] = []
    pool = pool_of(backend, listening(opened=lambda *it: told.append(it), closed=lambda *it: told.append(it)))
    connection = pool.acquire()
    pool.discard(connection)
    settle()
    assert [arguments[0] for arguments in told] == [pool, pool]
    assert all(arguments[1] is connection for arguments in told)
    assert told[1][2:] == ("explicit",)


def test_opened_gets_a_connection_that_is_open(backend: Backend) -> None:
    open_then: list[bool] = []
    pool = pool_of(backend, listening(opened=lambda pool, connection: open_then.append(connection.is_open)))
    pool.acquire()
    assert open_then == [True]


def find_it_closed(pool: Pool[Any]) -> None:
    connection = pool.acquire()
    pool.release(connection)
    connection.is_open = False
    pool.release(pool.acquire())


def find_it_unusable(pool: Pool[Any]) -> None:
    connection = pool.acquire()
    pool.release(connection)
    connection.backend.answer = False
    pool.release(pool.acquire())


def kill_in_the_check(pool: Pool[Any]) -> None:
    connection = pool.acquire()
    pool.release(connection)
    connection.backend.checks.clear()
    spawn_acquire(pool).kill()
    connection.backend.checks.set()


def release_a_closed_one(pool: Pool[Any]) -> None:
    connection = pool.acquire()
    connection.is_open = False
    pool.release(connection)


def release_and(act: Act) -> Act:
    def release_and_act(pool: Pool[Any]) -> None:
        pool.release(pool.acquire())
        act(pool)

    return release_and_act


def expire(pool: Pool[Any]) -> None:
    connection = pool.acquire()
    connection.says_expired = True
    pool.release(connection)
    pool.drop_expired()


def drop(pool: Pool[Any]) -> None:
    connection = pool.acquire()
    pool.release(connection)
    pool.drop(connection)


def drain_in_use(pool: Pool[Any]) -> None:
    with pool.connection():
        pool.drain()


def shrink(pool: Pool[Any]) -> None:
    first, second = pool.acquire(), pool.acquire()
    pool.release(first)
    pool.resize(1)
    pool.release(second)


def shrink_in_use(pool: Pool[Any]) -> None:
    first, second = pool.acquire(), pool.acquire()
    pool.resize(1)
    pool.release(first)
    pool.release(second)


def close_in_use(pool: Pool[Any]) -> None:
    pool.acquire()
    pool.close(timeout=0)


#: Reasons to close, and what closes the first connection for it.
REASONS: list[tuple[str, Act]] = [
    ("explicit", lambda pool: pool.discard(pool.acquire())),
    ("explicit", release_and(lambda pool: pool.discard(pool._factory.__self__.connections[0]))),  # type: ignore[attr-defined]
    ("a reason", lambda pool: pool.lease().discard("a reason")),
    ("error", fail_in_a_block),
    ("not_reusable", release_a_closed_one),
    ("expired", expire),
    ("dropped", drop),
    ("drain", release_and(Pool.drain)),
    ("drain", drain_in_use),
    ("surplus", shrink),
    ("surplus", shrink_in_use),
    ("closed", release_and(Pool.close)),
    ("closed", close_in_use),
]


@pytest.mark.parametrize(
    ("reason", "act", "is_checked"),
    [
        *((reason, act, is_checked) for reason, act in REASONS for is_checked in (False, True)),
        ("unusable", find_it_closed, False),
        ("unusable", find_it_unusable, True),
        ("interrupted", kill_in_the_check, True),
    ],
)
def test_closed_is_called_once_with_the_reason_that_statistics_count(
    backend: Backend, reason: str, act: Act, is_checked: bool
) -> None:
    if is_checked:
        backend.connect = backend.connect_checked  # type: ignore[method-assign]
    told: list[tuple[int, str]] = []
    events = listening(closed=lambda pool, connection, reason: told.append((connection.number, reason)))
    pool = pool_of(backend, events, max_connections=2)
    act(pool)
    settle()
    stats = pool.stats()
    assert told == [(0, reason)]
    assert {**stats.discarded, **stats.retired} == {reason: 1}


def test_closed_is_called_for_connections_past_their_lifetime_or_idle_timeout(backend: Backend, clock: Clock) -> None:
    for settings, reason in ({"max_lifetime": 10.0}, "lifetime"), ({"idle_timeout": 10.0}, "idle"):
        told: list[str] = []
        events = listening(closed=lambda pool, connection, reason, told=told: told.append(reason))
        pool = pool_of(backend, events, clock=clock, **settings)
        pool.release(pool.acquire())
        clock.advance(10)
        pool.release(pool.acquire())
        settle()
        assert told == [reason]


def test_closed_is_called_for_connections_that_a_sweep_closes(backend: Backend, clock: Clock) -> None:
    told: list[tuple[int, str]] = []
    events = listening(closed=lambda pool, connection, reason: told.append((connection.number, reason)))
    settings: dict[str, Any] = {"max_connections": 4, "reap_expired_connections": True, "reap_interval": 0.01}
    pool = pool_of(backend, events, clock=clock, idle_timeout=10, **settings)
    taken = [pool.acquire() for _ in range(3)]
    acquire_and_die(pool)
    pool.release(taken[0])
    clock.advance(10)
    taken[1].says_expired = True
    pool.release(taken[1])
    taken[2].is_open = True
    pool.release(taken[2])
    taken[2].is_open = False
    eventually(lambda: len(told) == 4)
    pool.close()
    assert sorted(told) == [(0, "idle"), (1, "expired"), (2, "unusable"), (3, "holder_dead")]


def test_closed_is_not_called_for_a_detached_connection(backend: Backend, recorder: Recorder) -> None:
    pool = pool_of(backend, recorder)
    pool.detach(pool.acquire())
    settle()
    assert recorder.told == ["a: waiting", "a: opened 0", "a: acquired 0"]


@pytest.mark.parametrize("is_idle", [False, True], ids=["opened", "idle"])
@pytest.mark.parametrize("way", WAYS)
def test_acquired_gets_an_active_lease_of_the_connection(backend: Backend, way: str, is_idle: bool) -> None:
    seen: list[tuple[bool, Any, Any]] = []
    leases: list[Lease[Any]] = []

    def acquired(lease: Lease[Any]) -> None:
        seen.append((lease.is_active, lease.connection, lease.pool))
        leases.append(lease)

    pool = pool_of(backend, listening(acquired=acquired))
    if is_idle:
        use_a_block(pool)
        seen.clear()
        leases.clear()
    connection = WAYS[way](pool)
    ((was_active, its_connection, its_pool),) = seen
    assert was_active is True
    assert its_connection is connection
    assert its_pool is pool
    pool.release(connection)
    assert leases[0].is_active is False


def test_acquired_gets_the_very_lease_of_the_caller(backend: Backend) -> None:
    told: list[Lease[Any]] = []
    pool = pool_of(backend, listening(acquired=told.append))
    block = pool.connection()
    with block:
        pass
    lease = pool.lease()
    assert told == [block, lease]


def test_a_listener_may_later_give_back_a_connection_that_acquire_returned(backend: Backend) -> None:
    told: list[Lease[Any]] = []
    pool = pool_of(backend, listening(acquired=told.append))
    pool.acquire()
    told[0].release()
    assert numbers(pool) == (0, 1, 0, 0)
    pool.acquire()
    told[1].discard("too long")
    assert pool.stats().discarded == {"too long": 1}


def test_released_is_called_only_for_connections_that_the_pool_keeps(backend: Backend) -> None:
    told: list[int] = []
    events = listening(released=lambda pool, connection: told.append(connection.number))
    pool = pool_of(backend, events, max_connections=2)
    for act in (fail_in_a_block, release_a_closed_one, drain_in_use):
        act(pool)
        settle()
    assert told == []
    use_a_block(pool)
    settle()
    assert told == [3]


def test_waiting_is_called_only_if_the_caller_waits(backend: Backend) -> None:
    told: list[Pool[Any]] = []
    pool = pool_of(backend, listening(waiting=told.append))
    pool.release(pool.acquire())
    assert told == [pool]
    held = pool.acquire()
    assert told == [pool]
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    assert told == [pool]
    waiting = spawn_acquire(pool)
    assert told == [pool, pool]
    pool.release(held)
    waiting.join()


def test_waiting_is_called_when_the_caller_has_been_queued(backend: Backend) -> None:
    seen: list[tuple[int, int, int, int]] = []
    pool = pool_of(backend, listening(waiting=lambda pool: seen.append(numbers(pool))))
    held = pool.acquire()
    waiting = spawn_acquire(pool)
    assert seen == [(0, 0, 0, 1), (1, 0, 0, 1)]
    pool.release(held)
    waiting.join()


@pytest.mark.parametrize("timeout", [0, 0.001, "refused"])
def test_exhausted_gets_the_error_before_it_is_raised(backend: Backend, timeout: Any) -> None:
    told: list[tuple[Any, BaseException]] = []

    def acquire() -> BaseException:
        with pytest.raises(PoolExhaustedError) as raised:
            pool.acquire(timeout=PATIENCE if timeout == "refused" else timeout)
        assert [error for _, error in told] == [raised.value]
        return raised.value

    pool = pool_of(backend, listening(exhausted=lambda *it: told.append(it)), max_waiting=0)
    if timeout == 0.001:
        pool = pool_of(backend, listening(exhausted=lambda *it: told.append(it)))
    pool.acquire()
    error = acquire()
    assert told == [(pool, error)]
    stats = pool.stats()
    assert (stats.timed_out, stats.refused) == ((0, 1) if timeout == "refused" else (1, 0))


def test_exhausted_is_not_called_for_other_errors(backend: Backend) -> None:
    told: list[object] = []
    pool = pool_of(backend, listening(exhausted=lambda *it: told.append(it)))
    backend.failures.append(OSError("not today"))
    with pytest.raises(OSError, match="not today"):
        pool.acquire()
    pool.acquire()
    waiting = gevent.spawn(outcome, pool.acquire)
    settle()
    pool.close(timeout=0)
    assert isinstance(waiting.get(timeout=PATIENCE), PoolClosedError)
    with pytest.raises(PoolClosedError):
        pool.acquire()
    assert not told


def test_leaked_is_called_once_for_a_leak(backend: Backend, clock: Clock) -> None:
    class Counting(ScriptedConnection):
        questions = 0

        def is_expired(self) -> bool:
            Counting.questions += 1
            return False

    told: list[tuple[Any, int]] = []
    pool: Pool[Any] = clock.pool(
        lambda: backend.add(Counting(backend, {})),
        reap_interval=0.005,
        leak_threshold=60,
        events=listening(leaked=lambda pool, connection: told.append((pool, connection.number))),
    )
    leaked, idle = pool.acquire(), pool.acquire()
    pool.release(idle)
    clock.advance(59)
    eventually(lambda: Counting.questions >= 2)
    assert told == []
    clock.advance(2)
    Counting.questions = 0
    eventually(lambda: Counting.questions >= 3)
    assert told == [(pool, leaked.number)]
    assert leaked.is_open
    pool.close(timeout=0)


@pytest.mark.parametrize("by", ["a sweep", "a caller"])
def test_leaked_is_called_once_for_a_dead_holder(backend: Backend, recorder: Recorder, by: str) -> None:
    pool = pool_of(backend, recorder, reap_expired_connections=by == "a sweep", reap_interval=0.005)
    acquire_and_die(pool)
    recorder.told.clear()
    if by == "a caller":
        pool.acquire(timeout=PATIENCE)
        assert recorder.told[0] == "a: leaked 0"
    eventually(lambda: "a: closed 0, holder_dead" in recorder.told)
    assert recorder.told.count("a: leaked 0") == 1
    assert not backend.connections[0].is_open
    pool.close(timeout=0)


def test_listeners_are_called_in_the_greenlets_that_the_documentation_names(backend: Backend) -> None:
    where: dict[str, Any] = {}
    hub = gevent.get_hub()
    events = listening(**{name: lambda *it, name=name: where.update({name: gevent.getcurrent()}) for name in EVENTS})
    pool = pool_of(backend, events)
    caller = gevent.spawn(lambda: [PROVOCATIONS[name](pool) for name in ("acquired", "exhausted", "closed")])
    caller.get(timeout=PATIENCE)
    settle()
    assert where.pop("opened") not in (caller, hub, gevent.getcurrent())
    in_caller = dict.fromkeys(("acquired", "waiting", "exhausted"), caller)
    assert where == {**in_caller, "released": hub, "closed": hub}


# A listener that raises


@pytest.mark.parametrize("max_connections", [1, 2])
@pytest.mark.parametrize("event", EVENTS)
def test_a_listener_that_raises_harms_nothing_and_is_logged(
    backend: Backend, caplog: pytest.LogCaptureFixture, event: str, max_connections: int
) -> None:
    error = ValueError("a bad listener")
    raised: list[BaseException] = []

    def fail(*arguments: object) -> None:
        raised.append(error)
        raise error

    pool = pool_of(backend, listening(**{event: fail}), max_connections=max_connections)
    PROVOCATIONS[event](pool)
    settle()
    assert raised
    logged = [record for record in caplog.records if record.exc_info and record.exc_info[1] is error]
    assert len(logged) == len(raised)
    assert all(record.name == "gsocketpool" and record.levelno >= logging.WARNING for record in logged)
    check_whole(pool)
    eventually(lambda: len(backend.open) == max_connections)


@pytest.mark.parametrize("event", ["opened", "closed", "released"])
def test_a_timeout_that_a_listener_raises_outside_the_caller_is_logged_and_harms_nothing(
    backend: Backend, caplog: pytest.LogCaptureFixture, event: str
) -> None:
    def fail(*arguments: object) -> None:
        # This raises a Timeout at once.
        gevent.event.AsyncResult().get_nowait()

    pool = pool_of(backend, listening(**{event: fail}))
    PROVOCATIONS[event](pool)
    settle()
    assert [record for record in caplog.records if record.exc_info]
    check_whole(pool)
    eventually(lambda: len(backend.open) == 1)


class Switching(logging.Handler):
    """Lets other greenlets run, as one does that writes to a socket, or waits for its lock."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def handle(self, record: logging.LogRecord) -> bool:
        gevent.sleep(0)
        self.records.append(record)
        return True


@pytest.fixture
def switching_handler() -> Iterator[Switching]:
    handler, log = Switching(), logging.getLogger("gsocketpool")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


@pytest.mark.parametrize("event", EVENTS)
def test_a_listener_that_raises_is_logged_even_if_logging_switches(
    backend: Backend, switching_handler: Switching, event: str
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("a bad listener")

    pool = pool_of(backend, listening(**{event: fail}))
    PROVOCATIONS[event](pool)
    settle()
    assert [record for record in switching_handler.records if record.exc_info]
    check_whole(pool)
    eventually(lambda: len(backend.open) == 1)


@pytest.mark.parametrize("event", ["closed", "released"])
def test_a_listener_that_waits_in_the_event_loop_is_logged_and_harms_nothing(
    backend: Backend, caplog: pytest.LogCaptureFixture, event: str
) -> None:
    pool = pool_of(backend, listening(**{event: lambda *arguments: gevent.sleep(0)}))
    PROVOCATIONS[event](pool)
    settle()
    assert [record for record in caplog.records if record.exc_info]
    check_whole(pool)
    eventually(lambda: len(backend.open) == 1)


def test_a_waiter_is_served_even_if_closed_raises(backend: Backend) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("a bad listener")

    pool = pool_of(backend, listening(closed=fail))
    held = pool.acquire()
    waiting = spawn_acquire(pool)
    pool.discard(held)
    assert waiting.get(timeout=PATIENCE).number == 1
    assert not held.is_open


# A listener that is interrupted


class Waiting:
    """A method of a listener that waits until it is told to go on; then it waits no more."""

    def __init__(self) -> None:
        self.calls = 0
        self.going_on = Event()

    def __call__(self, *arguments: object) -> None:
        self.calls += 1
        self.going_on.wait()


@pytest.mark.parametrize("is_idle", [False, True], ids=["opened", "idle"])
@pytest.mark.parametrize("way", WAYS)
def test_a_caller_interrupted_in_acquired_loses_no_capacity(
    backend: Backend, thrown: BaseException, way: str, is_idle: bool
) -> None:
    acquired = Waiting()
    pool = pool_of(backend, listening(acquired=acquired), initial_connections=int(is_idle))
    caller = gevent.spawn(ended_by, WAYS[way], pool)
    settle()
    assert acquired.calls == 1
    assert numbers(pool) == (1, 0, 0, 0)
    caller.kill(thrown, block=False)
    assert caller.get(timeout=PATIENCE) is thrown
    acquired.going_on.set()
    check_whole(pool)


@pytest.mark.parametrize("way", WAYS)
def test_a_caller_interrupted_in_acquired_leaves_its_connection_to_the_waiter(
    backend: Backend, thrown: BaseException, way: str
) -> None:
    acquired = Waiting()
    pool = pool_of(backend, listening(acquired=acquired))
    caller = gevent.spawn(ended_by, WAYS[way], pool)
    settle()
    waiting = spawn_acquire(pool)
    caller.kill(thrown, block=False)
    assert caller.get(timeout=PATIENCE) is thrown
    acquired.going_on.set()
    pool.release(waiting.get(timeout=PATIENCE))
    check_whole(pool)


class Forgiving(ScriptedConnection):
    """Believes that no error can harm it."""

    def is_reusable(self, error: BaseException | None) -> bool:
        return self.is_open


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_whose_caller_is_interrupted_in_acquired_is_discarded(
    backend: Backend, thrown: BaseException, way: str
) -> None:
    acquired = Waiting()
    pool = Pool(
        lambda: backend.add(Forgiving(backend, {})),
        max_connections=1,
        reap_expired_connections=False,
        events=listening(acquired=acquired),
    )
    caller = gevent.spawn(ended_by, WAYS[way], pool)
    settle()
    assert acquired.calls == 1
    caller.kill(thrown, block=False)
    assert caller.get(timeout=PATIENCE) is thrown
    acquired.going_on.set()
    settle()
    assert pool.stats().discarded == {"interrupted": 1}
    assert not backend.open
    check_whole(pool)


def test_a_listener_interrupted_in_acquired_may_have_discarded_the_connection_before(
    backend: Backend, thrown: BaseException
) -> None:
    going_on = Event()

    def discard_and_wait(lease: Lease[Any]) -> None:
        lease.discard()
        going_on.wait()

    pool = pool_of(backend, listening(acquired=discard_and_wait))
    caller = gevent.spawn(ended_by, pool.acquire)
    settle()
    caller.kill(thrown, block=False)
    assert caller.get(timeout=PATIENCE) is thrown
    settle()
    assert numbers(pool) == (0, 0, 0, 0)
    assert not backend.open


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("situation", ["nothing is open", "all are in use", "served", "served, and another waits"])
def test_a_caller_interrupted_in_waiting_loses_no_capacity(
    backend: Backend, thrown: BaseException, way: str, situation: str
) -> None:
    waiting = Waiting()
    waiting.going_on.set()
    pool = pool_of(backend, listening(waiting=waiting))
    held = None if situation == "nothing is open" else pool.acquire()
    waiting.calls = 0
    waiting.going_on.clear()
    caller = gevent.spawn(ended_by, WAYS[way], pool)
    settle()
    assert waiting.calls == 1
    other = spawn_acquire(pool) if situation == "served, and another waits" else None
    if situation.startswith("served"):
        pool.release(held)
    caller.kill(thrown, block=False)
    assert caller.get(timeout=PATIENCE) is thrown
    waiting.going_on.set()
    if other is not None:
        assert other.get(timeout=PATIENCE) is held
    if other is not None or situation == "all are in use":
        assert numbers(pool) == (1, 0, 0, 0)
        pool.release(held)
    check_whole(pool)


def test_a_caller_is_served_in_its_turn_even_if_waiting_is_slow(backend: Backend) -> None:
    waiting = Waiting()
    pool = pool_of(backend, listening(waiting=waiting), initial_connections=1)
    held = pool.acquire()
    caller = spawn_acquire(pool)
    newcomer = spawn_acquire(pool)
    pool.release(held)
    settle()
    # It is the first caller's already, though that is not ready to take it.
    assert numbers(pool) == (1, 0, 0, 1)
    waiting.going_on.set()
    assert caller.get(timeout=PATIENCE) is held
    assert not newcomer.ready()
    pool.release(held)
    assert newcomer.get(timeout=PATIENCE) is held


@pytest.mark.parametrize("is_refused", [False, True], ids=["timed out", "refused"])
@pytest.mark.parametrize("way", WAYS)
def test_a_caller_interrupted_in_exhausted_loses_no_capacity(
    backend: Backend, thrown: BaseException, way: str, is_refused: bool
) -> None:
    exhausted = Waiting()
    settings: dict[str, Any] = {"max_waiting": 0} if is_refused else {"acquire_timeout": 0}
    pool = pool_of(backend, listening(exhausted=exhausted), initial_connections=1, **settings)
    held = pool.acquire()
    caller = gevent.spawn(ended_by, WAYS[way], pool)
    settle()
    assert exhausted.calls == 1
    assert numbers(pool) == (1, 0, 0, 0)
    caller.kill(thrown, block=False)
    assert caller.get(timeout=PATIENCE) is thrown
    assert numbers(pool) == (1, 0, 0, 0)
    exhausted.going_on.set()
    pool.release(held)
    check_whole(pool)


def test_a_wait_is_counted_once_if_its_caller_is_interrupted_in_exhausted(backend: Backend, clock: Clock) -> None:
    exhausted = Waiting()
    pool = pool_of(backend, listening(exhausted=exhausted), initial_connections=1, clock=clock)
    pool.acquire()
    caller = gevent.spawn(ended_by, lambda: pool.acquire(timeout=0.005))
    settle()
    clock.advance(3)
    eventually(lambda: exhausted.calls)
    caller.kill()
    assert pool.stats().wait_time == 3


def test_a_leaked_connection_is_taken_back_even_if_leaked_is_interrupted(
    backend: Backend, thrown: BaseException
) -> None:
    leaked = Waiting()
    pool = pool_of(backend, listening(leaked=leaked), max_connections=2)
    for _ in range(2):
        acquire_and_die(pool)
    caller = gevent.spawn(ended_by, pool.acquire)
    settle()
    assert leaked.calls == 1
    caller.kill(thrown, block=False)
    assert caller.get(timeout=PATIENCE) is thrown
    leaked.going_on.set()
    eventually(lambda: not backend.open)
    check_whole(pool)


def test_an_opener_killed_in_opened_loses_no_capacity(backend: Backend) -> None:
    greenlets: list[Any] = []

    def opened(*arguments: object) -> None:
        greenlets.append(gevent.getcurrent())
        gevent.sleep(PATIENCE)

    pool = pool_of(backend, listening(opened=opened))
    connection = pool.acquire(timeout=PATIENCE)
    gevent.killall(greenlets, timeout=PATIENCE)
    assert len(greenlets) == 1
    pool.release(connection)
    check_whole(pool)


def test_an_opener_killed_in_opened_does_not_fail_an_initial_connection(backend: Backend) -> None:
    openers: list[Any] = []

    def opened(*arguments: object) -> None:
        openers.append(gevent.getcurrent())
        gevent.sleep(PATIENCE)

    making = gevent.spawn(ended_by, lambda: pool_of(backend, listening(opened=opened), initial_connections=1))
    settle()
    assert len(openers) == 1
    openers[0].kill()
    pool: Any = making.get(timeout=PATIENCE)
    assert isinstance(pool, Pool)
    assert numbers(pool) == (0, 1, 0, 0)
    check_whole(pool)


# Giving back never switches


GIVING_BACK: dict[str, Callable[[Pool[Any], Any], object]] = {
    "release": lambda pool, block: pool.release(block.connection),
    "discard": lambda pool, block: pool.discard(block.connection),
    "a lease's release": lambda pool, block: block.release(),
    "a lease's discard": lambda pool, block: block.discard(),
    "a block's end": lambda pool, block: block.__exit__(None, None, None),
    "an error in a block": lambda pool, block: block.__exit__(LookupError, LookupError(), None),
}


@pytest.mark.parametrize("waiters", [0, 1])
@pytest.mark.parametrize("way", GIVING_BACK)
def test_giving_back_never_switches_and_calls_the_listener_later(
    backend: Backend, recorder: Recorder, way: str, waiters: int
) -> None:
    pool = pool_of(backend, recorder)
    block = pool.connection()
    block.__enter__()
    waiting = [spawn_acquire(pool) for _ in range(waiters)]
    recorder.told.clear()
    told_at_once: list[str] = []

    def give_back() -> None:
        GIVING_BACK[way](pool, block)
        told_at_once.extend(recorder.told)

    without_switching(give_back)
    assert told_at_once == []
    gevent.joinall(waiting, timeout=PATIENCE)
    settle()
    is_kept = way in ("release", "a lease's release", "a block's end")
    told = [line for line in recorder.told if "released" in line or "closed" in line]
    (line,) = told
    assert line.startswith("a: released 0" if is_kept else "a: closed 0, ")


# A listener that uses the pool


def use_without_waiting(pool: Pool[Any]) -> None:
    pool.stats()
    repr(pool)
    with contextlib.suppress(PoolExhaustedError):
        pool.release(pool.acquire(timeout=0))
    with contextlib.suppress(PoolExhaustedError), pool.connection(timeout=0):
        pass
    with contextlib.suppress(PoolExhaustedError):
        pool.lease(timeout=0).discard()


def use_and_wait(pool: Pool[Any]) -> None:
    with contextlib.suppress(PoolExhaustedError):
        pool.release(pool.acquire(timeout=0.005))


def close_idle_ones(pool: Pool[Any]) -> None:
    pool.drop_expired()
    pool.drain()


@pytest.mark.parametrize("max_connections", [1, 2])
@pytest.mark.parametrize("act", [use_without_waiting, use_and_wait, close_idle_ones])
@pytest.mark.parametrize("event", EVENTS)
def test_a_listener_may_use_the_pool(
    backend: Backend, caplog: pytest.LogCaptureFixture, event: str, act: Act, max_connections: int
) -> None:
    ended: list[bool] = []
    is_listening = True

    def use(*arguments: Any) -> None:
        nonlocal is_listening
        # What it does may be told of, too.
        if is_listening:
            is_listening = False
            act(pool)
            is_listening = True
            ended.append(True)

    pool = pool_of(backend, listening(**{event: use}), max_connections=max_connections)
    PROVOCATIONS[event](pool)
    settle()
    assert ended
    assert not [record for record in caplog.records if record.exc_info]
    is_listening = False
    check_whole(pool)
    eventually(lambda: len(backend.open) == max_connections)


def test_a_listener_may_release_a_connection_for_the_caller_in_waiting(backend: Backend) -> None:
    held: list[Any] = []
    pool = pool_of(backend, listening(waiting=lambda pool: held and pool.release(held.pop())))
    held.append(pool.acquire())
    assert pool.acquire(timeout=PATIENCE).number == 0
    assert numbers(pool) == (1, 0, 0, 0)


def test_a_listener_may_release_a_connection_for_the_next_caller_in_exhausted(backend: Backend) -> None:
    held: list[Any] = []
    pool = pool_of(backend, listening(exhausted=lambda pool, error: pool.release(held.pop())))
    held.append(pool.acquire())
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    assert pool.acquire(timeout=0).number == 0


@pytest.mark.parametrize("event", ["waiting", "opened", "acquired"])
def test_a_listener_may_close_the_pool(backend: Backend, event: str) -> None:
    pool: Pool[Any] = pool_of(backend, listening(**{event: lambda *arguments: pool.close(timeout=0)}))
    caller = gevent.spawn(outcome, pool.acquire)
    result = caller.get(timeout=PATIENCE)
    settle()
    # The connection of a caller that has it already is closed under it.
    assert isinstance(result, PoolClosedError if event == "waiting" else PoolClosedError | ScriptedConnection)
    assert numbers(pool) == (0, 0, 0, 0)
    assert not backend.open


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("give_back", [Lease.release, Lease.discard])
def test_a_caller_never_gets_a_connection_that_acquired_gave_back(
    backend: Backend, give_back: Callable[[Lease[Any]], object], way: str
) -> None:
    told: list[Lease[Any]] = []

    def acquired(lease: Lease[Any]) -> None:
        told.append(lease)
        if len(told) == 1:
            give_back(lease)

    pool = pool_of(backend, listening(acquired=acquired))
    try:
        connection = WAYS[way](pool)
    except PoolError:
        # That would be an answer, too.
        assert pool.stats().in_use == 0
    else:
        settle()
        assert pool.stats().in_use == 1
        assert connection.is_open  # type: ignore[attr-defined]


# What is refused


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("events", object()),
        ("events", Recorder),
        ("events", lambda *arguments: None),
        ("events", {}),
        ("events", False),
        ("context", contextlib.nullcontext()),
        ("context", "a context"),
        ("context", 0),
        ("clock", 1000.0),
        ("clock", object()),
        ("clock", ""),
    ],
)
def test_a_bad_argument_is_refused_with_its_name(backend: Backend, argument: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        Pool(backend.connect, **{argument: value})
    assert raised.value.argument == argument
    assert raised.value.given is value
    assert str(raised.value).startswith(f"{argument} must be ")
    assert not backend.connections


def test_none_stands_for_no_listener_context_or_clock(backend: Backend) -> None:
    pool = Pool(backend.connect, max_connections=1, events=None, context=None, clock=None)
    use_a_block(pool)
    check_whole(pool)
    pool.close()
