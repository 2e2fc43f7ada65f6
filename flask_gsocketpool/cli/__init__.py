"""Commands for operators: ``flask socketpool check``, ``config`` and ``bench``.

The commands make pools of their own, and don't touch the app's pools.
"""

from __future__ import annotations

from flask.cli import AppGroup

from flask_gsocketpool.cli import bench, check, config

group: AppGroup = AppGroup("socketpool", help="Check, show and measure the app's connection pools.")
for _command in (bench.bench, check.check, config.config):
    group.add_command(_command)
