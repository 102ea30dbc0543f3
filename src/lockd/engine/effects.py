"""The effects of the engine: small values that say what the caller must do.

The order is part of the contract. Within the effects of one command:

- The answer to a request that was given up comes first.
- `Ended` comes before the `CloseAnchor` or `OpenAnchor` that it causes. Those come
  before the grants that follow from them.
- The answer to a release, cancel, break or registration comes last.
"""

from typing import Final

from lockd.engine.commands import Value
from lockd.engine.values import HolderNotices as HolderNotices
from lockd.engine.values import Mismatch as Mismatch
from lockd.engine.values import Owner as Owner
from lockd.hints import mypyc_attr
from lockd.terms import Create, Mode, OutsideHolder, ResourceKey, WorkOutcome


@mypyc_attr(acyclic=True)
class _Extras:
    """What few grants have: a `Grant` tells what each is."""

    __slots__ = (
        *("inside", "notices", "reason", "slot", "slots"),
        *("slots_said_by", "whole"),
    )

    def __init__(
        self,
        reason: str | None = None,
        whole: bool = False,
        notices: HolderNotices | None = None,
        slot: int | None = None,
        slots: int | None = None,
        slots_said_by: Owner | None = None,
        inside: tuple[int, ...] = (),
    ) -> None:
        self.reason = reason
        self.whole = whole
        self.notices = notices
        self.slot = slot
        self.slots = slots
        self.slots_said_by = slots_said_by
        self.inside = inside


#: Shared by all grants that have none, to save memory.
_NO_EXTRAS: Final = _Extras()


@mypyc_attr(acyclic=True)
class Grant(Value):
    """One lock held. `fencing_token` is its identity; a convert keeps it."""

    # It lives for long, and needs no dict of its own.
    __slots__ = (
        *("_extras", "count", "fencing_token", "key", "label", "mode", "owner"),
        *("owner_id", "session", "since", "strand"),
    )

    def __init__(
        self,
        key: ResourceKey,
        owner_id: int,
        owner: Owner,
        session: int,
        mode: Mode,
        fencing_token: int,
        since: float,
        count: int = 1,
        label: str | None = None,
        reason: str | None = None,
        strand: int = 0,
        whole: bool = False,
        notices: HolderNotices | None = None,
        slot: int | None = None,
        slots: int | None = None,
        slots_said_by: Owner | None = None,
        inside: tuple[int, ...] = (),
    ) -> None:
        self.key = key
        self.owner_id = owner_id
        self.owner = owner
        #: The session that acquired it. It hears of the loss of the grant.
        self.session = session
        self.mode = mode
        self.fencing_token = fencing_token
        self.since = since
        #: How many releases end it: a shared hold is counted.
        self.count = count
        self.label = label
        #: The strand that holds it: of `session`, or 0 for the owner as a whole.
        self.strand = strand
        self._extras = _NO_EXTRAS
        if (
            whole
            or inside
            or reason is not None
            or notices is not None
            or slot is not None
            or slots is not None
            or slots_said_by is not None
        ):
            self._extras = _Extras(
                reason, whole, notices, slot, slots, slots_said_by, inside
            )

    @property
    def reason(self) -> str | None:
        """Why its owner holds it, as it has said."""
        return self._extras.reason

    @property
    def whole(self) -> bool:
        """Whether every byte of the file is locked.

        Then it stays so until its last holder has released it.
        """
        return self._extras.whole

    @property
    def notices(self) -> HolderNotices | None:
        """What is told of it; None if nobody asked for any."""
        return self._extras.notices

    @property
    def slot(self) -> int | None:
        """In slot mode: which slot it is."""
        return self._extras.slot

    @property
    def slots(self) -> int | None:
        """In slot mode: how many slots the resource has."""
        return self._extras.slots

    @property
    def slots_said_by(self) -> Owner | None:
        """Who has said first how many it has; None: the configuration."""
        return self._extras.slots_said_by

    @property
    def inside(self) -> tuple[int, ...]:
        """The tokens of the grants of this resource that it is inside of.

        The outermost comes first. Some may have ended: the innermost keeps the resource
        for all of them.
        """
        return self._extras.inside

    @property
    def is_overdue(self) -> bool:
        """Whether it has been held for longer than was allowed."""
        return self.notices is not None and self.notices.overdue


class LastHolder(Value):
    """The last grant of a resource that ended, and its cause.

    `outcome` is that of the release.
    """

    def __init__(
        self, grant: Grant, ended: float, cause: str, outcome: WorkOutcome = None
    ) -> None:
        self.grant = grant
        self.ended = ended
        self.cause = cause
        self.outcome = outcome

    @property
    def ended_well(self) -> bool:
        """Whether it was released, and nobody said that its work failed."""
        return self.cause == "released" and self.outcome in (None, "ok")


class Waiter(Value):
    """One waiting request."""

    def __init__(
        self,
        owner: Owner,
        session: int,
        mode: Mode,
        since: float,
        converting: bool,
        label: str | None = None,
        reason: str | None = None,
        strand: int = 0,
        inside: tuple[int, ...] = (),
    ) -> None:
        self.owner = owner
        self.session = session
        self.mode = mode
        self.since = since
        self.converting = converting
        self.label = label
        self.reason = reason
        self.strand = strand
        #: The tokens of the grants that it is inside of: it is served before all
        #: others.
        self.inside = inside


class WaitEdge(Value):
    """One edge of a cycle: a strand that waits for a resource.

    Attributes:
        inside: if the strand in its way waits for the session of the next edge: the
            grant inside which that session is.
    """

    def __init__(
        self,
        owner: Owner,
        session: int,
        key: ResourceKey,
        strand: int = 0,
        inside: Grant | None = None,
    ) -> None:
        self.owner = owner
        self.session = session
        self.key = key
        self.strand = strand
        self.inside = inside


class Situation(Value):
    """Who holds a resource and who waits for it. Names at most 16 of each.

    Attributes:
        outside: the process outside lockd that has the file locked, as the first in
            line found it at its last try.
        slots: how many slots it has; None if nobody has said it.
        slots_held: the numbers of those that are held, a bit for each.
    """

    def __init__(
        self,
        key: ResourceKey,
        holders: tuple[Grant, ...],
        holder_count: int,
        waiters: tuple[Waiter, ...],
        waiter_count: int,
        outside: OutsideHolder | None = None,
        slots: int | None = None,
        slots_held: int = 0,
    ) -> None:
        self.key = key
        self.holders = holders
        self.holder_count = holder_count
        self.waiters = waiters
        self.waiter_count = waiter_count
        self.outside = outside
        self.slots = slots
        self.slots_held = slots_held

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


class Granted(Value):
    """Answers an acquire, or a convert."""

    def __init__(
        self,
        session: int,
        request: int,
        grants: tuple[Grant, ...],
        waited: float = 0.0,
        converted: bool = False,
        previous: tuple[LastHolder, ...] = (),
    ) -> None:
        self.session = session
        self.request = request
        self.grants = grants
        self.waited = waited
        self.converted = converted
        #: The last holds of these resources, of those that did not end well. Only new
        #: grants have some.
        self.previous = previous


class Refused(Value):
    """Answers a request with a code of the wire and the facts that explain it."""

    def __init__(
        self,
        session: int,
        request: int,
        code: str,
        message: str = "",
        situation: Situation | None = None,
        waited: float | None = None,
        outside: OutsideHolder | None = None,
        cycle: tuple[WaitEdge, ...] = (),
        max_waiting: int | None = None,
        mismatch: Mismatch | None = None,
        nested: bool = False,
    ) -> None:
        self.session = session
        self.request = request
        self.code = code
        #: A sentence, if the code and the situation do not explain everything.
        self.message = message
        self.situation = situation
        self.waited = waited
        self.outside = outside
        self.cycle = cycle
        #: How many may wait, if the request was refused because so many do.
        self.max_waiting = max_waiting
        #: If the request asked for another number of slots than the resource has.
        self.mismatch = mismatch
        #: Whether the obstacle is a hold that its strand is inside of, or that is
        #: inside the hold of its strand.
        self.nested = nested


class Completed(Value):
    """Answers a request that has no result."""

    def __init__(self, session: int, request: int) -> None:
        self.session = session
        self.request = request


class Queued(Value):
    """A request waits. Its answer comes later."""

    def __init__(
        self,
        session: int,
        request: int,
        keys: tuple[ResourceKey, ...],
        mode: Mode,
        converting: bool = False,
    ) -> None:
        self.session = session
        self.request = request
        self.keys = keys
        self.mode = mode
        self.converting = converting


class Ended(Value):
    """A grant ended."""

    def __init__(self, grant: Grant, cause: str) -> None:
        self.grant = grant
        self.cause = cause


class Lost(Value):
    """A session must hear that it lost a grant."""

    def __init__(
        self, session: int, grant: Grant, cause: str, reason: str | None = None
    ) -> None:
        self.session = session
        self.grant = grant
        self.cause = cause
        self.reason = reason


class Overdue(Value):
    """A grant has been held for too long. This happens once to a grant.

    Attributes:
        session: the session that asked for this and must hear it; None: nobody.
    """

    def __init__(self, session: int | None, grant: Grant, waiter_count: int) -> None:
        self.session = session
        self.grant = grant
        self.waiter_count = waiter_count


class Wanted(Value):
    """A session must hear that others wait for what it holds."""

    def __init__(self, session: int, grant: Grant, waiter_count: int) -> None:
        self.session = session
        self.grant = grant
        self.waiter_count = waiter_count


class Unwanted(Value):
    """A session must hear that nobody waits any more for what it holds."""

    def __init__(self, session: int, grant: Grant, waiter_count: int) -> None:
        self.session = session
        self.grant = grant
        self.waiter_count = waiter_count


class BreakOverdue(Value):
    """Break an overdue grant. Answer with `BreakGrant`."""

    def __init__(self, grant: Grant) -> None:
        self.grant = grant


class OpenAnchor(Value):
    """Open the anchor in this mode, or change it to this mode.

    The answer is `AnchorOpened` or `AnchorRefused`. With `in_use`, somebody holds the
    resource through this anchor, so the caller must not replace the anchor by another.
    `whole` asks for every byte of the file.
    """

    def __init__(
        self,
        key: ResourceKey,
        mode: Mode,
        create: Create = None,
        in_use: bool = False,
        whole: bool = False,
    ) -> None:
        self.key = key
        self.mode = mode
        self.create = create
        self.in_use = in_use
        self.whole = whole


class CloseAnchor(Value):
    """Close the anchor. This effect has no answer."""

    def __init__(self, key: ResourceKey) -> None:
        self.key = key


class Fence(Value):
    """Kill the owner's process. Answer with `OwnerFenced` when it is dead."""

    def __init__(self, owner_id: int, owner: Owner) -> None:
        self.owner_id = owner_id
        self.owner = owner


class ForgetOwner(Value):
    """A registered process holds nothing and has no sessions."""

    def __init__(self, owner_id: int) -> None:
        self.owner_id = owner_id


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
