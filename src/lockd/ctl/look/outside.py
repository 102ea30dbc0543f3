"""Who locks a file past lockd: what /proc/locks and /proc/PID/fdinfo say of it.

The kernel names the process of a POSIX lock. An OFD lock belongs to an open file, which
any number of processes may have: they are found by looking at everybody's descriptors,
as far as one may. So are the processes behind flock(2).
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from lockd.procs import command_of, uid_of, unit_of

LOOKS: Final = 3
"""How often all locks are gone through for one file. The kernel gives some seventy at a
time, and finds the next ones by counting: if one of those before was released meanwhile
it leaves one out."""

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
        pid: -1 if the kernel does not say.
        span: from which byte to which, or `EOF`.
        waits: whether it is not held, but waited for.
    """

    kind: str
    mode: str
    pid: int
    inode: Inode
    span: tuple[str, str]
    waits: bool


class Outsider(NamedTuple):
    """A lock on a file, and a process that has it; pid None if none can be seen.

    Attributes:
        perhaps_ours: whether it may be lockd's, for all that can be seen.
    """

    lock: KernelLock
    pid: int | None
    uid: int | None
    command: str | None
    unit: str | None
    perhaps_ours: bool


def inode_of(path: str) -> Inode | None:
    """Returns what /proc/locks calls a file; None if there is none.

    On some file systems (btrfs, overlayfs) that is not what stat(2) says.
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
    """Returns the locks that the kernel knows on a file."""
    found: Counter[KernelLock] = Counter()
    for _ in range(LOOKS):
        # Those that look alike are as many as were seen at once.
        found |= Counter(lock for lock in all_locks() if lock.inode == inode)
    return list(found.elements())


def all_locks() -> Iterator[KernelLock]:
    """Goes through all locks of the host, but for those of other pid namespaces."""
    with open("/proc/locks", encoding="ascii") as file:
        for line in file:
            if lock := _parse(line.split()[1:]):
                yield lock


def _parse(words: list[str]) -> KernelLock | None:
    """Reads `POSIX ADVISORY WRITE 214 00:29:2146 0 0`, with `->` first if it waits."""
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
        return None  # a kind of which nobody has heard yet, or half a line


def outsiders(inode: Inode, ours: int, held: int) -> list[Outsider]:
    """Returns who locks a file, but for a lockd.

    Args:
        ours: the pid of the daemon.
        held: how many locks it says that it has on this file. Where its descriptors
            cannot be seen, as many OFD locks on the first byte are taken for its; it
            may have more, of which it does not tell everybody.
    """
    locks = locks_on(inode)
    if not locks:
        return []
    holders = _holders(inode)
    unseen = all(ours not in pids for pids in holders.values())
    hidden = not _can_be_seen(ours)
    found = []
    seen_ours = False
    for lock in locks:
        shape = _shape(lock)
        pids = holders.get(shape, []) if lock.pid <= 0 or lock.kind != "POSIX" else []
        if lock.kind == "OFD" and ours in pids and not lock.waits:
            # Several of one shape cannot be told apart: each is shown once for each
            # process that has one; the daemon's own is not.
            pids = [pid for pid in pids if pid != ours]
            if not seen_ours:
                seen_ours = True
                continue
        like_ours = lock.kind == "OFD" and lock.span == ("0", "0")
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
    """Tells whether we may look at the descriptors of a process."""
    try:
        os.listdir(f"/proc/{pid}/fdinfo")
    except OSError:
        return False
    return True


def _shape(lock: KernelLock) -> tuple[object, ...]:
    """Returns what tells locks on one file apart, if anything does."""
    return lock.kind, lock.mode, lock.span


def _holders(inode: Inode) -> dict[tuple[object, ...], list[int]]:
    """Finds the processes that have a locked file open, by the shape of the lock.

    Those of other users are seen by root only.
    """
    found: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # it has ended, or is not ours to see
            for lock in _locks_of(f"/proc/{pid}/fdinfo"):
                pids = found[_shape(lock)]
                if lock.inode == inode and int(pid) not in pids:
                    pids.append(int(pid))
    return found


def _locks_of(directory: str) -> Iterator[KernelLock]:
    for fd in os.listdir(directory):
        with suppress(OSError), open(f"{directory}/{fd}", encoding="ascii") as file:
            for line in file:
                # lock:	1: OFDLCK  ADVISORY  WRITE -1 00:29:2146 0 0
                if line.startswith("lock:") and (lock := _parse(line.split()[2:])):
                    yield lock
