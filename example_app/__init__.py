"""A Flask app that talks to an echo server and to Valkey, through a connection pool for each.

The app speaks the echo server's line protocol itself. The pool for Valkey hands out valkey-py clients.

Deploy it with ``gunicorn -k gevent "example_app:create_app()"``. Set the addresses of the backends in
``FLASK_SOCKETPOOL_URL`` and ``FLASK_SOCKETPOOL_POOLS__valkey__url``. ``python -m example_app`` starts its own backends.
"""

from __future__ import annotations

import os
from typing import Any

import valkey.exceptions
from flask import Flask, Response, abort, jsonify, render_template, request
from flask.typing import ResponseReturnValue
from valkey import Valkey
from werkzeug.exceptions import BadRequest

from flask_gsocketpool import GSocketPool, current_pool, current_pools, named_pool

#: The pool of valkey-py clients. ``pip install "gsocketpool[valkey]"`` installs valkey-py.
store = named_pool("valkey", Valkey)

#: The longest line that the app sends to the echo server, in bytes.
MAX_LINE_BYTES = 4000


def create_app() -> Flask:
    """Return the app, configured by the ``FLASK_*`` environment variables."""
    app = Flask(__name__)
    app.config.from_mapping(
        MAX_CONTENT_LENGTH=1024 * 1024,
        SOCKETPOOL_NAME="echo",
        SOCKETPOOL_URL="tcp://127.0.0.1:2000",
        SOCKETPOOL_OPTIONS={"timeout": 5},
        SOCKETPOOL_MAX_CONNECTIONS=10,
        SOCKETPOOL_POOLS={"valkey": {"url": "valkey://127.0.0.1:6379", "max_connections": 10}},
    )
    app.config.from_prefixed_env()
    GSocketPool(app)

    app.add_url_rule("/", view_func=show_page)
    app.add_url_rule("/echo", view_func=get_echo)
    app.add_url_rule("/kv/<key>", view_func=get_value)
    app.add_url_rule("/kv/<key>", view_func=put_value, methods=["PUT"])
    app.add_url_rule("/pools", view_func=get_pools)
    for error in (ConnectionError, TimeoutError, valkey.exceptions.ConnectionError, valkey.exceptions.TimeoutError):
        app.register_error_handler(error, answer_bad_gateway)
    return app


def show_page() -> ResponseReturnValue:
    """Answer ``GET /`` with the page: the number of visits, a form, the echo server's reply, the worker's pools."""
    line = request.args.get("text", "")
    reply = problem = None
    if line:
        try:
            reply = ask_echo(line)
        except BadRequest as error:
            problem = error.description
    with store.connection() as client:
        visits = client.incr("visits")
    page = render_template(
        "page.html",
        line=line,
        reply=reply,
        problem=problem,
        visits=visits,
        pid=os.getpid(),
        pools=describe_pools().values(),
    )
    return page, 400 if problem else 200


def get_echo() -> ResponseReturnValue:
    """Answer ``GET /echo?text=`` with the echo server's reply."""
    return Response(ask_echo(request.args.get("text", "")), mimetype="text/plain")


def get_value(key: str) -> ResponseReturnValue:
    """Answer ``GET /kv/<key>`` with the stored value."""
    with store.connection() as client:
        value = client.get(f"kv:{key}")
    if value is None:
        abort(404, f"No value is stored under {key!r}.")
    return Response(value, mimetype="application/octet-stream")


def put_value(key: str) -> ResponseReturnValue:
    """Store the body of ``PUT /kv/<key>`` as it is, whatever its content type."""
    value = request.get_data()
    with store.connection() as client:
        client.set(f"kv:{key}", value)
    return "", 204


def get_pools() -> ResponseReturnValue:
    """Answer ``GET /pools`` with the statistics of this worker's pools."""
    return jsonify(pid=os.getpid(), pools=describe_pools())


def ask_echo(line: str) -> str:
    """Return the echo server's reply to `line`.

    :raises BadRequest: if `line` is empty, has a line break or is longer than :data:`MAX_LINE_BYTES`.
    """
    data = line.encode()
    if not line:
        raise BadRequest("Text is missing. Try /echo?text=hello")
    if b"\n" in data:
        raise BadRequest("Send one line at a time. The text has a line break.")
    if len(data) > MAX_LINE_BYTES:
        raise BadRequest(f"The line is too long: {len(data)} bytes, and the limit is {MAX_LINE_BYTES}.")
    with current_pool.connection() as connection:
        connection.send(data + b"\n")
        reply: bytes = connection.recv_until(b"\n")
    return reply[:-1].decode()


def describe_pools() -> dict[str, dict[str, Any]]:
    """Return the statistics of every pool, by its name in the configuration."""
    return {name: current_pools[name].stats().as_dict() for name in current_pools}


def answer_bad_gateway(error: Exception) -> ResponseReturnValue:
    """Answer with status 502: a backend failed, not this app."""
    return Response(f"A backend is unreachable or did not answer: {error}\n", status=502, mimetype="text/plain")
