"""Measures lockd beside its peers, in one run, and prints one table of ratios."""

import argparse
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Final, NoReturn

from benchmarks import daemons
from benchmarks.cpus import ALLOWED, Cpus, use
from benchmarks.installed import installing_python
from benchmarks.measure import ROUND_SECONDS, ROUNDS
from benchmarks.rows import ROWS
from benchmarks.table import HEADING, markdown, plain

ROW_SECONDS: Final = 90.0
RUN_SECONDS: Final = 585.0
"""Rows that are not done by then are left out: a run ends within ten minutes."""

Line = Callable[[tuple[str, ...]], str]


class OverdueError(Exception):
    """Raised in a row that takes too long."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("row", nargs="*", help=f"one of {', '.join(ROWS)}; else all")
    parser.add_argument(
        "--directory",
        type=Path,
        default=_memory_file_system(),
        help="where to put the lock files (default: %(default)s)",
    )
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="print the table for docs/explanation/speed.md",
    )
    arguments = parser.parse_args()
    line = markdown if arguments.markdown else plain
    chosen = arguments.row or list(ROWS)
    if unknown := set(chosen) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGALRM, _interrupt)
    _allow_many_descriptors()
    end = time.monotonic() + RUN_SECONDS
    try:
        with daemons.private_directory(arguments.directory) as directory:
            print(_surroundings(directory), line(HEADING), sep="\n\n", flush=True)
            succeeded = [_measure(name, directory / name, line, end) for name in chosen]
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.exit(0 if all(succeeded) else 1)


def _memory_file_system() -> Path:
    """Where the daemons are compared, and not the journal of a disk."""
    shared_memory = Path("/dev/shm")
    if os.access(shared_memory, os.W_OK):
        return shared_memory
    return Path(tempfile.gettempdir())


def _measure(name: str, directory: Path, line: Line, end: float) -> bool:
    seconds = min(ROW_SECONDS, end - time.monotonic())
    if seconds <= 0:
        print(f"({name} left out: the time for all rows is over)", flush=True)
        return False
    directory.mkdir()
    use(Cpus.ONE)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        for result in ROWS[name](directory):
            print(line(result.cells()), flush=True)
    except daemons.SkipError as reason:
        print(f"({name}, not measured: {reason})", flush=True)
    except OverdueError:
        print(f"({name} ended after {seconds:.0f} s, before it was done)", flush=True)
        return False
    except Exception:
        # One broken row should not cost the others.
        print(f"({name} failed, as told on standard error)", flush=True)
        traceback.print_exc()
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return True


def _interrupt(_signum: int, _frame: object) -> NoReturn:
    raise OverdueError


def _exit(signum: int, _frame: object) -> NoReturn:
    sys.exit(128 + signum)


def _allow_many_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _surroundings(directory: Path) -> str:
    programs = [
        _program_version(daemons.VIRTLOCKD, "-V"),
        _program_version("redis-server", "--version"),
        _program_version("flock", "--version"),
    ]
    packages = [
        f"{name} {_package_version(name)}"
        for name in ("redis", "filelock", "msgpack", "msgspec", "trio")
    ]
    return (
        f"{_lockd(directory / 'asked')}\n"
        f"Peers: {'; '.join(programs)}. Packages: {', '.join(packages)}.\n"
        f"Linux {platform.release()}, clients with Python {platform.python_version()}, "
        f"{_cpus()}, lock files in {directory}.\n"
        f"{ROUNDS} rounds of {ROUND_SECONDS} s each, in turns; a ratio is the median "
        "of the rounds' ratios.\nA pair is an acquire and a release. "
        "The clients are Python too, on plain sockets, and alike.\n"
        "virtlockd takes one request of a connection at a time (its configuration has "
        "no key for more),\nothers wait in its socket."
    )


def _lockd(directory: Path) -> str:
    """Asks the daemon what it is."""
    with daemons.lockd(directory) as daemon, closing(daemon.wire()) as wire:
        said = wire.call("statistics", {})
    manner = {True: ", compiled", False: ", interpreted"}.get(said.get("compiled"), "")
    python = _program_version(installing_python(), "--version")
    return f"lockd {said['version']}{manner}, {python}."


def _cpus() -> str:
    count = len(ALLOWED)
    if count == 1:
        return "one CPU (no rows on two, and none where the kernel chooses)"
    first, last = ALLOWED[0], ALLOWED[-1]
    return f"{count} CPUs (one: {first}; two: client on {first}, daemons on {last})"


def _package_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _program_version(program: str, option: str) -> str:
    path = shutil.which(program)
    if path is None:
        return f"{Path(program).name} (not installed)"
    answer = subprocess.run([path, option], capture_output=True, text=True, check=False)
    return " ".join(answer.stdout.split()[:3])


if __name__ == "__main__":
    main()
