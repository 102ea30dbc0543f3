"""Locks an open file, and finds the locks of other programs on it.

lockd locks byte 0 for writing or reading. A write lock needs a file that is open for
writing, and nobody can execute that (ETXTBSY). So a file that is open for reading only
is *marked*, as QEMU does it, with read locks: byte 0 for a shared lock, bytes 0 and 1
for an exclusive one. Read locks do not conflict. So whoever marks looks afterwards for
others, and backs off if there are any: two at once may both back off, but never both
win. Whoever wants a shared lock looks for a mark on byte 1.

A *whole* lock covers every byte, and takes flock(2), too. So it keeps out whoever locks
any part of the file, whatever bytes that are.

The kernel has three kinds of locks, and none sees the others: byte ranges of fcntl(2),
flock(2), and leases. virtlockd and lockd lock byte 0, other programs other bytes
(`spans`). QEMU takes read locks even to write: only a search for *any* lock finds it.
"""

import fcntl
import os
import struct
from contextlib import suppress
from typing import Final, NamedTuple

from lockd.spans import QEMU_CHANGES, is_mark, locked_by, shows_writer
from lockd.terms import EXCLUSIVE, SHARED, Mode, OutsideHolder

FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid (0 for OFD)."""


def span(kind: int, start: int, length: int) -> bytes:
    """Returns the argument of fcntl(2) for a byte range; length 0 means to the end."""
    return FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


_BYTE: Final = {
    EXCLUSIVE: span(fcntl.F_WRLCK, 0, 1),
    SHARED: span(fcntl.F_RDLCK, 0, 1),
}
_MARKS: Final = {
    EXCLUSIVE: span(fcntl.F_RDLCK, 0, 2),
    SHARED: span(fcntl.F_RDLCK, 0, 1),
}
_MARK: Final = span(fcntl.F_WRLCK, 1, 1)
_MARK_OR_BYTE: Final = span(fcntl.F_WRLCK, 0, 2)
_NO_MARK: Final = span(fcntl.F_UNLCK, 1, 1)
_NOTHING: Final = span(fcntl.F_UNLCK, 0, 0)
_ALL_BUT_FIRST: Final = span(fcntl.F_UNLCK, 1, 0)

_ALL: Final = {
    EXCLUSIVE: span(fcntl.F_WRLCK, 0, 0),
    SHARED: span(fcntl.F_RDLCK, 0, 0),
}
_CHANGES: Final = tuple(span(fcntl.F_WRLCK, byte, 1) for byte in QEMU_CHANGES)

_UNLOCKED: Final = struct.pack("h", fcntl.F_UNLCK)

_FLOCKS: Final = {
    EXCLUSIVE: fcntl.LOCK_EX | fcntl.LOCK_NB,
    SHARED: fcntl.LOCK_SH | fcntl.LOCK_NB,
}


class Found(NamedTuple):
    """A lock that F_OFD_GETLK found.

    The pid is -1 for an OFD lock. It is meaningless if the lock is of another host.
    """

    mode: Mode
    start: int
    length: int
    pid: int

    @property
    def last(self) -> int | None:
        """The last byte; None if it reaches to the end of the file."""
        return self.start + self.length - 1 if self.length else None


def find(fd: int, wanted: bytes) -> Found | None:
    """Returns a lock of somebody else that excludes a byte range.

    Args:
        fd: the open file.
        wanted: the byte range (`span`).

    Raises:
        OSError: the file system cannot tell.
    """
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted)
    if answer.startswith(_UNLOCKED):
        return None
    kind, _, start, length, pid = FLOCK.unpack(answer)
    mode: Mode = EXCLUSIVE if kind == fcntl.F_WRLCK else SHARED
    return Found(mode, start, length, pid)


def lock(fd: int, mode: Mode, before: Mode | None, *, marks: bool) -> bool:
    """Locks an open file, or changes the mode of our lock on it.

    Args:
        fd: the open file.
        mode: the wanted mode.
        before: the mode in which it is locked now.
        marks: it is open for reading only.

    Returns:
        Whether it is locked. If not, somebody stands in the way (`blocker`), and our
        lock is as it was before.

    Raises:
        OSError: the file system cannot lock it.
    """
    wanted = _wanted(mode, marks=marks)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
    except BlockingIOError:
        return False
    if before == EXCLUSIVE:
        # Nobody else has it, so nobody stands in the way of `shared`.
        if marks:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _NO_MARK)
        return True
    locked = False
    try:
        locked = _find_other(fd, mode, marks=marks) is None
    finally:
        if not locked:
            drop = _NOTHING if before is None else _NO_MARK
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, drop)
    return locked


def blocker(fd: int, mode: Mode, *, marks: bool) -> OutsideHolder | None:
    """Returns who keeps us from locking a file; None if that cannot be told."""
    try:
        found = _find_other(fd, mode, marks=marks) or find(fd, _BYTE[mode])
        return None if found is None else describe(fd, found)
    except OSError:
        return None


def lock_whole(fd: int, mode: Mode, before: Mode | None, *, flocks: bool) -> bool:
    """Locks every byte of a file, of which the first one may be locked already.

    Args:
        fd: the file, open for writing.
        mode: the wanted mode.
        before: the mode in which the first byte is locked now.
        flocks: whether to lock it with flock(2), too.

    Returns:
        Whether it is locked. If not, somebody has locked a part of it (`look`), and our
        lock is as it was before.

    Raises:
        OSError: the file system cannot lock it.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _ALL[mode])
    except BlockingIOError:
        return False
    locked = False
    try:
        # Read locks do not conflict with a mark, or with a QEMU that writes.
        alone = mode == EXCLUSIVE or not (
            _find_other(fd, mode, marks=False) or _find_change(fd)
        )
        locked = alone and (not flocks or _flock(fd, mode))
    finally:
        if not locked:
            first = _NOTHING if before is None else _BYTE[before]
            # Another reader may keep an anchor without holders from going back up.
            with suppress(BlockingIOError):
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, first)
            narrow(fd, flocks=flocks)
    return locked


def share_whole(fd: int) -> None:
    """Makes a whole exclusive lock a shared one.

    It keeps an exclusive lock of flock(2): that cannot change its mode without a gap.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _ALL[SHARED])


def narrow(fd: int, *, flocks: bool) -> None:
    """Drops our lock on all bytes but the first, and that of flock(2)."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _ALL_BUT_FIRST)
    if flocks:
        fcntl.flock(fd, fcntl.LOCK_UN)


def is_whole(fd: int) -> bool:
    """Returns whether we have a lock on a file that `narrow` would drop.

    Raises:
        OSError: the kernel cannot be asked.
    """
    return any(words[2] == "FLOCK" or words[-1] == "EOF" for words in _own_locks(fd))


def has_lock(fd: int) -> bool:
    """Returns whether an open file has a lock of its own.

    Returns True if the information cannot be read.
    """
    try:
        return bool(_own_locks(fd))
    except OSError:
        return True


def _own_locks(fd: int) -> list[list[str]]:
    """Returns the words of each lock of this open file (proc_pid_fdinfo(5)).

    lock: 1: OFDLCK  ADVISORY  WRITE -1 00:29:2146 0 EOF
    """
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return [line.split() for line in file if line.startswith("lock:")]


def lock_again(fd: int, mode: Mode, *, marks: bool) -> None:
    """Repeats the lock of a predecessor, which changes nothing if it is still there.

    Somebody who wants the file may have marked it for a moment, so this looks for
    nobody.

    Raises:
        OSError: it was not there, and somebody else has locked the file.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _wanted(mode, marks=marks))


def unlock(fd: int, *, flocks: bool) -> None:
    """Drops our lock, and that of flock(2) if there is one.

    Raises:
        OSError: perhaps it is on a network file system; closing drops it too.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _NOTHING)
    if flocks:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _wanted(mode: Mode, *, marks: bool) -> bytes:
    return (_MARKS if marks else _BYTE)[mode]


def _find_other(fd: int, mode: Mode, *, marks: bool) -> Found | None:
    """Returns who excludes a mode although the kernel grants our lock."""
    if mode == EXCLUSIVE:
        return find(fd, _MARK_OR_BYTE) if marks else None
    found = find(fd, _MARK)
    # Somebody who reads the whole file marks nothing. It hides no mark: who marks sees
    # it and backs off.
    return found if found is not None and is_mark(found.last) else None


def look(
    fd: int, mode: Mode, *, is_device: bool = False, is_remote: bool = False
) -> OutsideHolder | None:
    """Returns a program that has locked any part of a file in the way of a mode.

    Every lock is in the way of `exclusive`. A write lock, an exclusive flock(2), and a
    QEMU that writes are in the way of `shared`.

    Args:
        fd: the open file. Our own locks through it do not count.
        mode: the mode that somebody wants.
        is_device: it is a block device. udev takes a shared flock(2) there whenever
            somebody has closed it, and skips its work while somebody has an exclusive
            one. So only an exclusive flock(2) counts, and we take none.
        is_remote: it is on a file system where flock(2) may be a lock of fcntl(2), and
            so ours.

    Raises:
        OSError: the file system cannot tell.
    """
    found = find(fd, _ALL[mode])
    if found is None and mode == SHARED:
        found = _find_change(fd)
    if found is not None:
        return describe(fd, found)
    return None if is_remote else _flocked(fd, SHARED if is_device else mode)


def describe(fd: int, found: Found) -> OutsideHolder:
    """Returns who has a lock, as far as the kernel and its bytes tell."""
    by = locked_by(found.start, found.last)
    # QEMU only takes read locks.
    writes = is_mark(found.last) or (by == "qemu" and _find_change(fd))
    mode = EXCLUSIVE if writes else found.mode
    place = by, found.start, found.length or None
    if found.pid <= 0:
        return OutsideHolder(mode, None, None, None, *place)
    return OutsideHolder(mode, found.pid, command_of(found.pid), None, *place)


def _find_change(fd: int) -> Found | None:
    """Returns the lock of a QEMU that writes to the file."""
    for change in _CHANGES:
        found = find(fd, change)
        # A reader may lock the whole file, and those bytes with it. It does not hide a
        # QEMU that writes: that was there before, and so is found first.
        if found is not None and shows_writer(found.start, found.last):
            return found
    return None


def _flocked(fd: int, mode: Mode) -> OutsideHolder | None:
    """Takes a lock of flock(2) and drops it: there is no other way to ask."""
    if _try_flock(fd, mode):
        return None
    shared = mode == EXCLUSIVE and _try_flock(fd, SHARED)
    return OutsideHolder(SHARED if shared else EXCLUSIVE, by="flock")


def _try_flock(fd: int, mode: Mode) -> bool:
    if not _flock(fd, mode):
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def _flock(fd: int, mode: Mode) -> bool:
    try:
        fcntl.flock(fd, _FLOCKS[mode])
    except BlockingIOError:
        return False
    return True


def command_of(pid: int) -> str | None:
    """Returns the name of a process; None if it cannot be read."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return None
