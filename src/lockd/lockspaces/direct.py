"""Resources that are files in any directory: disk images and block devices."""

import errno
import fcntl
import os
import stat
from typing import Final, NoReturn

from lockd.errors import DeniedError, InvalidRequestError, RequestError
from lockd.lockspaces import kernel
from lockd.lockspaces.base import Inode, LockFile
from lockd.lockspaces.files import OPEN_FLAGS, FileLockspace
from lockd.lockspaces.places import ENTER_FLAGS, STEP_FLAGS
from lockd.lockspaces.refusals import raise_busy, raise_refusal
from lockd.lockspaces.rights import READ, SEARCH, WRITE, User, may
from lockd.names import quoted
from lockd.terms import SHARED, Create, Mode, Outside

_READ_ONLY: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY)
"""Reasons to open a file for reading only."""


class DirectLockspace(FileLockspace):
    """Locks the file itself, under its canonical path. The file must exist.

    The lockspace walks the path one name at a time and follows no symbolic link. So the
    path alone says which file and which file systems it reaches. It checks the file
    through an O_PATH descriptor, and then opens that same file.

    A user who is no admin needs the rights to lock the file himself (fcntl(2)). A
    shared lock takes the right to read it, an exclusive lock the right to write to it.
    Both take the right to search every directory on the way.
    """

    kind = "direct"
    outside: Outside | None = "file"

    def heed(self, outside: Outside) -> None:
        """Sets which locks of other programs count; see `Lockspace.heed`."""
        self.outside = outside

    def path_of(self, resource: str) -> str:
        """Returns the path of a resource's file, which is its name."""
        return resource

    def anchor_is_slow(self, resource: str) -> bool:
        """Returns whether the file is on a file system that may not answer."""
        return self._shared.mounts.is_slow(resource)

    def check_user(self, resource: str, mode: Mode, user: User) -> None:
        """Raises `RequestError` unless a user could lock a file himself.

        Does not open it.
        """
        path = self.path_of(resource)
        try:
            os.close(self._reach(path, mode, user))
        except RequestError:  # it may also be an OSError
            raise
        except OSError as error:
            raise_refusal(error, path)

    def _open(
        self, path: str, mode: Mode, create: Create, user: User | None
    ) -> tuple[int, bool, bool]:
        fd = self._reach(path, mode, user)
        try:
            return _reopen(fd, mode), False, False
        finally:
            os.close(fd)

    def _reach(self, path: str, mode: Mode, user: User | None) -> int:
        """Checks the rights to a file. Returns an O_PATH descriptor of it."""
        if self._shared.mounts.is_our_own(path):
            raise DeniedError(
                f"lockd cannot see the file {quoted(path)}, because its unit gives it "
                "a private /tmp (PrivateTmp=): lock a file elsewhere, or a name"
            )
        fd = self._reach_directory(path, user)
        try:
            directory = os.fstat(fd)
            if (directory.st_dev, directory.st_ino) in self._shared.private:
                raise InvalidRequestError(
                    f"the file {quoted(path)} is lockd's own: lock another one"
                )
            _check_right(user, SEARCH, fd, directory, path)
            # The root directory has no name.
            file = os.open(os.path.basename(path) or ".", STEP_FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        try:
            # Check first: opening a device may start it (a tape, a watchdog).
            status = os.fstat(file)
            self._check_status(status, path)
            _check_right(user, READ if mode == SHARED else WRITE, file, status, path)
        except BaseException:
            os.close(file)
            raise
        return file

    def _reach_directory(self, path: str, user: User | None) -> int:
        fd = os.open("/", ENTER_FLAGS)
        try:
            for name in path.split("/")[1:-1]:
                if user is not None:
                    _check_right(user, SEARCH, fd, os.fstat(fd), path)
                try:
                    below = os.open(name, ENTER_FLAGS, dir_fd=fd)
                except NotADirectoryError as error:
                    _raise_no_directory(error, name, fd, path)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _leads_to(self, path: str, inode: Inode) -> bool:
        try:
            fd = self._reach_directory(path, None)
        except (OSError, InvalidRequestError):
            return False
        try:
            name = os.path.basename(path)
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError:
            return False
        finally:
            os.close(fd)
        return (status.st_dev, status.st_ino) == inode

    def _look(self, file: LockFile, path: str, mode: Mode) -> None:
        if self.outside == "byte":
            return
        try:
            found = kernel.look(
                file.fd,
                mode,
                is_device=file.is_device,
                is_remote=self.anchor_is_slow(path),
            )
        except OSError as error:
            raise_refusal(error, path)
        if found is not None:
            raise_busy(found, path)

    def _lock_whole(self, file: LockFile, path: str, mode: Mode) -> None:
        if file.marks:
            raise InvalidRequestError(
                f"the file {quoted(path)} cannot be locked whole, because somebody may "
                "execute it, or lockd may only read it: lock it without `whole`"
            )
        flocks = self._flocks(path)
        try:
            locked = kernel.lock_whole(file.fd, mode, file.mode, flocks=flocks)
            found = None if locked else kernel.look(file.fd, mode, is_remote=not flocks)
        except OSError as error:
            raise_refusal(error, path)
        if not locked:
            raise_busy(found or kernel.blocker(file.fd, mode, marks=False), path)
        file.mode, file.whole = mode, True

    def _flocks(self, path: str) -> bool:
        return not self.anchor_is_slow(path)

    def _is_whole(self, fd: int) -> bool:
        try:
            return kernel.is_whole(fd)
        except OSError:
            return False

    def _is_read_only(self, fd: int) -> bool:
        return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY

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


def _reopen(fd: int, mode: Mode) -> int:
    """Opens the file of a descriptor, even if its name now leads elsewhere.

    It is open for reading only if it cannot be open for writing, or if somebody may
    want to execute it meanwhile.
    """
    path, flags = f"/proc/self/fd/{fd}", OPEN_FLAGS & ~os.O_NOFOLLOW
    if not _is_executable(os.fstat(fd)):
        try:
            return os.open(path, flags | os.O_RDWR)
        except BlockingIOError:  # a lease; it may be one against writers only
            if mode != SHARED:
                raise
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
    return os.open(path, flags | os.O_RDONLY)


def _is_executable(status: os.stat_result) -> bool:
    bits = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & bits)


def _check_right(
    user: User | None, wanted: int, fd: int, status: os.stat_result, path: str
) -> None:
    if user is None or may(user, wanted, fd, status):
        return
    what = {
        READ: "may not read the file",
        WRITE: "may not write to the file",
        SEARCH: "may not look up the file",
    }
    step = (
        "ask for a shared lock, which needs only the right to read it"
        if wanted == WRITE
        else "lock a file that this user may use"
    )
    raise DeniedError(f"uid {user.uid} {what[wanted]} {quoted(path)}: {step}")


def _raise_no_directory(error: OSError, name: str, fd: int, path: str) -> NoReturn:
    if stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
        raise InvalidRequestError(
            f"the path {quoted(path)} leads through a symbolic link, {quoted(name)}: "
            "name the file by its canonical path (realpath)"
        ) from None
    raise error
