"""Owns the lock files: opens, locks, checks and closes every descriptor of an anchor.

An anchor is an open file description lock (fcntl_locking(2), F_OFD_SETLK) on byte 0,
length 1: the byte that virtlockd locks, and which conflicts with its POSIX locks. It
belongs to the open file, not to the process, so closing another descriptor of the same
file does not drop it; duplicating the descriptor into a child would keep it, so every
one is O_CLOEXEC.

A path is only a name, and can be given to another file at any moment. Therefore the
lock counts only if, after it was taken, the path still leads to the locked file; else
somebody was faster with a new file, and everything starts over.

Files are never written to, never truncated, and removed only by who made them, while
held exclusively, so that nobody else can be about to trust them.
"""

import errno
import fcntl
import math
import os
import stat
import struct
from collections.abc import Callable
from typing import Final, NoReturn

from lockd.errors import (
    AnchorError,
    BusyError,
    DeniedError,
    InvalidRequestError,
    NotFoundError,
    RequestError,
    UnavailableError,
)
from lockd.lockspaces.base import Inode, LockFile, Lockspace
from lockd.lockspaces.mounts import MountTable
from lockd.lockspaces.rights import User
from lockd.names import quoted
from lockd.terms import (
    EXCLUSIVE,
    SHARED,
    Create,
    Mode,
    OnDisconnect,
    OutsideHolder,
    ResourceKey,
)

OPEN_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
"""How every lock file is opened. O_NONBLOCK: a FIFO must not hold up the daemon."""

MAX_RACES: Final = 10
"""How often a file may be exchanged under us before we give up."""

_FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid (0 for OFD)."""

_LOCKS: Final = {
    EXCLUSIVE: _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0),
    SHARED: _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0),
}
_UNLOCK: Final = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0)


class OpenFiles:
    """What all file lockspaces of a daemon share.

    Args:
        max_fd: descriptors from this number on are not for lock files.

    Attributes:
        by_inode: which files are locked, under which name. Two names can lead to one
            file: hard links, bind mounts, two lockspaces on one directory. The kernel
            would tell the second that the file is locked, not by whom.
        mounts: where file systems are that may not answer.
        private: directories of which no file may be locked by its path: the daemon's
            own.
    """

    def __init__(self, max_fd: float = math.inf) -> None:
        self.max_fd = max_fd
        self.by_inode: dict[Inode, ResourceKey] = {}
        self.mounts = MountTable()
        self.private: set[Inode] = set()


class FileLockspace(Lockspace):
    """What lockspaces that are anchored in files have in common."""

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
        """Returns which resource is anchored just now in a file, if one is."""
        key = self._shared.by_inode.get(inode)
        return key.resource if key and key.lockspace == self.name else None

    def path_of(self, resource: str) -> str:
        """Returns the path of the file in which a resource is anchored."""
        raise NotImplementedError

    def _open(
        self, path: str, mode: Mode, create: Create, user: User | None
    ) -> tuple[int, bool]:
        """Opens the file; returns the descriptor, and whether it is ours to remove."""
        raise NotImplementedError

    def _check_status(self, status: os.stat_result, path: str) -> None:
        """Raises if the opened file is none that may be locked here."""
        raise NotImplementedError

    def _leads_to(self, path: str, inode: Inode) -> bool:
        """Tells whether a path leads to a file just now."""
        try:
            status = os.stat(path, follow_symlinks=False)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == inode

    def open_anchor(
        self,
        resource: str,
        mode: Mode,
        *,
        create: Create,
        in_use: bool,
        user: User | None = None,
    ) -> LockFile:
        """Has the file of a resource locked in a mode; see `Lockspace.open_anchor`."""
        path = self.path_of(resource)
        file = self._files.get(resource)
        if file is not None:
            if self._leads_to(path, file.inode):
                if user is not None:
                    self.check_user(resource, mode, user)
                file.is_unsure = False
                self._lock(file, path, mode)
                return file
            if in_use and file.is_unsure:
                # A predecessor removed it, and was killed before it could say so. It
                # will be asked to let it go once more.
                raise BusyError(f"the file {quoted(path)} is not there any more")
            if in_use:
                raise AnchorError(
                    f"the file {quoted(path)} was exchanged or removed while locked: "
                    "release it, and find out who does that"
                )
        new = self._open_new(resource, path, mode, create, user)
        if file is not None:
            del self._shared.by_inode[file.inode]
            os.close(file.fd)
        return new

    def _open_new(
        self, resource: str, path: str, mode: Mode, create: Create, user: User | None
    ) -> LockFile:
        for _ in range(MAX_RACES):
            file = self._open_file(path, mode, create, user)
            try:
                self._check_alias(file, path, mode)
                self._lock(file, path, mode)
                if self._leads_to(path, file.inode):
                    self._files[resource] = file
                    self._shared.by_inode[file.inode] = ResourceKey(self.name, resource)
                    return file
            except BaseException:
                self._discard(file, path)
                raise
            os.close(file.fd)
        raise AnchorError(
            f"the file {quoted(path)} is exchanged again and again: "
            "find out who does that"
        )

    def _open_file(
        self, path: str, mode: Mode, create: Create, user: User | None
    ) -> LockFile:
        try:
            fd, made = self._open(path, mode, create, user)
            status = _status_or_close(fd)
        except RequestError:  # it may be an OSError, too
            raise
        except OSError as error:
            raise_refusal(error, path)
        file = LockFile(fd, (status.st_dev, status.st_ino), made=made)
        try:
            self._check_status(status, path)
            if fd >= self._shared.max_fd:
                raise_refusal(OSError(errno.EMFILE, ""), path)
        except RequestError:
            self._discard(file, path)
            raise
        return file

    def _check_alias(self, file: LockFile, path: str, mode: Mode) -> None:
        other = self._shared.by_inode.get(file.inode)
        if other is None:
            return
        # Who may see into this lockspace need not know of the other one.
        name = "in another lockspace"
        if other.lockspace == self.name:
            name = quoted(other.resource)
        raise BusyError(
            f"the file {quoted(path)} is locked under another name, {name}: "
            "ask under that one",
            {"outside": OutsideHolder(mode, key=other)},
        )

    def _lock(self, file: LockFile, path: str, mode: Mode) -> None:
        if file.mode == mode:
            return
        try:
            fcntl.fcntl(file.fd, fcntl.F_OFD_SETLK, _LOCKS[mode])
        except BlockingIOError:
            outside = _outside_holder(file.fd, mode)
            raise BusyError(
                f"the file {quoted(path)} is locked from outside lockd",
                {"outside": outside},
            ) from None
        except OSError as error:
            raise_refusal(error, path)
        file.mode = mode

    def close_anchor(self, resource: str) -> None:
        """Unlocks the file of a resource, and removes it if it was made for the lock.

        What others can see is done when this returns; the descriptor itself is closed
        by `finish`, because that costs more than all the rest. Not so a slow one: we
        are in a thread then, and `finish` is called in the loop.
        """
        file = self._files.pop(resource, None)
        if file is None:
            return  # it could not be taken over from the daemon before
        free = file.made and self._remove(file, self.path_of(resource))
        del self._shared.by_inode[file.inode]
        if (free or _unlock(file.fd)) and not self.anchor_is_slow(resource):
            self._to_close.append(file.fd)
        else:
            os.close(file.fd)

    @property
    def anchor_count(self) -> int:
        """How many anchors are open."""
        return len(self._files)

    def open_resources(self) -> list[str]:
        """Returns the resources whose anchors are open."""
        return list(self._files)

    def dump_file(self, resource: str) -> tuple[int, bool, Mode | None]:
        """Returns descriptor, whether we made the file, and mode, for `adopt_file`."""
        file = self._files[resource]
        return file.fd, file.made, file.mode

    def adopt_file(
        self, resource: str, fd: int, *, made: bool, mode: Mode | None
    ) -> None:
        """Takes up the anchor of a predecessor in this process.

        Raises:
            RequestError: the descriptor does not lock the file of this resource.
        """
        path = self.path_of(resource)
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise_refusal(error, path)
        # What else was asked of it was asked before it was locked: whoever makes a link
        # to the file meanwhile does not take the lock from its holder.
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise InvalidRequestError(f"descriptor {fd} is not {quoted(path)}")
        file = LockFile(fd, (status.st_dev, status.st_ino), made=made)
        file.is_unsure = made
        if mode is not None:
            # Nothing changes if it is locked still, as it should be.
            self._lock(file, path, mode)
        self._files[resource] = file
        self._shared.by_inode[file.inode] = ResourceKey(self.name, resource)

    def disown_file(self, resource: str) -> None:
        """Leaves an open anchor locked, as a file that is nobody's business here."""
        file = self._files.pop(resource)
        del self._shared.by_inode[file.inode]

    def finish(self) -> None:
        """Closes the descriptors of the anchors that were let go."""
        while self._to_close:
            os.close(self._to_close.pop())

    def _discard(self, file: LockFile, path: str) -> None:
        """Undoes an opening that came to nothing."""
        if file.made:
            self._remove(file, path)
        os.close(file.fd)

    def _remove(self, file: LockFile, path: str) -> bool:
        """Removes a file of ours, unless somebody else has locked it or its name."""
        try:
            if file.mode != EXCLUSIVE:
                fcntl.fcntl(file.fd, fcntl.F_OFD_SETLK, _LOCKS[EXCLUSIVE])
            if not self._leads_to(path, file.inode):
                return False
            os.unlink(path)
        except OSError:
            return False  # it stays behind: litter, but nobody's lock is harmed
        return True


def has_lock(fd: int) -> bool:
    """Tells whether an open file has a lock, not only its file one of somebody else.

    proc_pid_fdinfo(5): these are the locks of the open file. If it cannot be asked, it
    has one.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            return any(line.startswith("lock:") for line in file)
    except OSError:
        return True


def raise_refusal(error: OSError, path: str) -> NoReturn:
    """Raises what a failed system call means to the one who asked for the lock."""
    reason = os.strerror(error.errno or 0)
    kind, sentence = _REFUSALS.get(error.errno or 0, (AnchorError, "cannot be locked"))
    step = _STEPS.get(kind, "mend that first")
    raise kind(f"the file {quoted(path)} {sentence} ({reason}): {step}") from None


#: What to do about it.
_STEPS: Final[dict[Callable[[str], RequestError], str]] = {
    NotFoundError: "make it first, or mend the name",
    DeniedError: "ask for a shared lock, or let lockd write to it "
    "(in its unit: ReadWritePaths=)",
    InvalidRequestError: "name the file itself, a regular one",
    UnavailableError: "try later, or have an admin raise the limits of lockd",
    AnchorError: "mend the file system, and try again",
}

_Refusal = tuple[Callable[[str], RequestError], str]

_REFUSALS: Final[dict[int, _Refusal]] = {
    errno.ENOENT: (NotFoundError, "does not exist"),
    errno.ENOTDIR: (NotFoundError, "does not exist"),
    errno.EACCES: (DeniedError, "is not open to lockd"),
    errno.EPERM: (DeniedError, "is not open to lockd"),
    errno.EBADF: (DeniedError, "is read-only and can only be locked shared"),
    errno.EROFS: (DeniedError, "is read-only to lockd and can only be locked shared"),
    errno.EISDIR: (InvalidRequestError, "is no regular file"),
    errno.ELOOP: (InvalidRequestError, "is a symbolic link"),
    errno.ENXIO: (InvalidRequestError, "is no regular file"),
    errno.ENAMETOOLONG: (InvalidRequestError, "cannot be named so"),
    errno.EMFILE: (UnavailableError, "cannot be opened just now"),
    errno.ENFILE: (UnavailableError, "cannot be opened just now"),
    errno.ENOMEM: (UnavailableError, "cannot be opened just now"),
}


def _status_or_close(fd: int) -> os.stat_result:
    try:
        return os.fstat(fd)
    except OSError:  # ESTALE, EIO: a network file system
        os.close(fd)
        raise


def _unlock(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _UNLOCK)
    except OSError:
        return False  # a network file system, perhaps: the close does it again
    return True


def _outside_holder(fd: int, mode: Mode) -> OutsideHolder | None:
    """Asks the kernel who is in the way: F_OFD_GETLK names one of them.

    The pid is -1 for another OFD lock, and means nothing if it is of another host.
    """
    try:
        answer = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _LOCKS[mode]))
    except OSError:
        return None
    kind, pid = answer[0], answer[4]
    if kind == fcntl.F_UNLCK:
        return None
    held: Mode = EXCLUSIVE if kind == fcntl.F_WRLCK else SHARED
    if pid <= 0:
        return OutsideHolder(held)
    return OutsideHolder(held, pid, _command_of(pid))


def _command_of(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return None
