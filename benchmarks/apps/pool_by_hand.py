"""An app with a pool of this version, without the extension."""

from __future__ import annotations

import os

from flask import Flask

from benchmarks.exchanges import MESSAGE
from gsocketpool import Pool, TcpConnection

app = Flask(__name__)
pool = Pool(TcpConnection, {"host": "127.0.0.1", "port": int(os.environ["ECHO_PORT"])})


@app.get("/")
def index() -> bytes:
    with pool.connection() as connection:
        connection.send(MESSAGE)
        return connection.recv()
