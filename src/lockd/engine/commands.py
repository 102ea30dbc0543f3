"""The commands of the engine: small values that say what happened.

The caller of the engine numbers sessions and owners, and never reuses a number. A
session's own owner has the session's number. `request` is the number that the answer
carries; it is unique among the unanswered requests of a session.
"""

from functools import cache
from inspect import signature
from typing import Any, Self

from lockd.engine.values import AddLockspace as AddLockspace
from lockd.engine.values import AnchorRefused as AnchorRefused
from lockd.engine.values import Owner as Owner
from lockd.hints import mypyc_attr
from lockd.terms import (
    Create,
    Mode,
    OnDisconnect,
    ResourceKey,
    Until,
    WorkOutcome,
)


@mypyc_attr(acyclic=True)
class Value:
    """The base of commands, of effects and of what they tell. Nothing changes one.

    Its attributes are the parameters of its constructor. It is a class of our own, and
    no Struct: compiled, it is made and read several times faster.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _parts(self) == _parts(other)

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in _parts(self).items())
        return f"{type(self).__name__}({told})"

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with other values for some attributes."""
        return type(self)(**(_parts(self) | changes))


def _parts(value: object) -> dict[str, Any]:
    kind: type = type(value)
    return {name: getattr(value, name) for name in _names(kind)}


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(signature(kind).parameters)


class OpenSession(Value):
    """A client connected."""

    def __init__(self, session: int, owner: Owner) -> None:
        self.session = session
        self.owner = owner


class RegisterOwner(Value):
    """A session says for whom it acts. It may do so once, before its first lock.

    `owner_id` is the session's own number, or that of a process. A process keeps its
    grants until `EndOwner`, no matter which session asked for them.
    """

    def __init__(
        self,
        session: int,
        request: int,
        owner_id: int,
        owner: Owner,
        on_disconnect: OnDisconnect | None = None,
        until: Until = "either",
    ) -> None:
        self.session = session
        self.request = request
        self.owner_id = owner_id
        self.owner = owner
        self.on_disconnect = on_disconnect
        self.until = until


class EnterGrants(Value):
    """A session says which locks the holders have that wait for its end.

    It must not wait yet. Tokens that nobody holds, or that another user holds, are
    ignored.
    """

    def __init__(self, session: int, tokens: tuple[int, ...]) -> None:
        self.session = session
        self.tokens = tokens


class CloseSession(Value):
    """A client disconnected."""

    def __init__(self, session: int) -> None:
        self.session = session


class DisconnectOwner(Value):
    """The process of a registered owner closed its own session.

    It may still be alive.
    """

    def __init__(self, owner_id: int) -> None:
        self.owner_id = owner_id


class EndOwner(Value):
    """The process of a registered owner is dead.

    Its grants end at once, or with the last session that acts for it (`until`).
    """

    def __init__(self, owner_id: int) -> None:
        self.owner_id = owner_id


class OwnerFenced(Value):
    """The process that `Fence` named is dead."""

    def __init__(self, owner_id: int) -> None:
        self.owner_id = owner_id


class Acquire(Value):
    """A session wants one resource, or several all together."""

    def __init__(
        self,
        session: int,
        request: int,
        keys: tuple[ResourceKey, ...],
        mode: Mode,
        timeout: float | None = None,
        create: Create = None,
        label: str | None = None,
        reason: str | None = None,
        max_waiting: int | None = None,
        strand: int = 0,
        whole: bool = False,
        max_hold: float | None = None,
        wanted: bool = False,
        slots: int | None = None,
        slots_said_by: Owner | None = None,
        slot: int | None = None,
    ) -> None:
        self.session = session
        self.request = request
        #: All in one lockspace, without duplicates. In slot mode only one, of a
        #: lockspace without anchors.
        self.keys = keys
        self.mode = mode
        #: Seconds. None waits without a limit; 0 does not wait.
        self.timeout = timeout
        self.create = create
        self.label = label
        self.reason = reason
        #: Refuse it instead of letting it wait behind so many; 0 does not wait.
        self.max_waiting = max_waiting
        #: 0 is the owner as a whole; any other number is private to the session.
        self.strand = strand
        #: Lock every byte of the files, so that no other program gets in.
        self.whole = whole
        #: Seconds after which the session hears that it still holds them.
        self.max_hold = max_hold
        #: Whether the session hears when somebody waits for them, and when nobody does.
        self.wanted = wanted
        #: In slot mode: how many slots the resource has. None: as many as configured,
        #: or as others have said who hold it or wait for it.
        self.slots = slots
        #: The owner who was the first to say that number; None: the configuration. Only
        #: the engine sets it.
        self.slots_said_by = slots_said_by
        #: The slot that it is inside of; None outside. Only the engine sets it.
        self.slot = slot


class Convert(Value):
    """A session wants another mode for what its owner holds.

    The lock is that of strand 0 with this key, or the one with this fencing token.
    """

    def __init__(
        self,
        session: int,
        request: int,
        key: ResourceKey | None,
        mode: Mode,
        timeout: float | None = None,
        fencing_token: int | None = None,
    ) -> None:
        self.session = session
        self.request = request
        self.key = key
        self.mode = mode
        self.timeout = timeout
        self.fencing_token = fencing_token


class Release(Value):
    """A session releases locks of its owner.

    By name, if strand 0 holds them, or by fencing token, whatever strand holds it.
    """

    def __init__(
        self,
        session: int,
        request: int,
        keys: tuple[ResourceKey, ...] = (),
        fencing_token: int | None = None,
        outcome: WorkOutcome = None,
    ) -> None:
        self.session = session
        self.request = request
        self.keys = keys
        self.fencing_token = fencing_token
        self.outcome = outcome


class ReleaseForOwner(Value):
    """A user releases a lock that a process holds, and no session.

    The caller has checked that it is the user of the process.
    """

    def __init__(
        self,
        session: int,
        request: int,
        fencing_token: int,
        outcome: WorkOutcome = None,
    ) -> None:
        self.session = session
        self.request = request
        self.fencing_token = fencing_token
        self.outcome = outcome


class Cancel(Value):
    """A session cancels one of its waiting requests."""

    def __init__(self, session: int, request: int, target: int) -> None:
        self.session = session
        self.request = request
        self.target = target


class BreakGrant(Value):
    """An admin takes a grant away, or the daemon does, which is session 0.

    Attributes:
        fence: end the holder's process first, if the lock requires that. False if the
            daemon cannot end it.
    """

    def __init__(
        self,
        session: int,
        request: int,
        fencing_token: int,
        reason: str,
        fence: bool = True,
    ) -> None:
        self.session = session
        self.request = request
        self.fencing_token = fencing_token
        self.reason = reason
        self.fence = fence


class AnchorOpened(Value):
    """An anchor is open in the mode that `OpenAnchor` asked for."""

    def __init__(self, key: ResourceKey) -> None:
        self.key = key


class AnchorDelayed(Value):
    """The answer to `OpenAnchor` takes longer: the file system is slow."""

    def __init__(self, key: ResourceKey) -> None:
        self.key = key


class Resume(Value):
    """Another daemon drives the engine now. The engine repeats unanswered effects."""


class Tick(Value):
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
