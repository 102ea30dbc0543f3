"""Resources that are files anywhere: disk images and block devices."""

import errno
import os
import stat
from typing import Final

from lockd.errors import InvalidRequestError
from lockd.lockspaces.files import OPEN_FLAGS, FileLockspace
from lockd.names import quoted
from lockd.terms import SHARED, Create, Mode

_READ_ONLY: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


class DirectLockspace(FileLockspace):
    """The file itself is locked, under its canonical path; it must exist."""

    kind = "direct"

    def path_of(self, resource: str) -> str:
        """Returns the path of a resource's file, which is its name."""
        return resource

    def anchor_is_slow(self, resource: str) -> bool:
        """Tells whether the file lies on a network file system."""
        return self._shared.mounts.is_network(os.path.dirname(resource))

    def _open(self, path: str, mode: Mode, create: Create) -> tuple[int, bool]:
        # Opening a device may set it off (a tape, a watchdog): look before touching.
        self._check_status(os.stat(path, follow_symlinks=False), path)
        try:
            return os.open(path, OPEN_FLAGS | os.O_RDWR), False
        except OSError as error:
            # F_RDLCK needs no more than read access (fcntl(2)).
            if mode != SHARED or error.errno not in _READ_ONLY:
                raise
        return os.open(path, OPEN_FLAGS | os.O_RDONLY), False

    def _check_status(self, status: os.stat_result, path: str) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFLNK:
            raise InvalidRequestError(
                f"the file {quoted(path)} is a symbolic link: resolve it first"
            )
        if kind not in (stat.S_IFREG, stat.S_IFBLK):
            raise InvalidRequestError(
                f"the file {quoted(path)} is neither a regular file nor a block "
                "device: name one"
            )
