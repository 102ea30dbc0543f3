"""Directories that nobody else can exchange: looked at, or made if they are missing.

Whoever may write to a directory may rename what is in it, and put something else in
its place: another directory, or a symbolic link to one. What the daemon makes or locks
behind that is then what somebody else chose. So everything on the way from the root
must belong to root or to the daemon's own user, and be writable for nobody else; with
the sticky bit, as in /tmp, others may make things beside ours, but not exchange them.

The way is gone one name at a time, from the descriptor of one directory to the next
(path_resolution(7)), so that what was looked at is what is gone through.
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
"""Opens whatever has a name, without touching it (open(2))."""

ENTER_FLAGS: Final = STEP_FLAGS | os.O_DIRECTORY
"""Opens a directory to go on from, and has it mounted if it waits for that (autofs)."""

PRIVATE: Final = 0o700
"""The mode of a directory that is nobody else's business."""

OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
MAX_LINKS: Final = 40
"""Symbolic links on the way, as many as the kernel follows."""

SYSTEM_USER: Final = "lockd"
"""Under whom the host's daemon runs. What is his is ours, for root, too."""


def make_directory(path: str, mode: int = PRIVATE) -> str:
    """Makes a directory that may be missing, and all that is missing on the way to it.

    Args:
        mode: of each one that is made, whatever the umask.

    Returns:
        The path without symbolic links.

    Raises:
        ConfigError: it cannot be made, it is no directory, or somebody else could
            write to it or exchange it.
    """
    return _Way(path, mode).place


def check_directory(path: str) -> str:
    """Does the same as `make_directory` without making anything.

    What cannot be seen before it is tried is not found: a file system that is full, or
    read-only.
    """
    return _Way(path, None).place


def missing_directories(path: str) -> list[str]:
    """Returns which directories `make_directory` would make, the first one first."""
    return _Way(path, None).missing


class _Way:
    """The way from the root to a directory.

    Attributes:
        place: where it ends, without symbolic links.
        missing: the directories on it that were not there.
    """

    def __init__(self, path: str, mode: int | None) -> None:
        self.place = "/"
        self.missing: list[str] = []
        self._path = path
        #: Of what is made; None where nothing is.
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
        """Goes on to a name; if that is a symbolic link, returns where it leads."""
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
                    f"{quoted(place)} is not a directory: name one, or a path where "
                    "nothing is yet"
                )
            # What is mounted only now (autofs) is what has to be looked at.
            self._enter(os.open(name, ENTER_FLAGS, dir_fd=self._fd), place)
            self._check(os.fstat(self._fd), place, is_last=is_last)
        finally:
            os.close(fd)
        return None

    def _open(self, name: str, place: str) -> int | None:
        """Opens what has a name, after making it if it is missing; None: it is not."""
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
            # The umask may have taken what is needed. Nobody can have exchanged it.
            os.chmod(name, self._mode, dir_fd=self._fd)
        except FileExistsError:
            pass  # somebody was faster: it is looked at as any other
        except OSError as error:
            raise _cannot_make(place, error) from None
        return os.open(name, STEP_FLAGS, dir_fd=self._fd)

    def _enter(self, fd: int, place: str) -> None:
        os.close(self._fd)
        self._fd, self.place = fd, place

    def _check(self, status: os.stat_result, place: str, *, is_last: bool) -> None:
        """Raises if somebody else could exchange what is in a directory."""
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
                "it must be root's or the daemon's own user's"
            )

    def _at_stake(self, place: str) -> str:
        if os.path.normpath("/" + self._path.lstrip("/")) == place:
            return ""
        return f", who could exchange {quoted(self._path)}"


def _open_root() -> int:
    return os.open("/", ENTER_FLAGS)


def _names(path: str) -> list[str]:
    """Returns the names that a path is made of, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _cannot(path: str, error: OSError) -> ConfigError:
    reason = os.strerror(error.errno or 0)
    return ConfigError(f"the directory {quoted(path)}: {reason}")


def _cannot_make(place: str, error: OSError) -> ConfigError:
    reason = os.strerror(error.errno or 0)
    step = "mend that, or choose another place"
    if error.errno == errno.EROFS:
        step = (
            "make it yourself and name it in ReadWritePaths= of lockd's unit, "
            "or choose a place where lockd may write"
        )
    elif error.errno in (errno.EACCES, errno.EPERM):
        step = "make it yourself, or choose a place where lockd may write"
    return ConfigError(
        f"the directory {quoted(place)} cannot be made ({reason}): {step}"
    )


def trusted_users() -> frozenset[int]:
    """Returns whose files are as good as ours."""
    return _trusted(os.geteuid())


@functools.cache
def _trusted(uid: int) -> frozenset[int]:
    # Whoever owns the root directory owns the host as we see it: in a user namespace
    # without root, that is who stands for all who are not in it.
    users = {0, uid, os.stat("/").st_uid}
    if uid == 0:
        with suppress(KeyError):
            users.add(pwd.getpwnam(SYSTEM_USER).pw_uid)
    return frozenset(users)


def _keeps_what_is_ours(status: os.stat_result, writers: int) -> bool:
    """Tells whether those who may write to a directory cannot exchange what is ours."""
    if status.st_mode & stat.S_ISVTX:
        return True
    # Many hosts give each user a group for himself, and let it write all that he makes.
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
