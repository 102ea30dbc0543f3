"""The state that all file lockspaces of a daemon share."""

import math
import time
from collections.abc import Callable

from lockd.lockspaces.base import Inode
from lockd.lockspaces.mounts import MountTable
from lockd.lockspaces.spares import Spares
from lockd.terms import ResourceKey


class OpenFiles:
    """The state that all file lockspaces of a daemon share.

    Args:
        max_fd: from this descriptor on, spare files give way, and without any of them
            no lock file is opened.
        forget: called with the resource of each spare file that goes (`Spares`).
        clock: returns the time (seconds).

    Attributes:
        by_inode: the locked files and their resources. Hard links, bind mounts or two
            lockspaces on one directory give a file two names. The kernel would only say
            that the file is locked, but not by whom.
        mounts: knows the file systems that may not answer.
        private: the daemon's own directories. No file in them may be locked by path.
        spares: the files that stay for their next holder.
    """

    def __init__(
        self,
        max_fd: float = math.inf,
        forget: Callable[[ResourceKey], None] = lambda key: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_fd = max_fd
        self.by_inode: dict[Inode, ResourceKey] = {}
        self.mounts = MountTable()
        self.private: set[Inode] = set()
        self.spares = Spares(self.mounts, max_fd, forget, clock)

    def look_at_mounts(self) -> None:
        """Reads the mount table again. Spare files keep no file system busy then."""
        self.mounts.refresh()
        self.spares.remove_all()
