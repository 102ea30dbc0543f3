"""The commands of the engine: small frozen values that say what happened.

The caller of the engine numbers sessions and owners, and never reuses a number. A
session's own owner has the session's number. `request` is the number that the answer
carries; it is unique among the unanswered requests of a session.
"""

from fnmatch import fnmatchcase

from msgspec import Struct

from lockd.terms import (
    Create,
    Mode,
    OnDisconnect,
    OnOverdue,
    OutsideHolder,
    ResourceKey,
    Until,
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


class OpenSession(Struct, frozen=True, gc=False):
    """A client connected."""

    session: int
    owner: Owner


class RegisterOwner(Struct, frozen=True, gc=False):
    """A session says for whom it acts. It may do so once, before its first lock.

    `owner_id` is the session's own number, or that of a process. A process keeps its
    grants until `EndOwner`, no matter which session asked for them.
    """

    session: int
    request: int
    owner_id: int
    owner: Owner
    on_disconnect: OnDisconnect | None = None
    until: Until = "either"


class EnterGrants(Struct, frozen=True, gc=False):
    """A session says which locks the holders have that wait for its end.

    It must not wait yet. Tokens that nobody holds, or that another user holds, are
    ignored.
    """

    session: int
    tokens: tuple[int, ...]


class CloseSession(Struct, frozen=True, gc=False):
    """A client disconnected."""

    session: int


class DisconnectOwner(Struct, frozen=True, gc=False):
    """The process of a registered owner closed its own session.

    It may still be alive.
    """

    owner_id: int


class EndOwner(Struct, frozen=True, gc=False):
    """The process of a registered owner is dead.

    Its grants end at once, or with the last session that acts for it (`until`).
    """

    owner_id: int


class OwnerFenced(Struct, frozen=True, gc=False):
    """The process that `Fence` named is dead."""

    owner_id: int


class Acquire(Struct, frozen=True, gc=False):
    """A session wants one resource, or several all together."""

    session: int
    request: int
    #: All in one lockspace, without duplicates. In slot mode only one, of a lockspace
    #: without anchors.
    keys: tuple[ResourceKey, ...]
    mode: Mode
    #: Seconds. None waits without a limit; 0 does not wait.
    timeout: float | None = None
    create: Create = None
    label: str | None = None
    reason: str | None = None
    #: Refuse it instead of letting it wait behind so many; 0 does not wait.
    max_waiting: int | None = None
    #: 0 is the owner as a whole; any other number is private to the session.
    strand: int = 0
    #: Lock every byte of the files, so that no other program gets in.
    whole: bool = False
    #: Seconds after which the session hears that it still holds them.
    max_hold: float | None = None
    #: Whether the session hears when somebody waits for them, and when nobody does.
    wanted: bool = False
    #: In slot mode: how many slots the resource has. None: as many as configured, or as
    #: others have said who hold it or wait for it.
    slots: int | None = None
    #: The owner who was the first to say that number; None: the configuration. Only the
    #: engine sets it.
    slots_said_by: Owner | None = None
    #: The slot that it is inside of; None outside. Only the engine sets it.
    slot: int | None = None


class Convert(Struct, frozen=True, gc=False):
    """A session wants another mode for what its owner holds.

    The lock is that of strand 0 with this key, or the one with this fencing token.
    """

    session: int
    request: int
    key: ResourceKey | None
    mode: Mode
    timeout: float | None = None
    fencing_token: int | None = None


class Release(Struct, frozen=True, gc=False):
    """A session releases locks of its owner.

    By name, if strand 0 holds them, or by fencing token, whatever strand holds it.
    """

    session: int
    request: int
    keys: tuple[ResourceKey, ...] = ()
    fencing_token: int | None = None
    outcome: WorkOutcome = None


class ReleaseForOwner(Struct, frozen=True, gc=False):
    """A user releases a lock that a process holds, and no session.

    The caller has checked that it is the user of the process.
    """

    session: int
    request: int
    fencing_token: int
    outcome: WorkOutcome = None


class Cancel(Struct, frozen=True, gc=False):
    """A session cancels one of its waiting requests."""

    session: int
    request: int
    target: int


class BreakGrant(Struct, frozen=True, gc=False):
    """An admin takes a grant away, or the daemon does, which is session 0.

    Attributes:
        fence: end the holder's process first, if the lock requires that. False if the
            daemon cannot end it.
    """

    session: int
    request: int
    fencing_token: int
    reason: str
    fence: bool = True


class AnchorOpened(Struct, frozen=True, gc=False):
    """An anchor is open in the mode that `OpenAnchor` asked for."""

    key: ResourceKey


class AnchorRefused(Struct, frozen=True, gc=False):
    """An anchor could not be opened. It stays in the mode that it had before."""

    key: ResourceKey
    #: A code of the wire. The engine retries after "busy" while a request waits.
    code: str
    message: str = ""
    outside: OutsideHolder | None = None


class AnchorDelayed(Struct, frozen=True, gc=False):
    """The answer to `OpenAnchor` takes longer: the file system is slow."""

    key: ResourceKey


class Resume(Struct, frozen=True, gc=False):
    """Another daemon drives the engine now. The engine repeats unanswered effects."""


class Tick(Struct, frozen=True, gc=False):
    """Time passed. `LockEngine.next_deadline` says when a tick is due."""


Command = (
    AddLockspace
    | OpenSession
    | RegisterOwner
    | EnterGrants
    | CloseSession
    | DisconnectOwner
    | EndOwner
    | OwnerFenced
    | Acquire
    | Convert
    | Release
    | ReleaseForOwner
    | Cancel
    | BreakGrant
    | AnchorOpened
    | AnchorRefused
    | AnchorDelayed
    | Resume
    | Tick
)
