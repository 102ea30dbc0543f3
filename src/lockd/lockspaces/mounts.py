"""Knows which paths lie on file systems that a network, or a process, can hold up.

Decided from /proc/self/mountinfo (proc_pid_mountinfo(5)) and not by statfs(2), which
itself hangs when the server does not answer.
"""

import os
import re
from typing import Final

_NETWORK_TYPES: Final = frozenset(
    [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "fuse",
        "fuseblk",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "smb3",
        "smbfs",
        "virtiofs",
    ]
)
_MAX_REMEMBERED: Final = 1024


class MountTable:
    """The mount points of this process's mount namespace.

    `fileno` is readable with POLLPRI when the kernel's table changed; call `refresh`
    then. Between the two a new mount may be taken for what was there before.
    """

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._types: dict[str, str] = {}
        self._remembered: dict[str, bool] = {}
        self.refresh()

    def fileno(self) -> int:
        """Returns the descriptor to poll."""
        return self._fd

    def refresh(self) -> None:
        """Reads the table anew."""
        self._remembered.clear()
        with open(
            self._fd,
            encoding="utf-8",
            errors="surrogateescape",
            newline="\n",  # the kernel escapes no carriage return in a mount point
            closefd=False,
        ) as file:
            file.seek(0)
            self._types = dict(map(_mount_of_line, file))

    def is_network(self, directory: str) -> bool:
        """Tells whether a directory, given by its path, lies on such a file system."""
        known = self._remembered.get(directory)
        if known is None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            known = self._remembered[directory] = self._look_up(directory)
        return known

    def type_of(self, directory: str) -> str | None:
        """Returns the type of the file system that a directory lies on."""
        path = directory
        while path not in self._types and path not in ("/", ""):
            path = os.path.dirname(path)
        return self._types.get(path)

    def close(self) -> None:
        """Closes the descriptor."""
        os.close(self._fd)

    def _look_up(self, directory: str) -> bool:
        kind = self.type_of(directory) or ""
        return kind in _NETWORK_TYPES or kind.startswith("fuse.")


def _mount_of_line(line: str) -> tuple[str, str]:
    """Returns mount point and type; later lines of one mount point lie on top."""
    before, _, after = line.partition(" - ")
    mount_point = before.split(" ")[4]
    return re.sub(r"\\([0-7]{3})", _character, mount_point), after.split(" ")[0]


def _character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 8))
