"""Live upgrades under load: nothing is lost, doubled or reordered, nobody waits long.

    python -m campaigns.upgrade [--count 200] [--held 1000] [--clients 50]

Beside it, in the same run, virtlockd's own re-exec with 18,000 locks.
"""

import argparse
import multiprocessing
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgpack
from benchmarks import daemons
from benchmarks.wires import VirtlockdWire, names

from campaigns.tools import Counts, daemon, end
from support.daemon_process import DaemonProcess
from support.wire_client import WireClient

WORKERS = 5
CONTENDED = 8

SOON = 10.0
"""Seconds to wait until lock files are removed. Protocol 6.5 says about three."""


class LoadClient(threading.Thread):
    """A client that keeps asking, and counts what it is answered."""

    def __init__(self, path: str, number: int, stop: threading.Event) -> None:
        super().__init__()
        self.client = WireClient(path)
        self.client.socket.settimeout(60)
        self.number = number
        self.stop = stop
        self.random = random.Random(number)
        self.asked: set[int] = set()
        self.answers: Counter[int] = Counter()
        self.intervals: list[tuple[str, float, float, int]] = []
        self.worst = 0.0
        self.errors: list[str] = []

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.random.choice(
                    [self.own, self.own, self.contended, self.several, self.pipelined]
                )()
                time.sleep(0.02)
        except Exception as error:
            self.errors.append(repr(error))

    def send(self, method: str, **params: Any) -> int:
        """Sends a request, now and then in two pieces with a pause between."""
        self.client.last_msgid += 1
        msgid = self.client.last_msgid
        self.asked.add(msgid)
        data = msgpack.packb([0, msgid, method, [params]])
        cut = self.random.randrange(len(data)) if self.random.random() < 0.3 else 0
        self.client.send_bytes(data[:cut])
        if cut:
            time.sleep(self.random.random() * 0.05)
        self.client.send_bytes(data[cut:])
        return msgid

    def wait(self, msgid: int) -> tuple[Any, Any]:
        error, result = self.client.answer(msgid)
        self.answers[msgid] += 1
        return error, result

    def must(self, method: str, **params: Any) -> Any:
        error, result = self.wait(self.send(method, **params))
        if error is not None:
            raise AssertionError(error)
        return result

    def own(self) -> None:
        name = f"own-{self.number}"
        space = self.random.choice(["default", "files"])
        began = time.monotonic()
        msgid = self.client.send("acquire", resource=name, lockspace=space)
        self.asked.add(msgid)
        error, _ = self.wait(msgid)
        if error is not None:
            raise AssertionError(error)
        self.worst = max(self.worst, time.monotonic() - began)
        if self.random.random() < 0.3:
            self.must("convert", resource=name, lockspace=space, mode="shared")
        self.must("release", resource=name, lockspace=space)

    def contended(self) -> None:
        name = f"contended-{self.random.randrange(CONTENDED)}"
        timeout = self.random.choice([0, 0.05, 5])
        msgid = self.send("acquire", resource=name, timeout=timeout)
        error, result = self.wait(msgid)
        if error is not None:
            if not error[1].startswith(("busy", "timeout")):
                raise AssertionError(error)
            return
        began, token = time.monotonic(), result["grant"]["fencing_token"]
        time.sleep(self.random.random() * 0.01)
        ended = time.monotonic()
        self.must("release", fencing_token=token)
        self.intervals.append((name, began, ended, token))

    def several(self) -> None:
        wanted = [f"several-{self.random.randrange(4)}", f"own-{self.number}-b"]
        error, _ = self.wait(self.send("acquire", resources=wanted, timeout=5))
        if error is None:
            self.must("release", resources=wanted)
        elif not error[1].startswith("timeout"):
            raise AssertionError(error)

    def pipelined(self) -> None:
        sent = [
            self.send(method, resource=f"own-{self.number}-{index}")
            for index in range(5)
            for method in ("acquire", "release")
        ]
        for msgid in sent:
            error, _ = self.wait(msgid)
            if error is not None:
                raise AssertionError(error)


def load(path: str, first: int, count: int, control: Connection) -> None:
    """A process with some clients; tells in the end what they saw."""
    stop = threading.Event()
    clients = [LoadClient(path, first + index, stop) for index in range(count)]
    for client in clients:
        client.start()
    control.send("started")
    while not control.poll(0.5):
        pass
    stop.set()
    for client in clients:
        client.join(90)
    # Whatever is said that was not asked for: nothing may come after the last answer.
    for client in clients:
        client.client.socket.shutdown(socket.SHUT_WR)
    surplus = [message for client in clients for message in client.client.rest()]
    control.send(
        {
            "asked": sum(len(client.asked) for client in clients),
            "lost": sum(len(c.asked - c.answers.keys()) for c in clients),
            "doubled": len(surplus)
            + sum(count > 1 for c in clients for count in c.answers.values()),
            "errors": [error for client in clients for error in client.errors],
            "worst": max(client.worst for client in clients),
            "intervals": [x for client in clients for x in client.intervals],
        }
    )


class Queues:
    """Waiters in a known order: whoever gets a lock goes to the end of its line."""

    def __init__(self, path: Path, waiters: int) -> None:
        self.lines: list[list[tuple[WireClient, int]]] = []
        self.turn = 0
        self.order_changes = 0
        for line in range(max(1, waiters // 5)):
            clients = [WireClient(path) for _ in range(6)]
            clients[0].acquire(f"line-{line}")
            places = [(clients[0], 0)]
            for client in clients[1:]:
                places.append((client, client.send("acquire", resource=f"line-{line}")))
                while True:
                    found = clients[0].call("query", resource=f"line-{line}")
                    if found["waiter_count"] == len(places) - 1:
                        break
            self.lines.append(places)

    def advance(self) -> None:
        """Lets one line move up by one, and sees that the right one did."""
        index = self.turn % len(self.lines)
        self.turn += 1
        line = self.lines[index]
        holder, _ = line.pop(0)
        name = f"line-{index}"
        holder.call("release", resource=name)
        first, msgid = line[0]
        first.result(msgid)
        found = first.call("query", resource=name)
        waiting = [waiter["session"] for waiter in found["waiters"]]
        if len(waiting) != len(line) - 1 or waiting != sorted(
            waiting, key=[*self.sessions(line)].index
        ):
            self.order_changes += 1
        line.append((holder, holder.send("acquire", resource=name)))

    def sessions(self, line: list[tuple[WireClient, int]]) -> list[int]:
        return [_session(client) for client, _ in line]


_SESSIONS: dict[WireClient, int] = {}


def _session(client: WireClient) -> int:
    if client not in _SESSIONS:
        said = client.call("hello", protocol=1, client="line")
        _SESSIONS[client] = said["session"]
    return _SESSIONS[client]


def hold(path: Path, count: int) -> list[tuple[WireClient, str, str, int]]:
    clients = [WireClient(path) for _ in range(4)]
    held = []
    for index in range(count):
        client, space = clients[index % 4], ("default", "files")[index % 2]
        name = f"held-{index}"
        token = client.acquire(name, lockspace=space)["fencing_token"]
        held.append((client, space, name, token))
    return held


def upgrade_once(process: DaemonProcess, probe: WireClient, count: int) -> float:
    """Upgrades; returns the longest round trip that the probe saw meanwhile."""
    os.kill(process.pid, signal.SIGUSR1)
    worst = 0.0
    while True:
        began = time.monotonic()
        found = probe.call("statistics")
        worst = max(worst, time.monotonic() - began)
        if found["upgrades"] == count:
            return worst


def campaign(count: int, held_count: int, clients: int, waiters: int) -> Counts:
    with daemon() as process:
        counts = Counts(
            f"{count} live upgrades, {clients} clients, {held_count:,} locks held, "
            f"{waiters} waiters"
        )
        held = hold(process.socket, held_count)
        queues = Queues(process.socket, waiters)
        probe = WireClient(process.socket)
        pipes, workers = [], []
        for number in range(WORKERS if clients else 0):
            ours, theirs = multiprocessing.Pipe()
            each = clients // WORKERS
            arguments = (str(process.socket), number * each, each, theirs)
            worker = multiprocessing.Process(target=load, args=arguments)
            worker.start()
            assert ours.recv() == "started"
            pipes.append(ours)
            workers.append(worker)
        pauses = []
        for number in range(1, count + 1):
            pauses.append(upgrade_once(process, probe, number))
            queues.advance()
            time.sleep(0.05)
        for pipe in pipes:
            pipe.send("stop")
        reports = [pipe.recv() for pipe in pipes]
        for worker in workers:
            worker.join()
        lost = 0
        for client, space, name, token in held:
            check = {"lockspace": space, "resource": name, "fencing_token": token}
            lost += not probe.call("check", **check)["current"]
            lost += client.call("release", fencing_token=token) is not None
        files = left_over(process.directory / "locks")
        intervals = [x for report in reports for x in report["intervals"]]
        counts.show("requests of the clients", sum(r["asked"] for r in reports))
        counts.show("grants of contended locks", len(intervals))
        counts.must("held locks that were lost", lost, 0)
        counts.must("answers that were lost", sum(r["lost"] for r in reports), 0)
        counts.must("answers that came twice", sum(r["doubled"] for r in reports), 0)
        counts.must("unexpected errors", sum(len(r["errors"]) for r in reports), 0)
        for error in [e for r in reports for e in r["errors"]][:5]:
            print("   ", error)
        counts.must("changes of a queue's order", queues.order_changes, 0)
        counts.must("two holders at once", overlaps(intervals), 0)
        counts.must("tokens that did not rise", falling(intervals), 0)
        counts.must("lock files that were left over", files, 0)
        worst = max([*pauses, *(r["worst"] for r in reports)])
        median = sorted(pauses)[len(pauses) // 2]
        counts.show("median pause seen by a client", f"{median:.3f}", "s")
        counts.must("longest pause seen by a client", worst, 0.5, "s")
    return counts


def left_over(locks: Path) -> int:
    """Returns how many lock files there are when a next holder would find none."""
    until = time.monotonic() + SOON
    while (count := len(os.listdir(locks))) and time.monotonic() < until:
        time.sleep(0.1)
    return count


def by_name(
    intervals: list[tuple[str, float, float, int]],
) -> dict[str, list[tuple[float, float, int]]]:
    found: dict[str, list[tuple[float, float, int]]] = {}
    for name, began, ended, token in sorted(intervals, key=lambda x: x[1]):
        found.setdefault(name, []).append((began, ended, token))
    return found


def overlaps(intervals: list[tuple[str, float, float, int]]) -> int:
    return sum(
        second[0] < first[1]
        for line in by_name(intervals).values()
        for first, second in pairwise(line)
    )


def falling(intervals: list[tuple[str, float, float, int]]) -> int:
    return sum(
        second[2] <= first[2]
        for line in by_name(intervals).values()
        for first, second in pairwise(line)
    )


def virtlockd(count: int) -> None:
    """How long a client of virtlockd waits while it executes itself anew."""
    # It kills whom it takes for dead: it is ended before it can mean it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    counts = Counts(f"virtlockd, its own re-exec, {count:,} locks held")
    with (
        daemons.private_directory(Path("/dev/shm")) as place,
        daemons.virtlockd(place / "virtlockd") as theirs,
    ):
        wire = theirs.wire
        for serial, name in enumerate(names(count), 10):
            wire.send(wire.encode_acquire(name, serial))
            wire.receive()
        other = VirtlockdWire(theirs.socket, theirs.locks)
        (own,) = names(1, "other")
        worst, serial = 0.0, 100
        os.kill(theirs.pid, signal.SIGUSR1)
        # Sooner than it sends SIGKILL.
        end_at = time.monotonic() + 1.2
        while time.monotonic() < end_at:
            for encode in (other.encode_acquire, other.encode_release):
                serial += 1
                began = time.monotonic()
                other.send(encode(own, serial))
                other.receive()
                worst = max(worst, time.monotonic() - began)
        counts.show("longest pause seen by a client", f"{worst:.3f}", "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--held", type=int, default=1_000)
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--waiters", type=int, default=50)
    parser.add_argument("--virtlockd", type=int, default=18_000)
    wanted = parser.parse_args()
    counts = campaign(wanted.count, wanted.held, wanted.clients, wanted.waiters)
    if wanted.many:
        many = campaign(
            max(1, wanted.count // 10), wanted.many, wanted.clients, wanted.waiters
        )
        counts.failed |= many.failed
    if wanted.virtlockd and Path(daemons.VIRTLOCKD).exists():
        child = multiprocessing.Process(target=virtlockd, args=[wanted.virtlockd])
        child.start()
        child.join()
    end(counts)


if __name__ == "__main__":
    main()
