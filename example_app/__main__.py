"""Run the example app, an echo server and Valkey. With --check, test that they work together, and exit."""

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
#: How long the check may take, in seconds.
CHECK_TIMEOUT = 60


def main() -> int:
    """Run the command line, and return the exit status."""
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
    parser.add_argument("--check", action="store_true", help="test that everything works, on free ports, and exit")
    for option, server in (("--port", "the web page"), ("--echo-port", "the echo server"), ("--valkey-port", "Valkey")):
        default = f"default: {DEFAULTS[option]}, or the next free port"
        parser.add_argument(option, type=_port, help=f"port of {server} ({default})")
    return parser.parse_args()


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; a port is a number from 1 to 65535")
    return int(text)


def _problems_with(ports: dict[str, int]) -> list[str]:
    """Return a message for each of these ports, given by option, that a server can't listen on."""
    problems = []
    for option, port in ports.items():
        reason = why_unavailable(port)
        if reason is not None:
            problems.append(f"port {port} {reason}: free it, or choose another port with {option}")
    if len(set(ports.values())) < len(ports):
        problems.append(f"{', '.join(ports)} must be different ports")
    return problems


def _check_ports(given: dict[str, int]) -> Ports:
    """Return the ports for a check: those given by option, and free ports for the rest."""
    return Ports(*({**dict(zip(DEFAULTS, find_free(len(DEFAULTS)), strict=True)), **given}.values()))


def _demo_ports(given: dict[str, int]) -> Ports:
    """Return the ports for the demo. Replace a default that is taken by the next free port, and print a notice."""
    chosen = dict(given)
    for option, default in DEFAULTS.items():
        if option not in given:
            chosen[option] = first_free(default, chosen.values())
            if chosen[option] != default:
                print(f"Port {default} is taken: using {chosen[option]} instead (choose with {option}).", flush=True)
    return Ports(*(chosen[option] for option in DEFAULTS))


def _run(ports: Ports, stop: Stop) -> int:
    try:
        with Demo(ports, stop.check) as demo:
            demo.start()
            print(f"The echo server listens on 127.0.0.1:{ports.echo}, Valkey on 127.0.0.1:{ports.valkey}.")
            print(f"Open {demo.url} in a browser. Press Ctrl-C to stop everything.", flush=True)
            while True:
                stop.check()
                demo.watch()
                time.sleep(0.1)
    except StoppedError as reason:
        print(f"\n{reason}: {_describe_end(demo)}", flush=True)
        return 1 if demo.unclean else 0


def _describe_end(demo: Demo) -> str:
    if demo.unclean:
        return f"everything is stopped, but these did not stop cleanly: {', '.join(demo.unclean)}"
    return "everything is stopped"


if __name__ == "__main__":
    sys.exit(main())
