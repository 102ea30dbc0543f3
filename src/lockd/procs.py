"""Reads /proc: the name, user, command line and unit of a process.

All functions take a pid, which may belong to another process by now.
"""

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from lockd.names import plain

_GENERATIONS: Final = 64
_MAX_COMMAND: Final = 256
_SHORT: Final = 4096
_UNIT_SUFFIXES: Final = (".service", ".scope", ".socket", ".mount", ".swap")


def name_of(pid: int) -> str:
    """Returns the short name of a process, or "unknown"."""
    return read(f"/proc/{pid}/comm").rstrip("\n") or "unknown"


def uid_of(pid: int) -> int | None:
    """Returns the effective uid of a process; None if it does not exist."""
    # The owner of the directory itself, even if the process hides what is in it
    # (PR_SET_DUMPABLE). `uids_of` takes ten times as long.
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


class Uids(NamedTuple):
    """The uids of a process (credentials(7))."""

    real: int
    effective: int
    saved: int


def uids_of(pid: int) -> Uids | None:
    """Returns the uids of a process; None if it does not exist."""
    # The name of the process comes first. The kernel escapes "\n" in it, and no other
    # character that ends a line for `splitlines`.
    _, found, rest = read(f"/proc/{pid}/status").partition("\nUid:")
    if not found:
        return None
    real, effective, saved, _ = map(int, rest.partition("\n")[0].split())
    return Uids(real, effective, saved)


def ancestors_of(pid: int) -> Iterator[int]:
    """Yields the parent of a process, and the parents of that, as far as known."""
    for _ in range(_GENERATIONS):
        text = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        pid = int(text[1]) if len(text) > 1 else 0
        if not pid:
            return
        yield pid


def command_of(pid: int) -> str | None:
    """Returns the command line of a process in one line; None without one."""
    words = read(f"/proc/{pid}/cmdline").split("\0")
    return plain(" ".join(words).strip())[:_MAX_COMMAND] or None


def unit_of(pid: int) -> str | None:
    """Returns the systemd unit of a process: the innermost one in its cgroup path."""
    for line in read(f"/proc/{pid}/cgroup").splitlines():
        hierarchy, _, path = line.partition("::")
        if hierarchy != "0" and ":name=systemd:" not in line:
            continue
        for part in reversed((path or line).split("/")):
            if part.endswith(_UNIT_SUFFIXES):
                return part
    return None


def read(path: str, size: int = 4096) -> str:
    """Returns the beginning of a file in /proc; empty if it cannot be read."""
    return read_bytes(path, size).decode("utf-8", "replace")


def read_bytes(path: str, size: int) -> bytes:
    """Returns the beginning of a file in /proc; empty if it cannot be read."""
    # The layers of open() take as long as the kernel.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        # os.read() reserves all that it may return, and most files are short.
        start = os.read(fd, min(size, _SHORT))
        if len(start) < _SHORT:
            return start
        return start + os.read(fd, size - len(start))
    except OSError:
        return b""
    finally:
        os.close(fd)
