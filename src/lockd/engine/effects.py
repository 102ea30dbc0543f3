"""The effects of the engine: small values that say what the caller must do.

The order is part of the contract. Within the effects of one command:

- The answer to a request that was given up comes first.
- `Ended` comes before the `CloseAnchor` or `OpenAnchor` that it causes. Those come
  before the grants that follow from them.
- The answer to a release, cancel, break or registration comes last.
"""

from lockd.engine.commands import Message
from lockd.engine.values import Grant as Grant
from lockd.engine.values import HolderNotices as HolderNotices
from lockd.engine.values import LastHolder as LastHolder
from lockd.engine.values import Mismatch as Mismatch
from lockd.engine.values import Owner as Owner
from lockd.engine.values import Situation as Situation
from lockd.engine.values import WaitEdge as WaitEdge
from lockd.engine.values import Waiter as Waiter
from lockd.terms import Create, Mode, OutsideHolder, ResourceKey


class Granted(Message):
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


class Refused(Message):
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


class Completed(Message):
    """Answers a request that has no result."""

    def __init__(self, session: int, request: int) -> None:
        self.session = session
        self.request = request


class Queued(Message):
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


class Ended(Message):
    """A grant ended."""

    def __init__(self, grant: Grant, cause: str) -> None:
        self.grant = grant
        self.cause = cause


class Lost(Message):
    """A session must hear that it lost a grant."""

    def __init__(
        self, session: int, grant: Grant, cause: str, reason: str | None = None
    ) -> None:
        self.session = session
        self.grant = grant
        self.cause = cause
        self.reason = reason


class Overdue(Message):
    """A grant has been held for too long. This happens once to a grant.

    Attributes:
        session: the session that asked for this and must hear it; None: nobody.
    """

    def __init__(self, session: int | None, grant: Grant, waiter_count: int) -> None:
        self.session = session
        self.grant = grant
        self.waiter_count = waiter_count


class Wanted(Message):
    """A session must hear that others wait for what it holds."""

    def __init__(self, session: int, grant: Grant, waiter_count: int) -> None:
        self.session = session
        self.grant = grant
        self.waiter_count = waiter_count


class Unwanted(Message):
    """A session must hear that nobody waits any more for what it holds."""

    def __init__(self, session: int, grant: Grant, waiter_count: int) -> None:
        self.session = session
        self.grant = grant
        self.waiter_count = waiter_count


class BreakOverdue(Message):
    """Break an overdue grant. Answer with `BreakGrant`."""

    def __init__(self, grant: Grant) -> None:
        self.grant = grant


class OpenAnchor(Message):
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


class CloseAnchor(Message):
    """Close the anchor. This effect has no answer."""

    def __init__(self, key: ResourceKey) -> None:
        self.key = key


class Fence(Message):
    """Kill the owner's process. Answer with `OwnerFenced` when it is dead."""

    def __init__(self, owner_id: int, owner: Owner) -> None:
        self.owner_id = owner_id
        self.owner = owner


class ForgetOwner(Message):
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
