"""``python -m example_app --check``: does all that the demo does, and sees whether it went well."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from example_app.client import Client, Pools
from example_app.ports import why_unavailable
from example_app.servers import WORKERS, Demo, Ports, ServerError
from example_app.stopping import StoppedError

#: Seconds until every worker must have answered, and until nothing may be left of the servers.
WORKERS_TIMEOUT, TEARDOWN_TIMEOUT = 15, 5
#: What gunicorn would have printed, had something gone wrong unseen.
SIGNS_OF_TROUBLE = ("Traceback", "[ERROR]", "[CRITICAL]")
#: How many requests of each kind are sent at the same time.
BURST = {"echoes": 160, "values": 100, "pages": 20, "glances": 20}


class Report:
    """Prints what was found, and remembers whether all of it was good."""

    def __init__(self) -> None:
        self.is_good = True

    def tell(self, is_good: bool, finding: str, details: Iterable[str] = ()) -> None:
        """Prints one finding, and if it is not good the first of the `details`."""
        print(f"{'ok    ' if is_good else 'FAILED'}  {finding}", flush=True)
        if not is_good:
            self.is_good = False
            for detail in list(details)[:10]:
                print(f"        {detail}", flush=True)


def check(ports: Ports, checkpoint: Callable[[], None]) -> int:
    """Runs the demo on `ports`, and returns the status to exit with: 0 if everything was right."""
    began = time.monotonic()
    report = Report()
    demo = Demo(ports, checkpoint)
    workers: set[int] = set()
    try:
        with demo:
            demo.start()
            report.tell(True, f"the echo server, Valkey and gunicorn are up, and the page is at {demo.url}")
            workers = _check_answers(demo, report, checkpoint)
            demo.stop()
            _check_end(demo, report)
    except (StoppedError, ServerError) as error:
        report.tell(False, f"{error}")
    _check_teardown(demo, workers, report)
    verdict = "everything was right" if report.is_good else "NOT everything was right"
    print(f"{verdict}, in {time.monotonic() - began:.1f} s", flush=True)
    return 0 if report.is_good else 1


def _check_answers(demo: Demo, report: Report, checkpoint: Callable[[], None]) -> set[int]:
    """Sends requests before and after a restart of the echo server. Returns the workers' process numbers."""
    client = Client(demo.ports.web, checkpoint)

    client.burst("before", **BURST)
    pools = _bring_workers_to(_are_idle, client)
    report.tell(bool(pools), f"{WORKERS} workers answered, and their pools have idle connections: {_idle(pools)}")
    _tell_answers(client, f"requests were sent, up to {sum(BURST.values())} at the same time", report)

    client.requests.clear()
    client.problems.clear()
    demo.restart_echo()
    client.burst("after", **BURST)
    pools = _bring_workers_to(_have_noticed_restart, client)
    report.tell(bool(pools), "the echo server was restarted, and the pools of all workers noticed")
    _tell_answers(client, "requests were sent after that", report)

    visits = sorted(client.visits)
    report.tell(visits == list(range(1, len(visits) + 1)), f"{len(visits)} visits were counted, each once")
    return set(pools)


def _bring_workers_to(condition: Callable[[Pools], bool], client: Client) -> dict[int, Pools]:
    """Sends requests until `condition` is true of the pools of every worker, and returns them; empty if that takes too
    long, since it is chance which worker answers."""
    deadline = time.monotonic() + WORKERS_TIMEOUT
    while time.monotonic() < deadline:
        workers = client.look_at_pools()
        if len(workers) == WORKERS and all(map(condition, workers.values())):
            return workers
        client.burst("more", echoes=40, values=40)
    return {}


def _are_idle(pools: Pools) -> bool:
    return all(pool["idle"] and not pool["in_use"] for pool in pools.values())


def _have_noticed_restart(pools: Pools) -> bool:
    return "unusable" in pools["default"]["discarded"]


def _idle(workers: dict[int, Pools]) -> str:
    return " and ".join("+".join(str(pool["idle"]) for pool in pools.values()) for _, pools in sorted(workers.items()))


def _tell_answers(client: Client, what: str, report: Report) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in client.requests.items())
    wrong = len(client.problems)
    result = f"{wrong} were not answered right" if wrong else "every answer was right"
    report.tell(not wrong, f"{client.requests.total()} {what} ({kinds}); {result}", client.problems)


def _check_end(demo: Demo, report: Report) -> None:
    """Looks at what the servers have printed until their end."""
    printed = demo.web.output()
    trouble = any(sign in printed for sign in SIGNS_OF_TROUBLE)
    report.tell(not trouble, "gunicorn reported no error", printed.splitlines())
    ends = demo.echo_summary()
    is_orderly = 0 < ends["connections"] == ends["orderly"] if ends else False
    counts = ", ".join(f"{count} {name}" for name, count in ends.items()) or "it did not tell"
    report.tell(is_orderly, f"the echo server saw all its connections end in good order ({counts})")


def _check_teardown(demo: Demo, workers: set[int], report: Report) -> None:
    """Looks for what the demo may have left behind."""
    report.tell(not demo.disorderly, "all servers stopped when they were told to, with status 0", demo.disorderly)
    groups = [group for server in demo.servers for group in server.groups]
    deadline = time.monotonic() + TEARDOWN_TIMEOUT
    while (left := _alive(groups, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    report.tell(not left, "no process is left", map(str, left))
    ports = [demo.ports.web, demo.ports.echo, demo.ports.valkey]
    taken = [f"port {port} {reason}" for port in ports if (reason := why_unavailable(port))]
    report.tell(not taken, "the ports are free again", taken)
    report.tell(not demo.directory.exists(), "no file is left", [str(demo.directory)])


def _alive(groups: Iterable[int], processes: Iterable[int]) -> list[int]:
    """Returns those process groups that have a member, and those processes, that there still are."""
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
