"""Knows which paths a network, or another process, can hold up.

Decided from /proc/self/mountinfo (proc_pid_mountinfo(5)) and not by statfs(2), which
itself hangs when the server does not answer.
"""

import os
import re
from typing import Final, NamedTuple

_LOCAL_TYPES: Final = frozenset(
    [
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "jfs"),
        *("reiserfs", "nilfs2", "minix", "ntfs3", "exfat", "vfat", "msdos", "hfsplus"),
        *("iso9660", "udf", "squashfs", "erofs", "cramfs", "romfs", "zonefs"),
        *("overlay", "aufs", "rootfs", "tmpfs", "ramfs", "hugetlbfs", "devtmpfs"),
        *("proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "configfs"),
        *("debugfs", "tracefs", "securityfs", "efivarfs", "pstore", "bpf", "nsfs"),
        *("binfmt_misc", "nfsd", "rpc_pipefs", "fusectl", "selinuxfs"),
    ]
)
"""What the kernel serves by itself, from memory or disks of this host. A network, or
another process (FUSE), may be behind everything else; behind autofs, whatever comes."""

_OWN_ROOT: Final = re.compile(r"/systemd-private-[^/]+/tmp$")
"""Which part of a file system systemd mounts as a service's own /tmp or /var/tmp."""

_MAX_REMEMBERED: Final = 1024


class MountTable:
    """The mount points of this process's mount namespace.

    `fileno` is readable with POLLPRI when the kernel's table changed; call `refresh`
    then. Between the two a new mount may be taken for what was there before.
    """

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._types: dict[str, str] = {}
        self._own: tuple[str, ...] = ()
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
            mounts = [_mount_of_line(line) for line in file]
        self._types = {mount.point: mount.type for mount in mounts}
        self._own = tuple(m.point + "/" for m in mounts if _OWN_ROOT.search(m.root))

    def is_slow(self, path: str) -> bool:
        """Tells whether looking up a path may take long, or for ever.

        Args:
            path: without symbolic links, so that where it leads is what it says.
        """
        if path in self._types and not self._is_local(path):
            return True
        return self.is_slow_below(os.path.dirname(path))

    def is_slow_below(self, directory: str) -> bool:
        """Tells the same of what is in a directory."""
        known = self._remembered.get(directory)
        if known is None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            known = self._remembered[directory] = self._look_up(directory)
        return known

    def is_our_own(self, path: str) -> bool:
        """Tells whether a path leads to a /tmp that nobody else sees: PrivateTmp=."""
        return path.startswith(self._own)

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
        """Asks every file system that the way goes through.

        But for that of the root, without which nothing goes on anyway, unless it is the
        only one.
        """
        path, mounts = directory, []
        while path not in ("/", ""):
            if path in self._types:
                mounts.append(path)
            path = os.path.dirname(path)
        return not all(map(self._is_local, mounts or ["/"]))

    def _is_local(self, mount_point: str) -> bool:
        return self._types.get(mount_point) in _LOCAL_TYPES


class _Mount(NamedTuple):
    """A line of the table; later lines of one mount point lie on top."""

    root: str
    point: str
    type: str


def _mount_of_line(line: str) -> _Mount:
    before, _, after = line.partition(" - ")
    root, point = before.split(" ")[3:5]
    point = re.sub(r"\\([0-7]{3})", _character, point)
    return _Mount(root, point, after.split(" ")[0])


def _character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 8))
