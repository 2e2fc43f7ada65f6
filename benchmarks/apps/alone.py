"""Without a backend: what Flask and gunicorn take by themselves."""

from __future__ import annotations

from flask import Flask

from benchmarks.exchanges import MESSAGE

app = Flask(__name__)


@app.get("/")
def index() -> bytes:
    return MESSAGE
