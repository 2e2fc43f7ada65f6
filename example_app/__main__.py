"""The demo: ``python -m example_app`` runs everything, ``python -m example_app --check`` sees whether it works."""

from __future__ import annotations

import argparse
import sys
import time

from example_app import echo
from example_app.check import check
from example_app.ports import find_free, first_free, why_unavailable
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
    given = {
        option: port
        for option, port in zip(DEFAULTS, (options.port, options.echo_port, options.valkey_port), strict=True)
        if port is not None
    }
    problems = _problems_with(given)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    ports = _check_ports(given) if options.check else _demo_ports(given)
    try:
        if options.check:
            stop.after(CHECK_TIMEOUT)
            return check(ports, stop.check)
        return _run(ports, stop)
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m example_app", description=__doc__)
    parser.add_argument("--check", action="store_true", help="check that everything works, on free ports, and end")
    parser.add_argument(
        "--port", type=_port, help="where the page is to be found (default: 8000, or the next free port)"
    )
    parser.add_argument(
        "--echo-port", type=_port, help="where the echo server listens (default: 2000, or the next free port)"
    )
    parser.add_argument(
        "--valkey-port", type=_port, help="where Valkey listens (default: 16379, or the next free port)"
    )
    return parser.parse_args()


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


def _check_ports(given: dict[str, int]) -> Ports:
    """Returns the ports for a check: free ones where no option gives one."""
    return Ports(*({**dict(zip(DEFAULTS, find_free(len(DEFAULTS)), strict=True)), **given}.values()))


def _demo_ports(given: dict[str, int]) -> Ports:
    """Returns the ports for the demo. Where a default is taken, the next free port replaces it, and a line says so."""
    chosen = dict(given)
    for option, default in DEFAULTS.items():
        if option not in given:
            chosen[option] = first_free(default, chosen.values())
            if chosen[option] != default:
                print(f"Port {default} is taken: using {chosen[option]} instead ({option} sets another).", flush=True)
    return Ports(*(chosen[option] for option in DEFAULTS))


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
