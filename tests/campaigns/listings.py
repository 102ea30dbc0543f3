"""Listings: equal to the kernel's view under load, quick, and no burden to others.

    PYTHONPATH=.:tests python -m campaigns.listings [comparisons]

Workers take, convert, release and lose locks on files; meanwhile what `list` says is
held is compared with /proc/locks, again and again. Whatever nobody did anything to
between the beginning of the listing and the end of the look at the kernel must be the
same in both.
"""

import mmap
import os
import random
import signal
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from campaigns.tools import Counts, daemon, end
from lockd.ctl.look.outside import LOOKS, all_locks, inode_of
from support.daemon_process import DaemonProcess
from support.wire_client import Refusal, WireClient

WORKERS: Final = 6
NAMES: Final = 300
PAUSE: Final = 0.004
SPACE: Final = "files"

LOCKS: Final = 10_000
HOLDERS: Final = 20
ROUNDS: Final = 7

_MOMENT: Final = struct.Struct("dd")


class Board:
    """When each worker did something to each name last: shared by all processes.

    The clock is the same for all (CLOCK_MONOTONIC). A begin after its end: it goes on.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, WORKERS * NAMES * _MOMENT.size)

    @contextmanager
    def operation(self, worker: int, names: list[int]) -> Iterator[None]:
        """Notes that a worker does something to names while the body runs."""
        for name in names:
            _MOMENT.pack_into(self._memory, _place(worker, name), time.monotonic(), 0.0)
        yield
        for name in names:
            place = _place(worker, name)
            began, _ = _MOMENT.unpack_from(self._memory, place)
            _MOMENT.pack_into(self._memory, place, began, time.monotonic())

    def is_touched(self, name: int, since: float) -> bool:
        """Tells whether anybody did anything to a name since a moment, until now."""
        for worker in range(WORKERS):
            began, ended = _MOMENT.unpack_from(self._memory, _place(worker, name))
            if ended >= since or (began and ended < began):
                return True
        return False


def _place(worker: int, name: int) -> int:
    return (worker * NAMES + name) * _MOMENT.size


class Worker:
    """A process that has its share of the locks, and changes it all the time."""

    def __init__(self, board: Board, number: int, socket: Path, seed: int) -> None:
        self._board = board
        self._number = number
        self._socket = socket
        self._chance = random.Random(f"{seed} {number}")
        self._held: dict[int, str] = {}
        self._client = WireClient(socket)

    def run(self) -> None:
        """Works until it is killed."""
        while True:
            self._step()
            time.sleep(self._chance.uniform(0, 2 * PAUSE))

    def _step(self) -> None:
        name, die = self._chance.randrange(NAMES), self._chance.random()
        if die < 0.01:
            self._lose_everything()
        elif name in self._held and die < 0.5:
            self._do("release", name)
            del self._held[name]
        elif name in self._held:
            wanted = "shared" if self._held[name] == "exclusive" else "exclusive"
            if self._do("convert", name, mode=wanted, timeout=0):
                self._held[name] = wanted
        elif len(self._held) < NAMES // WORKERS:
            mode = self._chance.choice(["exclusive", "shared"])
            timeout = 0 if die < 0.9 else 0.02
            if self._do("acquire", name, mode=mode, timeout=timeout):
                self._held[name] = mode

    def _do(self, method: str, name: int, **params: object) -> bool:
        with self._board.operation(self._number, [name]):
            try:
                self._client.call(
                    method, lockspace=SPACE, resource=_named(name), **params
                )
            except Refusal:
                return False
        return True

    def _lose_everything(self) -> None:
        with self._board.operation(self._number, list(self._held)):
            self._client.close()
            self._client = WireClient(self._socket)
            # Its end was seen before anything that comes now.
            for name in self._held:
                while self._is_listed(name):
                    pass
        self._held.clear()

    def _is_listed(self, name: int) -> bool:
        state = self._client.call("query", lockspace=SPACE, resource=_named(name))
        # Of several readers some may hold it still.
        return any(x["pid"] == os.getpid() for x in state["holders"])


def _named(name: int) -> str:
    return f"lock-{name:03}"


@contextmanager
def workers(board: Board, socket: Path, seed: int) -> Iterator[None]:
    """Has the workers work while the body runs."""
    pids = []
    try:
        for number in range(WORKERS):
            pid = os.fork()
            if pid == 0:
                with suppress(BaseException):
                    Worker(board, number, socket, seed).run()
                os._exit(1)
            pids.append(pid)
        yield
        assert all(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in pids)
    finally:
        for pid in pids:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


class Comparison(NamedTuple):
    """What came of one comparison.

    Attributes:
        same: how many names were the same in both, and held.
        busy: how many were being changed meanwhile.
        different: the others, with what is said of them here and there.
    """

    same: int
    busy: int
    different: list[tuple[str, str | None, str | None]]


def compare(client: WireClient, directory: Path, board: Board) -> Comparison:
    """Compares what lockd lists with what the kernel says."""
    since = time.monotonic()
    listed = listed_modes(client)
    in_kernel = kernel_modes(directory)
    same = busy = 0
    different = []
    for number in range(NAMES):
        name = _named(number)
        here, there = listed.get(name), in_kernel.get(name)
        if board.is_touched(number, since):
            busy += 1
        elif here != there:
            different.append((name, here, there))
        else:
            same += here is not None
    return Comparison(same, busy, different)


def listed_modes(client: WireClient) -> dict[str, str]:
    """Returns in which mode each name is held, as `list` has it, page by page."""
    found: dict[str, str] = {}
    after = None
    while True:
        page = client.call("list", lockspace=SPACE, after=after)
        for resource in page["resources"]:
            if resource["holders"]:
                found[resource["resource"]] = resource["holders"][0]["mode"]
        after = page["next"]
        if after is None:
            return found


def kernel_modes(directory: Path) -> dict[str, str]:
    """Returns in which mode each file of a directory is locked for the kernel."""
    place = inode_of(str(directory))
    assert place is not None
    names = _names(directory)
    # While locks come and go, one look leaves some out (`outside.LOOKS`). Who finds a
    # lock that ended before the last look has found one that was just being changed.
    modes = {
        lock.inode.number: lock.mode
        for _ in range(LOOKS)
        for lock in all_locks()
        if lock.kind == "OFD" and lock.inode.device == place.device
    }
    # The file of a free lock may go, and its inode become another file's.
    names &= _names(directory)
    return {name: modes[inode] for inode, name in names if inode in modes}


def _names(directory: Path) -> set[tuple[int, str]]:
    """Returns the inode and the name of each file."""
    with os.scandir(directory) as entries:
        return {(entry.inode(), entry.name) for entry in entries}


def comparisons(socket: Path, directory: Path, count: int) -> Iterator[Comparison]:
    """Compares at random moments while workers work."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}", flush=True)
    chance, board = random.Random(seed), Board()
    with workers(board, socket, seed), WireClient(socket) as client:
        while len(listed_modes(client)) < NAMES // 4:
            pass
        for _ in range(count):
            time.sleep(chance.uniform(0, 2 * PAUSE))
            yield compare(client, directory, board)


def compare_all(process: DaemonProcess, count: int) -> Counts:
    """The comparisons of the campaign."""
    counts = Counts(f"{count} comparisons of `list` with /proc/locks")
    began = time.monotonic()
    found = list(comparisons(process.socket, process.directory / "locks", count))
    for name, here, there in (x for each in found for x in each.different):
        print(f"  {name}: {here} in lockd, {there} in the kernel")
    counts.show("locks that were the same, a comparison", mean(x.same for x in found))
    counts.show("changed just then, and left out", mean(x.busy for x in found))
    counts.show("seconds", round(time.monotonic() - began))
    counts.must("different", sum(len(x.different) for x in found), 0)
    return counts


def mean(values: Iterator[int]) -> float:
    return round(statistics.mean(values), 1)


# How long it takes, and what it costs others.

_HOLDER: Final = f"""
import sys
from support.wire_client import WireClient
client, number = WireClient(sys.argv[1]), int(sys.argv[2])
client.call("register", owner={{"name": f"holder {{number}}"}})
names = [f"held-{{number:03}}-{{n:05}}" for n in range({LOCKS // HOLDERS})]
for start in range(0, len(names), 50):
    client.call("acquire", resources=names[start : start + 50], reason="nightly backup")
print("ready", flush=True)
sys.stdin.read()
"""

_WITNESS: Final = """
import sys, time
from support.wire_client import WireClient
client = WireClient(sys.argv[1])
for line in sys.stdin:
    spans, until = [], time.monotonic() + float(line)
    while time.monotonic() < until:
        began = time.perf_counter()
        client.call("acquire", resource="witness")
        client.call("release", resource="witness")
        spans.append(time.perf_counter() - began)
        time.sleep(0.0005)
    print(1000 * sorted(spans)[len(spans) * 99 // 100], flush=True)
"""


def started(script: str, *words: object, nice: bool = False) -> subprocess.Popen[str]:
    first = ["nice", "-n", "-10"] if nice else []
    return subprocess.Popen(
        [*first, sys.executable, "-c", script, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def list_once(socket: Path) -> float:
    """Runs `lockctl list` into a pipe; returns how many seconds it took."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "lockd.ctl.main", "--socket", str(socket), "list"],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout.count(b"\n") >= LOCKS
    return time.monotonic() - began


def measure(process: DaemonProcess) -> Counts:
    """How long a list takes, and what others notice of one after the other.

    Other load on this machine makes single rounds worse, never better: so it is the
    median of many, and the ratio of rounds next to each other.
    """
    counts = Counts(f"`lockctl list` of {LOCKS} locks")
    with ExitStack() as stack:
        holders = [started(_HOLDER, process.socket, n) for n in range(HOLDERS)]
        for holder in holders:
            stack.callback(holder.communicate, "")
        assert {answer(holder) for holder in holders} == {"ready"}
        witness = started(_WITNESS, process.socket, nice=True)
        stack.callback(witness.communicate, "")
        seconds, alone, beside = [], [], []
        for _ in range(ROUNDS):
            alone.append(p99(witness, 2.0))
            assert witness.stdin is not None
            witness.stdin.write("2.0\n")
            witness.stdin.flush()
            until = time.monotonic() + 1.8
            while time.monotonic() < until:
                seconds.append(list_once(process.socket))
            beside.append(float(answer(witness)))
    ratios = [b / a for a, b in zip(alone, beside, strict=True)]
    counts.show("p99 of acquire + release, alone", round(statistics.median(alone), 2))
    counts.show("the same beside a list", round(statistics.median(beside), 2))
    counts.must("a list to a pipe, median", statistics.median(seconds), 1.5, "s")
    counts.must("p99 beside a list, to alone", statistics.median(ratios), 2.0)
    return counts


def p99(witness: subprocess.Popen[str], seconds: float) -> float:
    assert witness.stdin is not None
    witness.stdin.write(f"{seconds}\n")
    witness.stdin.flush()
    return float(answer(witness))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with daemon() as process:
        compared = compare_all(process, count)
        measured = measure(process)
    end(compared, measured)


if __name__ == "__main__":
    main()
