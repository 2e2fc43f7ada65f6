"""The demo: ``python -m example_app`` runs everything, ``python -m example_app --check`` sees whether it works."""

from __future__ import annotations

import argparse
import sys
import time

from example_app import echo
from example_app.check import check
from example_app.ports import find_free, why_unavailable
from example_app.servers import Demo, Ports, ServerError
from example_app.stopping import Stop, StoppedError

DEFAULTS = {"--port": 8000, "--echo-port": echo.PORT, "--valkey-port": 16379}
#: Seconds that the check may take.
CHECK_TIMEOUT = 60


def main() -> int:
    """Does what the command line says, and returns the status to exit with."""
    stop = Stop()
    stop.listen()
    options = _read_options()
    ports = [options.port, options.echo_port, options.valkey_port]
    problems = _problems_with(dict(zip(DEFAULTS, ports, strict=True)))
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    try:
        if options.check:
            stop.after(CHECK_TIMEOUT)
            return check(Ports(*ports), stop.check)
        return _run(Ports(*ports), stop)
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m example_app", description=__doc__)
    parser.add_argument("--check", action="store_true", help="check that everything works, on free ports, and end")
    parser.add_argument("--port", type=_port, help="where the page is to be found (default: 8000)")
    parser.add_argument("--echo-port", type=_port, help="where the echo server listens (default: 2000)")
    parser.add_argument("--valkey-port", type=_port, help="where Valkey listens (default: 16379)")
    options = parser.parse_args()
    free = find_free(len(DEFAULTS)) if options.check else list(DEFAULTS.values())
    for name, default in zip(("port", "echo_port", "valkey_port"), free, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, default)
    return options


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: those are the numbers from 1 to 65535")
    return int(text)


def _problems_with(ports: dict[str, int]) -> list[str]:
    """Returns what keeps the servers from having these ports, which are given by option."""
    problems = []
    for option, port in ports.items():
        reason = why_unavailable(port)
        if reason is not None:
            problems.append(f"port {port} {reason}: stop what listens there, or choose another one with {option}")
    if len(set(ports.values())) < len(ports):
        problems.append(f"{', '.join(ports)} must be different")
    return problems


def _run(ports: Ports, stop: Stop) -> int:
    try:
        with Demo(ports, stop.check) as demo:
            demo.start()
            print(f"The echo server is at 127.0.0.1:{ports.echo}, Valkey at 127.0.0.1:{ports.valkey}.")
            print(f"Open {demo.url} in a browser. Ctrl-C stops everything.", flush=True)
            while True:
                stop.check()
                demo.watch()
                time.sleep(0.1)
    except StoppedError as reason:
        print(f"\n{reason}: {_describe_end(demo)}", flush=True)
        return 1 if demo.disorderly else 0


def _describe_end(demo: Demo) -> str:
    if demo.disorderly:
        return f"everything is stopped, but not in good order: {', '.join(demo.disorderly)}"
    return "everything is stopped"


if __name__ == "__main__":
    sys.exit(main())
