from __future__ import annotations

import os

pytest_plugins = ["pytester"]


def pytest_xdist_auto_num_workers() -> int:
    """Two processes a core: much of what the tests do is to wait for servers."""
    return 2 * (os.cpu_count() or 1)
