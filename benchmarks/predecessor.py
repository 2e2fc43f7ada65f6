"""A Python environment for gsocketpool 0.1.6, which can't share one with its successor."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: The first code that a worker's Python runs, with -I. It puts the root last on the path, so that Python finds the
#: benchmarks there, but prefers an installed gsocketpool to the one beside them.
PATH_SETUP = f"import sys; sys.path.append({str(ROOT)!r})"
#: Kept from one run to the next. Git ignores it.
CACHE = ROOT / ".benchmarks"
#: Packages that have the same version as here.
SHARED = ["gevent", "greenlet", "Flask", "Werkzeug", "gunicorn", "packaging"]


def python() -> str:
    """Return the interpreter of an environment with gsocketpool 0.1.6. Create the environment if needed.

    :raises subprocess.CalledProcessError: if pip can't install it, for example without a network.
    """
    wanted = ["gsocketpool==0.1.6", *(f"{package}=={version(package)}" for package in SHARED)]
    place = CACHE / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    interpreter = place / "bin" / "python"
    note = place / "installed.txt"
    if not note.exists() or note.read_text() != "\n".join(wanted):
        venv.create(place, with_pip=True, clear=True)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(
            [str(interpreter), "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted],
            env=environment,
            check=True,
            capture_output=True,
        )
        note.write_text("\n".join(wanted))
    return str(interpreter)
