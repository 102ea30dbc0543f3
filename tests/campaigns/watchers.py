"""What those cost who watch and do not read: memory, and nobody else's time.

Ten connections watch and never read, while another one takes a lock and releases it for
some seconds, under the service manager of the tests, as the service is kept. What is in
shared memory all the while, and after the watchers have gone, is what counts.

Then another user's 150 watchers, which do not read either, shut down their sending side
while events come, and go, and come again. The daemon lives, and who causes the events
hardly notices. This takes root.

    PYTHONPATH=.:tests python -m campaigns.watchers [SECONDS]
"""

import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import Process
from pathlib import Path
from statistics import quantiles
from typing import Final

from campaigns.tools import Counts, end
from support.service_manager import ServiceManager
from support.wire_client import NOBODY, WireClient, wait_for_sessions

SECONDS: Final = 8.0
WATCHERS: Final = 10
MOST_MIB: Final = 64.0
LEFT_MIB: Final = 1.0
QUIET: Final = 30.0
LOOK: Final = 0.02
MIB: Final = 1 << 20

CROWD: Final = 150
ROUNDS: Final = 20
PAUSE: Final = 0.1
ALONE: Final = 2_000
MOST_MS: Final = 20.0

CONFIG: Final = """
[limits]
sessions_per_user = 4000
"""


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    # As installed: modules are compiled once, whatever this environment says.
    with tempfile.TemporaryDirectory(prefix="lockd-watchers-") as place:
        os.environ["PYTHONPYCACHEPREFIX"] = f"{place}/pycache"
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        places = [Path(place) / name for name in ("memory", "time")]
        for made in places:
            made.mkdir()
        found = [who_never_read(places[0], seconds), who_half_close(places[1])]
        end(*found)


class Gauge:
    """How much memory the stores of a service take, looked at again and again."""

    def __init__(self, manager: ServiceManager) -> None:
        self._fds = [
            fd
            for name, fd in manager.stored.items()
            if "ledger" in name or "cells" in name
        ]
        self.most = self.now()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Gauge":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def now(self) -> float:
        """Returns the MiB that are taken now."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in self._fds) / MIB

    def _look(self) -> None:
        while not self._is_over.wait(LOOK):
            self.most = max(self.most, self.now())


def who_never_read(place: Path, seconds: float) -> Counts:
    """Watchers that never read, beside somebody who works."""
    counts = Counts(f"{WATCHERS} watchers that never read, {seconds:g} s of work")
    manager = ServiceManager(place, CONFIG, checks=False, executed=True)
    with ExitStack() as stack:
        stack.callback(manager.close)
        manager.start()
        manager.drain()
        pid = manager.pid
        client = stack.enter_context(WireClient(manager.socket))
        client.call("statistics")
        gauge = stack.enter_context(Gauge(manager))
        before = gauge.now()
        with ExitStack() as crowd:
            for _ in range(WATCHERS):
                watcher = crowd.enter_context(WireClient(manager.socket))
                watcher.call("watch")
            done = work(client, seconds)
        wait_for_sessions(client, 1)
        left = quieten(client, gauge, before + LEFT_MIB)
        counts.show("locks taken and released", done)
        counts.must("shared memory, at most", gauge.most, MOST_MIB, "MiB")
        counts.must("more of it afterwards", left - before, LEFT_MIB, "MiB")
        manager.drain()
        counts.must("restarts", int(manager.pid != pid or not is_alive(pid)), 0)
    return counts


def who_half_close(place: Path) -> Counts:
    """Watchers of another user, who say no more while events come; and who go."""
    counts = Counts(
        f"{CROWD} watchers of another user that half-close, {ROUNDS} rounds"
    )
    for path in (place.parent, place):
        path.chmod(0o755)
    manager = ServiceManager(place, CONFIG, checks=False, executed=True)
    try:
        manager.socket.chmod(0o666)
        manager.start()
        manager.drain()
        pid = manager.pid
        with WireClient(manager.socket) as client:
            alone: list[float] = []
            latencies(client, lambda: len(alone) >= ALONE, alone)
            crowd = Process(target=half_close, args=(str(manager.socket),))
            crowd.start()
            beside = latencies(client, lambda: not crowd.is_alive(), [])
            crowd.join()
            counts.show("rounds of locks without them, p99", f"{p99(alone):.1f}", "ms")
            counts.show("rounds of locks beside them", len(beside))
            counts.must("p99 of them", p99(beside), MOST_MS, "ms")
            counts.must("watchers that failed", crowd.exitcode or 0, 0)
            wait_for_sessions(client, 1)
        manager.drain()
        counts.must("restarts", int(manager.pid != pid or not is_alive(pid)), 0)
        defects = manager.log().count("defect")
        counts.must("defects in the log", defects, 0)
    finally:
        manager.close()
    return counts


def half_close(path: str) -> None:
    """Comes with a crowd of watchers, half-closes, and goes; again and again."""
    os.setresuid(NOBODY, NOBODY, NOBODY)
    for _ in range(ROUNDS):
        with ExitStack() as stack:
            crowd = [stack.enter_context(WireClient(path)) for _ in range(CROWD)]
            asked = [watcher.send("watch") for watcher in crowd]
            for watcher, msgid in zip(crowd, asked, strict=True):
                watcher.result(msgid)
            time.sleep(PAUSE)
            for watcher in crowd:
                watcher.socket.shutdown(socket.SHUT_WR)
            time.sleep(PAUSE)


def latencies(
    client: WireClient, is_over: Callable[[], bool], times: list[float]
) -> list[float]:
    """Takes a lock and releases it until it is over; adds how long each took, in ms."""
    while not is_over():
        began = time.perf_counter()
        client.acquire("a")
        client.call("release", resource="a")
        times.append((time.perf_counter() - began) * 1_000)
    return times


def p99(times: list[float]) -> float:
    """Returns what one in a hundred takes longer than."""
    return quantiles(times, n=100)[-1]


def work(client: WireClient, seconds: float) -> int:
    """Takes a lock and releases it, again and again; returns how often."""
    until = time.monotonic() + seconds
    done = 0
    while time.monotonic() < until:
        client.acquire("a")
        client.call("release", resource="a")
        done += 1
    return done


def quieten(client: WireClient, gauge: Gauge, most: float) -> float:
    """Waits until the memory is given back, with hardly a request; returns the rest."""
    until = time.monotonic() + QUIET
    while gauge.now() > most and time.monotonic() < until:
        client.call("statistics")
        time.sleep(0.5)
    return gauge.now()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
