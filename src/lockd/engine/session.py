"""Sessions, the owners they act for, and the requests that wait.

Plain state without rules; `lock_engine` is the only one that changes it.
"""

from __future__ import annotations

from typing import Final

from lockd.engine.commands import AnchorRefused, Owner, RegisterOwner
from lockd.engine.effects import Grant
from lockd.terms import (
    SHARED,
    Create,
    Mode,
    OnDisconnect,
    OutsideHolder,
    ResourceKey,
    Until,
)

OWNER_IS_DEAD: Final = (
    "not_found",
    "the process that this session acts for has ended: open another session",
)


class OwnerState:
    """An owner, its grants by fencing token, and the sessions that act for it."""

    __slots__ = (
        "claims",
        "ended",
        "fencing",
        "grants",
        "identity",
        "is_process",
        "on_disconnect",
        "owner_id",
        "sessions",
        "until",
    )

    def __init__(
        self, owner_id: int, identity: Owner, *, is_process: bool = False
    ) -> None:
        self.owner_id = owner_id
        self.identity = identity
        #: Whether it is a registered process, which outlives the sessions that name
        #: it, and not the other end of one session.
        self.is_process = is_process
        self.on_disconnect: OnDisconnect | None = None
        #: "both": its grants outlive its process while a session acts for it.
        self.until: Until = "either"
        self.grants: dict[int, Grant] = {}
        #: All grants as one number (`claim_of`), so that a missing one is seen.
        self.claims = 0
        self.sessions: dict[int, Session] = {}
        #: Why its process is being ended; its grants wait for that.
        self.fencing: str | None = None
        #: Whether it is over although sessions still name it: its process is dead, or
        #: is being ended.
        self.ended = False

    def introduce(self, command: RegisterOwner) -> None:
        """Takes up what a session says of the owner for whom it acts."""
        self.identity = command.owner
        self.on_disconnect = command.on_disconnect or self.on_disconnect
        if command.until == "both":
            self.until = "both"

    @property
    def lingers(self) -> bool:
        """Whether a session is there that keeps the grants when the process is dead."""
        return self.until == "both" and bool(self.sessions)

    @property
    def why_not(self) -> tuple[str, str]:
        """Why a request is refused that is made on its behalf: a code, a sentence."""
        if self.ended:
            return OWNER_IS_DEAD
        if self.fencing:
            return "unavailable", "the process of this session is being ended"
        return "invalid", "another request with this msgid is not yet answered"

    @property
    def waiting_count(self) -> int:
        """How many requests wait on behalf of this owner."""
        return sum(len(session.requests) for session in self.sessions.values())

    def waiting(self) -> list[Request]:
        """Returns the requests that wait on behalf of this owner."""
        return [r for s in self.sessions.values() for r in s.requests.values()]


def claim_of(grant: Grant) -> int:
    """Returns a grant as a number, which changes with its mode and its count."""
    count = (grant.count & 0x7F) << 56
    return grant.fencing_token ^ count ^ (grant.mode == SHARED) << 55


class Session:
    """One client connection: for whom it acts, and what it waits for."""

    __slots__ = ("owner", "registered", "requests", "session_id", "waits")

    def __init__(self, session_id: int, owner: OwnerState) -> None:
        self.session_id = session_id
        self.owner = owner
        #: Whether it said for whom it acts, which it may do once.
        self.registered = False
        self.requests: dict[int, Request] = {}
        #: The orders of all requests, put together by exclusive or.
        self.waits = 0

    @property
    def claims(self) -> int:
        """What its owner holds and what it waits for, as one number."""
        return self.owner.claims ^ self.waits


class Request:
    """An acquire or convert that is not yet answered.

    It is either *queued* in the line of each of its resources, or *opening*: at the
    head of all of them (`Resource.pending`) while their anchors are being opened.
    """

    __slots__ = (
        "announced",
        "answered",
        "converting",
        "create",
        "deadline",
        "keys",
        "label",
        "mode",
        "number",
        "opening",
        "order",
        "outside",
        "pause",
        "reason",
        "refusal",
        "retry_at",
        "session",
        "since",
        "tries",
        "uid",
    )

    def __init__(
        self,
        session: Session,
        number: int,
        order: int,
        keys: tuple[ResourceKey, ...],
        mode: Mode,
        since: float,
        timeout: float | None,
        *,
        converting: bool = False,
        create: Create = None,
        label: str | None = None,
        reason: str | None = None,
    ) -> None:
        self.session = session
        #: Of the owner when it asked: under which it is counted.
        self.uid = session.owner.identity.uid
        self.number = number
        #: Its turn: every line is in the order of this number.
        self.order = order
        self.keys = keys
        self.mode = mode
        self.since = since
        self.deadline = None if timeout is None else since + timeout
        #: Whether it must not wait: a timeout of 0.
        self.tries = timeout == 0
        self.converting = converting
        self.create = create
        self.label = label
        self.reason = reason
        #: How many of its anchors are still being opened.
        self.opening = 0
        #: Why the first of them was refused.
        self.refusal: AnchorRefused | None = None
        #: When, and after how many seconds, a file that is locked from outside is
        #: tried again; until then nobody in the line moves.
        self.retry_at: float | None = None
        self.pause = 0.0
        #: Who had it locked, when that was last looked at.
        self.outside: OutsideHolder | None = None
        #: Whether `Queued` told that it waits.
        self.announced = False
        self.answered = False

    @property
    def goes_down(self) -> bool:
        """Whether it gives up exclusiveness, which waits for nobody."""
        return self.converting and self.mode == SHARED

    @property
    def owner(self) -> OwnerState:
        """The owner on whose behalf it waits."""
        return self.session.owner
