"""All that the engine can ask for: small frozen values, in the order of their doing.

Within the effects of one command: a request that was given up is answered first; a
grant's end (`Ended`) stands before the `CloseAnchor` or `OpenAnchor` that it causes,
these before the grants that others get of it; the answer to a release, cancel, break
or registration comes last.
"""

from msgspec import Struct

from lockd.engine.commands import Owner
from lockd.terms import Create, Mode, OutsideHolder, ResourceKey


class Grant(Struct, frozen=True, gc=False):
    """One lock held. `fencing_token` is its identity; a convert keeps it."""

    key: ResourceKey
    owner_id: int
    owner: Owner
    #: The session that acquired it, which hears of its loss.
    session: int
    mode: Mode
    fencing_token: int
    since: float
    #: How many releases it takes: a shared hold is counted.
    count: int = 1
    label: str | None = None
    reason: str | None = None


class Waiter(Struct, frozen=True, gc=False):
    """One place in a queue."""

    owner: Owner
    session: int
    mode: Mode
    since: float
    converting: bool
    label: str | None = None
    reason: str | None = None


class LastHolder(Struct, frozen=True, gc=False):
    """The grant of a resource that ended last, and how."""

    grant: Grant
    ended: float
    cause: str


class Wait(Struct, frozen=True, gc=False):
    """One link of a cycle: an owner that waits for a resource."""

    owner: Owner
    session: int
    key: ResourceKey


class Situation(Struct, frozen=True, gc=False):
    """Who holds a resource and who waits for it, at most 16 of each named.

    Attributes:
        outside: who holds it outside lockd, as whoever is next found at its last try.
    """

    key: ResourceKey
    holders: tuple[Grant, ...]
    holder_count: int
    waiters: tuple[Waiter, ...]
    waiter_count: int
    outside: OutsideHolder | None = None


class Granted(Struct, frozen=True, gc=False):
    """Answers an acquire, or a convert."""

    session: int
    request: int
    grants: tuple[Grant, ...]
    waited: float = 0.0
    converted: bool = False


class Refused(Struct, frozen=True, gc=False):
    """Answers a request with a code of the wire and the facts that explain it."""

    session: int
    request: int
    code: str
    #: A sentence, where the code and the situation do not say everything.
    message: str = ""
    situation: Situation | None = None
    waited: float | None = None
    outside: OutsideHolder | None = None
    cycle: tuple[Wait, ...] = ()


class Completed(Struct, frozen=True, gc=False):
    """Answers a request that has no result."""

    session: int
    request: int


class Queued(Struct, frozen=True, gc=False):
    """A request waits; it will be answered later."""

    session: int
    request: int
    keys: tuple[ResourceKey, ...]
    mode: Mode
    converting: bool = False


class Ended(Struct, frozen=True, gc=False):
    """A grant is no more."""

    grant: Grant
    cause: str


class Lost(Struct, frozen=True, gc=False):
    """A session must be told that a grant of its own ends without its doing."""

    session: int
    grant: Grant
    cause: str
    reason: str | None = None


class OpenAnchor(Struct, frozen=True, gc=False):
    """Have the anchor held in this mode, whatever it is held in now.

    Answered by `AnchorOpened` or `AnchorRefused`. While `in_use` somebody holds the
    resource through this anchor, which then may not be exchanged for another.
    """

    key: ResourceKey
    mode: Mode
    create: Create = None
    in_use: bool = False


class CloseAnchor(Struct, frozen=True, gc=False):
    """Let the anchor go; there is no answer."""

    key: ResourceKey


class Fence(Struct, frozen=True, gc=False):
    """End the owner's process; answered by `OwnerFenced` when it is dead."""

    owner_id: int
    owner: Owner


class ForgetOwner(Struct, frozen=True, gc=False):
    """Nobody acts for this registered process any more, and it holds nothing."""

    owner_id: int


Effect = (
    Granted
    | Refused
    | Completed
    | Queued
    | Ended
    | Lost
    | OpenAnchor
    | CloseAnchor
    | Fence
    | ForgetOwner
)
