from __future__ import annotations

import os

import pytest

pytest_plugins = ["pytester"]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes a core, for much of what the tests do is to wait for servers. The torture leaves no core idle."""
    cores = os.cpu_count() or 1
    return cores if config.option.markexpr == "torture" else 2 * cores
