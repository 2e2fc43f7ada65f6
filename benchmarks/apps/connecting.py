"""An app without a pool: it connects for each request."""

from __future__ import annotations

import os

from flask import Flask
from gevent import socket

from benchmarks.exchanges import MESSAGE

app = Flask(__name__)


@app.get("/")
def index() -> bytes:
    with socket.create_connection(("127.0.0.1", int(os.environ["ECHO_PORT"]))) as connection:
        connection.sendall(MESSAGE)
        data: bytes = connection.recv(1024)
        return data
