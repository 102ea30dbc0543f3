"""Knows which paths a network or another process can block.

It reads /proc/self/mountinfo (proc_pid_mountinfo(5)) because statfs(2) itself hangs
when a server does not answer.
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
"""The file systems that the kernel serves from memory or from disks of this host. All
others may depend on a network or on another process (FUSE); autofs may mount either."""

_OWN_ROOT: Final = re.compile(r"/systemd-private-[^/]+/tmp$")
"""The part of a file system that systemd mounts as a service's own /tmp or /var/tmp."""

_MAX_REMEMBERED: Final = 1024


class MountTable:
    """The mount points in the mount namespace of this process.

    `fileno` is readable with POLLPRI when the kernel's table changes; then call
    `refresh`. Until then the old table counts.
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
        """Reads the table again."""
        self._remembered.clear()
        with open(
            self._fd,
            encoding="utf-8",
            errors="surrogateescape",
            newline="\n",  # mount points may contain a carriage return
            closefd=False,
        ) as file:
            file.seek(0)
            mounts = [_mount_of_line(line) for line in file]
        self._types = {mount.point: mount.type for mount in mounts}
        self._own = tuple(m.point + "/" for m in mounts if _OWN_ROOT.search(m.root))

    def is_slow(self, path: str) -> bool:
        """Returns whether looking up a path may take long, or never end.

        Args:
            path: a path without symbolic links.
        """
        if path in self._types and not self._is_local(path):
            return True
        return self.is_slow_below(os.path.dirname(path))

    def is_slow_below(self, directory: str) -> bool:
        """Returns whether looking up a name in a directory may take long."""
        known = self._remembered.get(directory)
        if known is None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            known = self._remembered[directory] = self._look_up(directory)
        return known

    def is_our_own(self, path: str) -> bool:
        """Returns whether a path leads to the daemon's own /tmp (PrivateTmp=)."""
        return path.startswith(self._own)

    def type_of(self, directory: str) -> str | None:
        """Returns the file system type of a directory."""
        path = directory
        while path not in self._types and path not in ("/", ""):
            path = os.path.dirname(path)
        return self._types.get(path)

    def close(self) -> None:
        """Closes the descriptor."""
        os.close(self._fd)

    def _look_up(self, directory: str) -> bool:
        """Returns whether one of the file systems on the way is not local.

        The root file system counts only if it is the only one: without it nothing works
        anyway.
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
    """A line of the table. The last line of a mount point is the visible mount."""

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
