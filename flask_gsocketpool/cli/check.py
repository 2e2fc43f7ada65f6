"""``flask socketpool check``: check that the backends can be reached."""

from __future__ import annotations

import math
import time
from typing import Any

import click
import gevent
from flask.cli import with_appcontext

from flask_gsocketpool._redaction import address_of, error_as_dict
from flask_gsocketpool._registry import Pools
from flask_gsocketpool.cli.common import (
    NO_POOLS,
    Seconds,
    app_and_pools,
    as_json_option,
    milliseconds,
    print_json,
    print_table,
)
from gsocketpool import Pool
from gsocketpool.settings import Settings

#: The limit for a pool, in seconds, if neither the option nor the pool sets one.
OPEN_TIMEOUT = 10.0


@click.command()
@click.option(
    "--timeout",
    type=Seconds(),
    show_default="the pool's open_timeout",
    help="How long each pool may take.",
)
@as_json_option
@with_appcontext
def check(timeout: float | None, as_json: bool) -> None:
    """Check that the backends can be reached.

    Open one connection of each pool, ping the backend if the connection can do that, and close it.

    All pools are checked at the same time, so the check takes at most --timeout, after the import of the app. A
    connection that is not closed by then ends with the process. Code that blocks the whole process, as a client of the
    standard library does without monkey patching, is bounded only by its own timeouts.

    The exit status is 1 if a pool fails, or if there is none.
    """
    _, pools = app_and_pools()
    checks = {name: gevent.spawn(_check, pools, name, timeout) for name in pools}
    gevent.joinall(list(checks.values()))
    results = {name: greenlet.get() for name, greenlet in checks.items()}
    is_ok = bool(results) and all(result["ok"] for result in results.values())
    if as_json:
        print_json({"ok": is_ok, "pools": results})
    elif results:
        print_table(("pool", "address", "time", "result"), *(_row(*item) for item in results.items()))
    if not results:
        click.echo(NO_POOLS, err=True)
    if not is_ok:
        click.get_current_context().exit(1)


def _check(pools: Pools, name: str, timeout: float | None) -> dict[str, Any]:
    config = pools.config.pools[name]
    defaults = Settings(**config.settings)
    limit = timeout or defaults.open_timeout or OPEN_TIMEOUT
    pool = pools.private_copy(name, open_timeout=limit, close_timeout=min(limit, defaults.close_timeout))
    began = time.perf_counter()
    # In greenlets, because open() and close() may ignore their limits.
    opening = gevent.spawn(_open_one, pool)
    opening.join(limit)
    seconds = time.perf_counter() - began
    error = opening.value if opening.ready() else TimeoutError(f"not open, or no answer to a ping, after {limit:g} s")
    gevent.spawn(pool.close, timeout=0).join(max(0.0, limit - seconds))
    options = pools.options_of(name)
    return {
        "ok": error is None,
        "address": address_of(options),
        "seconds": round(seconds, 6),
        "error": None if error is None else error_as_dict(error, options),
    }


def _open_one(pool: Pool[Any]) -> BaseException | None:
    """Return the error if a connection can't be opened. Raised here, the error would be printed, too."""
    try:
        # The pool's open_timeout is the limit.
        pool.ping(timeout=math.inf)
    except BaseException as error:
        return error
    return None


def _row(name: str, result: dict[str, Any]) -> tuple[str, str, str, str]:
    error = result["error"]
    shown = "ok" if error is None else f"{error['type']}: {error['message']}"
    return name, result["address"] or "-", milliseconds(result["seconds"]), shown
