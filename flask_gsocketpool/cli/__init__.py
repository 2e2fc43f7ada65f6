"""What operators ask at a shell: ``flask socketpool check``, ``config`` and ``bench``.

The pools that are used here are made for the occasion. Those of the app are not touched.
"""

from __future__ import annotations

from flask.cli import AppGroup

from flask_gsocketpool.cli import bench, check, config

group = AppGroup("socketpool", help="Look at the socket pools of the app.")
for command in (bench.bench, check.check, config.config):
    group.add_command(command)
