"""Opens, locks, checks and closes lock files.

An anchor is an open file description lock (fcntl_locking(2), F_OFD_SETLK) on byte 0,
length 1. virtlockd locks the same byte, and its POSIX locks conflict with ours. The
lock belongs to the open file, not to the process: closing another descriptor of the
file does not drop it. A child that inherited the descriptor would keep it, so every
descriptor is O_CLOEXEC.

Somebody may give a path to another file at any moment. So the lock only counts if the
path still leads to the locked file after locking. Otherwise opening starts over.

If lockd has just made the file on a local file system, fstat(2) is enough: a file that
was removed or replaced since then has no link left. Only a rename would go unnoticed.
Within these microseconds, root or the daemon's own user would have to do that, because
nobody else may change the directory. On a network file system a file may be removed by
renaming it, so lockd looks at the path there.

lockd never writes to or truncates a file. It removes only a file that it created, or
that is `temporary`. It does so while it holds the file exclusively: then nobody else
relies on it. A file that it created may stay for a moment (`spares`).
"""

import errno
import os
import stat
import time
from contextlib import suppress
from typing import Final

from lockd.errors import (
    AnchorError,
    BusyError,
    InvalidRequestError,
    RequestError,
)
from lockd.lockspaces import kernel
from lockd.lockspaces.base import NOT_READ, Inode, LockFile, Lockspace
from lockd.lockspaces.open_files import OpenFiles
from lockd.lockspaces.refusals import raise_busy, raise_refusal
from lockd.lockspaces.rights import User
from lockd.lockspaces.spares import leads_to, remove_ours, unlock
from lockd.names import quoted
from lockd.terms import (
    EXCLUSIVE,
    SHARED,
    TEMPORARY,
    Create,
    Mode,
    OnDisconnect,
    OutsideHolder,
    key_of,
)

OPEN_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
"""The flags for every lock file. O_NONBLOCK: a FIFO must not block the daemon."""

MAX_RACES: Final = 10
"""How often a file may be replaced during opening before lockd gives up."""

PATIENCE: Final = 10.0
"""Seconds after a start in which the holder of a missing file should release it. A
release that a killed daemon did not finish comes first of all, so this is plenty."""

NO_ROOM: Final = errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM
"""Reasons why a file cannot be opened that the spare files may cause."""


class FileLockspace(Lockspace):
    """The base of lockspaces whose anchors are files."""

    def __init__(
        self,
        name: str,
        open_files: OpenFiles,
        *,
        on_disconnect: OnDisconnect = "release",
    ) -> None:
        super().__init__(name, on_disconnect=on_disconnect)
        self._shared = open_files
        self._files: dict[str, LockFile] = {}
        self._to_close: list[int] = []

    def resource_of_file(self, inode: Inode) -> str | None:
        """Returns the resource whose open anchor is a file, if any."""
        key = self._shared.by_inode.get(inode)
        return key.resource if key and key.lockspace == self.name else None

    def path_of(self, resource: str) -> str:
        """Returns the path of the file that anchors a resource."""
        raise NotImplementedError

    def _open(
        self, path: str, mode: Mode, create: Create, user: User | None
    ) -> tuple[int, bool, bool]:
        """Opens a file.

        Returns:
            A descriptor; whether lockd must remove the file; whether lockd has just
            made it on a local file system.
        """
        raise NotImplementedError

    def _open_again(self, path: str, mode: Mode, create: Create) -> LockFile | None:
        """Returns the spare file of a path, locked; None if another must be opened."""
        return None

    def _check_status(self, status: os.stat_result, path: str) -> None:
        """Raises if the opened file must not be locked here."""
        raise NotImplementedError

    def _is_read_only(self, fd: int) -> bool:
        """Returns whether a file is open for reading only."""
        return False

    def _is_whole(self, fd: int) -> bool:
        """Returns whether every byte of a file is locked (`kernel.is_whole`)."""
        return False

    def _file_of(self, fd: int, status: os.stat_result, *, made: bool) -> LockFile:
        return LockFile(
            fd,
            (status.st_dev, status.st_ino),
            made=made,
            is_device=stat.S_ISBLK(status.st_mode),
            marks=self._is_read_only(fd),
        )

    def _leads_to(self, path: str, inode: Inode) -> bool:
        """Returns whether a path leads to a file."""
        return leads_to(path, inode)

    def open_anchor(
        self,
        resource: str,
        mode: Mode,
        *,
        create: Create,
        in_use: bool,
        user: User | None = None,
        only_byte: bool = False,
        whole: bool = False,
    ) -> LockFile:
        """Locks the file of a resource; see `Lockspace.open_anchor`."""
        # The command of a holder may have locked parts of the file itself.
        looks = not (in_use or only_byte)
        path = self.path_of(resource)
        file = self._files.get(resource)
        if file is None:
            spare = self._open_again(path, mode, create)
            if spare is not None:
                return self._enter(resource, spare)
        else:
            if self._leads_to(path, file.inode):
                if user is not None:
                    self.check_user(resource, mode, user)
                file.unsure_until = 0.0
                if create == TEMPORARY:
                    file.may_stay = False
                if file.mode is None:  # a predecessor's, that nobody held
                    self._check_alias(file, path, mode)
                self._relock(
                    *(file, path, mode), in_use=in_use, looks=looks, whole=whole
                )
                return self._enter(resource, file)
            if in_use and mode == file.mode and time.monotonic() < file.unsure_until:
                # Perhaps a predecessor removed it and was killed before it could record
                # that. The holder will ask again to release it, and another owner can
                # wait for that. The holder itself, which converts, has not released it.
                raise BusyError(f"the file {quoted(path)} no longer exists")
            if in_use:
                raise AnchorError(
                    f"the file {quoted(path)} was exchanged or removed while locked: "
                    "release it, and find out which program did that"
                )
        new = self._open_new(
            *(resource, path, mode, create, user), looks=looks, whole=whole
        )
        if file is not None:
            self._leave(file)
            os.close(file.fd)
        return new

    def _open_new(
        self,
        resource: str,
        path: str,
        mode: Mode,
        create: Create,
        user: User | None,
        *,
        looks: bool,
        whole: bool,
    ) -> LockFile:
        for _ in range(MAX_RACES):
            file = self._open_file(path, mode, create, user)
            try:
                self._check_alias(file, path, mode)
                self._lock(file, path, mode)
                if self._is_there(file, path):
                    if whole:
                        self._lock_whole(file, path, mode)
                    elif looks:
                        self._look(file, path, mode)
                    file.key = key_of((self.name, resource))
                    return self._enter(resource, file)
            except BaseException:
                self._discard(file, path)
                raise
            os.close(file.fd)
        raise AnchorError(
            f"the file {quoted(path)} is exchanged again and again: "
            "find out which program does that"
        )

    def _enter(self, resource: str, file: LockFile) -> LockFile:
        self._files[resource] = file
        self._shared.by_inode[file.inode] = file.key
        return file

    def _leave(self, file: LockFile) -> None:
        if self._shared.by_inode.get(file.inode) == file.key:
            del self._shared.by_inode[file.inode]

    def _is_there(self, file: LockFile, path: str) -> bool:
        """Returns whether the path leads to a file that was just locked."""
        if file.inode != NOT_READ:
            return self._leads_to(path, file.inode)
        try:
            status = os.fstat(file.fd)
        except OSError as error:
            raise_refusal(error, path)
        file.inode = status.st_dev, status.st_ino
        self._check_status(status, path)
        return status.st_nlink > 0

    def _open_file(
        self, path: str, mode: Mode, create: Create, user: User | None
    ) -> LockFile:
        try:
            fd, made, is_fresh = self._open(path, mode, create, user)
            if not is_fresh:
                status = _status_or_close(fd)
        except RequestError:  # it may also be an OSError
            raise
        except BlockingIOError:  # only a lease makes open(2) fail so
            raise BusyError(
                f"the file {quoted(path)} is under a lease",
                {"outside": OutsideHolder(EXCLUSIVE, by="lease")},
            ) from None
        except OSError as error:
            if error.errno in NO_ROOM and self._could_make_room(path):
                return self._open_file(path, mode, create, user)
            raise_refusal(error, path)
        if is_fresh:
            file = LockFile(fd, NOT_READ, made=True)
            file.may_stay = create != TEMPORARY
        else:
            file = self._file_of(fd, status, made=made)
        try:
            if not is_fresh:
                self._check_status(status, path)
            if fd >= self._shared.max_fd and not self._could_make_room(path):
                raise_refusal(OSError(errno.EMFILE, ""), path)
        except RequestError:
            self._discard(file, path)
            raise
        return file

    def _could_make_room(self, path: str) -> bool:
        # A file that may be slow is opened in a thread, and the spare files are not
        # for threads.
        return not self.anchor_is_slow(path) and self.make_room()

    def _check_alias(self, file: LockFile, path: str, mode: Mode) -> None:
        other = self._shared.by_inode.get(file.inode)
        if other is None:
            return
        # Do not name the other lockspace: the client may have no right to see it.
        name = "in another lockspace"
        if other.lockspace == self.name:
            name = quoted(other.resource)
        raise BusyError(
            f"the file {quoted(path)} is locked under another name, {name}: "
            "use that name",
            {"outside": OutsideHolder(mode, key=other)},
        )

    def _look(self, file: LockFile, path: str, mode: Mode) -> None:
        """Raises if a program outside lockd has locked any part of a file."""

    def _lock_whole(self, file: LockFile, path: str, mode: Mode) -> None:
        """Locks every byte of a file, or raises if that cannot be."""
        raise NotImplementedError

    def _relock(
        self,
        file: LockFile,
        path: str,
        mode: Mode,
        *,
        in_use: bool,
        looks: bool,
        whole: bool,
    ) -> None:
        """Changes the lock of an open anchor."""
        if file.whole:
            if mode == file.mode and (in_use or whole):
                return
            if in_use and mode == SHARED:
                self._share_whole(file, path)
                return
            # Its last holder who wanted that has left.
            self._narrow(file, path)
        if whole:
            self._lock_whole(file, path, mode)
            return
        if looks:
            self._look(file, path, mode)
        self._lock(file, path, mode)

    def _share_whole(self, file: LockFile, path: str) -> None:
        try:
            kernel.share_whole(file.fd)
        except OSError as error:
            raise_refusal(error, path)
        file.mode = SHARED

    def _narrow(self, file: LockFile, path: str) -> None:
        """Locks only the first byte of a file that was locked whole."""
        try:
            kernel.narrow(file.fd, flocks=self._flocks(path))
        except OSError as error:
            raise_refusal(error, path)
        file.whole = False

    def _flocks(self, path: str) -> bool:
        """Returns whether a whole lock is one of flock(2), too."""
        return False

    def _lock(self, file: LockFile, path: str, mode: Mode) -> None:
        if file.mode == mode:
            return
        try:
            locked = kernel.lock(file.fd, mode, file.mode, marks=file.marks)
        except OSError as error:
            raise_refusal(error, path)
        if not locked:
            raise_busy(kernel.blocker(file.fd, mode, marks=file.marks), path)
        file.mode = mode

    def close_anchor(self, resource: str) -> None:
        """Unlocks the file of a resource. Removes it if lockd made it for the lock.

        Unlocking and removing are done on return. `finish` closes the descriptor later,
        because closing costs most. A slow file is closed at once: this code then runs
        in a thread, and `finish` in the loop.
        """
        file = self._files.pop(resource, None)
        if file is None:
            return  # it could not be adopted from the predecessor
        free = file.made and remove_ours(file, self.path_of(resource))
        self._leave(file)
        flocks = file.whole and self._flocks(self.path_of(resource))
        if (free or unlock(file.fd, flocks=flocks)) and not self.anchor_is_slow(
            resource
        ):
            self._to_close.append(file.fd)
        else:
            os.close(file.fd)

    @property
    def anchor_count(self) -> int:
        """How many anchors are open."""
        return len(self._files)

    def open_resources(self) -> list[str]:
        """Returns the resources with open anchors."""
        return list(self._files)

    def dump_file(self, resource: str) -> tuple[int, bool]:
        """Returns what `adopt_file` needs: the descriptor, and whether we made it."""
        file = self._files[resource]
        return file.fd, file.made

    def adopt_file(
        self, resource: str, fd: int, *, made: bool, mode: Mode | None
    ) -> None:
        """Adopts the anchor of a predecessor of this daemon.

        Raises:
            RequestError: the descriptor does not lock the file of this resource.
        """
        path = self.path_of(resource)
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise_refusal(error, path)
        # The predecessor checked everything else before locking. A link that somebody
        # makes since then must not cost the holder its lock.
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise InvalidRequestError(f"descriptor {fd} is not {quoted(path)}")
        file = self._file_of(fd, status, made=made)
        file.whole = self._is_whole(fd)
        if made:
            file.unsure_until = time.monotonic() + PATIENCE
        if mode is not None:
            try:
                kernel.lock_again(fd, mode, marks=file.marks)
            except OSError as error:
                raise_refusal(error, path)
            file.mode = mode
        file.key = key_of((self.name, resource))
        self._files[resource] = file
        # Of a spare one, somebody may hold the same file under another name.
        if mode is not None:
            self._shared.by_inode[file.inode] = file.key

    def disown_file(self, resource: str) -> None:
        """Forgets an open anchor, but leaves its file open and locked."""
        self._leave(self._files.pop(resource))

    def finish(self) -> None:
        """Closes the descriptors of closed anchors."""
        while self._to_close:
            os.close(self._to_close.pop())

    def make_room(self) -> bool:
        """Removes the spare files of all lockspaces; see `Lockspace.make_room`."""
        return self._shared.spares.remove_all()

    def retire(self) -> None:
        """Lets go of what no holder needs; see `Lockspace.retire`."""
        self.finish()
        self.make_room()

    def _discard(self, file: LockFile, path: str) -> None:
        """Closes a file that could not be locked, and removes it if it is ours."""
        if file.made:
            if file.inode == NOT_READ:
                with suppress(OSError):
                    status = os.fstat(file.fd)
                    file.inode = status.st_dev, status.st_ino
            remove_ours(file, path)
        os.close(file.fd)


def _status_or_close(fd: int) -> os.stat_result:
    try:
        return os.fstat(fd)
    except OSError:  # ESTALE, EIO: a network file system
        os.close(fd)
        raise
