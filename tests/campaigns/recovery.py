"""How long a kill stops everybody: from kill -9 to the first new grant.

A thousand connections hold ten thousand locks, half of them files. The daemon is killed
again and again under the service manager of the tests; each time another client asks
for a lock that nobody holds, and the time until it is granted is what counts. In the
end every lock must still be held by who held it.

    PYTHONPATH=.:tests python -m campaigns.recovery [KILLS]
"""

import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.installed import LOCKD, as_installed

from campaigns.tools import Counts
from daemon.stores.kept import is_locked
from support.service_manager import ServiceManager
from support.wire_client import WireClient

KILLS: Final = 200
CONNECTIONS: Final = 1_000
LOCKS_EACH: Final = 10
SPACES: Final = ("default", "files")

CONFIG: Final = """
[limits]
sessions_per_user = 4000
locks_per_user = 1000000
[lockspaces.files]
kind = "directory"
path = "{place}/locks"
"""


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else KILLS
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="lockd-recovery-", dir="/dev/shm") as place:
        failed = measure(Path(place), kills)
    sys.exit(failed)


def measure(place: Path, kills: int) -> bool:
    times, lost = kill_again_and_again(place, kills)
    counts = Counts(
        f"{kills} kills, {CONNECTIONS} connections, {CONNECTIONS * LOCKS_EACH} locks"
    )
    counts.must("locks that were lost", lost, 0)
    slowest = sorted(times)[-(len(times) // 100) - 1]
    counts.must(
        "from the kill to a new grant, half", statistics.median(times), 0.4, "s"
    )
    counts.must("99 of 100", slowest, 0.8, "s")
    counts.show("the fastest", f"{min(times):.3f}", "s")
    return counts.failed


def kill_again_and_again(place: Path, kills: int) -> tuple[list[float], int]:
    """Returns the seconds of each kill, and how many locks were lost."""
    (place / "locks").mkdir(mode=0o755)
    manager = ServiceManager(
        place,
        CONFIG.format(place=place),
        checks=False,
        executed=True,
        program=as_installed(LOCKD, place / "lockd"),
    )
    with ExitStack() as stack:
        stack.callback(manager.close)
        manager.start()
        clients = [
            stack.enter_context(WireClient(manager.socket)) for _ in range(CONNECTIONS)
        ]
        hold(clients)
        times = [time_of_kill(manager, number) for number in range(kills)]
        manager.drain()
        held = still_held(clients, place / "locks")
    return times, CONNECTIONS * LOCKS_EACH - held


def names_of(number: int) -> list[tuple[str, str]]:
    return [
        (SPACES[i % len(SPACES)], f"lock-{number}-{i:02}") for i in range(LOCKS_EACH)
    ]


def hold(clients: list[WireClient]) -> None:
    for number, client in enumerate(clients):
        asked = [
            client.send("acquire", resource=name, lockspace=space)
            for space, name in names_of(number)
        ]
        for msgid in asked:
            client.result(msgid)


def time_of_kill(manager: ServiceManager, number: int) -> float:
    """Kills, starts, and returns the seconds until somebody else gets a lock."""
    with WireClient(manager.socket) as other:
        other.call("statistics")
        begin = time.monotonic()
        os.kill(manager.pid, signal.SIGKILL)
        asked = other.send("acquire", resource=f"new-{number}", lockspace="files")
        manager.kill_and_start()
        other.result(asked)
        return time.monotonic() - begin


def still_held(clients: list[WireClient], locks: Path) -> int:
    """Counts the locks that both the daemon and the kernel say are held."""
    held = Counter[str]()
    for number, client in enumerate(clients):
        asked = {}
        for space, name in names_of(number):
            asked[name] = client.send("query", resource=name, lockspace=space)
        for name, msgid in asked.items():
            if client.result(msgid)["holders"]:
                held[name] += 1
    for number in range(len(clients)):
        for space, name in names_of(number):
            if space == "files" and not is_locked(locks / name):
                held[name] = 0
    return held.total()


if __name__ == "__main__":
    main()
