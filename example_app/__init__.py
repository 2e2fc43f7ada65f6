"""A web application that talks to an echo server and to Valkey through pools of connections.

It speaks the echo server's protocol, which is lines, itself. For Valkey, the pool hands out clients of valkey-py.

Deploy it with ``gunicorn -k gevent "example_app:create_app()"``, the addresses of the backends being in
``FLASK_SOCKETPOOL_URL`` and ``FLASK_SOCKETPOOL_POOLS__valkey__url``. ``python -m example_app`` brings its own backends.
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

#: Hands out clients of valkey-py, which comes with gsocketpool[valkey].
store = named_pool("valkey", Valkey)

#: The most bytes that a line may have.
LONGEST_LINE = 4000


def create_app() -> Flask:
    """Returns the application, configured by the ``FLASK_...`` variables of the environment."""
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
    """The page: a form for a line and the reply to it, how often the page was seen, and the worker's pools."""
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
    """``GET /echo?text=``: what the echo server replies to the text."""
    return Response(ask_echo(request.args.get("text", "")), mimetype="text/plain")


def get_value(key: str) -> ResponseReturnValue:
    """``GET /kv/<key>``: the value that was put there."""
    with store.connection() as client:
        value = client.get(f"kv:{key}")
    if value is None:
        abort(404, f"There is no value for {key!r}.")
    return Response(value, mimetype="application/octet-stream")


def put_value(key: str) -> ResponseReturnValue:
    """``PUT /kv/<key>``: keeps the body as it is, whatever its content type says."""
    value = request.get_data()
    with store.connection() as client:
        client.set(f"kv:{key}", value)
    return "", 204


def get_pools() -> ResponseReturnValue:
    """``GET /pools``: the pools of the worker that answers."""
    return jsonify(pid=os.getpid(), pools=describe_pools())


def ask_echo(line: str) -> str:
    """Returns what the echo server replies to `line`.

    :raises BadRequest: if it is not one line, and not a long one.
    """
    data = line.encode()
    if not line:
        raise BadRequest("Give a line of text: /echo?text=hello")
    if b"\n" in data:
        raise BadRequest("One line at a time: the text has a line break in it.")
    if len(data) > LONGEST_LINE:
        raise BadRequest(f"The line is too long: {LONGEST_LINE} bytes are the most.")
    with current_pool.connection() as connection:
        connection.send(data + b"\n")
        reply: bytes = connection.recv_until(b"\n")
    return reply[:-1].decode()


def describe_pools() -> dict[str, dict[str, Any]]:
    """Returns the statistics of every pool, by the name it has in the configuration."""
    return {name: current_pools[name].stats().as_dict() for name in current_pools}


def answer_bad_gateway(error: Exception) -> ResponseReturnValue:
    """Says that a backend failed, not this application."""
    return Response(f"A backend can't be reached or did not answer: {error}\n", status=502, mimetype="text/plain")
