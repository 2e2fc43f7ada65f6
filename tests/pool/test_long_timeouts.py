"""Seconds beyond what a timer can count are as good as any long time, with each of gevent's event loops."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.scripted import PATIENCE

WAITS = """
import logging
import sys
import warnings

import gevent
from gevent.server import StreamServer

from gsocketpool import Connection, Pool, TcpConnection

# What fails in the background, a sweep for one, must not pass unseen.
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
seconds = eval(sys.argv[1])
names = ("acquire_timeout", "open_timeout", "close_timeout", "reap_interval", "max_lifetime", "idle_timeout")
times = dict.fromkeys((*names, "leak_threshold"), seconds)


class Checked(Connection):
    "Its check may wait, and so has a limit of its own."

    is_open = False

    def open(self):
        self.is_open = True

    def close(self):
        self.is_open = False

    def is_connected(self):
        return self.is_open

    def is_usable(self):
        gevent.sleep(0)
        return self.is_open


def use(pool):
    held = pool.acquire()
    waiting = [gevent.spawn(pool.acquire, **how) for how in ({}, {"timeout": seconds}, {"retry": sys.maxsize})]
    gevent.sleep(0.01)
    assert pool.stats().waiting == 3, pool
    pool.release(held)
    for waiter in waiting:
        pool.release(waiter.get(timeout=5))
    pool.release(pool.acquire())
    pool.wait_ready(timeout=seconds)
    pool.drain()
    pool.close(timeout=seconds)
    assert pool.stats().opened == 1, pool.stats()


use(Pool(Checked, max_connections=1, **times))
server = StreamServer(("127.0.0.1", 0), lambda sock, address: sock.sendall(sock.recv(100)))
server.start()
options = {"host": "127.0.0.1", "port": server.server_port, "timeout": seconds, "lifetime": seconds}
use(Pool(TcpConnection, options, max_connections=1, **times))
connection = TcpConnection(**options)
connection.open()
connection.send(b"hello")
assert connection.recv_exactly(5) == b"hello"
connection.close()
"""


@pytest.mark.parametrize("loop", ["libev-cext", "libuv"])
@pytest.mark.parametrize("seconds", ["sys.maxsize", "1e300", "sys.float_info.max"])
def test_any_number_of_seconds_can_be_waited_for(loop: str, seconds: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WAITS, seconds],
        env={**os.environ, "GEVENT_LOOP": loop},
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
