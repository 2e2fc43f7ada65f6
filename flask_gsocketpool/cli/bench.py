"""``flask socketpool bench``: measure how fast a pool and its backend are."""

from __future__ import annotations

import math
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
import gevent
from flask import Flask
from flask.cli import with_appcontext

from flask_gsocketpool._redaction import address_of, error_as_dict
from flask_gsocketpool._registry import Pools
from flask_gsocketpool._target import import_name
from flask_gsocketpool.cli.common import (
    NO_POOLS,
    Seconds,
    app_and_pools,
    as_json_option,
    milliseconds,
    print_json,
    print_table,
    printable,
)
from flask_gsocketpool.config import DEFAULT
from gsocketpool import Pool
from gsocketpool.settings import timer_seconds

#: How long a benchmark waits, after its time, for actions that are still running, in seconds.
GRACE = 10.0
#: How often the progress bar moves, in seconds.
TICK = 0.1


@click.command()
@click.option("--seconds", type=Seconds(), default=3.0, show_default=True, help="How long each measurement takes.")
@click.option(
    "--greenlets",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many greenlets work at the same time.",
)
@click.option("--pool", "name", show_default="the default pool, or the only one", help="The pool to measure.")
@click.option("--exchange", metavar="MODULE:FUNCTION", help="A function to call repeatedly with a connection.")
@as_json_option
@with_appcontext
def bench(seconds: float, greenlets: int, name: str | None, exchange: str | None, as_json: bool) -> None:
    """Measure how fast a pool and its backend are.

    First open and close connections. Then acquire and release them, and hold each for one turn of the event loop. With
    --exchange, acquire a connection, call the function with it, and release it; the percentiles shown are the times
    of these three steps together. The limits max_connections and max_opening apply; acquire_timeout and max_waiting
    don't.

    This puts load on the backend.
    """
    app, pools = app_and_pools()
    if not pools:
        raise click.ClickException(NO_POOLS)
    name = _chosen(name, pools)
    function = None if exchange is None else _imported(exchange)
    result: dict[str, Any] = {"pool": name, "address": None, "seconds": seconds, "greenlets": greenlets}
    pool = pools.private_copy(name, acquire_timeout=None, max_waiting=None)
    try:
        _measure(app, pool, function, result)
    except (Exception, gevent.Timeout) as error:
        result["error"] = error_as_dict(error, pools.options_of(name))
    finally:
        pool.close(timeout=0)
    result["address"] = address_of(pools.options_of(name))
    if as_json:
        print_json(result)
    else:
        _print_result(result)
    if "error" in result:
        click.get_current_context().exit(1)


def _chosen(name: str | None, pools: Pools) -> str:
    if name is None:
        if DEFAULT not in pools and len(pools) > 1:
            raise click.UsageError(f"Choose a pool with --pool: {', '.join(pools)}.")
        return DEFAULT if DEFAULT in pools else next(iter(pools))
    if name not in pools:
        raise click.UsageError(f"There is no pool {name!r} (pools: {', '.join(pools)}).")
    return name


def _imported(exchange: str) -> Callable[[Any], object]:
    try:
        function = import_name(exchange)
    except Exception as error:
        raise click.UsageError(f"--exchange {exchange!r} can't be imported: {error}") from error
    if not callable(function):
        raise click.UsageError(f"--exchange must name a function, as in package.module:function, not {exchange!r}.")
    found: Callable[[Any], object] = function
    return found


def _measure(app: Flask, pool: Pool[Any], function: Callable[[Any], object] | None, result: dict[str, Any]) -> None:
    """Measure, and add each figure to `result` immediately, because the next step may fail."""
    seconds, greenlets = result["seconds"], result["greenlets"]

    def open_one() -> None:
        pool.discard(pool.acquire())

    def acquire_one() -> None:
        with pool.connection():
            gevent.sleep(0)

    rate, _ = _repeat(app, "opening", open_one, seconds, greenlets)
    result["opened_per_second"] = round(rate, 1)
    # Open connections now, so that the next step does not measure that.
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
    """Repeat an action in this many greenlets for this many seconds. Pass on an exception of the action.

    :returns: the actions per second, and the time of each action in seconds.
    """
    times = array("d")
    clock = time.perf_counter
    began = clock()
    end = began + seconds

    def work() -> BaseException | None:
        try:
            with app.app_context():
                now = clock()
                # Run at least once, however late it is.
                while True:
                    action()
                    before, now = now, clock()
                    times.append(now - before)
                    if now >= end:
                        return None
        except (Exception, gevent.Timeout) as error:
            # Raised here, the error would be printed, too.
            return error

    workers = [gevent.spawn(work) for _ in range(greenlets)]
    try:
        with _progress(label, seconds) as show:
            while (now := clock()) < end and not any(worker.ready() for worker in workers):
                gevent.joinall(workers, timeout=timer_seconds(min(TICK, end - now)), count=1)
                show(min(clock(), end) - began)
            if all(worker.value is None for worker in workers):
                gevent.joinall(workers, timeout=GRACE)
        elapsed = clock() - began
        for worker in workers:
            if worker.value is not None:
                raise worker.value
        late = sum(not worker.ready() for worker in workers)
        if late:
            raise TimeoutError(f"{label}: {late} of {greenlets} greenlets were still working {GRACE:g} s after the end")
    finally:
        gevent.killall(workers, timeout=GRACE)
    return len(times) / elapsed, times


@contextmanager
def _progress(label: str, seconds: float) -> Iterator[Callable[[float], None]]:
    """Show a progress bar, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda elapsed: None
        return
    with click.progressbar(length=round(seconds / TICK), label=label.ljust(10), file=sys.stderr) as bar:
        yield lambda elapsed: bar.update(max(0, round(elapsed / TICK) - bar.pos))


def _percentile(times: Sequence[float], percent: float) -> float:
    """Return the smallest of the times that at least `percent` percent of them do not exceed."""
    return sorted(times)[max(0, math.ceil(len(times) * percent / 100) - 1)]


def _print_result(result: dict[str, Any]) -> None:
    where = f" to {printable(result['address'])}" if result["address"] else ""
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
        rows += [("p50", milliseconds(result["p50_seconds"])), ("p99", milliseconds(result["p99_seconds"]))]
    if rows:
        print_table(*rows)
    if "error" in result:
        click.echo(printable(f"{result['error']['type']}: {result['error']['message']}"), err=True)
