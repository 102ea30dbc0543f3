"""Who is at the other end of a socket: what the kernel says, and /proc.

A pid alone is not an identity: it may belong to somebody else by the time it is used.
A pidfd (pidfd_open(2)) refers to one process for ever.
"""

import os
import socket
import struct
from typing import Final, NamedTuple

from lockd.names import plain

SO_PEERPIDFD: Final = 77
"""unix(7), since Linux 6.5: the pidfd of the process that connected."""

_UCRED: Final = struct.Struct("iII")
_MAX_COMMAND: Final = 256
_UNIT_SUFFIXES: Final = (".service", ".scope", ".socket", ".mount", ".swap")


class Credentials(NamedTuple):
    """The process that connected, as the kernel knew it at that moment.

    A pid of 0 means a process in a pid namespace that we cannot see into.
    """

    pid: int
    uid: int
    gid: int


def peer_credentials(sock: socket.socket) -> Credentials:
    """Returns SO_PEERCRED (unix(7))."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Credentials(*_UCRED.unpack(raw))


def open_peer_pidfd(sock: socket.socket, pid: int) -> int | None:
    """Returns a pidfd of the peer; None if there is no process to be found.

    Without SO_PEERPIDFD the pid might be reused between connect and here. That is
    ruled out if the connection is still open afterwards and nobody but the process
    itself had it then: good enough to show, and to fence with a lesser certainty.
    """
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        return int(struct.unpack("i", raw)[0])
    except OSError:
        return open_pidfd(pid)


def open_pidfd(pid: int) -> int | None:
    """Returns a pidfd of a process; None if there is none."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def name_of(pid: int) -> str:
    """Returns the short name of a process, to call it by until it says its own."""
    return _read(f"/proc/{pid}/comm").rstrip("\n") or "unknown"


def uid_of(pid: int) -> int | None:
    """Returns the real uid under which a process runs; None if there is none."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def is_in_our_pid_namespace(pid: int) -> bool:
    """Tells whether pids that a process names mean the same to us."""
    try:
        theirs = os.stat(f"/proc/{pid}/ns/pid").st_ino
        return theirs == os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return False


def command_of(pid: int) -> str | None:
    """Returns the command line of a process, on one line; None if there is none."""
    words = _read(f"/proc/{pid}/cmdline").split("\0")
    return plain(" ".join(words).strip())[:_MAX_COMMAND] or None


def unit_of(pid: int) -> str | None:
    """Returns the systemd unit of a process: the innermost one in its cgroup path."""
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        hierarchy, _, path = line.partition("::")
        if hierarchy != "0" and ":name=systemd:" not in line:
            continue
        for part in reversed((path or line).split("/")):
            if part.endswith(_UNIT_SUFFIXES):
                return part
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""
