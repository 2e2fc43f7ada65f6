"""An app without a backend, for the time that Flask and gunicorn take."""

from __future__ import annotations

from flask import Flask

from benchmarks.exchanges import MESSAGE

app = Flask(__name__)


@app.get("/")
def index() -> bytes:
    return MESSAGE
