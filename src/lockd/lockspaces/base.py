"""What every lockspace can do."""

from abc import ABC, abstractmethod
from typing import ClassVar

from lockd.errors import InvalidRequestError
from lockd.lockspaces.rights import User
from lockd.names import CHECK_OF_KIND
from lockd.terms import Create, Kind, Mode, OnDisconnect

Inode = tuple[int, int]


class LockFile:
    """An open file, its identity, and how it is locked."""

    __slots__ = ("fd", "inode", "is_unsure", "made", "mode")

    def __init__(self, fd: int, inode: Inode, *, made: bool) -> None:
        self.fd = fd
        self.inode = inode
        #: Whether we made the file, or took it over, and so have to remove it.
        self.made = made
        self.mode: Mode | None = None
        #: Whether it was taken over, and was perhaps being let go.
        self.is_unsure = False


class Lockspace(ABC):
    """A named set of resources, all anchored in the same way.

    Attributes:
        name: under which clients ask for it.
        on_disconnect: what happens to a process that ends its session with locks held.
        path: where its anchors are; None if nowhere in particular.
    """

    kind: ClassVar[Kind]
    #: Whether its resources have anchors at all.
    anchored: ClassVar[bool] = True
    path: str | None = None

    def __init__(self, name: str, *, on_disconnect: OnDisconnect = "release") -> None:
        self.name = name
        self.on_disconnect = on_disconnect
        #: Raises `InvalidRequestError` for a name that no resource here may have.
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
    ) -> LockFile:
        """Has the anchor of a resource held in a mode, whatever it is held in now.

        Args:
            user: for whom, where he needs a right to the file of his own; None for who
                needs none.
            create: whether a missing file is made, and when it goes.
            in_use: somebody holds the resource through this anchor: it may change its
                mode but not be exchanged.

        Returns:
            Its file: another one than before, if that was exchanged.

        Raises:
            BusyError: it is locked from outside; `facts["outside"]` is an
                `OutsideHolder`.
            RequestError: another reason; what was held before is held still.
        """

    def check_user(self, resource: str, mode: Mode, user: User) -> None:  # noqa: B027
        """Raises `RequestError` if a user has no right to the file of a resource."""

    @abstractmethod
    def close_anchor(self, resource: str) -> None:
        """Lets an open anchor go. What cannot be done is left undone; nothing fails."""

    def open_resources(self) -> list[str]:
        """Returns the resources whose anchors are open."""
        return []

    @property
    def file_system(self) -> str | None:
        """The type of the file system on which all its anchors are, if on one."""
        return None

    def resource_of_file(self, inode: Inode) -> str | None:
        """Returns which resource is anchored just now in a file, if one is.

        Args:
            inode: st_dev and st_ino of the file, which may have many paths.
        """
        return None

    def anchor_is_slow(self, resource: str) -> bool:
        """Tells whether opening an anchor may take long: it lies on a network."""
        return False

    def create_resource(self, resource: str) -> None:
        """Makes the file of a resource, to stay until it is deleted.

        Raises:
            RequestError: it exists, or cannot be made.
        """
        raise self._has_no_files()

    def delete_resource(self, resource: str) -> None:
        """Removes the file of a resource that nobody holds.

        Raises:
            RequestError: it does not exist, is in use, or cannot be removed.
        """
        raise self._has_no_files()

    def finish(self) -> None:  # noqa: B027 - most have put nothing off
        """Does what was put off until after the answers."""

    def _has_no_files(self) -> InvalidRequestError:
        return InvalidRequestError(
            f"a resource of lockspace {self.name!r} exists while it is held: "
            "only a directory lockspace has files to create and delete"
        )
