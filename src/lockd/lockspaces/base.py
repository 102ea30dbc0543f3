"""The interface of every lockspace."""

from abc import ABC, abstractmethod
from typing import ClassVar, Final

from lockd.errors import InvalidRequestError
from lockd.lockspaces.rights import User
from lockd.names import CHECK_OF_KIND
from lockd.terms import Create, Kind, Mode, OnDisconnect, Outside, ResourceKey

Inode = tuple[int, int]

NOT_READ: Final[Inode] = (0, 0)
"""Stands for the inode of a file that was just made."""

NO_RESOURCE: Final = ResourceKey("", "")


class LockFile:
    """An open file, its identity, and the mode in which it is locked."""

    __slots__ = (
        *("fd", "inode", "is_device", "key", "made", "marks", "may_stay", "mode"),
        *("spare_since", "unsure_until", "whole"),
    )

    def __init__(
        self,
        fd: int,
        inode: Inode,
        *,
        made: bool,
        is_device: bool = False,
        marks: bool = False,
        whole: bool = False,
    ) -> None:
        self.fd = fd
        self.inode = inode
        self.is_device = is_device
        #: Whether it is open for reading only, and so is marked (`kernel`).
        self.marks = marks
        #: Whether every byte is locked, and it is locked with flock(2).
        self.whole = whole
        #: Whether lockd created the file or adopted it as temporary, and must remove
        #: it.
        self.made = made
        #: Whether it may become a spare file after its last holder (`spares`).
        self.may_stay = False
        #: Since when it is one.
        self.spare_since = 0.0
        #: Its resource, once it is locked.
        self.key = NO_RESOURCE
        self.mode: Mode | None = None
        #: Until when it may turn out that a predecessor was releasing it
        #: (`time.monotonic`).
        self.unsure_until = 0.0


class Lockspace(ABC):
    """A named set of resources that are all anchored in the same way.

    Attributes:
        name: as clients write it.
        on_disconnect: what happens to a process that ends its session with locks held.
        path: the directory of its anchors, if it has one.
    """

    kind: ClassVar[Kind]
    #: Whether its resources have anchors.
    anchored: ClassVar[bool] = True
    path: str | None = None
    #: Which locks of other programs keep a file from being locked; None without files.
    outside: Outside | None = None

    def __init__(self, name: str, *, on_disconnect: OnDisconnect = "release") -> None:
        self.name = name
        self.on_disconnect = on_disconnect
        #: Raises `InvalidRequestError` for an invalid resource name.
        self.check_name = CHECK_OF_KIND[self.kind]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @abstractmethod
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
        """Opens the anchor of a resource in a mode, or changes it to this mode.

        Args:
            user: the user who must have a right to the file; None skips the check.
            create: whether to create a missing file, and when to remove it.
            only_byte: do not look for programs that have locked other bytes.
            whole: lock every byte of the file, and lock it with flock(2), too. It stays
                so while it is in use.
            in_use: somebody holds the resource through this anchor. Its mode may
                change, but the lockspace must not replace it.

        Returns:
            The file of the anchor. It is a new one if the old one was replaced.

        Raises:
            BusyError: it is locked from outside; `facts["outside"]` is an
                `OutsideHolder`.
            RequestError: any other reason. An anchor that was open stays unchanged.
        """

    def heed(self, outside: Outside) -> None:  # noqa: B027 - most have no choice
        """Sets which locks of other programs keep a file from being locked."""

    def check_user(self, resource: str, mode: Mode, user: User) -> None:  # noqa: B027
        """Raises `RequestError` if a user has no right to the file of a resource."""

    def put_aside(self, resource: str) -> bool:
        """Unlocks an anchor whose last holder left, and keeps its file for the next.

        Returns False if its file may not stay: call `close_anchor` then. Do not call it
        for a slow anchor.
        """
        return False

    @abstractmethod
    def close_anchor(self, resource: str) -> None:
        """Closes an open anchor at once. Ignores errors."""

    def open_resources(self) -> list[str]:
        """Returns the resources with open anchors."""
        return []

    @property
    def file_system(self) -> str | None:
        """The file system type of its directory; None without a directory."""
        return None

    def resource_of_file(self, inode: Inode) -> str | None:
        """Returns the resource whose open anchor is a file, if any.

        Args:
            inode: st_dev and st_ino of the file, which may have many paths.
        """
        return None

    def anchor_is_slow(self, resource: str) -> bool:
        """Returns whether opening an anchor may take long: it is on a network."""
        return False

    def create_resource(self, resource: str) -> None:
        """Creates the file of a resource. It stays until `delete_resource`.

        Raises:
            RequestError: the file exists or cannot be created.
        """
        raise self._has_no_files()

    def delete_resource(self, resource: str) -> None:
        """Removes the file of a resource that nobody holds.

        Raises:
            RequestError: it does not exist, is in use, or cannot be removed.
        """
        raise self._has_no_files()

    def finish(self) -> None:  # noqa: B027 - most lockspaces defer nothing
        """Does the work that was deferred until after the answers."""

    def make_room(self) -> bool:
        """Closes descriptors that nobody needs. Returns whether there were any."""
        return False

    def retire(self) -> None:
        """Lets go of everything that no holder needs: the lockspace is not served."""
        self.finish()

    def _has_no_files(self) -> InvalidRequestError:
        return InvalidRequestError(
            f"lockspace {self.name!r} has no files to create or delete: only a "
            "directory lockspace has them"
        )
