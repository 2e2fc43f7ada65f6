"""Does to a pool what a bad day does, many times over, and looks at what is left."""

from __future__ import annotations

import json
import logging
import os
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import Any, Generic, TypeVar

import gevent
import gevent.os
import gevent.pool
from gevent.monkey import get_original

from gsocketpool import InvalidArgumentError, Pool, PoolExhaustedError
from gsocketpool._aside import close_within
from gsocketpool.settings import check_count
from gsocketpool.testing._server import FAULTS, FlakyServer
from gsocketpool.testing._sockets import open_sockets

C = TypeVar("C")

#: Seconds after which a Timeout ends a round: most rounds, and some. And after which a greenlet counts as hanging.
_ROUND, _SHORT_ROUND, _HANG = 0.5, 0.002, 20.0
#: What happens a round, on average: exceptions thrown, faults of the server, and what is done to the pool.
_THROWN, _FAULTS, _KEPT_UP = 0.5, 0.02, 0.03
#: The turns of the event loop that a fault lasts, at most.
_LONGEST_FAULT = 50


class TortureError(AssertionError):
    """A pool, or its connections, did what must never happen."""

    def __init__(self, failures: list[str], report: TortureReport) -> None:
        super().__init__("\n".join([*failures[:10], str(report), f"Again: torture(…, seed={report.seed})"]))
        #: What happened, in words.
        self.failures = failures
        #: What had been done until then.
        self.report = report


@dataclass
class TortureReport:
    """What was done by :func:`torture`, and what came of it."""

    #: What decided everything that was decided by chance.
    seed: int
    #: How often a greenlet set out to use a connection.
    rounds: int = 0
    #: How many exchanges were completed, with the right reply.
    exchanges: int = 0
    #: How many exceptions were thrown into greenlets, those of the pool's own included.
    thrown: int = 0
    #: How many rounds were ended by a timeout of their own.
    timeouts: int = 0
    #: The faults of the server, by name, and the restarts.
    faults: Counter[str] = field(default_factory=Counter)
    #: How often the pool was drained, resized and swept.
    upkeep: Counter[str] = field(default_factory=Counter)
    #: How many processes were forked.
    forks: int = 0
    #: How the rounds ended that raised something else, by the name of its class.
    errors: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"

        return (
            f"seed {self.seed}: {self.rounds} rounds, {self.exchanges} exchanges,"
            f" {self.thrown} exceptions thrown, {self.timeouts} timeouts, {self.forks} forks;"
            f" faults: {listed(self.faults)}; upkeep: {listed(self.upkeep)}; errors: {listed(self.errors)}"
        )


def exchange_line(connection: Any, message: bytes) -> bytes:
    """Sends a line over a :class:`~gsocketpool.StreamConnection`, and returns the one that comes back."""
    connection.send(message + b"\n")
    line: bytes = connection.recv_until(b"\n")
    return line.removesuffix(b"\n")


def torture(
    pool: Pool[C] | Callable[[], C],
    *,
    seed: int | None = None,
    rounds: int = 1000,
    exchange: Callable[[C, bytes], bytes] = exchange_line,
    server: FlakyServer | None = None,
    greenlets: int = 16,
    max_connections: int = 4,
    forks: int = 2,
) -> TortureReport:
    """Has many greenlets exchange messages while everything goes wrong that can, and returns what was done.

    Exceptions are thrown into the greenlets, and into those of the pool's own, in random turns of the event loop. The
    pool is drained, resized and swept, the process is forked, and the server misbehaves. In the end, the server is well
    again, and all must be as if nothing had happened.

    :param pool: a pool that nobody else uses, or a factory of connections to make one of and to close it at the end.
    :param seed: decides everything that is decided here; a new one by default. The same seed does the same again, as
        far as the kernel takes the same turns.
    :param rounds: how often connections are used, all greenlets together.
    :param exchange: gets a connection and a message of letters, digits and hyphens, has the backend send that message
        back, and returns what came. By default :func:`exchange_line`.
    :param server: where the connections lead, to have it misbehave. Without one the backend is left in peace.
    :param greenlets: how many use connections at the same time.
    :param max_connections: the limit of a pool that is made here.
    :param forks: how many processes are forked; each uses the pool as its parent does.
    :raises TortureError: an AssertionError that has the seed, if a reply reached the wrong caller, a connection was
        used by two greenlets or processes, the limit was exceeded, capacity was lost, an exception was swallowed, a
        greenlet hung or, where the pool is closed here, a socket was left open.
    :raises InvalidArgumentError: if an argument can't be used.
    """
    check_count("rounds", rounds, least=1)
    check_count("greenlets", greenlets, least=1)
    check_count("forks", forks)
    if seed is None:
        seed = SystemRandom().randrange(2**32)
    check_count("seed", seed)
    with _silence():
        if isinstance(pool, Pool):
            ordeal = _Ordeal(pool, seed, rounds, exchange, server, forks)
            ordeal.run(greenlets)
        else:
            sockets = open_sockets()
            times: Any = {"open_timeout": _ROUND, "close_timeout": _ROUND, "reap_interval": 0.1}
            with Pool(pool, max_connections=max_connections, **times) as made:
                ordeal = _Ordeal(made, seed, rounds, exchange, server, forks)
                ordeal.run(greenlets)
            ordeal.look_for_open_sockets(sockets)
    if ordeal.failures:
        raise TortureError(ordeal.failures, ordeal.report)
    return ordeal.report


@contextmanager
def _silence() -> Iterator[None]:
    """Logs nothing of what is done to a pool on purpose."""
    logger = logging.getLogger("gsocketpool")
    nothing = lambda record: False  # noqa: E731
    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


class _TorturersError(Exception):
    """An ordinary error that is raised here on purpose."""


class _Ordeal(Generic[C]):
    """One torture of one pool. Its greenlet decides, turn by turn, what goes wrong."""

    def __init__(
        self,
        pool: Pool[C],
        seed: int,
        rounds: int,
        exchange: Callable[[C, bytes], bytes],
        server: FlakyServer | None,
        forks: int,
    ) -> None:
        self.pool = pool
        self.exchange = exchange
        self.server = server
        self.report = TortureReport(seed)
        self.failures: list[str] = []
        self.rounds_left = self._rounds = rounds
        #: Who uses which connection, by its identity.
        self.holders: dict[int, object] = {}
        #: What may come out of an acquire as the error of an opening.
        self.thrown_at_pool: dict[int, BaseException] = {}
        #: What the last round that failed raised.
        self.last_error: BaseException | None = None
        self._messages = 0
        self.is_over = False
        #: How many connections were acquired by greenlets that ended without giving them back.
        self.taken_away = 0
        #: How many connections are used that the pool does not know any more, and can't let go of in a fork.
        self.detached = 0
        self._taken_back_before = self._taken_back()
        self._forks = forks
        self._random = Random(seed)
        self._limit = pool.stats().max_connections
        self._allowed = self._limit
        self._least = max(1, pool._settings.min_connections)
        self._background = gevent.pool.Group()

    def run(self, greenlets: int) -> None:
        self._make_sure_that_it_works()
        self._victims = [_Victim(self, number) for number in range(greenlets)]
        try:
            self._torture()
            self._recover()
        finally:
            # Where all is well, they have ended by now.
            self.is_over = True
            gevent.killall([victim.greenlet for victim in self._victims], block=False)
            self._background.kill(block=False)

    def _make_sure_that_it_works(self) -> None:
        """Lets out what a mistake in the test raises, before anything goes wrong on purpose."""
        with gevent.Timeout(_HANG), self.pool.connection() as connection:
            reply = self.exchange(connection, b"torture")
        if reply != b"torture":
            raise InvalidArgumentError(
                "exchange", reply, "a callable that returns the message it was given, b'torture'"
            )

    def _torture(self) -> None:
        heal_in = 0
        while self._is_anybody_alive() and not self.failures:
            gevent.sleep(0)
            self._check_limit()
            heal_in -= 1
            if heal_in == 0 and self.server is not None:
                self.server.heal()
            for _ in self._victims:
                if self._is_time_for(_THROWN, self.report.thrown):
                    self._strike()
            if self._is_time_for(self._forks / self._rounds, self.report.forks) and not self.detached:
                self._fork()
            elif self._is_time_for(_KEPT_UP, self.report.upkeep.total()):
                self._keep_up()
            elif heal_in <= 0 and self.server is not None and self._is_time_for(_FAULTS, self.report.faults.total()):
                heal_in = self._sabotage(self.server)

    # What goes wrong

    def _is_time_for(self, often: float, done: int) -> bool:
        """Whether it is to happen in this turn, so that it happens so often a round."""
        return done < often * self.report.rounds and self._random.random() < 0.05

    def _strike(self) -> None:
        """Throws something at somebody."""
        if self._random.random() < 0.9:
            self._random.choice(self._victims).strike(self._error())
            return
        own = [one for one in (*self.pool._state.opening, *self.pool._closer._at_work) if one.gr_frame is not None]
        if own:
            self.report.thrown += 1
            error = self._error()
            self.thrown_at_pool[id(error)] = error
            self._random.choice(own).kill(error, block=False)

    def _error(self) -> BaseException:
        return self._random.choice((gevent.GreenletExit, gevent.Timeout, _TorturersError))()

    def _keep_up(self) -> None:
        what = self._random.choice(("drained", "resized", "swept"))
        self.report.upkeep[what] += 1
        if what == "drained":
            self.in_background(self.pool.drain)
        elif what == "swept":
            self.in_background(self.pool._sweep)
        else:
            self.in_background(self.pool.resize, self._random.randint(self._least, self._limit))

    def _sabotage(self, server: FlakyServer) -> int:
        """Has the server misbehave, and returns for how many turns."""
        fault = self._random.choice((*FAULTS, "restart", "close idle"))
        self.report.faults[fault] += 1
        if fault == "restart":
            server.restart(reset=self._random.random() < 0.5)
        elif fault == "close idle":
            server.close_idle()
        else:
            server.fail(fault)
            return self._random.randint(1, _LONGEST_FAULT)
        return 0

    def _fork(self) -> None:
        self.report.forks += 1
        if self.server is not None:
            # Nobody will heal it while the child lives.
            self.server.heal()
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            # Python warns of a fork in a process with threads, and gevent resolves names in some.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = gevent.os.fork_gevent()
        if child == 0:
            try:
                try:
                    self._live_in_the_child()
                except BaseException:
                    self.failures.append(traceback.format_exc())
                os.write(writing, json.dumps(self.failures).encode())
            finally:
                os._exit(0)
        os.close(writing)
        try:
            self._hear_of(child, reading)
        finally:
            os.close(reading)
            # The event loop may have done so already.
            with suppress(ChildProcessError):
                get_original("os", "waitpid")(child, 0)

    def _live_in_the_child(self) -> None:
        """What the greenlets began in the parent they go on to do here, until some exchanges have been completed."""
        self.failures.clear()
        self.holders.clear()
        self.last_error = None
        self.report.exchanges = 0
        self.rounds_left = max(self.rounds_left, 100)
        with gevent.Timeout(_HANG / 2, False):
            while self.report.exchanges < 10 and not self.failures:
                gevent.sleep(0)
                self._check_limit()
        if self.report.exchanges < 10 and not self.failures:
            self.failures.append(
                f"only {self.report.exchanges} exchanges in {_HANG / 2} s; its pool is {self.pool!r}, and the last"
                f" error was {self.last_error!r}"
            )

    def _hear_of(self, child: int, reading: int) -> None:
        heard = b""
        with gevent.Timeout(_HANG, False):
            while True:
                if get_original("select", "select")([reading], [], [], 0)[0]:
                    data = os.read(reading, 65536)
                    if not data:
                        break
                    heard += data
                gevent.sleep(0)
        if not heard:
            get_original("os", "kill")(child, 9)
            self.failures.append("a forked process said nothing")
            return
        self.failures += [f"in a forked process: {failure}" for failure in json.loads(heard)]

    # What must hold

    def _check_limit(self) -> None:
        stats = self.pool.stats()
        # Where the limit was lowered, those above it go as they come back.
        self._allowed = max(stats.max_connections, min(self._allowed, self.pool.size))
        if self.pool.size > self._allowed:
            self.failures.append(f"more than {self._allowed} connections: {self.pool!r}")

    def _is_anybody_alive(self) -> bool:
        stuck = [victim for victim in self._victims if victim.is_stuck()]
        self.failures += [f"a greenlet has hung for {_HANG} s:\n{_stack(victim.greenlet)}" for victim in stuck]
        return any(not victim.greenlet.ready() for victim in self._victims)

    def _recover(self) -> None:
        """Lets all come to rest, and looks at whether everything is there again."""
        if self.server is not None:
            self.server.heal()
            self.failures += [f"the server has failed: {error!r}" for error in self.server._errors]
        self._look_for_shared_connections()
        if self.failures:
            return
        self._background.join(timeout=_HANG)
        self.failures += [f"it has not ended within {_HANG} s:\n{_stack(one)}" for one in self._background]
        self.pool.resize(self._limit)
        looking = gevent.spawn(self._look_for_lost_capacity)
        looking.join(timeout=2 * _HANG)
        if not looking.ready():
            self.failures.append(f"the connections can't be used afterwards: {self.pool!r}\n{_stack(looking)}")

    def _look_for_lost_capacity(self) -> None:
        stats = self.pool.stats()
        # A sweep takes back what greenlets have lost that have ended. Only those that were made for it may do so.
        lost = stats.in_use + self._taken_back() - self._taken_back_before - self.taken_away
        if lost:
            self.failures.append(f"{lost} connections were lost: {self.pool!r}")
        self.pool._sweep()
        taken: list[C] = []
        deadline = time.monotonic() + _HANG
        while len(taken) < self._limit:
            try:
                taken.append(self._take_a_working_one())
            except Exception as error:
                # What began to be opened while the server misbehaved may fail yet.
                if time.monotonic() > deadline:
                    self.failures.append(f"only {len(taken)} of {self._limit} could be used afterwards: {error!r}")
                    break
                gevent.sleep(0.01)
        else:
            with suppress(PoolExhaustedError):
                taken.append(self.pool.acquire(timeout=0))
                self.failures.append(f"a connection above the limit: {self.pool!r}")
        for connection in taken:
            self.pool.release(connection)

    def _take_a_working_one(self) -> C:
        connection = self.pool.acquire(timeout=_HANG)
        try:
            self.check_exchange(connection, "afterwards")
        except BaseException:
            self.pool.discard(connection)
            raise
        return connection

    def _taken_back(self) -> int:
        return self.pool.stats().discarded.get("holder is dead", 0)

    def _look_for_shared_connections(self) -> None:
        for served in () if self.server is None else self.server.connections:
            processes = set(re.findall(rb"torture-(\d+)-", served.received))
            if len(processes) > 1:
                self.failures.append(f"{len(processes)} processes used {served!r}")

    def look_for_open_sockets(self, before: dict[tuple[int, int], str]) -> None:
        """To be called when the pool is closed. The server's own sockets don't count."""

        def left() -> list[str]:
            passed_over = set(before) if self.server is None else set(before) | self.server._own_sockets()
            return [what for which, what in open_sockets().items() if which not in passed_over]

        with gevent.Timeout(_HANG, False):
            while left():
                gevent.sleep(0.001)
        self.failures += [f"a socket is still open: {what}" for what in left()]

    # What the victims do

    def in_background(self, function: Callable[..., object], *arguments: Any) -> gevent.Greenlet:
        return self._background.spawn(function, *arguments)

    def check_exchange(self, connection: C, by: object) -> None:
        process = os.getpid()
        self._messages += 1
        message = f"torture-{process}-{by}-{self._messages}".encode()
        reply = self.exchange(connection, message)
        if process != os.getpid():
            self.failures.append(
                f"a forked process read what its parent had asked for: {reply!r}. Its connection needs a get() that"
                " returns the socket, or a let_go()"
            )
        if reply != message:
            self.failures.append(f"a reply reached the wrong caller: {message!r} was answered {reply!r}")
        self.report.exchanges += 1

    @contextmanager
    def using(self, connection: C, by: object) -> Iterator[None]:
        if id(connection) in self.holders:
            self.failures.append(f"{connection!r} is used by {by} and {self.holders[id(connection)]}")
        self.holders[id(connection)] = by
        try:
            yield
        finally:
            self.holders.pop(id(connection), None)


class _Victim:
    """A greenlet that uses connections in every way there is, while exceptions are thrown at it."""

    def __init__(self, ordeal: _Ordeal[Any], number: int) -> None:
        self._ordeal = ordeal
        self._pool = ordeal.pool
        self._number = number
        self._random = Random(f"{ordeal.report.seed}-{number}")
        #: What was thrown in the present round.
        self._thrown: list[BaseException] = []
        self._limit: gevent.Timeout | None = None
        self._is_in_round = False
        self._began = 0.0
        self.greenlet = gevent.spawn(self._live)

    def strike(self, error: BaseException) -> None:
        """Throws `error` into the greenlet in the next turn of the event loop."""
        gevent.get_hub().loop.run_callback(self._throw, error)

    def _throw(self, error: BaseException) -> None:
        # The second one hits whatever the first one is in the middle of.
        if self._is_in_round and len(self._thrown) < 2:
            self._ordeal.report.thrown += 1
            self._thrown.append(error)
            self.greenlet.throw(error)

    def is_stuck(self) -> bool:
        return self._is_in_round and time.monotonic() - self._began > _HANG

    def _live(self) -> None:
        ordeal = self._ordeal
        while ordeal.rounds_left > 0 and not ordeal.failures:
            ordeal.rounds_left -= 1
            ordeal.report.rounds += 1
            self._thrown.clear()
            self._began = time.monotonic()
            self._is_in_round = True
            try:
                self._round()
                came_out = None
            except BaseException as error:
                came_out = error
            self._is_in_round = False
            if ordeal.is_over:
                return
            self._judge(came_out)
            # A frame must not keep the traceback that keeps the frame.
            del came_out

    def _judge(self, came_out: BaseException | None) -> None:
        """What was thrown must have come out, or what somebody has made of it."""
        report = self._ordeal.report
        if came_out is not None and came_out is self._limit:
            # Perhaps while something else was on its way out.
            report.timeouts += 1
        elif self._thrown:
            if not _has(came_out, self._thrown[-1]):
                self._ordeal.failures.append(f"{self._thrown[-1]!r} was thrown, and {came_out!r} came out")
        elif isinstance(came_out, Exception) or id(came_out) in self._ordeal.thrown_at_pool:
            report.errors[type(came_out).__name__] += 1
            self._ordeal.last_error = came_out
        elif came_out is not None:
            self._ordeal.failures.append(f"{came_out!r} came out, which nobody has thrown")

    def _round(self) -> None:
        self._loiter()
        use = self._random.choices((_Victim._in_a_block, *_RARE), (40, *(3 for _ in _RARE)))[0]
        self._limit = gevent.Timeout.start_new(_SHORT_ROUND if self._random.random() < 0.1 else _ROUND)
        try:
            use(self)
        finally:
            self._limit.close()

    def _loiter(self) -> None:
        for _ in range(self._random.randrange(3)):
            gevent.sleep(0)

    def _exchange(self, connection: Any) -> None:
        with self._ordeal.using(connection, self._number):
            self._loiter()
            self._ordeal.check_exchange(connection, self._number)
            self._loiter()

    # The ways to use a connection

    def _in_a_block(self) -> None:
        with self._pool.connection() as connection:
            self._exchange(connection)

    def _in_a_block_in_a_block(self) -> None:
        with self._pool.connection() as connection:
            self._exchange(connection)
            with self._pool.connection(timeout=_SHORT_ROUND) as another:
                self._exchange(another)

    def _in_a_block_that_fails(self) -> None:
        with self._pool.connection() as connection:
            self._exchange(connection)
            raise _TorturersError("in a block")

    def _by_hand(self) -> None:
        connection = self._pool.acquire()
        try:
            self._exchange(connection)
        except BaseException:
            self._pool.discard(connection)
            raise
        self._pool.release(connection)

    def _without_waiting(self) -> None:
        with self._pool.connection(timeout=0) as connection:
            self._exchange(connection)

    def _for_itself(self) -> None:
        connection = self._pool.detach(self._pool.acquire())
        self._ordeal.detached += 1
        try:
            self._exchange(connection)
        finally:
            self._ordeal.detached -= 1
            self._ordeal.in_background(close_within, _ROUND, connection)

    def _without_giving_back(self) -> None:
        taker = self._ordeal.in_background(self._take_one_away)
        self._ordeal.in_background(self._take_it_back, taker)
        taker.join()

    def _take_one_away(self) -> None:
        with suppress(Exception, gevent.Timeout):
            self._pool.acquire()
            self._ordeal.taken_away += 1

    def _take_it_back(self, taker: gevent.Greenlet) -> None:
        taker.join()
        self._pool._sweep()


_RARE = (
    _Victim._in_a_block_in_a_block,
    _Victim._in_a_block_that_fails,
    _Victim._by_hand,
    _Victim._without_waiting,
    _Victim._for_itself,
    _Victim._without_giving_back,
)


def _stack(greenlet: gevent.Greenlet) -> str:
    return "".join(traceback.format_stack(greenlet.gr_frame))


def _has(came_out: BaseException | None, thrown: BaseException) -> bool:
    """Whether `came_out` is what was thrown, or was raised because of it."""
    while came_out is not None and came_out is not thrown:
        came_out = came_out.__cause__ or came_out.__context__
    return came_out is thrown
