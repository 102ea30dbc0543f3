"""Floods from one user: another user's client hardly notices, memory is bounded.

    python -m campaigns.flood [--seconds 10] [--flooders 2]

Each flood runs in processes of uid 65534. What the innocent client sees meanwhile is
held against what it sees while as many processes burn the same processors without
touching the daemon: the difference is the daemon's.
"""

import argparse
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from campaigns.misbehaving import MISDEEDS, Misdeed, misbehave
from campaigns.tools import Counts, daemon, end
from support.wire_client import NOBODY, WireClient, connected_as

INNOCENT = 70_001
MIB = 1024 * 1024

CONNECTIONS = 1_000
"""That each flood has at most."""

NOTHING = "nothing"
BURN = "burn"


def nothing(path: str, chance: random.Random, connections: int) -> Iterator[None]:
    """Leaves the processors alone."""
    signal.pause()
    yield


def burn(path: str, chance: random.Random, connections: int) -> Iterator[None]:
    """Uses a processor, and not the daemon."""
    while True:
        chance.random()
        yield


FLOODS: dict[str, Misdeed] = {NOTHING: nothing, BURN: burn} | MISDEEDS


def start(name: str, path: Path, seconds: float) -> int:
    """Runs a flood in a process of its own, under another uid, without a pause."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(seconds) + 30)  # should the campaign end before us
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            chance = random.Random()
            misbehave(FLOODS[name], str(path), chance, CONNECTIONS, lambda: True)
        finally:
            os._exit(0)
    return pid


def rss(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Seen:
    """Round trips of the innocent client, and the daemon's memory, for a while."""

    def __init__(self, client: WireClient, pid: int, seconds: float) -> None:
        trips = []
        self.peak = 0
        until = time.monotonic() + seconds
        while (began := time.monotonic()) < until:
            client.acquire("innocent")
            client.call("release", resource="innocent")
            trips.append(time.monotonic() - began)
            if len(trips) % 100 == 1:
                self.peak = max(self.peak, rss(pid))
            time.sleep(0.001)
        trips.sort()
        self.median = trips[len(trips) // 2]
        self.p99 = trips[len(trips) * 99 // 100]
        self.worst = trips[-1]


def during(
    flood: str, flooders: int, seconds: float, counts: Counts, *others: Seen
) -> Seen:
    """Lets a flood run against a new daemon; returns what the innocent client saw."""
    with daemon() as process:
        admin_socket = process.directory / "admin.sock"
        with connected_as(process.socket, INNOCENT, INNOCENT) as client:
            client.call("statistics")
            before = rss(process.pid)
            # Others get in from now on.
            process.socket.chmod(0o666)
            pids = [start(flood, process.socket, seconds) for _ in range(flooders)]
            try:
                seen = Seen(client, process.pid, seconds)
                with WireClient(admin_socket) as admin:
                    admin.call("statistics")
                with WireClient(process.socket) as root:
                    root.call("statistics")
                gone = [pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0]]
                pids = [pid for pid in pids if pid not in gone]
                if gone:
                    print(f"  {len(gone)} floods of these ended by themselves")
                    counts.failed = True
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            figures = "  ".join(
                f"{x * 1000:8.2f}" for x in (seen.median, seen.p99, seen.worst)
            )
            ratios = [f"{seen.p99 / x.p99:6.2f}" for x in others] + ["      "] * 2
            grown = (seen.peak - before) / MIB
            print(
                f"  {flood:<30}{figures}  {ratios[0]}  {ratios[1]}  {grown:+8.1f} MiB",
                flush=True,
            )
            if flood in MISDEEDS:
                counts.failed |= seen.p99 > 2 * others[-1].p99 or grown > 256
            return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--flooders", type=int, default=2)
    wanted = parser.parse_args()
    counts = Counts(f"floods from one user, {wanted.flooders} processes each")
    print(
        "  another user's acquire + release:\n"
        f"{'':34}median       p99     worst (ms)"
        "  p99 against `nothing`, `burn`; daemon's memory"
    )
    idle = during(NOTHING, wanted.flooders, wanted.seconds, counts)
    base = during(BURN, wanted.flooders, wanted.seconds, counts, idle)
    for flood in MISDEEDS:
        during(flood, wanted.flooders, wanted.seconds, counts, idle, base)
    print("  root got in through both sockets during each")
    print(
        "  p99 at most doubled against `burn`, memory grew by less than 256 MiB:",
        not counts.failed,
    )
    end(counts)


if __name__ == "__main__":
    main()
