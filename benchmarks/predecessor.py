"""A Python environment for gsocketpool 0.1.6, which can't be in that of its successor."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What a Python runs first to find the benchmarks, but not the gsocketpool beside them if another one is installed: the
#: root comes last. To be used with -I, so that nothing else comes before.
PATH_SETUP = f"import sys; sys.path.append({str(ROOT)!r})"
#: What is kept from one run to the next. Git passes over it.
CACHE = ROOT / ".benchmarks"
#: Of the same versions as here.
SHARED = ["gevent", "greenlet", "Flask", "Werkzeug", "gunicorn", "packaging"]


def python() -> str:
    """The interpreter of an environment with gsocketpool 0.1.6, made when there is none yet.

    :raises subprocess.CalledProcessError: if pip can't install it, without a network for instance.
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
