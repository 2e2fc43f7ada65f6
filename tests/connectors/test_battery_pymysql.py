"""The battery of :mod:`tests.connectors.test_battery` for PyMySQL.

The suite runs those that no other test of the connector comes near, the torture all of them.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pymysql
import pytest

from gsocketpool.connectors.pymysql import PyMySQLConnector
from tests.support.battery import IDLE, LONG, OPEN, RUNNING, Relay, Subject
from tests.support.battery_subjects import SUBJECTS
from tests.support.battery_tests import blows
from tests.support.databases import KeptMariaDB


class MariaDB(Subject):
    errors = (pymysql.err.MySQLError,)
    refusal = pymysql.err.MySQLError
    ending = signal.SIGKILL

    def __init__(self, servers: dict[str, Any], **options: Any) -> None:
        super().__init__(servers, **options)
        self.directory = servers["mariadb"]["directory"]
        self.path = f"{self.directory}/socket"
        self.number = random.SystemRandom().randrange(2**31)
        with self.observer() as observer:
            run(observer, "CREATE TABLE IF NOT EXISTS battery (tag varchar(50), KEY (tag)) ENGINE=InnoDB")
            run(observer, "CREATE TABLE IF NOT EXISTS hanging (number int PRIMARY KEY) ENGINE=InnoDB")
            run(observer, f"INSERT INTO hanging VALUES ({self.number})")
            self._create_user(observer, self.tag)
        self.left_open = {
            "transaction": (self._write, self._is_written, "unsettled"),
            "failed transaction": (self._write_and_fail, self._is_written, "unsettled"),
            "row lock": (self._lock, lambda connection: not self._can_lock(), "unsettled"),
            "advisory lock": (
                lambda connection: run(connection, f"SELECT GET_LOCK('{self.tag}', 0)"),
                lambda connection: run(connection, f"SELECT IS_FREE_LOCK('{self.tag}')") != ((1,),),
                "always",
            ),
            "setting": (
                lambda connection: run(connection, "SET sql_mode = 'ANSI'"),
                lambda connection: "ANSI" in run(connection, "SELECT @@sql_mode")[0][0],
                "always",
            ),
        }

    @staticmethod
    def _create_user(observer: Any, name: str) -> None:
        run(observer, f"CREATE USER IF NOT EXISTS {name}@localhost")
        run(observer, f"GRANT ALL ON app.* TO {name}@localhost")

    def factory(self, **steps: Any) -> Any:
        path = self.path if self.relay is None else f"{self.relay_directory}/socket"
        options = {"unix_socket": path, "database": "app", "ssl_disabled": True, "user": self.tag, **self.options}
        if self.password is not None:
            options.update(user="rotating", password=self.password)
        connector = PyMySQLConnector(**options)
        for name, step in steps.items():
            setattr(connector, name, step)
        return connector

    def make_relay(self, directory: str, piece: int) -> Relay:
        self.relay_directory = directory
        return Relay(self.path, f"{directory}/socket", piece)

    def ask(self, connection: Any, word: str) -> str:
        return str(run(connection, f"SELECT '{word}'")[0][0])

    def ask_long(self, connection: Any, word: str) -> str:
        reply = str(run(connection, f"SELECT CONCAT('{word}', REPEAT('x', {LONG}))")[0][0])
        assert len(reply) == LONG + len(word)
        return reply[: len(word)]

    def ask_late(self, connection: Any, word: str) -> str:
        return str(run(connection, f"SELECT '{word}', SLEEP(0.005)")[0][0])

    def ask_in_transaction(self, connection: Any, word: str) -> str:
        self._write(connection)
        reply = self.ask(connection, word)
        # With autocommit, too, it is the pool that commits.
        self._write(connection)
        return reply

    def written(self) -> int:
        with self.observer() as observer, observer.cursor() as cursor:
            return int(cursor.execute(f"DELETE FROM battery WHERE tag = '{self.tag}'"))

    def _write(self, connection: Any) -> None:
        if not connection.server_status & 1:
            connection.begin()
        run(connection, f"INSERT INTO battery VALUES ('{self.tag}')")

    def _write_and_fail(self, connection: Any) -> None:
        self._write(connection)
        with suppress(self.refusal):
            self.fail(connection)

    def _is_written(self, connection: Any) -> bool:
        return run(connection, f"SELECT COUNT(*) FROM battery WHERE tag = '{self.tag}'") != ((0,),)

    def _lock(self, connection: Any) -> None:
        if connection.get_autocommit():
            connection.begin()
        run(connection, f"SELECT * FROM hanging WHERE number = {self.number} FOR UPDATE")

    def _can_lock(self) -> bool:
        with self.observer() as observer, suppress(pymysql.err.OperationalError):
            run(observer, f"SELECT * FROM hanging WHERE number = {self.number} FOR UPDATE NOWAIT")
            return True
        return False

    def hang(self, connection: Any) -> object:
        return run(connection, f"SELECT * FROM hanging WHERE number = {self.number} LOCK IN SHARE MODE")

    @contextmanager
    def hanging(self) -> Iterator[Any]:
        with self.observer() as observer:
            observer.begin()
            run(observer, f"SELECT * FROM hanging WHERE number = {self.number} FOR UPDATE")
            yield lambda count: observer.rollback()

    def fail(self, connection: Any) -> object:
        return run(connection, "SELECT nothing")

    def session(self, connection: Any) -> Any:
        return connection.thread_id()

    @contextmanager
    def observer(self) -> Iterator[Any]:
        options: dict[str, Any] = {"unix_socket": self.path, "user": "root", "database": "app", "ssl_disabled": True}
        with closing(pymysql.connect(**options, autocommit=True)) as observer:
            yield observer

    def sessions(self) -> dict[Any, str]:
        # InnoDB keeps what INNODB_TRX shows for as long as someone reads it again within 0.1 s.
        gevent.sleep(0.12)
        return super().sessions()

    def look(self, observer: Any) -> dict[Any, str]:
        query = (
            "SELECT p.ID, p.COMMAND, t.trx_id FROM information_schema.PROCESSLIST p"
            " LEFT JOIN information_schema.INNODB_TRX t ON t.trx_mysql_thread_id = p.ID"
            # The sessions that kill others have no database.
            f" WHERE p.USER IN ('{self.tag}', 'rotating') AND p.DB = 'app'"
        )
        return {
            number: RUNNING if command != "Sleep" else OPEN if transaction else IDLE
            for number, command, transaction in run(observer, query)
        }

    def end_present(self) -> None:
        with self.observer() as observer:
            for user in (self.tag, "rotating"):
                run(observer, f"KILL USER {user}@localhost")

    def change_password(self, password: str) -> None:
        with self.observer() as observer:
            self._create_user(observer, "rotating")
            run(observer, f"ALTER USER rotating@localhost IDENTIFIED BY '{password}'")

    def process(self) -> int:
        return int(Path(self.directory, "pid").read_text())

    def processes(self) -> list[int]:
        return [self.process()]


def run(connection: Any, statement: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


SUBJECTS["pymysql"] = MariaDB
SUBJECTS["pymysql-autocommit"] = partial(MariaDB, autocommit=True)


@pytest.fixture(scope="session")
def own_servers(mariadb: KeptMariaDB) -> dict[str, Any]:
    return {"mariadb": {"directory": str(mariadb.directory)}}


globals().update(
    blows(
        ["pymysql", "pymysql-autocommit"],
        left_open=["transaction", "failed transaction", "row lock", "advisory lock", "setting"],
        in_the_suite={
            "test_kills_and_timeouts_neither_exceed_the_limit_nor_lose_capacity": ["pymysql"],
            "test_the_next_user_sees_nothing_of_an_interruption_at_any_switch": ["pymysql"],
            "test_a_query_that_is_cut_short_ends_on_the_server": ["pymysql-autocommit"],
            "test_a_fork_during_an_opening_leaves_the_opening_to_the_parent": ["pymysql"],
        },
    )
)
