"""The same kills, restarts and forks for every kind of connection, on real servers: no user sees another's replies.

The subjects are in :mod:`tests.support.battery_subjects`. What must hold after each blow is in
:mod:`tests.support.battery`: all connections can be used, and the server itself shows none that is left, runs something
or has something open.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import gevent
import gevent.hub
import gevent.os
import pytest
from werkzeug.exceptions import NotFound, abort

from gsocketpool.testing import torture
from tests.support.battery import FOR_EVER, RUNNING, Sessions, Subject, eventually
from tests.support.battery_subjects import SUBJECTS, Postgres
from tests.support.connections import outcome, without_switching
from tests.support.internals import fork
from tests.support.scripted import PATIENCE
from tests.support.servers import open_sockets
from tests.support.switches import Switches

patched = pytest.mark.patched
#: The control is none of them.
everyone = pytest.mark.parametrize("subject", [name for name in SUBJECTS if name != "careless"])
Servers = dict[str, Any]


class AppError(Exception):
    """An application's error."""


def made(subject: str, servers: Servers) -> Subject:
    return SUBJECTS[subject](servers)


# Sessions that end


@patched
@everyone
def test_no_request_fails_after_a_restart_with_idle_connections(own_servers: Servers, subject: str) -> None:
    it = made(subject, own_servers)
    with it.pool() as pool:
        pool.fill(4)
        it.restart()
        assert it.failures(pool) == []
        it.check_whole(pool)


@patched
@everyone
def test_no_request_fails_after_an_administrator_has_ended_all_sessions(own_servers: Servers, subject: str) -> None:
    it = made(subject, own_servers)
    with it.pool() as pool:
        pool.fill(4)
        it.end_all()
        assert it.failures(pool) == []
        it.check_whole(pool)


@patched
@everyone
def test_a_restart_fails_only_exchanges_under_way(own_servers: Servers, subject: str) -> None:
    it = made(subject, own_servers)
    with it.pool() as pool:
        with it.hanging():
            pool.fill(4)
            under_way = [gevent.spawn(outcome, use_by, it, pool, "hang") for _ in range(2)]
            eventually(lambda: list(it.sessions().values()).count(RUNNING) == 2)
            it.restart()
            gevent.joinall(under_way)
        assert all(isinstance(one.value, it.errors) for one in under_way)
        assert it.failures(pool) == []
        it.check_whole(pool)


@patched
@everyone
@pytest.mark.parametrize("reset", ["unsettled", "always"])
def test_no_request_fails_after_a_change_of_the_password(own_servers: Servers, subject: str, reset: str) -> None:
    it = made(subject, own_servers)
    known = [it.word()]
    it.password = lambda: known[-1]
    it.change_password(known[-1])
    with it.pool(reset=reset) as pool:
        pool.fill(4)
        known.append(it.word())
        it.change_password(known[-1])
        # Sessions that have logged in go on.
        assert it.failures(pool) == []
        it.end_all()
        assert it.failures(pool) == []
        # Where the password comes from is late.
        new = it.word()
        it.change_password(new)
        it.end_all()
        error = outcome(use_by, it, pool, "ask", "word")
        assert isinstance(error, it.errors), error
        assert known[-1] not in repr(error)
        known.append(new)
        assert it.failures(pool) == []
        it.check_whole(pool)


# Interruptions


USES = ("ask", "ask_long", "ask_late", "ask_in_transaction")
INTERRUPTIONS = ("timeout", "kill", "caught timeout")


class Others:
    """Every greenlet but one."""

    def __init__(self, one: Any) -> None:
        self.one = one

    def __contains__(self, greenlet: Any) -> bool:
        return greenlet is not self.one


def play(it: Subject, pool: Any, use: str, how: str, at: int | None) -> tuple[int, object]:
    """Use a connection, with an error thrown at the end of a slice. Return the number of slices, and what came out."""
    error: Any = gevent.GreenletExit() if how == "kill" else gevent.Timeout()
    word = it.word()
    slices = 0

    def use_it() -> None:
        with pool.connection() as connection:
            try:
                assert getattr(it, use)(connection, word) == word
            except gevent.Timeout:
                if how != "caught timeout":
                    raise

    def run() -> BaseException | None:
        try:
            use_it()
        except BaseException as raised:
            return raised
        return None

    def throw() -> None:
        if not user.ready():
            user.throw(error)

    def before_slice(number: int, target: Any) -> None:
        nonlocal slices
        if slices == at:
            gevent.hub.get_hub().loop.run_callback(throw)
        slices += 1

    user = gevent.Greenlet(run)
    with Switches(Others(user), before_slice).following():  # type: ignore[arg-type]
        user.start()
        user.join()
    # What comes out is what was thrown, or what the client says of an exchange that was cut short.
    assert user.value in (None, error) or isinstance(user.value, it.errors), repr(user.value)
    return slices, user.value


def interrupt_everywhere(it: Subject, pool: Any, use: str, how: str) -> None:
    slices, raised = play(it, pool, use, how, None)
    assert raised is None
    it.check_next(pool)
    assert it.written() == (2 if use == "ask_in_transaction" else 0)
    thrown = 0
    # The connection may be another one each time, and need more slices.
    for at in range(slices + 10):
        _, raised = play(it, pool, use, how, at)
        thrown += raised is not None
        it.check_next(pool)
        written = it.written()
        # A transaction that was cut short at its end may have come about.
        assert written in ((0, 2) if use == "ask_in_transaction" else (0,))
    assert thrown > (use not in ("ask", "ask_late")) or how == "caught timeout"


@patched
@everyone
@pytest.mark.parametrize("how", INTERRUPTIONS)
def test_the_next_user_sees_nothing_of_an_interruption_at_any_switch(
    own_servers: Servers, subject: str, how: str
) -> None:
    it = made(subject, own_servers)
    # Replies come in two pieces or more, so that there are switches in the middle of them.
    with it.relayed(50), it.pool(1) as pool:
        interrupt_everywhere(it, pool, "ask_in_transaction", how)
        it.check_whole(pool)


@patched
@everyone
@pytest.mark.torture
@pytest.mark.parametrize("how", INTERRUPTIONS)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("reset", ["unsettled", "always"])
@pytest.mark.parametrize("piece", [23, 5000])
def test_the_next_user_sees_nothing_of_an_interruption_in_the_middle_of_a_reply(
    own_servers: Servers, subject: str, use: str, how: str, reset: str, piece: int
) -> None:
    it = made(subject, own_servers)
    with it.relayed(piece if use != "ask_long" else 40_000), it.pool(1, reset=reset) as pool:
        interrupt_everywhere(it, pool, use, how)
        it.check_whole(pool)


@patched
@everyone
def test_a_query_that_is_cut_short_ends_on_the_server(own_servers: Servers, subject: str) -> None:
    it = made(subject, own_servers)
    with it.pool() as pool, it.hanging():
        callers = [gevent.spawn(outcome, give_up, it, pool, "hang") for _ in range(8)]
        gevent.joinall(callers)
        assert all(isinstance(caller.value, gevent.Timeout) for caller in callers)
        # What they waited for has not come about, and would let them wait for ever.
        it.check_none_runs()
        it.check_whole(pool)


def interrupt_at_random(it: Subject, seed: int, **settings: Any) -> None:
    limit, wrongs, outcomes = 4, [], {}
    sessions = Sessions(it)
    random = Random(seed)

    def use(number: int) -> None:
        mine = Random(f"{seed} {number}")
        word = it.word()
        seconds = mine.choice([0.001, 0.02, 0.2, None, None])
        is_caught = mine.random() < 0.5
        with gevent.Timeout(None if is_caught else seconds), pool.connection(PATIENCE) as connection:
            try:
                holders.add(number)
                with gevent.Timeout(seconds if is_caught else None):
                    if getattr(it, mine.choice(USES))(connection, word) != word:
                        wrongs.append("a reply reached the wrong user")
            except gevent.Timeout:
                interrupted.add(number)
                if not is_caught:
                    raise
            finally:
                holders.discard(number)

    def run(number: int) -> None:
        try:
            use(number)
        except (gevent.Timeout, gevent.GreenletExit):
            interrupted.add(number)
        except BaseException as error:
            outcomes[number] = error

    def watch() -> None:
        with it.observer() as observer:
            while True:
                shown = it.look(observer).keys() - sessions.given_up
                if len(shown) > limit:
                    wrongs.append(f"the server shows {len(shown)} sessions")
                gevent.sleep(0.002)

    holders: set[int] = set()
    interrupted: set[int] = set()
    with it.pool(limit, events=sessions, **settings) as pool:
        watcher = gevent.spawn(watch)
        users = [gevent.spawn(run, number) for number in range(300)]
        while not all(user.ready() for user in users):
            # Most of them wait in the queue at any time.
            among = holders if holders and random.random() < 0.5 else range(len(users))
            number = random.choice(list(among))
            # One that has not begun would be said to have failed.
            if users[number].gr_frame is not None:
                interrupted.add(number)
                users[number].kill(gevent.GreenletExit if random.random() < 0.5 else gevent.Timeout, block=False)
            gevent.sleep(random.choice([0, 0.001, 0.003]))
        assert not watcher.ready(), watcher.exception
        watcher.kill()
        wrongs += [f"{number} was left alone, and got {outcomes[number]!r}" for number in outcomes.keys() - interrupted]
        wrongs += [repr(error) for error in outcomes.values() if not isinstance(error, it.errors)]
        assert not wrongs, wrongs
        assert sum(pool.stats().discarded.values()) > 15, pool.stats()
        it.check_whole(pool)


@patched
@everyone
def test_kills_and_timeouts_neither_exceed_the_limit_nor_lose_capacity(own_servers: Servers, subject: str) -> None:
    """At every look, the server shows no more sessions than the limit, but for those that the pool has given up.

    A session that the pool has given up is being cancelled or closed, which takes a moment, and does not count: else
    one close that hangs would keep a place from all callers. What the pool gives up it tells by ``closed()``, before
    anything is opened instead. A session that is still being opened counts.
    """
    interrupt_at_random(made(subject, own_servers), seed=1)


@patched
@everyone
@pytest.mark.torture
@pytest.mark.parametrize("reset", ["unsettled", "always"])
@pytest.mark.parametrize("seed", range(2, 12))
def test_many_kills_and_timeouts_neither_exceed_the_limit_nor_lose_capacity(
    own_servers: Servers, subject: str, seed: int, reset: str
) -> None:
    interrupt_at_random(made(subject, own_servers), seed, reset=reset)


# What a user leaves


def names_of_what_is_left() -> list[Any]:
    of_postgres = ["transaction", "failed transaction", "advisory lock", "setting"]
    of_valkey = ["MULTI", "WATCH", "database"]
    return [
        (name, what)
        for name in SUBJECTS
        if name != "careless"
        for what in (of_postgres if name.startswith("psycopg") else of_valkey)
    ]


def leave_open(it: Subject, what: str) -> None:
    leave, is_left, reset = it.left_open[what]
    with it.pool(1, reset=reset) as pool:
        connection = pool.acquire()
        leave(connection)
        pool.release(connection)
        it.check_next(pool)
        with suppress(AppError), pool.connection() as connection:
            assert not is_left(connection)
            leave(connection)
            raise AppError
        it.check_next(pool)
        with pool.connection() as connection:
            assert not is_left(connection)
        assert it.written() == 0
        it.check_whole(pool)


@patched
@pytest.mark.parametrize(("subject", "what"), names_of_what_is_left())
def test_the_next_user_finds_no_unfinished_work(own_servers: Servers, subject: str, what: str) -> None:
    leave_open(made(subject, own_servers), what)


@patched
@everyone
def test_an_aborted_request_is_rolled_back_and_keeps_its_connection(own_servers: Servers, subject: str) -> None:
    it = made(subject, own_servers)
    leave, is_left, _ = next(iter(it.left_open.values()))
    with it.pool(1) as pool:
        session = None
        with suppress(NotFound), pool.connection() as connection:
            session = it.session(connection)
            leave(connection)
            abort(404)
        it.check_next(pool, session)
        with pool.connection() as connection:
            assert not is_left(connection)
        assert it.written() == 0
        it.check_whole(pool)


@patched
@everyone
def test_an_error_reply_of_the_server_keeps_the_connection(own_servers: Servers, subject: str) -> None:
    it = made(subject, own_servers)
    with it.pool(1) as pool:
        with pool.connection() as connection:
            session = it.session(connection)
            assert isinstance(outcome(it.fail, connection), it.refusal)
        it.check_next(pool, session)
        assert isinstance(outcome(use_by, it, pool, "fail"), it.refusal)
        it.check_next(pool, session)
        it.check_whole(pool)


# Steps that hang


def hang_for_ever(connection: Any) -> None:
    gevent.sleep(FOR_EVER)


@patched
@everyone
def test_a_close_that_hangs_takes_no_place_and_does_not_block_the_caller(own_servers: Servers, subject: str) -> None:
    it = made(subject, own_servers)
    with it.pool(1, steps={"close": hang_for_ever}, close_timeout=0.5) as pool:
        first = pool.acquire()
        without_switching(lambda: pool.discard(first))
        with pool.connection():
            assert pool.stats().closing == 1
        it.check_whole(pool)
        assert not pool.stats().closing


@patched
@everyone
def test_a_reset_that_hangs_takes_a_place_until_its_timeout_and_does_not_block_the_caller(
    own_servers: Servers, subject: str
) -> None:
    it = made(subject, own_servers)
    leave, is_left, _ = next(iter(it.left_open.values()))
    with it.relayed() as relay, it.pool(1, reset_timeout=0.2) as pool:
        first = pool.acquire()
        leave(first)
        with relay.holding():
            without_switching(lambda: pool.release(first))
            assert pool.stats().resetting == 1
            with pool.connection() as connection:
                assert pool.stats().discarded == {"not_reset": 1}
                assert not is_left(connection)
        it.check_whole(pool)


# Forks


@patched
@everyone
def test_a_fork_leaves_the_parent_its_sessions_and_the_child_opens_its_own(own_servers: Servers, subject: str) -> None:
    it = made(subject, own_servers)
    with it.pool() as pool, it.hanging() as let_go:
        pool.fill(4)
        before = it.sessions().keys()
        waiting = gevent.spawn(outcome, use_by, it, pool, "hang")
        eventually(lambda: RUNNING in it.sessions().values())
        with pool.connection() as in_use:
            it.ask(in_use, "word")
            in_child(lambda: live_in_the_child(it, pool, before))
            word = it.word()
            assert it.ask(in_use, word) == word
        let_go(1)
        waiting.join()
        assert not isinstance(waiting.value, BaseException), waiting.value
        assert it.sessions().keys() == before
        it.check_whole(pool)
        assert it.sessions().keys() == before


@patched
@everyone
def test_a_fork_during_an_opening_leaves_the_opening_to_the_parent(own_servers: Servers, subject: str) -> None:
    it = made(subject, own_servers)
    word = it.word()
    with it.pool(1) as pool:
        before = open_sockets()
        with it.stopped():
            caller = gevent.spawn(outcome, use_by, it, pool, "ask", word)
            eventually(lambda: open_sockets() - before)
            # A little further: into the handshake.
            gevent.sleep(0.02)
            half_open = open_sockets() - before
            in_child(lambda: eventually(lambda: not half_open & open_sockets(), open_sockets))
        caller.join()
        assert caller.value == word, caller.value
        it.check_whole(pool)


@patched
def test_a_fork_while_a_session_is_configured_does_not_end_the_session(own_servers: Servers) -> None:
    it: Postgres = Postgres(own_servers, configure=lambda connection: it.hang(connection))
    word = it.word()
    with it.pool(1) as pool, it.hanging() as let_go:
        caller = gevent.spawn(outcome, use_by, it, pool, "ask", word)
        eventually(lambda: RUNNING in it.sessions().values())
        session = it.sessions().keys()
        in_child(lambda: gevent.sleep(0.05))
        let_go(1)
        caller.join()
        assert caller.value == word, caller.value
        assert it.sessions().keys() == session


def use_by(it: Subject, pool: Any, how: str, *arguments: str) -> object:
    with pool.connection() as connection:
        return getattr(it, how)(connection, *arguments)


def live_in_the_child(it: Subject, pool: Any, before: Any) -> None:
    assert it.failures(pool, 6, 2) == []
    with pool.connection() as connection:
        assert it.session(connection) not in before
    pool.close()


def in_child(act: Callable[[], object]) -> None:
    """Do something in a forked process. Its error is raised here."""
    child, link = fork()
    if child == 0:
        try:
            with gevent.Timeout(PATIENCE / 2):
                act()
        except BaseException:
            link.send(traceback.format_exc().encode())
        finally:
            os._exit(0)
    try:
        with gevent.Timeout(PATIENCE, False):
            while not link.is_at_end:
                link.poll()
                gevent.sleep(0.005)
    finally:
        link.close()
        # The event loop may have done so already.
        with suppress(ChildProcessError):
            os.waitpid(child, 0)
    assert not link.received, link.received.decode()


# A server that stands still


@patched
@everyone
@pytest.mark.parametrize("seconds", [0, pytest.param(3, marks=pytest.mark.torture)])
def test_a_pool_recovers_after_its_server_has_stood_still(own_servers: Servers, subject: str, seconds: int) -> None:
    it = made(subject, own_servers)
    with it.pool(open_timeout=1, close_timeout=1) as pool:
        pool.fill(4)
        with it.stopped():
            callers = [gevent.spawn(outcome, give_up, it, pool, "ask", "word") for _ in range(12)]
            gevent.joinall(callers)
            assert all(isinstance(caller.value, gevent.Timeout) for caller in callers)
            # Longer than all that the pool gives a time to.
            gevent.sleep(seconds)
        assert it.failures(pool) == []
        it.check_whole(pool)


def give_up(it: Subject, pool: Any, how: str, *arguments: str) -> None:
    with gevent.Timeout(0.1):
        use_by(it, pool, how, *arguments)


# All at once


def torture_it(it: Subject, seed: int, rounds: int, reset: str) -> None:
    def exchange(connection: Any, message: bytes) -> bytes:
        return it.ask(connection, message.decode()).encode()

    with it.pool(reset=reset) as pool:
        report = torture(pool, seed=seed, rounds=rounds, exchange=exchange, greenlets=12, forks=2)
        assert report.exchanges > rounds / 5, report
        assert report.thrown > rounds / 50, report
        assert report.forks or rounds < 1000, report
        it.check_whole(pool)


@patched
@everyone
def test_a_subject_passes_the_torture(own_servers: Servers, subject: str) -> None:
    torture_it(made(subject, own_servers), seed=1, rounds=200, reset="unsettled")


@patched
@everyone
@pytest.mark.torture
@pytest.mark.parametrize("reset", ["unsettled", "always"])
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_subject_passes_a_long_torture(own_servers: Servers, subject: str, seed: int, reset: str) -> None:
    torture_it(made(subject, own_servers), seed, rounds=1000, reset=reset)


# The control


@patched
@pytest.mark.parametrize("blow", ["interrupted", "left open"])
def test_the_battery_catches_a_connector_that_keeps_every_connection(own_servers: Servers, blow: str) -> None:
    def strike() -> None:
        it = made("careless", own_servers)
        if blow == "left open":
            leave_open(it, "transaction")
        with it.relayed(), it.pool(1) as pool:
            interrupt_everywhere(it, pool, "ask", "timeout")

    with pytest.raises(AssertionError, match="the next user"):
        strike()
