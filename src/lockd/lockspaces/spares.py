"""Spare files: lock files that stay for a moment for the next holder of their lock.

To open, lock, check, remove and close a lock file takes six system calls. A lock is
often taken again at once. So a file that lockd made for a lock is put aside when its
last holder leaves: unlocked, with its descriptor open. The next holder only locks it
and looks at its path.

A spare file is locked by nobody, and promises nothing. Anybody may lock it meanwhile,
or remove, rename or replace it or its directory. So these laws hold:

- A spare file is locked before it is used. Then lockd looks whether its path still
  leads to it, as after it opened any other file. If not, it opens another file.
- A spare file is locked exclusively before it is removed. If somebody else has locked
  it, it is theirs now and stays, as always.
- One open file never serves two resources, even if they have the same path. After a
  crash, descriptors that were already dropped may come back (`InFlight.recover`). The
  successor would unlock and remove the file of one resource in the name of the other.
- A spare file is forgotten before it is closed: its number may soon be that of another
  file, which must be kept anew.

Few files stay, and not for long: they take descriptors and inodes, and keep their file
system busy. So all go at once when descriptors or space are short, when the mount table
changes, when a lockspace is replaced, before an upgrade, and at the end. None stays on
a file system that may not answer. If the daemon is killed, its successor finds them in
flight without a holder, and removes them. Without a service manager they stay behind,
like the files that were held: they do no harm.
"""

import os
import time
from collections.abc import Callable
from typing import Final

from lockd.lockspaces import kernel
from lockd.lockspaces.base import Inode, LockFile
from lockd.lockspaces.mounts import MountTable
from lockd.terms import EXCLUSIVE, ResourceKey

MOST: Final = 256
"""The most spare files. If there are so many, further files go at once. So names that
never come again cost nothing more, and names that do come again keep their files."""

SHARE: Final = 16
"""At most this part of all descriptors is for spare files: one in so many."""

STAYS: Final = 2.0
"""Seconds that a file stays at least, unless it has to give way."""

AT_ONCE: Final = 16
"""How many old files are removed in one step, which takes some 0.2 ms. Only if files
have to give way, all go at once."""


class Spares:
    """The spare files of a daemon, by path.

    Args:
        mounts: knows the file systems that may not answer.
        max_fd: how many descriptors there are.
        forget: called with the resource of each file that goes, before its descriptor
            is closed.
        clock: returns the time (seconds).
    """

    def __init__(
        self,
        mounts: MountTable,
        max_fd: float,
        forget: Callable[[ResourceKey], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mounts = mounts
        self._most = min(MOST, max_fd // SHARE)
        self._forget = forget
        self._clock = clock
        self._files: dict[str, LockFile] = {}

    def __len__(self) -> int:
        return len(self._files)

    def has_room(self, path: str) -> bool:
        """Returns whether a file may be put here."""
        return len(self._files) < self._most and path not in self._files

    def put(self, path: str, file: LockFile) -> None:
        """Takes over an unlocked file that lockd has made."""
        file.spare_since = self._clock()
        self._files[path] = file

    def put_back(self, path: str, file: LockFile) -> None:
        """Takes a file back that could not be locked. It stays no longer for that."""
        self._files[path] = file

    def take(self, path: str) -> LockFile | None:
        """Returns the spare file of a path, which the caller then owns."""
        return self._files.pop(path, None)

    def let_go(self, file: LockFile) -> None:
        """Closes a file that was taken, and does not remove it."""
        # In flight it is open for a while. It must not be locked there.
        unlock(file.fd)
        self._close(file)

    def remove(self, path: str, file: LockFile) -> None:
        """Removes and closes a file that was taken."""
        # Something may have been mounted over its directory.
        is_slow = self._mounts.is_slow_below(os.path.dirname(path))
        if not is_slow and remove_ours(file, path):
            self._close(file)
        else:
            self.let_go(file)

    def remove_at(self, path: str) -> None:
        """Removes the spare file of a path, if there is one."""
        file = self.take(path)
        if file is not None:
            self.remove(path, file)

    def remove_old(self) -> bool:
        """Removes some of the files that have stayed long enough.

        Returns whether there are more. Call it about once a second.
        """
        before = self._clock() - STAYS
        old = [path for path, x in self._files.items() if x.spare_since <= before]
        for path in old[:AT_ONCE]:
            self.remove_at(path)
        return len(old) > AT_ONCE

    def remove_all(self) -> bool:
        """Removes all files. Returns whether there were any."""
        any_left = bool(self._files)
        while self._files:
            path, file = self._files.popitem()
            self.remove(path, file)
        return any_left

    def _close(self, file: LockFile) -> None:
        self._forget(file.key)
        os.close(file.fd)


def leads_to(path: str, inode: Inode) -> bool:
    """Returns whether a path leads to a file."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == inode


def remove_ours(file: LockFile, path: str) -> bool:
    """Removes a file that we made, unless somebody else has locked or replaced it.

    If it returns False, our lock may be on it.
    """
    try:
        is_ours = file.mode == EXCLUSIVE
        if not (is_ours or kernel.lock(file.fd, EXCLUSIVE, file.mode, marks=False)):
            return False
        if not leads_to(path, file.inode):
            return False
        os.unlink(path)
    except OSError:
        return False  # the file stays behind, which harms no lock
    return True


def unlock(fd: int, *, flocks: bool = False) -> bool:
    """Drops our lock on a file. Returns whether that worked."""
    try:
        kernel.unlock(fd, flocks=flocks)
    except OSError:
        return False  # perhaps a network file system: closing unlocks too
    return True
