"""Identifies the process at the other end of a socket, by the kernel and /proc.

A pid alone does not identify a process: it may belong to another one later. A pidfd
(pidfd_open(2)) always refers to the same process.
"""

import errno
import os
import re
import select
import socket
import struct
from functools import cache
from typing import Final, NamedTuple

from lockd.procs import read, read_bytes

SO_PEERPIDFD: Final = 77
"""unix(7), since Linux 6.5: the pidfd of the process that connected."""

SO_PEERGROUPS: Final = 59
"""unix(7), since Linux 4.13: the supplementary groups of that process."""

NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

NOBODY: Final = 65_534
"""The overflow uid and gid (user_namespaces(7)), which stand for unknown users."""

_MAX_GROUPS_BYTES: Final = 1024  # the maximum of Python's getsockopt

_UCRED: Final = struct.Struct("iII")
_MAX_CMDLINE: Final = 256 * 1024
_PATH: Final = re.compile(rb'/[^\0",]+')
_MAX_STATUS: Final = 2**20  # 65,536 groups (NGROUPS_MAX) and more


class Credentials(NamedTuple):
    """The process that connected, as the kernel knew it at that moment.

    A pid of 0 means a process in a pid namespace that is invisible here.
    """

    pid: int
    uid: int
    gid: int


class Identity:
    """The identity of a peer.

    Attributes:
        credentials: with uid and gid of nobody if the peer is foreign.
        groups: its gid and its supplementary groups.
        pidfd: refers to its process; None if it cannot be found.
        is_foreign: it lives in another user or pid namespace, where uid 0 may be
            anybody, or it is dead. It has the rights of nobody, and is never signalled.
        user: the uid for its limits, as the kernel knows it, even if it is foreign.
            With nobody's instead, a user could evade limits by creating a namespace.
    """

    def __init__(
        self,
        credentials: Credentials,
        groups: frozenset[int],
        pidfd: int | None,
        is_foreign: bool,
        user: int,
    ) -> None:
        self.credentials = credentials
        self.groups = groups
        self.pidfd = pidfd
        self.is_foreign = is_foreign
        self.user = user


def identify(sock: socket.socket, credentials: Credentials) -> Identity:
    """Identifies the peer of a socket.

    Args:
        sock: the socket.
        credentials: its `peer_credentials`, which never change.

    Facts from /proc count only if the process is alive afterwards, because then its pid
    was its own all the time. If the peer died before, another process has inherited the
    socket, or nobody reads the answers. Neither needs the rights of the peer.
    """
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
    # There are more groups. Read the current ones, which are as good as those at
    # connect.
    return tuple(int(gid) for gid in _status(pid).get("Groups", "").split())


def is_in_other_namespace(pid: int) -> bool:
    """Returns whether uids and pids of a process mean something else than ours.

    Reading the namespaces of another process takes the right to trace it (ptrace(2),
    PTRACE_MODE_READ), which a hardened daemon does not have. But everybody may read its
    id mapping (user_namespaces(7)), and its pids in the namespaces below that of our
    /proc (NSpid, proc_pid_status(5)).
    """
    if pid == 0:
        return True
    try:
        return _differs(pid, "user") or _differs(pid, "pid")
    except PermissionError:
        ours, theirs = read("/proc/self/uid_map"), read(f"/proc/{pid}/uid_map")
        return theirs != ours or len(_status(pid).get("NSpid", "").split()) != 1
    except OSError:
        return True  # it has ended


def _differs(pid: int, kind: str) -> bool:
    # The link names the inode (namespaces(7)). To follow it takes the kernel twice as
    # long.
    return os.readlink(f"/proc/{pid}/ns/{kind}") != _our_namespace(kind)


@cache  # nothing here enters another one
def _our_namespace(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{kind}")


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
    """Returns a pidfd of the peer; None if its process cannot be found.

    Without SO_PEERPIDFD, another process may have got the pid since connect(2). That is
    impossible if the connection is still open afterwards and only its process had it.
    This is good enough to show the process, and less certain for fencing it.
    """
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        return int(struct.unpack("i", raw)[0])
    except OSError as error:
        if error.errno in NO_DESCRIPTORS:
            raise
        return open_pidfd(pid)


def open_pidfd(pid: int) -> int | None:
    """Returns a pidfd of a process; None if it does not exist.

    Raises:
        OSError: no descriptor is left.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in NO_DESCRIPTORS:
            raise
        return None


def command_line(pid: int) -> bytes:
    """Returns the command line of a process; empty if it has none, or has ended."""
    return read_bytes(f"/proc/{pid}/cmdline", _MAX_CMDLINE)


def paths_in(line: bytes) -> set[bytes]:
    """Returns the absolute paths in a command line."""
    return set(_PATH.findall(line))
