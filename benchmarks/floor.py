"""The floor: a loop in C that does the system calls of a lock daemon and nothing else.

It says how much of a pair is the kernel, and so what no language makes faster.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from benchmarks import daemons
from benchmarks.daemons import SkipError
from benchmarks.wires import LockdWire

SOURCE: Final = Path(__file__).with_suffix(".c")

CALLS: Final = {
    "none": "memory",
    "made": "directory, the file made and removed",
    "kept": "directory, the file kept for the next",
}
"""What it does for a pair, and the title of that (floor.c)."""


def compiled(directory: Path) -> Path:
    """Compiles the loop; returns the program."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SkipError("a C compiler comes with Debian's gcc")
    program = directory / "floor"
    command = [compiler, "-O2", "-D_GNU_SOURCE", "-o", str(program), str(SOURCE)]
    subprocess.run(command, check=True)
    return program


@contextmanager
def floor(program: Path, directory: Path, calls: str) -> Iterator[LockdWire]:
    """Starts the loop, and connects to it; `calls` is one of `CALLS`."""
    locks = directory / "locks"
    locks.mkdir(parents=True)
    path = directory / "floor.sock"
    command = [str(program), str(path), str(locks), calls]
    with daemons.running(command, directory / "log") as process:
        daemons.wait_until_listening(path, process, directory / "log")
        with closing(LockdWire(path)) as wire:
            yield wire
