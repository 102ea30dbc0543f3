"""The values that commands and effects are about.

They are Structs: msgspec records most of them, and reads them again.
"""

from fnmatch import fnmatchcase
from typing import Literal

from msgspec import Struct

from lockd.terms import (
    OnDisconnect,
    OnOverdue,
    OutsideHolder,
    ResourceKey,
)


class Owner(Struct, frozen=True, gc=False):
    """The owner of locks, as others see it."""

    name: str
    pid: int
    uid: int
    uuid: str | None = None
    id: int | None = None


class AddLockspace(Struct, frozen=True, gc=False):
    """A lockspace was added."""

    name: str
    #: Whether its resources need an anchor before they can be granted.
    anchored: bool
    on_disconnect: OnDisconnect = "release"
    #: Seconds after which a lock is overdue, for the grants made from now on.
    max_hold: float | None = None
    on_overdue: OnOverdue = "notice"
    #: Patterns of names, each with the number of slots that these resources have. The
    #: first pattern that matches counts.
    slots: tuple[tuple[str, int], ...] = ()

    def slots_of(self, resource: str) -> int | None:
        """Returns how many slots a resource has by the configuration."""
        for pattern, count in self.slots:
            if fnmatchcase(resource, pattern):
                return count
        return None


class AnchorRefused(Struct, frozen=True, gc=False):
    """An anchor could not be opened. It stays in the mode that it had before."""

    key: ResourceKey
    #: A code of the wire. The engine retries after "busy" while a request waits.
    code: str
    message: str = ""
    outside: OutsideHolder | None = None


class HolderNotices(Struct, frozen=True, array_like=True, gc=False):
    """What is told of a grant while it is held, to whom, and what was told.

    Attributes:
        due: when it becomes overdue; None: never.
        overdue_to: the session that hears of that; None: only others do.
        overdue: whether it is overdue, and that was told.
        wanted_to: the session that hears whether the grant is wanted.
        wanted: whether that session was told last that somebody waits.
    """

    due: float | None = None
    overdue_to: int | None = None
    overdue: bool = False
    wanted_to: int | None = None
    wanted: bool = False


class Mismatch(Struct, frozen=True, gc=False):
    """How many slots of a resource were asked for, and how many there are.

    Attributes:
        asked: None asks for as many as there are.
        slots: None if nobody has said how many there are.
        owner: who has said so first.
        configured: whether the configuration says so now, or did before.
    """

    key: ResourceKey
    asked: int | None
    slots: int | None
    owner: Owner | None = None
    configured: Literal["now", "before"] | None = None
