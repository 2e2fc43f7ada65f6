"""An app with the Flask extension."""

from __future__ import annotations

import os

from flask import Flask

from benchmarks.exchanges import MESSAGE
from flask_gsocketpool import GSocketPool, current_pool

app = Flask(__name__)
app.config["SOCKETPOOL_URL"] = f"tcp://127.0.0.1:{os.environ['ECHO_PORT']}?timeout=none"
# The default of the pool without the extension: the benchmark compares the two.
app.config["SOCKETPOOL_MAX_CONNECTIONS"] = 200
GSocketPool(app)


@app.get("/")
def index() -> bytes:
    with current_pool.connection() as connection:
        connection.send(MESSAGE)
        data: bytes = connection.recv()
        return data
