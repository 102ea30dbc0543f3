"""The world outside lockd: a process that locks files itself, and changed rights."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from support.wire_client import NOBODY

_SCRIPT: Final = """
import fcntl, os, signal, struct, sys

FLOCK = struct.Struct("hhqqi4x")
KINDS = {"exclusive": fcntl.F_WRLCK, "shared": fcntl.F_RDLCK, "none": fcntl.F_UNLCK}
WORDS = {fcntl.F_WRLCK: "exclusive", fcntl.F_RDLCK: "shared"}
fds = {}

def fd_of(path):
    if path not in fds:
        try:
            fds[path] = os.open(path, os.O_RDWR)
        except OSError:  # somebody executes it
            fds[path] = os.open(path, os.O_RDONLY)
    return fds[path]

def control(path, command, mode, start=0, length=1):
    packed = FLOCK.pack(KINDS[mode], 0, int(start), int(length), 0)
    return fcntl.fcntl(fd_of(path), command, packed)

def lock(path, mode, kind, start, length):
    command = fcntl.F_OFD_SETLK if kind == "ofd" else fcntl.F_SETLK
    try:
        control(path, command, mode, start, length)
    except BlockingIOError:
        return "busy"
    return "ok"

def flock(path, mode):
    kinds = {"exclusive": fcntl.LOCK_EX, "shared": fcntl.LOCK_SH, "none": fcntl.LOCK_UN}
    try:
        fcntl.flock(fd_of(path), kinds[mode] | fcntl.LOCK_NB)
    except BlockingIOError:
        return "busy"
    return "ok"

def lease(path, mode):
    # A lease needs that nobody else has it open, for writing or at all.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fds[path] = os.open(path, os.O_RDONLY if mode == "shared" else os.O_RDWR)
    fcntl.fcntl(fds[path], fcntl.F_SETLEASE, KINDS[mode])
    return "ok"

def leased(path):
    # While it is being broken, this is what is left of it.
    return WORDS.get(fcntl.fcntl(fds[path], fcntl.F_GETLEASE), "none")

def close(path):
    os.close(fds.pop(path))
    return "ok"

def probe(path, mode):
    kind, _, _, _, pid = FLOCK.unpack(control(path, fcntl.F_GETLK, mode))
    return "free" if kind == fcntl.F_UNLCK else f"{WORDS[kind]} {pid}"

def exchange(path):
    os.unlink(path)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    return "ok"

def unlink(path):
    os.unlink(path)
    return "ok"

for line in sys.stdin:
    verb, *words = line.rstrip("\\n").split("\\t")
    print(globals()[verb](*words), flush=True)
"""


QEMU_WRITES: Final = ((100, 2), (201, 1))
"""The bytes that the QEMU of a guest locks: start and length."""

QEMU_READS: Final = ((100, 1), (201, 1))
SQLITE_SHARED: Final = ((1 << 30) + 2, 510)
SQLITE_RESERVED: Final = ((1 << 30) + 1, 1)


class Outside:
    """A process that knows nothing of lockd and locks files: by default, byte 0."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def lock(
        self,
        path: object,
        mode: str = "exclusive",
        kind: str = "posix",
        start: int = 0,
        length: int = 1,
    ) -> bool:
        """Tries to lock a file; `kind` is "posix" or "ofd"."""
        return self._ask("lock", path, mode, kind, start, length) == "ok"

    def qemu(self, path: object, spans: tuple[tuple[int, int], ...]) -> None:
        """Locks a file as QEMU does: read locks only, whatever it does with it."""
        for start, length in spans:
            assert self.lock(path, "shared", "ofd", start, length)

    def flock(self, path: object, mode: str = "exclusive") -> bool:
        """Tries to lock a file with flock(2); mode "none" drops it."""
        return self._ask("flock", path, mode) == "ok"

    def lease(self, path: object, mode: str = "exclusive") -> None:
        """Takes a lease on a file, and ignores the request to give it up."""
        self._ask("lease", path, mode)

    def leased(self, path: object) -> str:
        """Returns the mode of its lease, or "none" if somebody has broken that."""
        return self._ask("leased", path)

    def close(self, path: object) -> None:
        """Closes a file, which ends its locks."""
        self._ask("close", path)

    def unlock(self, path: object, kind: str = "posix") -> None:
        self._ask("lock", path, "none", kind, 0, 1)

    def probe(self, path: object, mode: str = "exclusive") -> tuple[str, int] | None:
        """Asks with F_GETLK who would be in the way; the pid of an OFD lock is -1."""
        answer = self._ask("probe", path, mode)
        if answer == "free":
            return None
        held, pid = answer.split()
        return held, int(pid)

    def unlink(self, path: object) -> None:
        self._ask("unlink", path)

    def exchange(self, path: object) -> None:
        """Puts another file in the place of this one."""
        self._ask("exchange", path)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=30)

    def _ask(self, *words: object) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\t".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().rstrip("\n")
        assert answer, f"the outside process died of {words}"
        return answer


@contextmanager
def nobody() -> Iterator[None]:
    """Runs the body with the rights of a user that owns nothing; needs root."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def flags_of(path: Path) -> list[int]:
    """Returns the open flags of each descriptor of this process for a file."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        if os.path.realpath(entry) == str(path):
            lines = Path(f"/proc/self/fdinfo/{entry.name}").read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines)
            found.append(int(fields["flags"], 8))
    return found
