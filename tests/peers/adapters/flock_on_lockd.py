"""A function like `fcntl.flock`, with lockd behind it, for libraries that lock files.

A file is a name in the lockspace `default`: its device and inode. Unlike flock(2), the
lock belongs to the number of the descriptor, and outlives it: unlock before you close.
"""

import errno
import os
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN
from typing import Any, Final

import lockd

__all__ = ["LOCK_EX", "LOCK_NB", "LOCK_SH", "LOCK_UN", "flock", "lockf"]

#: By descriptor. A forked child has none, as it does not hold what its parent holds.
_held: Final[dict[int, lockd.Lock]] = {}
os.register_at_fork(after_in_child=_held.clear)


def flock(file: Any, flags: int) -> None:
    """Locks or unlocks a file. A lock that the descriptor has is given back first.

    Raises:
        BlockingIOError: the file is locked, and `LOCK_NB` is among the flags.
    """
    descriptor = file if isinstance(file, int) else file.fileno()
    status = os.fstat(descriptor)
    if (taken := _held.pop(descriptor, None)) is not None:
        taken.release()
    if flags & LOCK_UN:
        return
    taken = lockd.lock(
        f"file {status.st_dev}:{status.st_ino}",
        mode=lockd.SHARED if flags & LOCK_SH else lockd.EXCLUSIVE,
    )
    if not taken.acquire(blocking=not flags & LOCK_NB):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    _held[descriptor] = taken


lockf = flock
