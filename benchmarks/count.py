"""Counts the instructions of the daemon for each operation, and those of the clients.

Time differs from run to run by more than a small change of the code costs. Instructions
hardly do: valgrind's callgrind counts those of the process itself, none of the kernel.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import daemons, guests
from benchmarks.wires import LockdWire, VirtlockdWire, Wire, names
from lockd.daemon.main import MANNER

ROOT: Final = Path(__file__).parents[1]

DAEMON: Final = (sys.executable, "-m", "lockd.daemon.main")
"""What is counted: an interpreter of the environment takes a source from its path."""

TIMES: Final = 200
"""How many operations are counted together."""

COUNTS: Final = 5
"""How often they are counted. The median counts: some work comes now and then."""

WORSE: Final = 1.05
"""From which ratio on a row is worse than before."""

Operation = Callable[[int], None]
"""Carries out that many operations."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.count", description=__doc__
    )
    parser.add_argument(
        "--against",
        metavar="REVISION",
        help="count an earlier revision too; exit with 1 if a row has become worse",
    )
    arguments = parser.parse_args()
    for program in "valgrind", "callgrind_control":
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing (Debian: valgrind)")
    # So that it ends what it has started.
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
    with ExitStack() as stack:
        directory = stack.enter_context(
            daemons.private_directory(Path(tempfile.gettempdir()))
        )
        now = counted(directory / "now", ROOT / "src")
        before: Mapping[str, float] = {}
        if arguments.against is not None:
            source = stack.enter_context(checked_out(arguments.against, directory))
            before = counted(directory / "before", source)
    print(f"lockd runs {MANNER}", table(now, before), sep="\n")
    worse = [row for row in before if now[row] > WORSE * before[row]]
    sys.exit(f"worse than {arguments.against}: {', '.join(worse)}" if worse else 0)


@contextmanager
def checked_out(revision: str, directory: Path) -> Iterator[Path]:
    """Yields the source of a revision."""
    tree = directory / "revision"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "-q", "--detach", str(tree), revision], check=True)
    try:
        yield tree / "src"
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def table(now: Mapping[str, float], before: Mapping[str, float]) -> str:
    """Returns a line for each row: thousands of instructions, and the ratio."""
    lines = [f"{'thousands of instructions':32}{'before':>10}{'now':>10}{'ratio':>8}"]
    for row, count in now.items():
        past = before.get(row)
        told = ("-", "-") if past is None else (f"{past:.1f}", f"{count / past:.3f}")
        lines.append(f"{row:32}{told[0]:>10}{count:>10.1f}{told[1]:>8}")
    return "\n".join(lines)


def counted(directory: Path, source: Path) -> dict[str, float]:
    """Returns the thousands of instructions of each operation of a source."""
    directory.mkdir()
    return of_daemon(directory, source) | of_clients(directory, source)


def of_daemon(directory: Path, source: Path) -> dict[str, float]:
    """Returns those that the daemon executes."""
    found: dict[str, float] = {}
    for kept, start in ("", daemons.lockd), (", kept", daemons.lockd_that_is_kept):
        place = directory / f"daemon{kept[2:]}"
        out = directory / f"callgrind{kept[2:]}"
        program = [*under_valgrind(out), *DAEMON]
        with start(place, environment_for(source), program) as daemon:
            for row, operation in operations(daemon):
                found[row + kept] = counts_of(operation, daemon.pid, out)
    return found


def of_clients(directory: Path, source: Path) -> dict[str, float]:
    """Returns those that clients execute for a pair."""
    found: dict[str, float] = {}
    environment = environment_for(source)
    rows = {"threads": "with lock", "trio": "hold, trio", "asyncio": "hold, asyncio"}
    with daemons.lockd(directory / "beside", environment, DAEMON) as daemon:
        for kind, row in rows.items():
            out = directory / f"callgrind-{kind}"
            program = [sys.executable, "-m", "benchmarks.pairs", kind]
            with subprocess.Popen(
                [*under_valgrind(out), *program, str(daemon.socket)],
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as client:
                operation = partial(order, client)
                found[f"client: {row}"] = counts_of(operation, client.pid, out)
                client.communicate()  # the end of its input ends it
    return found


def order(client: "subprocess.Popen[str]", times: int) -> None:
    """Has a client take and release a lock."""
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(f"{times}\n")
    client.stdin.flush()
    if not client.stdout.readline():
        raise ValueError("the client has ended")


def under_valgrind(out: Path) -> list[str]:
    """Returns the command that counts what a program executes."""
    return ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}"]


def environment_for(source: Path) -> dict[str, str]:
    """Returns the environment in which a program of a source is counted."""
    path = f"{source}:{ROOT / 'benchmarks' / 'valgrind'}"
    return {"PYTHONPATH": path, "PYTHONHASHSEED": "0"}


def counts_of(operation: Operation, pid: int, out: Path) -> float:
    """Returns the thousands of instructions of an operation of a process."""
    counts = []
    for _ in range(1 + COUNTS):
        operation(TIMES)
        counts.append(dump(pid, out))
    return statistics.median(counts[1:]) / TIMES / 1000


def operations(daemon: daemons.Daemon) -> Iterator[tuple[str, Operation]]:
    """Yields what is counted, each with its title."""
    for kind, lockspace in ("memory", "default"), ("directory", daemons.DIRECTORY):
        wire = daemon.wire(lockspace)
        yield f"a pair, {kind}", partial(pairs, wire)
        yield f"a pair of 50, {kind}", partial(in_flight, wire)
        wire.close()
    yield "a session of 4 locks", partial(sessions, daemon)
    with ExitStack() as stack:
        libvirtd = VirtlockdWire(daemon.virtlockd_socket, daemon.locks)
        stack.enter_context(closing(libvirtd))
        yield "a pair, libvirt's socket", partial(pairs, libvirtd)
        guest = stack.enter_context(guests.Process(daemon.virtlockd_socket))
        said = guests.Guest.of(libvirtd, guest.pid, names(4))
        yield "a guest", partial(guests_live, daemon.virtlockd_socket, said, libvirtd)


def pairs(wire: Wire, times: int) -> None:
    """Takes and releases a lock, each after the other's answer."""
    resources = names(50)
    for number in range(times):
        name = resources[number % len(resources)]
        for request in wire.encode_acquire(name, 0), wire.encode_release(name, 0):
            wire.send(request)
            receive(wire, 1)


def in_flight(wire: LockdWire, times: int) -> None:
    """Takes and releases locks, 50 pairs at once."""
    resources = names(50)
    both = [x for n in resources for x in (wire.encode_acquire, wire.encode_release)]
    batch = b"".join(
        encode(name, 0)
        for name, encode in zip([n for n in resources for _ in "ar"], both, strict=True)
    )
    for _ in range(times // len(resources)):
        wire.send(batch)
        receive(wire, len(both))


def sessions(daemon: daemons.Daemon, times: int) -> None:
    """Connects, takes four locks, and disconnects."""
    for number in range(times):
        wire = daemon.wire()
        # The daemon may hear of the end of the session before only after this.
        resources = names(4, f"{number}-")
        wire.send(b"".join(wire.encode_acquire(name, 0) for name in resources))
        receive(wire, 4)
        wire.close()
    # The end of the last session is carried out before this answer.
    wire = daemon.wire()
    wire.call("list", {})
    wire.close()


def guests_live(
    path: Path, guest: guests.Guest, libvirtd: VirtlockdWire, times: int
) -> None:
    """Starts a guest with four disks, which releases them and closes."""
    guests.live(path, [guest], lambda started: started < times)
    # The end of the last one is carried out before the second of these answers.
    for _ in range(2):
        libvirtd.round_trip()


def receive(wire: Wire, count: int) -> None:
    """Waits for that many answers."""
    while count > 0:
        count -= len(wire.receive())


def dump(pid: int, out: Path) -> int:
    """Returns how many instructions were executed since the last call."""
    subprocess.run(
        ["callgrind_control", "--dump", str(pid)], check=True, capture_output=True
    )
    newest = max(
        out.parent.glob(f"{out.name}.*"), key=lambda path: int(path.suffix[1:])
    )
    for line in newest.read_text().splitlines():
        if line.startswith(("summary:", "totals:")):
            return int(line.split()[1])
    raise ValueError(f"{newest} has no sum")


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
