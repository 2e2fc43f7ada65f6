"""Apps with pools, and the commands that an operator gives them."""

from __future__ import annotations

import json
from typing import Any

import gevent
from click.testing import Result
from flask import Flask

from flask_gsocketpool import GSocketPool
from tests.support.scripted import PATIENCE

SECRET = "hunter2"


def make_app(**config: Any) -> Flask:
    app = Flask("app")
    app.config.update(config)
    GSocketPool(app)
    return app


def run(app: Flask, *args: str) -> Result:
    with gevent.Timeout(PATIENCE):
        result = app.test_cli_runner().invoke(args=["socketpool", *args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def run_json(app: Flask, *args: str, status: int = 0) -> Any:
    result = run(app, *args, "--json")
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def url(address: tuple[str, int]) -> str:
    return f"tcp://{address[0]}:{address[1]}"
