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
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgpack

from campaigns.tools import Counts, daemon, end
from wire_client import NOBODY, WireClient, connected_as

INNOCENT = 70_001
MIB = 1024 * 1024

Flood = Callable[[str], None]


def nothing(path: str) -> None:
    """Leaves the processors alone."""
    signal.pause()


def burn(path: str) -> None:
    """Uses a processor, and not the daemon."""
    while True:
        random.random()


def _connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(1)
    sock.connect(path)
    return sock


def connects(path: str) -> None:
    """Connects again and again, keeping as many connections as it gets."""
    kept: list[socket.socket] = []
    while True:
        with suppress(OSError):
            kept.append(_connected(path))
        if len(kept) > 3_000:
            for sock in kept:
                sock.close()
            kept.clear()


def garbage(path: str) -> None:
    """Sends bytes that mean nothing."""
    while True:
        with suppress(OSError), _connected(path) as sock:
            while True:
                sock.sendall(random.randbytes(4096))


def big_messages(path: str) -> None:
    """Sends messages of nearly 64 KiB that ask for nothing."""
    message = msgpack.packb([0, 1, "statistics", [{"x": b"x" * 16_000}] * 4])
    with suppress(OSError), _connected(path) as sock:
        while True:
            sock.sendall(message)
            with suppress(OSError):
                sock.setblocking(False)
                while sock.recv(65_536):
                    pass
            sock.settimeout(1)


def never_reads(path: str) -> None:
    """Asks over many connections, and reads no answer."""
    message = msgpack.packb([0, 1, "list_sessions", []])
    socks = [_connected(path) for _ in range(100)]
    for sock in socks:
        sock.setblocking(False)
    while True:
        for sock in socks:
            with suppress(OSError):
                sock.send(message * 30)


def half_messages(path: str) -> None:
    """Begins messages, and leaves them."""
    while True:
        socks = []
        with suppress(OSError):
            for _ in range(500):
                socks.append(_connected(path))
                socks[-1].send(b"\x94\x00\x01\xda\x40\x00half")
        for sock in socks:
            sock.close()


def small_requests(path: str) -> None:
    """Takes and gives back locks as fast as it can, 64 requests at a time."""
    batch = b"".join(
        msgpack.packb([0, number, method, [{"resource": f"flood-{os.getpid()}"}]])
        for number in range(32)
        for method in ("acquire", "release")
    )
    with _connected(path) as sock:
        sock.setblocking(True)
        unpacker = msgpack.Unpacker()
        while True:
            sock.sendall(batch)
            answers = 0
            while answers < 64:
                unpacker.feed(sock.recv(65_536))
                answers += sum(1 for _ in unpacker)


FLOODS: tuple[Flood, ...] = (
    connects,
    garbage,
    big_messages,
    never_reads,
    half_messages,
    small_requests,
)


def start(flood: Flood, path: Path, seconds: float) -> int:
    """Runs a flood in a process of its own, under another uid."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(seconds) + 30)  # should the campaign end before us
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            flood(str(path))
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
    flood: Flood, flooders: int, seconds: float, counts: Counts, *others: Seen
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
                f"  {flood.__name__:<16}{figures}"
                f"  {ratios[0]}  {ratios[1]}  {grown:+8.1f} MiB",
                flush=True,
            )
            if flood in FLOODS:
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
        "                    median       p99     worst (ms)  p99 against `nothing`,"
        " `burn`; daemon's memory"
    )
    idle = during(nothing, wanted.flooders, wanted.seconds, counts)
    base = during(burn, wanted.flooders, wanted.seconds, counts, idle)
    for flood in FLOODS:
        during(flood, wanted.flooders, wanted.seconds, counts, idle, base)
    print("  root got in through both sockets during each")
    print(
        "  p99 at most doubled against `burn`, memory grew by less than 256 MiB:",
        not counts.failed,
    )
    end(counts)


if __name__ == "__main__":
    main()
