"""What operators ask at a shell: ``flask socketpool check``, ``config`` and ``bench``.

The pools that are used here are made for the occasion. Those of the app are not touched.
"""

from __future__ import annotations

import json
import math
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import click
import gevent
from flask import Flask, current_app
from flask.cli import AppGroup
from werkzeug.utils import import_string

from flask_gsocketpool.config import APP_WIDE, DEFAULT, AppConfig, PoolConfig
from flask_gsocketpool.masking import address_of, error_as_dict, masked_url, masked_value
from flask_gsocketpool.pools import Pools, pools_of
from gsocketpool import Pool
from gsocketpool.settings import Settings

#: Seconds for opening a connection where neither the option nor the pool has a limit.
OPEN_TIMEOUT = 10.0
#: Seconds that a benchmark waits, after its time, for what is still under way.
GRACE = 10.0
#: Seconds between two looks at how far a benchmark is.
TICK = 0.1

NO_POOLS = "The app has no pools: set SOCKETPOOL_URL or another of the keys."

group = AppGroup("socketpool", help="Look at the socket pools of the app.")


class Seconds(click.FloatRange):
    """A number of seconds above 0, and not infinite."""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return seconds


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")


def _current_pools() -> tuple[Flask, Pools]:
    app: Flask = cast(Any, current_app)._get_current_object()
    return app, pools_of(app)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def _print_table(*rows: Sequence[str]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


# check


@group.command()
@click.option(
    "--timeout",
    type=Seconds(),
    help="Seconds for opening each connection; by default the pool's open_timeout.",
)
@as_json_option
def check(timeout: float | None, as_json: bool) -> None:
    """Open one connection of each pool, and close it.

    All pools are tried at the same time. The exit status is 1 if any of them fails, or there is none. What blocks the
    whole process, as a client of the standard library does without monkey patching, is bounded by its own timeouts
    only.
    """
    _, pools = _current_pools()
    checks = {name: gevent.spawn(_check, pools, name, timeout) for name in pools}
    gevent.joinall(list(checks.values()))
    results = {name: greenlet.get() for name, greenlet in checks.items()}
    is_ok = bool(results) and all(result["ok"] for result in results.values())
    if as_json:
        _print_json({"ok": is_ok, "pools": results})
    elif results:
        _print_table(("pool", "address", "time", "result"), *(_row(*item) for item in results.items()))
    if not results:
        click.echo(NO_POOLS, err=True)
    if not is_ok:
        click.get_current_context().exit(1)


def _check(pools: Pools, name: str, timeout: float | None) -> dict[str, Any]:
    config = pools.config.pools[name]
    defaults = Settings(**config.settings)
    limit = timeout or defaults.open_timeout or OPEN_TIMEOUT
    pool = pools.apart(name, open_timeout=limit, close_timeout=min(limit, defaults.close_timeout))
    began = time.perf_counter()
    error: BaseException | None = None
    try:
        # A little more than opening has, whose own error says more. An opening that does not heed its limit ends here.
        pool.acquire(timeout=limit + 1)
    except (Exception, gevent.Timeout) as caught:
        error = caught
    seconds = time.perf_counter() - began
    pool.close(timeout=0)
    options = pools.options_of(name)
    return {
        "ok": error is None,
        "address": address_of(options),
        "seconds": round(seconds, 6),
        "error": None if error is None else error_as_dict(error, options),
    }


def _row(name: str, result: dict[str, Any]) -> tuple[str, str, str, str]:
    error = result["error"]
    shown = "ok" if error is None else f"{error['type']}: {error['message']}"
    return name, result["address"] or "-", _milliseconds(result["seconds"]), shown


# config


@group.command()
@as_json_option
def config(as_json: bool) -> None:
    """Show the settings in force, and the key that each of them comes from.

    Secrets are shown as ***, and of options that a callable returns nothing is shown.
    """
    _, pools = _current_pools()
    in_force = {
        "app": _app_settings(pools.config),
        "pools": {name: _pool_settings(pool) for name, pool in pools.config.pools.items()},
    }
    if as_json:
        _print_json(in_force)
        return
    rows = [("setting", "value", "from"), *_rows("", in_force["app"])]
    for name, settings in in_force["pools"].items():
        rows += [("", "", ""), (f"pool {name}", "", ""), *_rows("  ", settings)]
    _print_table(*rows)
    if not pools:
        click.echo(NO_POOLS, err=True)


def _rows(indent: str, settings: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, setting in settings.items():
        value = setting["value"]
        if isinstance(value, dict) and value:
            yield f"{indent}{name}", "", setting["from"]
            for option, inner in value.items():
                yield f"{indent}  {option}", _shown(inner), ""
        else:
            yield f"{indent}{name}", _shown(value), setting["from"]


def _shown(value: object) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _app_settings(given: AppConfig) -> dict[str, Any]:
    return {name: _setting(getattr(given, name), given.keys.get(name)) for name in sorted(APP_WIDE) if name != "pools"}


def _pool_settings(given: PoolConfig) -> dict[str, Any]:
    keys = given.keys
    settings = {
        "factory": _setting(given.factory, keys.get("factory") or keys.get("url")),
        "options": _setting(
            f"what {_name_of(given.options)} returns"
            if callable(given.options)
            else {name: masked_value(name, value) for name, value in given.options.items()},
            " and ".join(keys[key] for key in ("url", "options") if key in keys) or None,
        ),
    }
    if given.url is not None:
        settings = {"url": _setting(masked_url(given.url), keys["url"]), **settings}
    for name, value in vars(Settings(**given.settings)).items():
        settings[name] = _setting(value, keys.get(name))
    return settings


def _setting(value: Any, key: str | None) -> dict[str, Any]:
    return {"value": _name_of(value) if callable(value) else value, "from": key or "default"}


def _name_of(value: Any) -> str:
    """As one would write it into the configuration, where it has such a name. Its repr may show anything."""
    kind = type(value)
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}:{name}" if name else f"<{kind.__module__}:{kind.__qualname__}>"


# bench


@group.command()
@click.option("--seconds", type=Seconds(), default=3.0, show_default=True, help="How long, for each.")
@click.option(
    "--greenlets", type=click.IntRange(min=1), default=10, show_default=True, help="How many at the same time."
)
@click.option("--pool", "name", help="Which pool; by default the default one, or the only one.")
@click.option("--exchange", metavar="MODULE:FUNCTION", help="What to call with a connection, over and over.")
@as_json_option
def bench(seconds: float, greenlets: int, name: str | None, exchange: str | None, as_json: bool) -> None:
    """Measure how fast a pool is, and its backend.

    First connections are opened and closed, then acquired and released, each of them kept for one turn of the event
    loop, as the others' work is. With --exchange, a connection is acquired, given to that function, and released; the
    times shown are for all of that. The limits of waiting don't apply; max_connections and max_opening do.

    It puts load on the backend.
    """
    app, pools = _current_pools()
    if not pools:
        raise click.ClickException(NO_POOLS)
    name = _chosen(name, pools)
    function = None if exchange is None else _imported(exchange)
    result: dict[str, Any] = {"pool": name, "address": None, "seconds": seconds, "greenlets": greenlets}
    pool = pools.apart(name, acquire_timeout=None, max_waiting=None)
    try:
        _measure(app, pool, function, result)
    except (Exception, gevent.Timeout) as error:
        result["error"] = error_as_dict(error, pools.options_of(name))
    finally:
        pool.close(timeout=0)
    result["address"] = address_of(pools.options_of(name))
    if as_json:
        _print_json(result)
    else:
        _print_result(result)
    if "error" in result:
        click.get_current_context().exit(1)


def _chosen(name: str | None, pools: Pools) -> str:
    if name is None:
        if DEFAULT not in pools and len(pools) > 1:
            raise click.UsageError(f"Say which pool by --pool: {', '.join(pools)}.")
        return DEFAULT if DEFAULT in pools else next(iter(pools))
    if name not in pools:
        raise click.UsageError(f"There is no pool {name!r} (pools: {', '.join(pools)}).")
    return name


def _imported(exchange: str) -> Callable[[Any], object]:
    try:
        function = import_string(exchange)
    except Exception as error:
        raise click.UsageError(f"--exchange {exchange!r} can't be imported: {error}") from error
    if ":" not in exchange or not callable(function):
        raise click.UsageError(f"--exchange must name a function, as in package.module:function, not {exchange!r}.")
    found: Callable[[Any], object] = function
    return found


def _measure(app: Flask, pool: Pool[Any], function: Callable[[Any], object] | None, result: dict[str, Any]) -> None:
    """Adds to `result` what is measured, as far as one gets."""
    seconds, greenlets = result["seconds"], result["greenlets"]

    def open_one() -> None:
        pool.discard(pool.acquire())

    def acquire_one() -> None:
        with pool.connection():
            gevent.sleep(0)

    rate, _ = _repeat(app, "opening", open_one, seconds, greenlets)
    result["opened_per_second"] = round(rate, 1)
    # What is opened is none of the next.
    _repeat(app, "warming", acquire_one, 0, greenlets)
    rate, _ = _repeat(app, "acquiring", acquire_one, seconds, greenlets)
    result["acquired_per_second"] = round(rate, 1)
    if function is None:
        return

    def exchange_one() -> None:
        with pool.connection() as connection:
            function(connection)

    rate, times = _repeat(app, "exchanging", exchange_one, seconds, greenlets)
    result["exchanges_per_second"] = round(rate, 1)
    result["p50_seconds"] = round(_percentile(times, 50), 6)
    result["p99_seconds"] = round(_percentile(times, 99), 6)


def _repeat(
    app: Flask, label: str, action: Callable[[], None], seconds: float, greenlets: int
) -> tuple[float, Sequence[float]]:
    """Has `greenlets` repeat an action for so many seconds. Returns how often a second, and how long each time took.

    What an action raises is raised.
    """
    times = array("d")
    clock = time.perf_counter
    began = clock()
    end = began + seconds

    def work() -> BaseException | None:
        try:
            with app.app_context():
                now = clock()
                # Once at least, however late it is.
                while True:
                    action()
                    before, now = now, clock()
                    times.append(now - before)
                    if now >= end:
                        return None
        except (Exception, gevent.Timeout) as error:
            # Raised here, it would be printed as well.
            return error

    workers = [gevent.spawn(work) for _ in range(greenlets)]
    try:
        with _progress(label, seconds) as show:
            while (now := clock()) < end and not any(worker.ready() for worker in workers):
                gevent.joinall(workers, timeout=min(TICK, end - now), count=1)
                show(min(clock(), end) - began)
            if not any(worker.value for worker in workers):
                gevent.joinall(workers, timeout=GRACE)
        elapsed = clock() - began
        for worker in workers:
            if worker.value is not None:
                raise worker.value
        late = sum(not worker.ready() for worker in workers)
        if late:
            raise TimeoutError(f"{label}: {late} of {greenlets} were still under way {GRACE:g} s after the end")
    finally:
        gevent.killall(workers, timeout=GRACE)
    return len(times) / elapsed, times


@contextmanager
def _progress(label: str, seconds: float) -> Iterator[Callable[[float], None]]:
    """Shows how many seconds are over, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda elapsed: None
        return
    with click.progressbar(length=round(seconds / TICK), label=label.ljust(10), file=sys.stderr) as bar:
        yield lambda elapsed: bar.update(max(0, round(elapsed / TICK) - bar.pos))


def _percentile(times: Sequence[float], percent: float) -> float:
    """The least of the times that so many percent of them do not exceed."""
    return sorted(times)[max(0, math.ceil(len(times) * percent / 100) - 1)]


def _print_result(result: dict[str, Any]) -> None:
    where = f" to {result['address']}" if result["address"] else ""
    click.echo(f"pool {result['pool']!r}{where}, {result['greenlets']} greenlets, {result['seconds']:g} s each")
    rows = [
        (what, f"{result[key]:,.0f} a second")
        for what, key in (
            ("opened", "opened_per_second"),
            ("acquired and released", "acquired_per_second"),
            ("exchanged", "exchanges_per_second"),
        )
        if key in result
    ]
    if "p50_seconds" in result:
        rows += [("p50", _milliseconds(result["p50_seconds"])), ("p99", _milliseconds(result["p99_seconds"]))]
    if rows:
        _print_table(*rows)
    if "error" in result:
        click.echo(f"{result['error']['type']}: {result['error']['message']}", err=True)
