"""A driver's connection that its caller has closed behind the back of SQLAlchemy."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import create_engine, text

from gsocketpool.sqlalchemy import GeventPool

pytestmark = pytest.mark.patched


def test_a_connection_closed_by_its_caller_is_not_handed_out_again(conninfo: str) -> None:
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo), poolclass=GeventPool, pool_size=1
    )
    with engine.connect() as connection:
        first = connection.connection.dbapi_connection
        assert first is not None
    # It is idle now.
    first.close()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
        assert connection.connection.dbapi_connection is not first
    engine.dispose()
