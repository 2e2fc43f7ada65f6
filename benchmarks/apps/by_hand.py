"""An app with a pool of gsocketpool 0.1.6."""

from __future__ import annotations

import os

from flask import Flask

# At run time this is 0.1.6; mypy sees its successor.
import gsocketpool
from benchmarks.exchanges import MESSAGE

app = Flask(__name__)
pool = gsocketpool.Pool(gsocketpool.TcpConnection, {"host": "127.0.0.1", "port": int(os.environ["ECHO_PORT"])})


@app.get("/")
def index() -> bytes:
    with pool.connection() as connection:
        connection.send(MESSAGE)
        return connection.recv()
