"""A command under a lock that tells of every signal it gets, and ways to send one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

from ctl.processes import Lockctl, line_of

TELL_SIGNAL = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
print("ready", flush=True)
info = signal.sigwaitinfo(signal.valid_signals())
print(signal.Signals(info.si_signo).name, flush=True)
"""

TELL_SIGNALS = """
import os, signal, sys
if "apart" in sys.argv:
    os.setpgid(0, 0)
# Python itself looks at SIGCONT as at any other; it comes whenever lockctl goes on.
told = signal.valid_signals() - {signal.SIGCONT}
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
print("ready", os.getpid(), flush=True)
while True:
    print(signal.sigwaitinfo(told).si_signo, flush=True)
"""

MARK = signal.SIGWINCH
"""Greater than all that is asked about: what is pending is taken in this order."""


class Signalled:
    """A `lockctl run` in a process group of its own, and its command."""

    def __init__(self, lockctl: Lockctl, *words: str) -> None:
        python = (sys.executable, "-c", TELL_SIGNALS, *words)
        self.lockctl: subprocess.Popen[str] = lockctl.start(
            "run", "job", "--", *python, process_group=0
        )
        ready, pid = line_of(self.lockctl).split()
        assert ready == "ready"
        self.command = int(pid)
        self._is_in_group = os.getpgid(self.command) == self.lockctl.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.command, signal.SIGKILL)

    def got_after(self, send: Callable[[int], None], signum: int) -> list[int]:
        """Returns what the command got, when lockctl has done with it all.

        Two equal signals at a time are one: so lockctl sees a signal only when the
        command has had it, if it gets it at all without lockctl.
        """
        stopped = self.lockctl.pid
        os.kill(stopped, signal.SIGSTOP)
        os.waitpid(stopped, os.WUNTRACED)
        send(signum)
        reaches_it = send != self.to_lockctl and self._is_in_group
        got = [int(line_of(self.lockctl))] if reaches_it else []
        os.kill(stopped, signal.SIGCONT)
        os.kill(stopped, MARK)
        while (number := int(line_of(self.lockctl))) != MARK:
            got.append(number)
        return got

    def to_lockctl(self, signum: int) -> None:
        """As `kill PID` does."""
        os.kill(self.lockctl.pid, signum)

    def to_group(self, signum: int) -> None:
        """As `kill %1` does in a shell, and `timeout --foreground` does not."""
        os.killpg(self.lockctl.pid, signum)

    def to_each(self, signum: int) -> None:
        """As a service manager does with all processes of a unit."""
        for pid in (self.lockctl.pid, *children_of(self.lockctl.pid)):
            os.kill(pid, signum)


def children_of(pid: int) -> list[int]:
    """Returns the children of a process with one thread."""
    stats = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stats.append((entry.joinpath("stat").read_text(), int(entry.name)))
            except OSError:
                continue
    return sorted(
        child for stat, child in stats if int(stat.rpartition(")")[2].split()[1]) == pid
    )
