"""PostgreSQL behind PgBouncer in transaction mode, where the next transaction may run in another session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import gevent
import psycopg
import pytest

from gsocketpool import Pool
from gsocketpool.connectors.psycopg import PsycopgConnector
from tests.support.documents import ROOT, blocks, joined
from tests.support.pgbouncer import PGBOUNCER, PgBouncer, pgbouncer, pgbouncer_version
from tests.support.scripted import eventually

pytestmark = [
    pytest.mark.servers,
    pytest.mark.patched,
    pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed"),
]

GUIDE = ROOT / "docs" / "clients" / "psycopg.rst"

#: How many sessions it has on the server, at most.
SESSIONS = 2

#: From this version on it knows which client has prepared what, also when psycopg forgets all of that.
TRACKS = pgbouncer_version() >= (1, 22)

#: Both ways that the guide knows: nothing is prepared, or all is and PgBouncer tracks it.
both_ways = pytest.mark.parametrize("threshold", [None, 0] if TRACKS else [None])


class AppError(Exception):
    """An application's error."""


@contextmanager
def bouncing(conninfo: str, tracks: bool = TRACKS) -> Iterator[PgBouncer]:
    settings = {"pool_mode": "transaction", "default_pool_size": SESSIONS}
    if TRACKS:
        settings["max_prepared_statements"] = 100 if tracks else 0
    with pgbouncer(conninfo, **settings) as bouncer:
        yield bouncer


@contextmanager
def pooled(bouncer: PgBouncer, threshold: int | None = None, size: int = 4) -> Iterator[Pool[Any]]:
    connector = PsycopgConnector(bouncer.conninfo, prepare_threshold=threshold, application_name="through")
    with Pool(connector, max_connections=size) as pool:
        yield pool


@contextmanager
def table(conninfo: str) -> Iterator[Any]:
    """A session that does not go through PgBouncer, and a table."""
    with closing(psycopg.connect(conninfo, autocommit=True)) as other:
        other.execute("CREATE TABLE bounced (value int)")
        try:
            yield other
        finally:
            other.execute("DROP TABLE bounced")


def values(other: Any) -> list[int]:
    return [value for (value,) in other.execute("SELECT value FROM bounced ORDER BY value")]


@both_ways
def test_a_block_commits_or_rolls_back(conninfo: str, threshold: int | None) -> None:
    def insert(number: int, then: Callable[[Any], object]) -> None:
        with pool.connection() as conn:
            conn.execute("INSERT INTO bounced VALUES (%s)", [number])
            then(conn)

    def fail(conn: Any) -> None:
        raise AppError

    with table(conninfo) as other, bouncing(conninfo) as bouncer, pooled(bouncer, threshold, size=1) as pool:
        for number in range(4):
            insert(number, lambda conn: None)
            with pytest.raises(AppError):
                insert(number + 100, fail)
            with pytest.raises(psycopg.errors.UndefinedTable):
                insert(number + 200, lambda conn: conn.execute("SELECT FROM no_such_table"))
        assert values(other) == [0, 1, 2, 3]
        assert pool.stats().opened == 1
        assert not pool.stats().discarded


@both_ways
def test_greenlets_share_connections_which_share_sessions(conninfo: str, threshold: int | None) -> None:
    sessions = set()

    def use(number: int) -> None:
        for _ in range(5):
            with pool.connection() as conn:
                rows = [conn.execute("SELECT pg_backend_pid(), %s::int", [number]).fetchone() for _ in range(2)]
                conn.execute("INSERT INTO bounced VALUES (%s)", [number])
                rows += conn.execute("SELECT pg_backend_pid(), %s::int", [number]).fetchall()
            # The whole transaction was in one session, and each answer is that of its question.
            assert set(rows) == {(rows[0][0], number)}
            sessions.add(rows[0][0])

    with table(conninfo) as other, bouncing(conninfo) as bouncer, pooled(bouncer, threshold) as pool:
        gevent.joinall([gevent.spawn(use, number) for number in range(20)], raise_error=True)
        assert len(sessions) <= SESSIONS
        assert values(other) == sorted(list(range(20)) * 5)
        eventually(lambda: pool.stats().idle == 4)
        assert not pool.stats().discarded


def test_prepared_statements_fail_with_a_pgbouncer_that_does_not_track_them(conninfo: str) -> None:
    """What the guide warns of."""

    def use() -> None:
        with pool.connection() as one, pool.connection() as another:
            for conn in (one, another) * (SESSIONS + 1):
                conn.execute("SELECT 1")
                conn.commit()

    errors = (psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName)
    with (
        bouncing(conninfo, tracks=False) as bouncer,
        pooled(bouncer, threshold=0) as pool,
        pytest.raises(errors),
    ):
        use()


def test_no_request_fails_after_a_restart_with_idle_connections(conninfo: str) -> None:
    def use(number: int) -> Any:
        with pool.connection() as conn:
            gevent.sleep(0)
            return conn.execute("SELECT %s::int", [number]).fetchone()

    with bouncing(conninfo) as bouncer, pooled(bouncer) as pool:
        for _ in range(2):
            greenlets = [gevent.spawn(use, number) for number in range(10)]
            gevent.joinall(greenlets, raise_error=True)
            assert [greenlet.value for greenlet in greenlets] == [(number,) for number in range(10)]
            eventually(lambda: pool.stats().idle == 4)
            bouncer.stop()
            bouncer.start()
        assert pool.stats().discarded == {"unusable": 4}


def test_a_timeout_cancels_the_query_through_pgbouncer(conninfo: str) -> None:
    # By a name of its own, for other tests have the server sleep, too.
    query = "SELECT pg_sleep(600) AS bounced"
    running = f"SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '{query}'"

    def insert_and_sleep() -> None:
        with pool.connection() as conn:
            conn.execute("INSERT INTO bounced VALUES (1)")
            conn.execute(query)

    with table(conninfo) as other, bouncing(conninfo) as bouncer, pooled(bouncer, size=1) as pool:
        # As many as there are sessions: if they went on, the next transaction would wait for them.
        for _ in range(SESSIONS):
            with pytest.raises(gevent.Timeout) as raised, gevent.Timeout(0.1) as timeout:
                insert_and_sleep()
            assert raised.value is timeout
        with pool.connection() as conn:
            conn.execute("INSERT INTO bounced VALUES (2)")
        assert values(other) == [2]
        eventually(lambda: other.execute(running).fetchone() == (0,))


@pytest.mark.parametrize("way", [0, 1] if TRACKS else [1])
def test_the_connectors_of_the_guide_work(conninfo: str, way: int) -> None:
    """Of the first way, the other is for a PgBouncer that does not track."""
    connectors = [block for block in blocks(GUIDE) if ":6432/" in block]
    assert len(connectors) == 2
    with bouncing(conninfo, tracks=way == 0) as bouncer:
        source = joined([connectors[way]]).replace("postgresql://localhost:6432/app", bouncer.conninfo)
        names: dict[str, Any] = {"PsycopgConnector": PsycopgConnector}
        exec(compile(source, GUIDE.name, "exec"), names)
        with Pool(names["connector"], max_connections=4) as pool, pool.connection() as one, pool.connection() as two:
            for conn in (one, two) * 10:
                assert conn.execute("SELECT 1").fetchone() == (1,)
                conn.commit()
