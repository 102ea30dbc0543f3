"""Resources that are the files of one directory, in virtlockd's format."""

import os
import stat
from contextlib import suppress
from typing import Final

from lockd.errors import (
    AlreadyExistsError,
    AnchorError,
    InvalidRequestError,
    RequestError,
    UnavailableError,
)
from lockd.lockspaces.base import LockFile
from lockd.lockspaces.files import (
    MAX_RACES,
    OPEN_FLAGS,
    FileLockspace,
)
from lockd.lockspaces.open_files import OpenFiles
from lockd.lockspaces.places import trusted_users
from lockd.lockspaces.refusals import raise_refusal
from lockd.lockspaces.rights import User
from lockd.lockspaces.spares import unlock
from lockd.names import quoted
from lockd.terms import EXCLUSIVE, TEMPORARY, Create, Mode, OnDisconnect, Outside

FILE_MODE: Final = 0o600
MISSING: Final = (FileNotFoundError, NotADirectoryError)
NEW_FILE_FLAGS: Final = OPEN_FLAGS | os.O_RDWR | os.O_CREAT | os.O_EXCL


class DirectoryLockspace(FileLockspace):
    """One lock file for each resource. Locking creates a missing file unless forbidden.

    Args:
        path: the directory, without symbolic links. Only we may change it (`places`).
    """

    kind = "directory"
    #: The files are ours: no other program locks other bytes of them.
    outside: Outside | None = "byte"

    def __init__(
        self,
        name: str,
        path: str,
        open_files: OpenFiles,
        *,
        on_disconnect: OnDisconnect = "release",
    ) -> None:
        super().__init__(name, open_files, on_disconnect=on_disconnect)
        self.path = self.directory = path
        self._trusted_users = trusted_users()

    def path_of(self, resource: str) -> str:
        """Returns the path of a resource's file."""
        return f"{self.path}/{resource}"

    @property
    def file_system(self) -> str | None:
        """The type of the file system on which the directory lies."""
        return self._shared.mounts.type_of(self.directory)

    def anchor_is_slow(self, resource: str) -> bool:
        """Returns whether the directory is on a file system that may not answer."""
        return self._shared.mounts.is_slow_below(self.directory)

    def _open(
        self, path: str, mode: Mode, create: Create, user: User | None
    ) -> tuple[int, bool, bool]:
        if create is False:
            return self._open_named(path), False, False
        for _ in range(MAX_RACES):
            try:
                fd = os.open(path, NEW_FILE_FLAGS, FILE_MODE)
                return fd, True, not self.anchor_is_slow(path)
            except FileExistsError:
                pass
            except MISSING:
                raise self._is_gone() from None
            try:
                return self._open_existing(path), create == TEMPORARY, False
            except MISSING:
                pass  # somebody removed it: create a new one
        raise AnchorError(
            f"the file {quoted(path)} comes and goes: find out which program does that"
        )

    def _open_again(self, path: str, mode: Mode, create: Create) -> LockFile | None:
        spares = self._shared.spares
        file = spares.take(path)
        if file is None:
            return None
        if create is False or file.key.lockspace != self.name:
            # As if it had gone with its last holder.
            spares.remove(path, file)
            return None
        refusal = status = None
        try:
            self._check_alias(file, path, mode)
            self._lock(file, path, mode)
        except RequestError as error:
            refusal = error
        with suppress(OSError):
            status = os.lstat(path)
        if status is None or (status.st_dev, status.st_ino) != file.inode:
            spares.let_go(file)
            return None
        if refusal is not None:
            spares.put_back(path, file)
            raise refusal
        try:
            self._check_status(status, path)
        except RequestError:
            spares.remove(path, file)
            raise
        file.may_stay = create != TEMPORARY
        return file

    def _open_named(self, path: str) -> int:
        try:
            return self._open_existing(path)
        except MISSING:
            if os.path.isdir(self.directory):
                raise
            raise self._is_gone() from None

    def _open_existing(self, path: str) -> int:
        # Check first: opening a FIFO or a device may start something.
        self._check_status(os.stat(path, follow_symlinks=False), path)
        return os.open(path, OPEN_FLAGS | os.O_RDWR)

    def _is_gone(self) -> UnavailableError:
        return UnavailableError(
            f"the directory {quoted(self.directory)} of lockspace "
            f"{quoted(self.name)} is gone: have an admin make it again"
        )

    def _check_status(self, status: os.stat_result, path: str) -> None:
        if not stat.S_ISREG(status.st_mode):
            problem = "is not a regular file"
        elif status.st_nlink > 1:
            problem = "is a hard link to another file"
        elif status.st_uid not in self._trusted_users:
            problem = f"belongs to another user, uid {status.st_uid}"
        else:
            return
        raise InvalidRequestError(
            f"the file {quoted(path)} {problem}: have an admin look at it"
        )

    def put_aside(self, resource: str) -> bool:
        """Unlocks an anchor and keeps its file; see `Lockspace.put_aside`."""
        file = self._files.get(resource)
        if file is None or not file.may_stay:
            return False
        path, spares = self.path_of(resource), self._shared.spares
        if not (spares.has_room(path) and unlock(file.fd)):
            return False
        del self._files[resource]
        self._leave(file)
        file.mode = None
        spares.put(path, file)
        return True

    def create_resource(self, resource: str) -> None:
        """Creates the file of a resource; see `Lockspace.create_resource`."""
        path = self.path_of(resource)
        self._shared.spares.remove_at(path)
        try:
            os.close(os.open(path, NEW_FILE_FLAGS, FILE_MODE))
        except FileExistsError:
            self._check_existing(path)
            raise AlreadyExistsError(
                f"the file {quoted(path)} exists already: it can be locked as it is"
            ) from None
        except MISSING:
            raise self._is_gone() from None
        except OSError as error:
            raise_refusal(error, path)

    def _check_existing(self, path: str) -> None:
        """Raises if the existing file could not be locked."""
        try:
            status = os.lstat(path)
        except OSError as error:
            raise_refusal(error, path)
        self._check_status(status, path)

    def delete_resource(self, resource: str) -> None:
        """Removes the file of a resource; see `Lockspace.delete_resource`."""
        path = self.path_of(resource)
        # `open_anchor` does not take a spare file here, but removes it.
        self.open_anchor(resource, EXCLUSIVE, create=False, in_use=False)
        try:
            os.unlink(path)
        except OSError as error:
            raise_refusal(error, path)
        finally:
            self.close_anchor(resource)
            self.finish()
