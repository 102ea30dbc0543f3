"""All that can happen to the engine: small frozen values.

Numbers of sessions and owners are given by whoever drives the engine and are never
reused. A session's own owner has the session's number. `request` is the number under
which the answer is expected; it is unique among the unanswered requests of a session.
"""

from msgspec import Struct

from lockd.terms import Create, Mode, OnDisconnect, OutsideHolder, ResourceKey, Until


class Owner(Struct, frozen=True, gc=False):
    """On whose behalf locks are held, as it is shown to others."""

    name: str
    pid: int
    uid: int
    uuid: str | None = None
    id: int | None = None


class AddLockspace(Struct, frozen=True, gc=False):
    """A lockspace comes into being."""

    name: str
    #: Whether its resources need an anchor before they can be granted.
    anchored: bool
    on_disconnect: OnDisconnect = "release"


class OpenSession(Struct, frozen=True, gc=False):
    """A client connected."""

    session: int
    owner: Owner


class RegisterOwner(Struct, frozen=True, gc=False):
    """A session says for whom it acts; only before its first lock.

    `owner_id` is the session's own number, or that of a process that owns its grants
    whichever session asks for them, until `EndOwner`.
    """

    session: int
    request: int
    owner_id: int
    owner: Owner
    on_disconnect: OnDisconnect | None = None
    until: Until = "either"


class CloseSession(Struct, frozen=True, gc=False):
    """A client is gone."""

    session: int


class DisconnectOwner(Struct, frozen=True, gc=False):
    """The process of a registered owner closed its own session, but may live on.

    Its grants end, or it is fenced; other sessions may go on to act for it.
    """

    owner_id: int


class EndOwner(Struct, frozen=True, gc=False):
    """The process of a registered owner is dead.

    Its grants end with it, or with the last session that acts for it (`until`).
    """

    owner_id: int


class OwnerFenced(Struct, frozen=True, gc=False):
    """The process that `Fence` named is dead."""

    owner_id: int


class Acquire(Struct, frozen=True, gc=False):
    """A session wants one resource, or several all together."""

    session: int
    request: int
    #: Of one lockspace, none twice.
    keys: tuple[ResourceKey, ...]
    mode: Mode
    #: None waits for ever, 0 tries, else seconds.
    timeout: float | None = None
    create: Create = None
    label: str | None = None
    reason: str | None = None


class Convert(Struct, frozen=True, gc=False):
    """A session wants another mode for what its owner holds."""

    session: int
    request: int
    key: ResourceKey
    mode: Mode
    timeout: float | None = None


class Release(Struct, frozen=True, gc=False):
    """A session gives back what its owner holds: by name, or by fencing token."""

    session: int
    request: int
    keys: tuple[ResourceKey, ...] = ()
    fencing_token: int | None = None


class Cancel(Struct, frozen=True, gc=False):
    """A session no longer waits for one of its requests."""

    session: int
    request: int
    target: int


class BreakGrant(Struct, frozen=True, gc=False):
    """An admin takes a grant away.

    Attributes:
        fence: whether the holder's process is ended first where its lock asks for that;
            False where nobody can end it.
    """

    session: int
    request: int
    fencing_token: int
    reason: str
    fence: bool = True


class AnchorOpened(Struct, frozen=True, gc=False):
    """An anchor is held in the mode that `OpenAnchor` asked for."""

    key: ResourceKey


class AnchorRefused(Struct, frozen=True, gc=False):
    """An anchor could not be had; what was held before is held still."""

    key: ResourceKey
    #: A code of the wire; "busy" is tried again while somebody waits.
    code: str
    message: str = ""
    outside: OutsideHolder | None = None


class AnchorDelayed(Struct, frozen=True, gc=False):
    """The answer to `OpenAnchor` does not come at once: a slow file system."""

    key: ResourceKey


class Resume(Struct, frozen=True, gc=False):
    """Somebody else drives the engine now: what was asked for is asked for again."""


class Tick(Struct, frozen=True, gc=False):
    """Time passed; due when `LockEngine.next_deadline` says so."""


Command = (
    AddLockspace
    | OpenSession
    | RegisterOwner
    | CloseSession
    | DisconnectOwner
    | EndOwner
    | OwnerFenced
    | Acquire
    | Convert
    | Release
    | Cancel
    | BreakGrant
    | AnchorOpened
    | AnchorRefused
    | AnchorDelayed
    | Resume
    | Tick
)
