"""``flask socketpool config``: show the settings of the pools, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
from flask.cli import with_appcontext

from flask_gsocketpool._redaction import masked_url, masked_value
from flask_gsocketpool.cli.common import (
    NO_POOLS,
    app_and_pools,
    as_json_option,
    print_json,
    print_table,
    printable,
)
from flask_gsocketpool.config import APP_WIDE, AppConfig, PoolConfig
from gsocketpool.connectors import Connector
from gsocketpool.settings import Settings


@click.command()
@as_json_option
@with_appcontext
def config(as_json: bool) -> None:
    """Show the settings in force, and the key that each comes from.

    Secrets are shown as ***. Options that a callable returns are not shown.
    """
    _, pools = app_and_pools()
    in_force = {
        "app": _app_settings(pools.config),
        "pools": {name: _pool_settings(pool) for name, pool in pools.config.pools.items()},
    }
    if as_json:
        print_json(in_force)
        return
    rows = [("setting", "value", "from"), *_rows("", in_force["app"])]
    for name, settings in in_force["pools"].items():
        rows += [("", "", ""), (f"pool {printable(name)}", "", ""), *_rows("  ", settings)]
    print_table(*rows)
    if not pools:
        click.echo(NO_POOLS, err=True)


def _rows(indent: str, settings: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, setting in settings.items():
        value = setting["value"]
        if isinstance(value, dict) and value:
            yield f"{indent}{name}", "", setting["from"]
            for option, inner in value.items():
                yield f"{indent}  {printable(option)}", _shown(inner), ""
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
            " and ".join(
                [*(keys[key] for key in ("url", "options") if key in keys), *(["default"] * given.has_default_timeout)]
            ),
        ),
    }
    if given.url is not None:
        settings = {"url": _setting(masked_url(given.url), keys["url"]), **settings}
    for name, value in vars(Settings(**given.settings)).items():
        settings[name] = _setting(value, keys.get(name))
    return settings


def _setting(value: Any, key: str | None) -> dict[str, Any]:
    is_named = callable(value) or isinstance(value, Connector)
    return {"value": _name_of(value) if is_named else value, "from": key or "default"}


def _name_of(value: Any) -> str:
    """Return the import name, or else the type, of a callable or a connector. Its repr might show a secret."""
    kind = type(value)
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}:{name}" if name else f"<{kind.__module__}:{kind.__qualname__}>"
