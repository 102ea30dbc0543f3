"""The effects of the engine: small frozen values that say what the caller must do.

The order is part of the contract. Within the effects of one command:

- The answer to a request that was given up comes first.
- `Ended` comes before the `CloseAnchor` or `OpenAnchor` that it causes. Those come
  before the grants that follow from them.
- The answer to a release, cancel, break or registration comes last.
"""

from typing import Literal

from msgspec import Struct

from lockd.engine.commands import Owner
from lockd.terms import Create, Mode, OutsideHolder, ResourceKey, WorkOutcome


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


class Granted(Struct, frozen=True, gc=False):
    """Answers an acquire, or a convert."""

    session: int
    request: int
    grants: tuple[Grant, ...]
    waited: float = 0.0
    converted: bool = False
    #: The last holds of these resources, of those that did not end well. Only new
    #: grants have some.
    previous: tuple[LastHolder, ...] = ()


class Refused(Struct, frozen=True, gc=False):
    """Answers a request with a code of the wire and the facts that explain it."""

    session: int
    request: int
    code: str
    #: A sentence, if the code and the situation do not explain everything.
    message: str = ""
    situation: Situation | None = None
    waited: float | None = None
    outside: OutsideHolder | None = None
    cycle: tuple[WaitEdge, ...] = ()
    #: How many may wait, if the request was refused because so many do.
    max_waiting: int | None = None
    #: If the request asked for another number of slots than the resource has.
    mismatch: "Mismatch | None" = None
    #: Whether the obstacle is a hold that its strand is inside of, or that is inside
    #: the hold of its strand.
    nested: bool = False


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


class Completed(Struct, frozen=True, gc=False):
    """Answers a request that has no result."""

    session: int
    request: int


class Queued(Struct, frozen=True, gc=False):
    """A request waits. Its answer comes later."""

    session: int
    request: int
    keys: tuple[ResourceKey, ...]
    mode: Mode
    converting: bool = False


class Ended(Struct, frozen=True, gc=False):
    """A grant ended."""

    grant: Grant
    cause: str


class Lost(Struct, frozen=True, gc=False):
    """A session must hear that it lost a grant."""

    session: int
    grant: Grant
    cause: str
    reason: str | None = None


class Overdue(Struct, frozen=True, gc=False):
    """A grant has been held for too long. This happens once to a grant.

    Attributes:
        session: the session that asked for this and must hear it; None: nobody.
    """

    session: int | None
    grant: Grant
    waiter_count: int


class Wanted(Struct, frozen=True, gc=False):
    """A session must hear that others wait for what it holds."""

    session: int
    grant: Grant
    waiter_count: int


class Unwanted(Struct, frozen=True, gc=False):
    """A session must hear that nobody waits any more for what it holds."""

    session: int
    grant: Grant
    waiter_count: int


class BreakOverdue(Struct, frozen=True, gc=False):
    """Break an overdue grant. Answer with `BreakGrant`."""

    grant: Grant


class OpenAnchor(Struct, frozen=True, gc=False):
    """Open the anchor in this mode, or change it to this mode.

    The answer is `AnchorOpened` or `AnchorRefused`. With `in_use`, somebody holds the
    resource through this anchor, so the caller must not replace the anchor by another.
    `whole` asks for every byte of the file.
    """

    key: ResourceKey
    mode: Mode
    create: Create = None
    in_use: bool = False
    whole: bool = False


class CloseAnchor(Struct, frozen=True, gc=False):
    """Close the anchor. This effect has no answer."""

    key: ResourceKey


class Fence(Struct, frozen=True, gc=False):
    """Kill the owner's process. Answer with `OwnerFenced` when it is dead."""

    owner_id: int
    owner: Owner


class ForgetOwner(Struct, frozen=True, gc=False):
    """A registered process holds nothing and has no sessions."""

    owner_id: int


Effect = (
    Granted
    | Refused
    | Completed
    | Queued
    | Ended
    | Lost
    | Overdue
    | Wanted
    | Unwanted
    | BreakOverdue
    | OpenAnchor
    | CloseAnchor
    | Fence
    | ForgetOwner
)
