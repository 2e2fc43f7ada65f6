"""The battery of :mod:`tests.connectors.test_battery` for SQLAlchemy's engines, on PostgreSQL.

The suite runs a few of them, the torture all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import sqlalchemy

from gsocketpool.sqlalchemy import GeventPool
from tests.support.battery import eventually
from tests.support.battery_subjects import SUBJECTS, Postgres
from tests.support.battery_tests import blows
from tests.support.scripted import PATIENCE


class EngineConnection:
    """A connection of an engine's that takes the driver's own SQL."""

    autocommit = False

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self.of_engine = connection

    def execute(self, statement: str, parameters: Any = ()) -> Any:
        return self.of_engine.exec_driver_sql(statement, tuple(parameters))


class EnginePool:
    """An engine, under the names of a pool. A block is a transaction."""

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        self._engine = engine

    @property
    def _pool(self) -> Any:
        assert isinstance(self._engine.pool, GeventPool)
        return self._engine.pool.gevent_pool

    @contextmanager
    def connection(self, timeout: float = PATIENCE) -> Iterator[EngineConnection]:
        with self._engine.begin() as connection:
            yield EngineConnection(connection)

    def acquire(self, timeout: float = PATIENCE) -> Any:
        # An engine takes no timeout.
        return EngineConnection(self._engine.connect()) if timeout else self._pool.acquire(timeout=0)

    def release(self, connection: EngineConnection) -> None:
        connection.of_engine.close()

    def fill(self, connections: int) -> None:
        with ExitStack() as stack:
            for _ in range(connections):
                stack.enter_context(self._engine.connect())

    def stats(self) -> Any:
        return self._pool.stats()

    def close(self) -> None:
        self._engine.dispose()


class Engines(Postgres):
    errors = (sqlalchemy.exc.SQLAlchemyError,)
    refusal = sqlalchemy.exc.ProgrammingError  # type: ignore[assignment]

    @contextmanager
    def pool(self, limit: int = 4, *, steps: Any = None, events: Any = None, **settings: Any) -> Iterator[Any]:
        class Watched(GeventPool):
            def _make_pool(self) -> Any:
                # An engine's pool takes no listener.
                self._settings["events"] = events
                return super()._make_pool()

        conninfo, options = self.reached()

        def connect() -> Any:
            asked = {name: value() if callable(value) else value for name, value in options.items()}
            return psycopg.connect(conninfo, **asked)

        # It has no others.
        kept = {name: value for name, value in settings.items() if name == "open_timeout"}
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg://",
            creator=connect,
            poolclass=Watched,
            pool_size=limit,
            max_overflow=0,
            pool_timeout=PATIENCE,
            **kept,
        )
        try:
            yield EnginePool(engine)
            self.check_none_runs()
        finally:
            engine.dispose()
        eventually(lambda: not self.sessions(), self.sessions)

    def session(self, connection: Any) -> Any:
        if isinstance(connection, EngineConnection):
            connection = connection.of_engine.connection
        return connection.driver_connection.info.backend_pid


SUBJECTS["sqlalchemy"] = Engines

globals().update(
    blows(
        ["sqlalchemy"],
        # SQLAlchemy ends transactions, and nothing else.
        left_open=["transaction", "failed transaction"],
        in_the_suite={
            "test_the_next_user_sees_nothing_of_an_interruption_at_any_switch": ["sqlalchemy"],
            "test_a_fork_during_an_opening_leaves_the_opening_to_the_parent": ["sqlalchemy"],
        },
        # The steps of an engine can't be replaced, and the torture is one of pools.
        without=[
            "test_a_close_that_hangs_takes_no_place_and_does_not_block_the_caller",
            "test_a_reset_that_hangs_takes_a_place_until_its_timeout_and_does_not_block_the_caller",
            "test_a_subject_passes_the_torture",
            "test_a_subject_passes_a_long_torture",
        ],
    )
)
