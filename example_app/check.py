"""``python -m example_app --check``: run the demo, send it requests, and report whether everything worked."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from example_app.client import Client, Pools
from example_app.ports import why_unavailable
from example_app.servers import WORKERS, Demo, Ports, ServerError
from example_app.stopping import StoppedError

#: How long the workers may take to answer, and the servers' processes to disappear, in seconds.
WORKERS_TIMEOUT, TEARDOWN_TIMEOUT = 15, 5
#: Gunicorn prints one of these if something goes wrong.
SIGNS_OF_TROUBLE = ("Traceback", "[ERROR]", "[CRITICAL]")
#: How many requests of each kind a burst sends at the same time.
BURST = {"echoes": 160, "values": 100, "pages": 20, "stats": 20}


class Report:
    """Prints findings, and records whether all of them were good."""

    def __init__(self) -> None:
        self.is_good = True

    def tell(self, is_good: bool, finding: str, details: Iterable[str] = ()) -> None:
        """Print one finding. If it is not good, print up to ten of the `details`, too."""
        print(f"{'ok    ' if is_good else 'FAILED'}  {finding}", flush=True)
        if not is_good:
            self.is_good = False
            for detail in list(details)[:10]:
                print(f"        {detail}", flush=True)


def check(ports: Ports, checkpoint: Callable[[], None]) -> int:
    """Run the demo on `ports`, and return the exit status: 0 if everything worked."""
    began = time.monotonic()
    report = Report()
    demo = Demo(ports, checkpoint)
    workers: set[int] = set()
    try:
        with demo:
            demo.start()
            report.tell(True, f"the echo server, Valkey and gunicorn are up; the page is at {demo.url}")
            workers = _check_answers(demo, report, checkpoint)
            demo.stop()
            _check_end(demo, report)
    except (StoppedError, ServerError) as error:
        report.tell(False, f"{error}")
    _check_teardown(demo, workers, report)
    verdict = "everything works" if report.is_good else "NOT everything works"
    print(f"{verdict} (checked in {time.monotonic() - began:.1f} s)", flush=True)
    return 0 if report.is_good else 1


def _check_answers(demo: Demo, report: Report, checkpoint: Callable[[], None]) -> set[int]:
    """Send requests before and after a restart of the echo server. Return the process ids of the workers."""
    client = Client(demo.ports.web, checkpoint)

    client.burst("before", **BURST)
    pools = _send_until(_are_idle, client)
    report.tell(bool(pools), f"{WORKERS} workers answered; idle connections in their pools: {_idle(pools)}")
    _report_answers(client, f"requests, up to {sum(BURST.values())} at the same time", report)

    client.requests.clear()
    client.problems.clear()
    demo.restart_echo()
    client.burst("after", **BURST)
    pools = _send_until(_have_discarded, client)
    report.tell(
        bool(pools), "the echo server was restarted, and the pool of every worker discarded its stale connections"
    )
    _report_answers(client, "requests after the restart", report)

    visits = sorted(client.visits)
    report.tell(visits == list(range(1, len(visits) + 1)), f"each of {len(visits)} visits was counted once")
    return set(pools)


def _send_until(condition: Callable[[Pools], bool], client: Client) -> dict[int, Pools]:
    """Send requests until `condition` is true of the pools of every worker, and return these pools.

    Which worker answers a request is up to chance. Return an empty dict if it takes too long.
    """
    deadline = time.monotonic() + WORKERS_TIMEOUT
    while time.monotonic() < deadline:
        workers = client.pools_by_worker()
        if len(workers) == WORKERS and all(map(condition, workers.values())):
            return workers
        client.burst("more", echoes=40, values=40)
    return {}


def _are_idle(pools: Pools) -> bool:
    return all(pool["idle"] and not pool["in_use"] for pool in pools.values())


def _have_discarded(pools: Pools) -> bool:
    return "unusable" in pools["default"]["discarded"]


def _idle(workers: dict[int, Pools]) -> str:
    return " and ".join("+".join(str(pool["idle"]) for pool in pools.values()) for _, pools in sorted(workers.items()))


def _report_answers(client: Client, what: str, report: Report) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in client.requests.items())
    wrong = len(client.problems)
    result = f"{wrong} wrong answers" if wrong else "every answer was right"
    report.tell(not wrong, f"{client.requests.total()} {what} ({kinds}); {result}", client.problems)


def _check_end(demo: Demo, report: Report) -> None:
    """Check the output of the servers, which have stopped."""
    printed = demo.web.output()
    trouble = any(sign in printed for sign in SIGNS_OF_TROUBLE)
    report.tell(not trouble, "gunicorn reported no error", printed.splitlines())
    ends = demo.echo_summary()
    are_clean = 0 < ends["connections"] == ends["closed"] if ends else False
    counts = ", ".join(f"{count} {name}" for name, count in ends.items()) or "it printed no counts"
    report.tell(are_clean, f"every connection to the echo server was closed cleanly ({counts})")


def _check_teardown(demo: Demo, workers: set[int], report: Report) -> None:
    """Check that the demo left no process, listener or file behind."""
    report.tell(not demo.unclean, "every server stopped on request, with status 0", demo.unclean)
    groups = [group for server in demo.servers for group in server.groups]
    deadline = time.monotonic() + TEARDOWN_TIMEOUT
    while (left := _alive(groups, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    report.tell(not left, "no process is left behind", map(str, left))
    ports = [demo.ports.web, demo.ports.echo, demo.ports.valkey]
    taken = [f"port {port} {reason}" for port in ports if (reason := why_unavailable(port))]
    report.tell(not taken, "the ports are free again", taken)
    report.tell(not demo.directory.exists(), "no file is left behind", [str(demo.directory)])


def _alive(groups: Iterable[int], processes: Iterable[int]) -> list[int]:
    """Return the process groups and the processes that still exist."""
    return [
        *(group for group in groups if _accepts_signals(os.killpg, group)),
        *(process for process in processes if _accepts_signals(os.kill, process)),
    ]


def _accepts_signals(send: Callable[[int, int], None], number: int) -> bool:
    try:
        send(number, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
