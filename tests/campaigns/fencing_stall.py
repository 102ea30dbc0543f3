"""How long an unrelated client waits while an owner that ignores SIGTERM is ended.

    python -m campaigns.fencing_stall [--count 5]

In lockd, in its own protocol and in libvirt's, and, where it is installed, in
virtlockd, which ends its owners as well.
"""

import argparse
import multiprocessing
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks import daemons
from benchmarks.wires import VirtlockdWire, names

from campaigns.tools import KILL_GRACE, Counts, daemon, end
from support.wire_client import WireClient

PATIENCE = 15.0


def stubborn(leave: Callable[[], socket.socket]) -> tuple[int, int]:
    """Forks an owner that ignores SIGTERM; returns pidfd, and what makes it leave."""
    ready_in, ready_out = os.pipe()
    go_in, go_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # should the campaign end before us
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        connection = leave()
        os.write(ready_out, b"x")
        os.read(go_in, 1)
        connection.close()
        while True:
            signal.pause()
    assert os.read(ready_in, 1) == b"x"
    os.close(ready_in)
    os.close(ready_out)
    os.close(go_in)
    return os.pidfd_open(pid), go_out


def watch(
    owner: tuple[int, int], round_trip: Callable[[], None]
) -> tuple[float, float]:
    """Lets an owner leave; returns the longest round trip until its death, and when."""
    pidfd, go = owner
    began, longest = time.monotonic(), 0.0
    os.write(go, b"x")
    os.close(go)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll(0) and time.monotonic() - began < PATIENCE:
        before = time.monotonic()
        round_trip()
        longest = max(longest, time.monotonic() - before)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
    return longest, time.monotonic() - began


def in_lockd(count: int) -> Counts:
    counts = Counts(f"lockd: {count} owners that ignore SIGTERM are ended")
    with daemon() as process, WireClient(process.socket) as client:

        def hold() -> socket.socket:
            owner = WireClient(process.socket)
            owner.acquire("x", lockspace="killed", timeout=20)
            return owner.socket

        def round_trip() -> None:
            client.acquire("unrelated")
            client.call("release", resource="unrelated")

        found = [watch(stubborn(hold), round_trip) for _ in range(count)]
    judge(counts, found)
    return counts


def judge(counts: Counts, found: list[tuple[float, float]]) -> None:
    took = max(seconds for _, seconds in found)
    counts.show("longest time until the owner was dead", f"{took:.3f}", "s")
    counts.must("owners that were not ended", sum(s > PATIENCE for _, s in found), 0)
    early = sum(seconds < KILL_GRACE for _, seconds in found)
    counts.must("owners that did not get their time to end", early, 0)
    longest = max(trip for trip, _ in found)
    counts.must("longest pair of another client meanwhile", longest * 1000, 20, "ms")


def through_libvirt(path: Path, locks: Path, count: int) -> list[tuple[float, float]]:
    """The same in virtlockd's protocol, whoever speaks it."""
    own, owned = names(2)
    with closing(VirtlockdWire(path, locks)) as wire:

        def hold() -> socket.socket:
            owner = VirtlockdWire(path, locks)
            owner.send(owner.encode_acquire(owned, 10))
            owner.receive()
            return owner.socket

        def round_trip() -> None:
            for encode in (wire.encode_acquire, wire.encode_release):
                wire.send(encode(own, 10))
                wire.receive()

        return [watch(stubborn(hold), round_trip) for _ in range(count)]


def in_lockd_through_libvirt(count: int) -> Counts:
    title = f"lockd, through libvirt's protocol: {count} owners that ignore SIGTERM"
    counts = Counts(f"{title} are ended")
    with daemon() as process:
        locks = process.directory / "locks"
        judge(counts, through_libvirt(process.virtlockd_socket, locks, count))
    return counts


def in_virtlockd(count: int) -> None:
    # It may take us for an owner, too: it is ended before it can mean it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    counts = Counts(f"virtlockd: {count} owners that ignore SIGTERM are ended")
    with (
        daemons.private_directory(Path("/dev/shm")) as place,
        daemons.virtlockd(place / "virtlockd"),
    ):
        path, locks = place / "virtlockd" / "virtlockd.sock", place / "virtlockd/locks"
        found = through_libvirt(path, locks, count)
        took = max(seconds for _, seconds in found)
        longest = max(trip for trip, _ in found)
        counts.show("longest time until the owner was dead", f"{took:.3f}", "s")
        counts.show("longest pair of another client meanwhile", f"{longest:.3f}", "s")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5)
    wanted = parser.parse_args()
    found = [in_lockd(wanted.count), in_lockd_through_libvirt(wanted.count)]
    if Path(daemons.VIRTLOCKD).exists():
        child = multiprocessing.Process(target=in_virtlockd, args=[wanted.count])
        child.start()
        child.join()
    end(*found)


if __name__ == "__main__":
    main()
