"""What those cost who watch and do not read: memory, and nobody else's time.

Ten connections watch and never read, while another one takes a lock and releases it for
some seconds, under the service manager of the tests, as the service is kept. What is in
shared memory all the while, and after the watchers have gone, is what counts.

    PYTHONPATH=.:tests python -m campaigns.watchers [SECONDS]
"""

import os
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from campaigns.tools import Counts, end
from service_manager import ServiceManager
from wire_client import WireClient, wait_for_sessions

SECONDS: Final = 8.0
WATCHERS: Final = 10
MOST_MIB: Final = 64.0
LEFT_MIB: Final = 1.0
QUIET: Final = 30.0
LOOK: Final = 0.02
MIB: Final = 1 << 20

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
        end(who_never_read(Path(place), seconds))


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
    manager = ServiceManager(place, CONFIG, checks=False)
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
