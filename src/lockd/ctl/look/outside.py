"""Finds locks on a file outside lockd, from /proc/locks and /proc/PID/fdinfo.

The kernel names the process of a POSIX lock. An OFD lock belongs to an open file, which
any number of processes may have. Searching the descriptors of all processes finds them,
as far as we may read those. The same holds for flock(2).
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from lockd.procs import command_of, uid_of, unit_of
from lockd.spans import locked_by
from lockd.terms import LockedBy

LOOKS: Final = 3
"""How often to read all locks for one file. The kernel returns about seventy at a time,
and counts to find the next ones: it skips one if an earlier one is released meanwhile.
"""

_OF_LOCKD: Final = (("0", "0"), ("0", "1"), ("0", "EOF"))
"""The bytes that lockd locks: the first, the second where it may only read, or all."""

_OPEN: Final = os.O_PATH | os.O_CLOEXEC


class Inode(NamedTuple):
    """A file as /proc/locks names it: `fd:00:1234`."""

    device: str
    number: int


class KernelLock(NamedTuple):
    """One line of /proc/locks (proc_locks(5)).

    Attributes:
        kind: POSIX, OFD, FLOCK or LEASE.
        mode: exclusive or shared.
        pid: -1 if the kernel does not name it.
        inode: the file.
        span: the first and the last byte; the last may be `EOF`.
        waits: whether it is waited for, not held.
    """

    kind: str
    mode: str
    pid: int
    inode: Inode
    span: tuple[str, str]
    waits: bool

    @property
    def first(self) -> int:
        """The first byte."""
        return int(self.span[0])

    @property
    def last(self) -> int | None:
        """The last byte; None at the end of the file."""
        return None if self.span[1] == "EOF" else int(self.span[1])

    @property
    def by(self) -> str | None:
        """How it is locked, if that is known (`LockedBy`)."""
        whole: dict[str, LockedBy] = {"FLOCK": "flock", "LEASE": "lease"}
        return whole.get(self.kind) or locked_by(self.first, self.last)


class Outsider(NamedTuple):
    """A lock on a file, and a process that has it; pid None if none is visible.

    Attributes:
        perhaps_ours: whether it may be a lock of lockd.
    """

    lock: KernelLock
    pid: int | None
    uid: int | None
    command: str | None
    unit: str | None
    perhaps_ours: bool


def inode_of(path: str) -> Inode | None:
    """Returns the name of a file in /proc/locks; None if it does not exist.

    On some file systems (btrfs, overlayfs) stat(2) has another number.
    """
    try:
        fd = os.open(path, _OPEN)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
    finally:
        os.close(fd)
    device = _device_of_mount(int(facts["mnt_id"])) or _as_hex(status.st_dev)
    return Inode(device, int(facts.get("ino", status.st_ino)))


def _device_of_mount(mount: int) -> str | None:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split(" ", 3)
            if int(words[0]) == mount:
                major, _, minor = words[2].partition(":")
                return f"{int(major):02x}:{int(minor):02x}"
    return None


def _as_hex(device: int) -> str:
    return f"{os.major(device):02x}:{os.minor(device):02x}"


def locks_on(inode: Inode) -> list[KernelLock]:
    """Returns the locks on a file."""
    found: Counter[KernelLock] = Counter()
    for _ in range(LOOKS):
        # Locks that look alike are as many as one reading showed.
        found |= Counter(lock for lock in all_locks() if lock.inode == inode)
    return list(found.elements())


def all_locks() -> Iterator[KernelLock]:
    """Yields all locks of the host, except those of other pid namespaces."""
    with open("/proc/locks", encoding="ascii") as file:
        for line in file:
            if lock := _parse(line.split()[1:]):
                yield lock


def _parse(words: list[str]) -> KernelLock | None:
    """Parses `POSIX ADVISORY WRITE 214 00:29:2146 0 0`, with `->` first if it waits."""
    waits = words[:1] == ["->"]
    if waits:
        del words[0]
    try:
        kind, _, mode, pid, place, start, end = words
        device, _, number = place.rpartition(":")
        modes = {"WRITE": "exclusive", "READ": "shared"}
        mode = modes.get(mode, mode.lower())
        inode = Inode(device, int(number))
        if kind == "OFDLCK":
            kind = "OFD"
        return KernelLock(kind, mode, int(pid), inode, (start, end), waits)
    except ValueError:
        return None  # an unknown kind, or half a line


def outsiders(inode: Inode, ours: int, held: int) -> list[Outsider]:
    """Returns the locks on a file that are not lockd's, with their processes.

    Args:
        inode: the file.
        ours: the pid of the daemon.
        held: how many locks on this file the daemon reports. If its descriptors are not
            visible, as many OFD locks on the first byte count as its own. It may have
            more: it does not report all of them to everybody.
    """
    locks = locks_on(inode)
    if not locks:
        return []
    holders = _holders(inode)
    unseen = all(ours not in pids for pids in holders.values())
    hidden = not _can_be_seen(ours)
    found = []
    seen_ours: set[str] = set()
    for lock in locks:
        shape = _shape(lock)
        pids = holders.get(shape, []) if lock.pid <= 0 or lock.kind != "POSIX" else []
        if lock.kind == "FLOCK" and lock.pid == ours and not pids:
            continue  # its descriptors are hidden from us
        if lock.kind in ("OFD", "FLOCK") and ours in pids and not lock.waits:
            # Locks of one shape cannot be told apart. Show each once for each process
            # that has one, except the daemon.
            pids = [pid for pid in pids if pid != ours]
            if lock.kind not in seen_ours:
                seen_ours.add(lock.kind)
                continue
        like_ours = lock.kind == "OFD" and lock.span in _OF_LOCKD
        maybe_ours = like_ours and unseen and not pids and not lock.waits
        if maybe_ours and held:
            held -= 1
            continue
        if not pids and lock.pid > 0:
            pids = [lock.pid]
        found += [_outsider(lock, pid) for pid in pids]
        if not pids:
            found.append(Outsider(lock, None, None, None, None, maybe_ours and hidden))
    return list(dict.fromkeys(found))


def _outsider(lock: KernelLock, pid: int) -> Outsider:
    return Outsider(lock, pid, uid_of(pid), command_of(pid), unit_of(pid), False)


def _can_be_seen(pid: int) -> bool:
    """Returns whether we may read the descriptors of a process."""
    try:
        os.listdir(f"/proc/{pid}/fdinfo")
    except OSError:
        return False
    return True


def _shape(lock: KernelLock) -> tuple[object, ...]:
    """Returns the fields that tell apart the locks on one file."""
    return lock.kind, lock.mode, lock.span


def _holders(inode: Inode) -> dict[tuple[object, ...], list[int]]:
    """Returns the pids that have a locked file open, by the shape of the lock.

    Only root sees the processes of other users.
    """
    found: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # it has ended, or we may not read it
            for lock in _locks_of(f"/proc/{pid}/fdinfo"):
                pids = found[_shape(lock)]
                if lock.inode == inode and int(pid) not in pids:
                    pids.append(int(pid))
    return found


def _locks_of(directory: str) -> Iterator[KernelLock]:
    for fd in os.listdir(directory):
        with suppress(OSError), open(f"{directory}/{fd}", encoding="ascii") as file:
            for line in file:
                # lock: 1: OFDLCK  ADVISORY  WRITE -1 00:29:2146 0 0
                if line.startswith("lock:") and (lock := _parse(line.split()[2:])):
                    yield lock
