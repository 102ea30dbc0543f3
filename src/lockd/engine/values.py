"""The values that commands and effects are about.

They are Structs: msgspec records most of them, and reads them again.
"""

from fnmatch import fnmatchcase
from typing import Literal

from msgspec import Struct

from lockd.terms import (
    Mode,
    OnDisconnect,
    OnOverdue,
    OutsideHolder,
    ResourceKey,
    WorkOutcome,
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


class Grant(Struct, frozen=True, gc=False):
    """One lock held. `fencing_token` is its identity; a convert keeps it."""

    key: ResourceKey
    owner_id: int
    owner: Owner
    #: The session that acquired it. It hears of the loss of the grant.
    session: int
    mode: Mode
    fencing_token: int
    since: float
    #: How many releases end it: a shared hold is counted.
    count: int = 1
    label: str | None = None
    reason: str | None = None
    #: The strand that holds it: of `session`, or 0 for the owner as a whole.
    strand: int = 0
    #: Whether every byte of the file is locked. Then it stays so until its last holder
    #: has released it.
    whole: bool = False
    #: None if nobody asked for any.
    notices: HolderNotices | None = None
    #: In slot mode: which slot it is, and how many the resource has.
    slot: int | None = None
    slots: int | None = None
    #: Who has said first how many it has; None: the configuration.
    slots_said_by: Owner | None = None
    #: The tokens of the grants of this resource that it is inside of, the outermost
    #: first. Some may have ended: the innermost keeps the resource for all of them.
    inside: tuple[int, ...] = ()

    @property
    def is_overdue(self) -> bool:
        """Whether it has been held for longer than was allowed."""
        return self.notices is not None and self.notices.overdue


class Waiter(Struct, frozen=True, gc=False):
    """One waiting request."""

    owner: Owner
    session: int
    mode: Mode
    since: float
    converting: bool
    label: str | None = None
    reason: str | None = None
    strand: int = 0
    #: The tokens of the grants that it is inside of: it is served before all others.
    inside: tuple[int, ...] = ()


class LastHolder(Struct, frozen=True, gc=False):
    """The last grant of a resource that ended, and its cause.

    `outcome` is that of the release.
    """

    grant: Grant
    ended: float
    cause: str
    outcome: WorkOutcome = None

    @property
    def ended_well(self) -> bool:
        """Whether it was released, and nobody said that what ran under it failed."""
        return self.cause == "released" and self.outcome in (None, "ok")


class WaitEdge(Struct, frozen=True, gc=False):
    """One edge of a cycle: a strand that waits for a resource.

    Attributes:
        inside: if the strand in its way waits for the session of the next edge: the
            grant inside which that session is.
    """

    owner: Owner
    session: int
    key: ResourceKey
    strand: int = 0
    inside: Grant | None = None


class Situation(Struct, frozen=True, gc=False):
    """Who holds a resource and who waits for it. Names at most 16 of each.

    Attributes:
        outside: the process outside lockd that has the file locked, as the first in
            line found it at its last try.
        slots: how many slots it has; None if nobody has said it.
        slots_held: the numbers of those that are held, a bit for each.
    """

    key: ResourceKey
    holders: tuple[Grant, ...]
    holder_count: int
    waiters: tuple[Waiter, ...]
    waiter_count: int
    outside: OutsideHolder | None = None
    slots: int | None = None
    slots_held: int = 0

    @property
    def slots_taken(self) -> int | None:
        """How many of its slots are held; None if it has none."""
        if self.slots is None:
            return None
        return (self.slots_held & ((1 << self.slots) - 1)).bit_count()

    @property
    def slots_removed(self) -> int | None:
        """How many are held that it had once; None if it has no slots."""
        return (
            None if self.slots is None else (self.slots_held >> self.slots).bit_count()
        )


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
