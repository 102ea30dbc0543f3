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
import traceback
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import lockd
from benchmarks import daemons
from benchmarks.measure import ROUND_SECONDS, ROUNDS
from benchmarks.rows import ROWS
from benchmarks.table import heading


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("row", nargs="*", help=f"one of {', '.join(ROWS)}; else all")
    parser.add_argument(
        "--directory",
        type=Path,
        default=_memory_file_system(),
        help="where to put the lock files (default: %(default)s)",
    )
    arguments = parser.parse_args()
    chosen = arguments.row or list(ROWS)
    if unknown := set(chosen) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, _exit)
    _allow_many_descriptors()
    try:
        with daemons.private_directory(arguments.directory) as directory:
            print(_surroundings(directory), heading(), sep="\n\n", flush=True)
            succeeded = [_measure(name, directory / name) for name in chosen]
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.exit(0 if all(succeeded) else 1)


def _memory_file_system() -> Path:
    """Where the daemons are compared, and not the journal of a disk."""
    shared_memory = Path("/dev/shm")
    if os.access(shared_memory, os.W_OK):
        return shared_memory
    return Path(tempfile.gettempdir())


def _measure(name: str, directory: Path) -> bool:
    directory.mkdir()
    try:
        for result in ROWS[name](directory):
            print(result, flush=True)
    except daemons.SkipError as reason:
        print(f"({name} skipped: {reason})", flush=True)
    except Exception:
        # One broken row should not cost the others.
        print(f"({name} failed, as told on standard error)", flush=True)
        traceback.print_exc()
        return False
    return True


def _exit(signum: int, _frame: object) -> NoReturn:
    sys.exit(128 + signum)


def _allow_many_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _surroundings(directory: Path) -> str:
    virtlockd = _program_version(daemons.VIRTLOCKD, "-V")
    redis = _program_version("redis-server", "--version")
    packages = ", ".join(f"{n} {_package_version(n)}" for n in ("filelock", "redis"))
    return (
        f"Linux {platform.release()}, Python {platform.python_version()}, "
        f"{os.cpu_count()} CPUs, lock files in {directory}\n"
        f"lockd {lockd.__version__}; {virtlockd}; {redis}; {packages}\n"
        f"{ROUNDS} rounds of {ROUND_SECONDS} s each, in turns; a ratio is the median "
        "of the rounds' ratios.\n"
        "The clients are Python too, on plain sockets, and alike; virtlockd takes one "
        "request of a\nconnection at a time (its configuration has no key for more), "
        "others wait in its socket."
    )


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
