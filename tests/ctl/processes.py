"""Starts and watches the processes of these tests: lockctl, terminals."""

import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from support.nursery import LOCKCTLS, execute
from support.places import SRC
from support.wire_client import NOBODY, PATIENCE

LOCKCTL = (sys.executable, "-m", "lockd.ctl.main")
LIMIT = PATIENCE

Locker = Callable[..., int]
"""Locks a file past lockd, and returns the pid of who does."""

LOCKER = """
import fcntl, os, struct, sys
path, kind, mode, start, length = sys.argv[1:]
fd = os.open(path, os.O_RDWR)
number = fcntl.F_WRLCK if mode == "exclusive" else fcntl.F_RDLCK
lock = struct.pack("hhqqi4x", number, 0, int(start), int(length), 0)
if kind == "FLOCK":
    fcntl.flock(fd, fcntl.LOCK_EX if mode == "exclusive" else fcntl.LOCK_SH)
else:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK if kind == "OFD" else fcntl.F_SETLK, lock)
print("locked", flush=True)
sys.stdin.read()
"""


# All that it needs is loaded before: the interpreter may be root's alone.
_AS_NOBODY = """
import difflib, encodings.ascii, encodings.idna, grp, hashlib, json, locale
import os, shlex, sys
import lockd.client.blocking, lockd.ctl.commands, lockd.ctl.line.usage
import lockd.ctl.act.acquire, lockd.ctl.run.asked
import lockd.ctl.act.release
import lockd.ctl.look.listings, lockd.ctl.look.outside, lockd.ctl.look.show
from lockd.ctl.main import main
sys.argv = {args!r}
os.setgroups([])
os.setgid({nobody})
os.setuid({nobody})
main()
"""


class Lockctl:
    """Starts lockctl processes and sees to it that none outlives the test.

    Args:
        socket: of the daemon that they use.
        executed: whether they are executed, and not forked by a nursery.
    """

    def __init__(self, socket: str, *, executed: bool = False) -> None:
        self._popen = execute if executed else LOCKCTLS.popen
        self.env = {**os.environ, "LOCKD_SOCKET": socket, "PYTHONPATH": SRC}
        self._started: list[subprocess.Popen[str]] = []

    def __call__(self, *args: object, **popen: Any) -> subprocess.CompletedProcess[str]:
        """Runs lockctl to its end."""
        return self._run([*LOCKCTL, *map(str, args)], **popen)

    def as_nobody(self, *args: object) -> subprocess.CompletedProcess[str]:
        """Runs lockctl to its end as a user without rights; takes root."""
        script = _AS_NOBODY.format(args=["lockctl", *map(str, args)], nobody=NOBODY)
        return self._run([sys.executable, "-c", script])

    def start(self, *args: object, **popen: Any) -> "subprocess.Popen[Any]":
        """Starts lockctl with pipes to all three of its streams."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        options: dict[str, Any] = {"env": self.env, "text": True} | pipes | popen
        process = self._popen([*LOCKCTL, *map(str, args)], **options)
        self._started.append(process)
        return process

    def _run(
        self, command: Sequence[str], **popen: Any
    ) -> subprocess.CompletedProcess[str]:
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        options: dict[str, Any] = {"env": self.env, "text": True} | pipes | popen
        with self._popen(command, **options) as process:
            try:
                out, err = process.communicate(timeout=LIMIT)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def start_python(
        self, name: str, script: str, *options: object, **popen: Any
    ) -> subprocess.Popen[str]:
        """Starts a script under a lock; returns when it has said `ready`."""
        python = (sys.executable, "-c", script)
        process = self.start("run", *options, name, "--", *python, **popen)
        assert line_of(process) == "ready"
        return process

    def end_all(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate(timeout=LIMIT)


class Terminal:
    """A process that is alone on a terminal of its own.

    Args:
        executed: whether it is executed, and not forked by a nursery.
        pass_fds: the descriptors that it inherits.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        env: dict[str, str],
        columns: int = 200,
        *,
        executed: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.shown = ""
        self._master, slave = pty.openpty()
        env = env | {"COLUMNS": str(columns), "TERM": "xterm"}
        popen = execute if executed else LOCKCTLS.popen
        self._process = popen(
            argv,
            env=env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            pass_fds=pass_fds,
            terminal=True,
        )
        self.pid = self._process.pid
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        """Waits until a text is on the screen."""
        while text not in self.shown:
            assert self._read(), f"ended without {text!r}: {self.shown!r}"

    def wait(self) -> int:
        """Waits for the process to end; returns its exit code, as Popen does."""
        while self._read():
            pass
        os.close(self._master)
        return self._process.wait()

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], LIMIT)
        assert ready, f"nothing more came after {self.shown!r}"
        try:
            self.shown += os.read(self._master, 65_536).decode()
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        return True


def open_to_all(socket: Path) -> None:
    """Lets every user connect to a daemon of a test."""
    for directory in socket.parents[:-2]:
        directory.chmod(0o755)
    socket.chmod(0o666)


def line_of(process: subprocess.Popen[str]) -> str:
    """Returns the next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def end_input(process: subprocess.Popen[str]) -> None:
    """Closes what a process reads."""
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None


def wait_for_exit(pidfd: int) -> None:
    """Waits until the process behind a pidfd has ended, and closes that."""
    ready, _, _ = select.select([pidfd], [], [], LIMIT)
    os.close(pidfd)
    assert ready
