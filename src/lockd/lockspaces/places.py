"""Checks and creates directories that nobody else can replace.

A user who may write to a directory may rename its entries, and put another directory or
a symbolic link in their place. That user would then choose what the daemon creates or
locks there. So every directory from the root on must belong to root or to the daemon's
own user, and only the owner may write to it. In a directory with the sticky bit, such
as /tmp, others may add entries but not replace ours.

The code walks the path one name at a time, from the descriptor of one directory to the
next (path_resolution(7)). So it passes through exactly the directories that it checked.
"""

import errno
import functools
import grp
import os
import pwd
import stat
from contextlib import suppress
from typing import Final

from lockd.errors import ConfigError
from lockd.names import MAX_PATH_BYTES, quoted

STEP_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
"""Opens a name of any kind without touching the file (open(2))."""

ENTER_FLAGS: Final = STEP_FLAGS | os.O_DIRECTORY
"""Opens a directory on the way, and triggers its mount if it is of autofs."""

PRIVATE: Final = 0o700
"""The mode of a directory that only the daemon may use."""

OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
MAX_LINKS: Final = 40
"""The most symbolic links on the way; the kernel's own limit."""

SYSTEM_USER: Final = "lockd"
"""The user of the host's daemon. Root trusts the files of this user too."""


def make_directory(path: str, mode: int = PRIVATE) -> str:
    """Creates a directory, and all that are missing on the way to it.

    Args:
        path: the directory.
        mode: of each created directory, regardless of the umask.

    Returns:
        The path without symbolic links.

    Raises:
        ConfigError: it cannot be created, it is no directory, or somebody else could
            write to it or replace it.
    """
    return _Way(path, mode).place


def check_directory(path: str) -> str:
    """Checks a directory as `make_directory` does, but creates nothing.

    It cannot notice a file system that is full or read-only.
    """
    return _Way(path, None).place


def missing_directories(path: str) -> list[str]:
    """Returns the directories that `make_directory` would create, in this order."""
    return _Way(path, None).missing


def check_place(path: str, mode: int = PRIVATE) -> None:
    """Checks that `make_directory` can make a directory, but creates nothing.

    Raises:
        ConfigError: as `make_directory` says it.
    """
    missing = missing_directories(path)
    if not missing:
        return
    if not os.access(
        os.path.dirname(missing[0]), os.W_OK | os.X_OK, effective_ids=True
    ):
        raise _cannot_make(missing[0], PermissionError(errno.EACCES, ""))


class _Way:
    """The way from the root to a directory.

    Attributes:
        place: the path of the directory, without symbolic links.
        missing: the directories that did not exist.
    """

    def __init__(self, path: str, mode: int | None) -> None:
        self.place = "/"
        self.missing: list[str] = []
        self._path = path
        #: The mode of created directories; None: create nothing.
        self._mode = mode
        self._fd = _open_root()
        try:
            self._go()
        except OSError as error:
            raise _cannot(path, error) from None
        finally:
            os.close(self._fd)

    def _go(self) -> None:
        to_do = _names(self._path)
        if len(os.fsencode(self._path)) > MAX_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, "")
        self._check(os.fstat(self._fd), "/", is_last=not to_do)
        links = 0
        while to_do:
            target = self._step(to_do.pop(), is_last=len(to_do) == 0)
            if target is None:
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, "")
            to_do += _names(target)
            if target.startswith("/"):
                self._enter(_open_root(), "/")

    def _step(self, name: str, *, is_last: bool) -> str | None:
        """Enters a directory. For a symbolic link, returns its target instead."""
        place = os.path.normpath(os.path.join(self.place, name))
        fd = self._open(name, place)
        if fd is None:
            self.place = place
            return None
        try:
            status = os.fstat(fd)
            if stat.S_ISLNK(status.st_mode):
                self._check_owner(status, f"the symbolic link {quoted(place)}", place)
                return os.readlink("", dir_fd=fd)
            if not stat.S_ISDIR(status.st_mode):
                raise ConfigError(
                    f"{quoted(place)} is not a directory: name a directory, or a path "
                    "that does not exist yet"
                )
            # Check what autofs has mounted, not the mount point below it.
            self._enter(os.open(name, ENTER_FLAGS, dir_fd=self._fd), place)
            self._check(os.fstat(self._fd), place, is_last=is_last)
        finally:
            os.close(fd)
        return None

    def _open(self, name: str, place: str) -> int | None:
        """Opens a name, and creates a missing directory.

        Returns None if it is missing.
        """
        if self.missing and self._mode is None:
            self.missing.append(place)
            return None
        try:
            return os.open(name, STEP_FLAGS, dir_fd=self._fd)
        except FileNotFoundError:
            self.missing.append(place)
        if self._mode is None:
            return None
        try:
            os.mkdir(name, PRIVATE, dir_fd=self._fd)
            # The umask may have removed bits. Nobody can have replaced the directory
            # yet.
            os.chmod(name, self._mode, dir_fd=self._fd)
        except FileExistsError:
            pass  # somebody else created it: check it like any other
        except OSError as error:
            raise _cannot_make(place, error) from None
        return os.open(name, STEP_FLAGS, dir_fd=self._fd)

    def _enter(self, fd: int, place: str) -> None:
        os.close(self._fd)
        self._fd, self.place = fd, place

    def _check(self, status: os.stat_result, place: str, *, is_last: bool) -> None:
        """Raises if another user could replace the entries of a directory."""
        self._check_owner(status, f"the directory {quoted(place)}", place)
        writers = status.st_mode & OTHERS_WRITE
        if writers and (is_last or not _keeps_what_is_ours(status, writers)):
            raise ConfigError(
                f"others may write to the directory {quoted(place)} "
                f"(mode {stat.S_IMODE(status.st_mode):04o}){self._at_stake(place)}: "
                "run chmod go-w on it"
            )

    def _check_owner(self, status: os.stat_result, what: str, place: str) -> None:
        if status.st_uid not in trusted_users():
            raise ConfigError(
                f"{what} belongs to uid {status.st_uid}{self._at_stake(place)}: "
                "it must belong to root or to the daemon's own user"
            )

    def _at_stake(self, place: str) -> str:
        if os.path.normpath("/" + self._path.lstrip("/")) == place:
            return ""
        return f", who could exchange {quoted(self._path)}"


def _open_root() -> int:
    return os.open("/", ENTER_FLAGS)


def _names(path: str) -> list[str]:
    """Returns the names in a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _cannot(path: str, error: OSError) -> ConfigError:
    reason = os.strerror(error.errno or 0)
    return ConfigError(f"the directory {quoted(path)}: {reason}")


def _cannot_make(place: str, error: OSError) -> ConfigError:
    reason = os.strerror(error.errno or 0)
    step = "fix that, or choose another place"
    if error.errno == errno.EROFS:
        step = (
            "create it yourself and name it in ReadWritePaths= of lockd's unit, "
            "or choose a place where lockd may write"
        )
    elif error.errno in (errno.EACCES, errno.EPERM):
        step = "create it yourself, or choose a place where lockd may write"
    return ConfigError(
        f"the directory {quoted(place)} cannot be made ({reason}): {step}"
    )


def trusted_users() -> frozenset[int]:
    """Returns the users whose files we trust like our own."""
    return _trusted(os.geteuid())


@functools.cache
def _trusted(uid: int) -> frozenset[int]:
    # The owner of the root directory owns the host as we see it. In a user namespace
    # without root, this is the user who stands for all users outside.
    users = {0, uid, os.stat("/").st_uid}
    if uid == 0:
        with suppress(KeyError):
            users.add(pwd.getpwnam(SYSTEM_USER).pw_uid)
    return frozenset(users)


def _keeps_what_is_ours(status: os.stat_result, writers: int) -> bool:
    """Returns whether users who may write to a directory cannot replace our entries."""
    if status.st_mode & stat.S_ISVTX:
        return True
    # Many hosts give each user a group of his own, with write permission by default.
    return (
        writers == stat.S_IWGRP and os.geteuid() != 0 and _is_own_group(status.st_gid)
    )


def _is_own_group(gid: int) -> bool:
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return (
        user.pw_gid == gid
        and user.pw_name == group.gr_name
        and set(group.gr_mem) <= {user.pw_name}
    )
