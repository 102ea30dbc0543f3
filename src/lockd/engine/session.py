"""Sessions, the owners they act for, and the requests that wait.

Each object keeps its own numbers right; the rules of locking are in `lock_table`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lockd.engine.commands import AnchorRefused, Owner, RegisterOwner
from lockd.engine.effects import Grant
from lockd.engine.request_state import (
    ABANDONED,
    ANSWERED,
    DELAYED,
    NEW,
    NEXT,
    OPENING,
    PAUSED,
    QUEUED,
    RequestState,
)
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

FIRST_PAUSE: Final = 0.010
LAST_PAUSE: Final = 0.500
"""Seconds between two tries of a file that is locked from outside (protocol 5.8)."""


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
        self,
        owner_id: int,
        identity: Owner,
        *,
        is_process: bool = False,
        on_disconnect: OnDisconnect | None = None,
        until: Until = "either",
        fencing: str | None = None,
        ended: bool = False,
    ) -> None:
        self.owner_id = owner_id
        self.identity = identity
        #: Whether it is a registered process, which outlives the sessions that name
        #: it, and not the other end of one session.
        self.is_process = is_process
        self.on_disconnect = on_disconnect
        #: "both": its grants outlive its process while a session acts for it.
        self.until = until
        self.grants: dict[int, Grant] = {}
        #: All grants as one number (`claim_of`), so that a missing one is seen.
        self.claims = 0
        self.sessions: dict[int, Session] = {}
        #: Why its process is being ended; its grants wait for that.
        self.fencing = fencing
        #: Whether it is over although sessions still name it: its process is dead, or
        #: is being ended.
        self.ended = ended

    def introduce(self, command: RegisterOwner) -> None:
        """Takes up what a session says of the owner for whom it acts."""
        self.identity = command.owner
        self.on_disconnect = command.on_disconnect or self.on_disconnect
        if command.until == "both":
            self.until = "both"

    def put(self, grant: Grant) -> None:
        """Adds a grant, or replaces it by another state of it."""
        token = grant.fencing_token
        before = self.grants.get(token)
        if before is not None:
            self.claims ^= claim_of(before)
        self.claims ^= claim_of(grant)
        self.grants[token] = grant

    def remove(self, fencing_token: int) -> None:
        """Removes a grant."""
        self.claims ^= claim_of(self.grants.pop(fencing_token))

    def end(self, *, ended: bool = True) -> None:
        """Notes whether it is over: then its sessions get nothing for it any more."""
        self.ended = ended

    def fence(self, cause: str) -> None:
        """Notes that its process is being ended, and why."""
        self.fencing = cause

    @property
    def lingers(self) -> bool:
        """Whether a session keeps its grants after its process has died."""
        return self.until == "both" and bool(self.sessions)

    @property
    def why_not(self) -> tuple[str, str]:
        """Why a request on its behalf is refused: a code, a sentence."""
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

    def __init__(
        self, session_id: int, owner: OwnerState, *, registered: bool = False
    ) -> None:
        self.session_id = session_id
        self.owner = owner
        #: Whether it said for whom it acts, which it may do once.
        self.registered = registered
        self.requests: dict[int, Request] = {}
        #: The orders of all requests, put together by exclusive or.
        self.waits = 0

    def register(self, owner: OwnerState) -> None:
        """Acts for an owner from now on."""
        self.owner = owner
        self.registered = True

    def put(self, request: Request) -> None:
        """Adds an unanswered request."""
        self.requests[request.number] = request
        self.waits ^= request.order

    def remove(self, request: Request) -> None:
        """Removes a request that is answered."""
        del self.requests[request.number]
        self.waits ^= request.order

    @property
    def claims(self) -> int:
        """What its owner holds and what it waits for, as one number."""
        return self.owner.claims ^ self.waits


class Request:
    """An acquire or a convert, until it is answered and no anchor is opened for it."""

    __slots__ = (
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
        "state",
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
        self.state: RequestState = NEW
        self.session = session
        #: Of the owner when it asked: the uid under which it is counted.
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
        #: Of a paused request: when its file is tried again.
        self.retry_at: float | None = None
        #: Seconds of its last pause.
        self.pause = 0.0
        #: Who had its file locked when that was last looked at.
        self.outside: OutsideHolder | None = None

    def restore(self, fields: Mapping[str, Any]) -> None:
        """Makes a new request what it was when its fields were written down.

        Args:
            fields: every slot but `state` and `session`; and `announced` and
                `answered`, which the state follows from.
        """
        for name in self.__slots__:
            if name not in ("state", "session"):
                setattr(self, name, fields[name])
        if fields["answered"]:
            self.state = ABANDONED
        elif self.opening:
            self.state = DELAYED if fields["announced"] else OPENING
        else:
            self.state = QUEUED if self.retry_at is None else PAUSED

    def become(self, state: RequestState) -> None:
        """Changes the state, along the table `NEXT`.

        Raises:
            AssertionError: the table does not allow it: a defect of the engine.
        """
        if state not in NEXT[self.state]:
            raise AssertionError(f"a request that is {self.state} becomes {state}")
        self.state = state

    @property
    def is_answered(self) -> bool:
        """Whether its session has its answer."""
        return self.state is ANSWERED or self.state is ABANDONED

    @property
    def is_announced(self) -> bool:
        """Whether `Queued` told its session that it waits."""
        return self.state is not NEW and self.state is not OPENING

    def open_anchors(self, count: int) -> None:
        """Begins to wait for so many anchors."""
        self.opening = count
        self.refusal = None

    def hear(self, refusal: AnchorRefused | None) -> bool:
        """Notes that one anchor is open, or refused; tells whether it was the last."""
        if refusal is not None and self.refusal is None:
            self.refusal = refusal
        self.opening -= 1
        return self.opening == 0

    def look_outside(self, outside: OutsideHolder | None) -> None:
        """Notes who has its file locked."""
        self.outside = outside
        self.refusal = None

    def pause_until_later(self, now: float) -> float:
        """Pauses, each time for longer; returns when it tries again."""
        self.become(PAUSED)
        self.pause = min(max(2 * self.pause, FIRST_PAUSE), LAST_PAUSE)
        self.retry_at = now + self.pause
        return self.retry_at

    def end_pause(self) -> None:
        """Stands in line again as before its pause."""
        self.become(QUEUED)
        self.retry_at = None

    def allow_until(self, deadline: float) -> None:
        """Sets when it is refused if it is not granted before."""
        self.deadline = deadline

    @property
    def goes_down(self) -> bool:
        """Whether it gives up exclusiveness, which waits for nobody."""
        return self.converting and self.mode == SHARED

    @property
    def owner(self) -> OwnerState:
        """The owner on whose behalf it waits."""
        return self.session.owner
