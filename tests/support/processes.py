"""Processes: such as do nothing, and what the kernel says of any."""

import os
import signal
import subprocess
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.wire_client import PATIENCE


@contextmanager
def idle(*command: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a program that does nothing; kills it when the block ends.

    Popen returns when execve(2) has closed the old program's descriptors. What /proc
    says of the name, the arguments and the rights of the new one is true a moment
    later. So this waits until the program has spoken.

    Args:
        command: the program, `cat` if there is none; it returns the first line that it
            reads, and lives until the next one.
        options: of `subprocess.Popen`.
    """
    pipe = subprocess.PIPE
    words = command or ("cat",)
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, **options) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"\n"
        yield process
        process.kill()


def cpu_seconds(pid: int) -> float:
    """Returns for how long a process has had a processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors(pid: int | str = "self") -> int:
    """Returns how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def in_child(function: Callable[[], object]) -> str:
    """Runs a function in a forked child; returns what it returned, or its exception."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        # Newer Pythons warn of forks beside threads; here they are meant.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.alarm(int(PATIENCE))
        try:
            said = str(function())
        except BaseException:
            said = traceback.format_exc()
        os.write(write_end, said.encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end) as pipe:
        said = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return said
