"""The app that test_serving.py has gunicorn serve. Its configuration is in FLASK_* variables of the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from flask import Flask, Response, current_app, stream_with_context
from flask.typing import ResponseReturnValue
from gevent.event import Event

from flask_gsocketpool import GSocketPool, current_connection, current_pool, health
from gsocketpool import TcpConnection


class PoliteConnection(TcpConnection):
    """Says hello and goodbye, so that the backend can tell whose it is, and whether it was closed or merely lost."""

    def open(self) -> None:
        super().open()
        self.exchange("hello")

    def close(self) -> None:
        if self.is_connected():
            with suppress(OSError):
                self._say("bye")
        super().close()

    def exchange(self, text: str) -> str:
        self._say(text)
        return self.recv_until(b"\n").decode().removesuffix("\n")

    def _say(self, text: str) -> None:
        self.send(f"{os.getpid()}:{text}\n".encode())


class StuckConnection(PoliteConnection):
    """Waits for an answer to its goodbye, and there never is one."""

    def close(self) -> None:
        if self.is_connected():
            self.exchange("bye")


class SingleUseConnection(PoliteConnection):
    """Is closed after every use, and asks the backend before."""

    def is_reusable(self, error: BaseException | None) -> bool:
        return False

    def close(self) -> None:
        if self.is_connected():
            self.exchange("may I go")
        super().close()


app = Flask(__name__)
app.config.from_prefixed_env()
GSocketPool(app)
app.register_blueprint(health.blueprint, url_prefix="/health")


@app.get("/echo/<text>")
def echo(text: str) -> ResponseReturnValue:
    with current_pool.connection() as connection:
        answer = connection.exchange(text)
    return answer, {"X-Worker": str(os.getpid())}


@app.get("/stream/<text>")
def stream(text: str) -> ResponseReturnValue:
    """Ask for every piece of the body when the one before is sent."""

    def body() -> Iterator[str]:
        for number in range(current_app.config["PIECES"]):
            yield current_connection.exchange(f"{text}-{number}") + "\n"

    current_connection.exchange("first")
    return Response(stream_with_context(body()), headers={"X-Worker": str(os.getpid())})


@app.get("/stuck/<text>")
def stuck(text: str) -> ResponseReturnValue:
    """Keep the connection for ever."""
    with current_pool.connection() as connection:
        connection.exchange(text)
        Event().wait()
    return ""


if app.config.get("USE_POOL_AT_IMPORT"):
    with app.app_context():
        kept: PoliteConnection = current_pool.acquire()
        with current_pool.connection() as connection:
            connection.exchange("import")


def use_what_was_opened_at_import(text: str) -> None:
    """Say `text` on the connection that has been in use since the import, and on the one that was idle after it."""
    kept.exchange(text)
    with app.app_context(), current_pool.connection() as connection:
        connection.exchange(text)
