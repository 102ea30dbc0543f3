"""Who is at the other end of a socket: what the kernel says, and /proc.

A pid alone is not an identity: it may belong to somebody else by the time it is used.
A pidfd (pidfd_open(2)) refers to one process for ever.
"""

import errno
import os
import re
import select
import socket
import struct
from typing import Final, NamedTuple

from lockd.procs import read

SO_PEERPIDFD: Final = 77
"""unix(7), since Linux 6.5: the pidfd of the process that connected."""

SO_PEERGROUPS: Final = 59
"""unix(7), since Linux 4.13: the supplementary groups of that process."""

NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

NOBODY: Final = 65_534
"""The overflow uid and gid (user_namespaces(7)): nobody's that we know."""

_MAX_GROUPS_BYTES: Final = 1024  # as much as Python's getsockopt takes

_UCRED: Final = struct.Struct("iII")
_MAX_CMDLINE: Final = 256 * 1024
_PATH: Final = re.compile(rb'/[^\0",]+')
_MAX_STATUS: Final = 2**20  # 65,536 groups (NGROUPS_MAX) and more


class Credentials(NamedTuple):
    """The process that connected, as the kernel knew it at that moment.

    A pid of 0 means a process in a pid namespace that we cannot see into.
    """

    pid: int
    uid: int
    gid: int


class Identity(NamedTuple):
    """Who is at the other end of a socket, as far as that counts here.

    Attributes:
        credentials: with uid and gid of nobody, if the peer is foreign.
        groups: its gid and its supplementary groups.
        pidfd: refers to its process; None if there is none to be found.
        is_foreign: it lives in another user or pid namespace, where uid 0 may be
            anybody, or it is gone and cannot be asked: it may do what nobody may, and
            is never signalled.
        user: for whose limits it counts: its uid as the kernel knows it, also if it is
            foreign. Whoever may make a namespace would else have those of nobody, too.
    """

    credentials: Credentials
    groups: frozenset[int]
    pidfd: int | None
    is_foreign: bool
    user: int


def identify(sock: socket.socket) -> Identity:
    """Finds out who is at the other end of a socket.

    What /proc says of a pid counts only if the process is alive afterwards: then the
    pid was its own all the time. A peer that died before it could be looked at had its
    socket inherited by somebody else, or nobody reads the answers; neither needs its
    rights.
    """
    credentials = peer_credentials(sock)
    user = credentials.uid
    pidfd = open_peer_pidfd(sock, credentials.pid)
    foreign = pidfd is None or is_in_other_namespace(credentials.pid)
    if foreign or (pidfd is not None and _is_dead(pidfd)):
        credentials = Credentials(credentials.pid, NOBODY, NOBODY)
        return Identity(credentials, frozenset(), pidfd, is_foreign=True, user=user)
    groups = {credentials.gid, *_peer_groups(sock, credentials.pid)}
    return Identity(credentials, frozenset(groups), pidfd, is_foreign=False, user=user)


def _peer_groups(sock: socket.socket, pid: int) -> tuple[int, ...]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _MAX_GROUPS_BYTES)
        return struct.unpack(f"{len(raw) // 4}I", raw)
    except OSError as error:
        if error.errno not in (errno.ERANGE, errno.ENOPROTOOPT):
            raise
    # More than fit: as they are now, and not at connect(2), which is as true.
    return tuple(int(gid) for gid in _status(pid).get("Groups", "").split())


def is_in_other_namespace(pid: int) -> bool:
    """Tells whether uids and pids of a process mean something else than ours.

    Looking at the namespace of another process takes the right to trace it (ptrace(2),
    PTRACE_MODE_READ), which a hardened daemon does not have. Everybody may read
    how its ids are mapped (user_namespaces(7)), and which pids it has in the namespaces
    below that of our /proc (NSpid, proc_pid_status(5)).
    """
    if pid == 0:
        return True
    try:
        return _differs(pid, "user") or _differs(pid, "pid")
    except PermissionError:
        ours, theirs = read("/proc/self/uid_map"), read(f"/proc/{pid}/uid_map")
        return theirs != ours or len(_status(pid).get("NSpid", "").split()) != 1
    except OSError:
        return True  # it is gone


def _differs(pid: int, kind: str) -> bool:
    theirs = os.stat(f"/proc/{pid}/ns/{kind}")
    return theirs.st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino


def _status(pid: int) -> dict[str, str]:
    """Returns proc_pid_status(5) as a map."""
    text = read(f"/proc/{pid}/status", _MAX_STATUS)
    lines = (x.partition(":") for x in text.splitlines())
    return {name: value.strip() for name, _, value in lines}


def _is_dead(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


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
    except OSError as error:
        if error.errno in NO_DESCRIPTORS:
            raise
        return open_pidfd(pid)


def open_pidfd(pid: int) -> int | None:
    """Returns a pidfd of a process; None if there is none.

    Raises:
        OSError: no descriptor is left.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in NO_DESCRIPTORS:
            raise
        return None


def paths_of(pid: int) -> set[str]:
    """Returns the absolute paths in the command line of a process."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return {os.fsdecode(x) for x in _PATH.findall(file.read(_MAX_CMDLINE))}
    except OSError:
        return set()
