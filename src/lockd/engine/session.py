"""Sessions, the owners they act for, their strands, and the requests that wait.

A *strand* is what holds, waits and excludes: the owner as a whole, or one thread or
task of a session. All that its strands hold ends with the owner.

Each object keeps its own counts consistent. The rules of locking are in `lock_table`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from lockd.engine.commands import Acquire, AnchorRefused, Owner, RegisterOwner
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


Inside = Mapping[ResourceKey, tuple[int, ...]]
"""The tokens of the grants of a resource that somebody is inside of, the outermost
first. The holder of each waits for the end of those inside."""

NOWHERE: Final[Inside] = {}

WHOLE: Final = (0, 0)
"""The name of the strand that is the owner as a whole."""


class Strand:
    """What holds and waits for itself.

    `name` has the number of its session and its own; `WHOLE` is common to all sessions
    of the owner.
    """

    __slots__ = ("held", "insiders", "name", "requests")

    def __init__(self, name: tuple[int, int] = WHOLE) -> None:
        self.name = name
        #: The sessions for whose end it waits, each with the grants that it is inside.
        self.insiders = _NO_INSIDERS
        #: How many grants it has.
        self.held = 0
        #: Its unanswered requests by order.
        self.requests: dict[int, Request] = {}

    @property
    def number(self) -> int:
        """Its number in its session; 0 for the owner as a whole."""
        return self.name[1]

    def hold(self, more: int) -> None:
        """Counts grants: 1 is a new one, -1 one that ended."""
        self.held += more

    def let_in(self, grant: Grant, session: Session) -> None:
        """Notes that a session is inside one of its grants."""
        if not self.insiders:
            self.insiders = {}
        _, grants = self.insiders.setdefault(session.session_id, (session, {}))
        grants[grant.fencing_token] = grant

    def let_out(self, token: int, *session_ids: int) -> None:
        """Notes that some sessions are not inside a grant any more."""
        for session_id in session_ids:
            _, grants = self.insiders.get(session_id, (None, {}))
            if grants.pop(token, None) and not grants:
                del self.insiders[session_id]
        self.insiders = self.insiders or _NO_INSIDERS

    def awaited(self) -> Iterator[tuple[Request, Grant | None]]:
        """Yields its requests, and those of sessions inside its grants, with one."""
        yield from ((request, None) for request in self.requests.values())
        for session, grants in self.insiders.values():
            grant = next(iter(grants.values()))
            yield from ((request, grant) for request in session.requests.values())

    def waits_for(self, key: ResourceKey) -> Iterator[Request]:
        """Yields its unanswered requests for a resource."""
        return (r for r in self.requests.values() if key in r.keys)

    def convert_of(self, key: ResourceKey) -> Request | None:
        """Returns its unanswered convert of a resource."""
        return next((r for r in self.waits_for(key) if r.converting), None)


#: Shared by all that have none, to save memory.
_NO_INSIDERS: Final[dict[int, tuple[Session, dict[int, Grant]]]] = {}
_NO_STRANDS: Final[dict[tuple[int, int], Strand]] = {}


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
        "strands",
        "until",
        "whole",
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
        #: Whether it is a registered process, which outlives its sessions. Otherwise it
        #: stands for one session.
        self.is_process = is_process
        self.on_disconnect = on_disconnect
        #: "both": its grants outlive its process while a session acts for it.
        self.until = until
        self.grants: dict[int, Grant] = {}
        #: A checksum of all grants (`claim_of`): it reveals a missing one after a
        #: crash.
        self.claims = 0
        self.sessions: dict[int, Session] = {}
        self.whole = Strand()
        #: The other strands that hold or wait.
        self.strands = _NO_STRANDS
        #: Why its process is being killed; its grants wait for the death.
        self.fencing = fencing
        #: Whether it may get no more locks although it has sessions: its process is
        #: dead or is being killed.
        self.ended = ended

    def introduce(self, command: RegisterOwner) -> None:
        """Sets what a session says about the owner for whom it acts."""
        self.identity = command.owner
        self.on_disconnect = command.on_disconnect or self.on_disconnect
        if command.until == "both":
            self.until = "both"

    def put(self, grant: Grant) -> Strand:
        """Adds a grant, or replaces the one with its fencing token.

        Returns the strand that holds it.
        """
        strand = self.strand_of(grant) if grant.strand else self.whole
        token = grant.fencing_token
        before = self.grants.get(token)
        if before is not None:
            self.claims ^= claim_of(before)
        else:
            strand.hold(1)
            if grant.strand:
                self._keep(strand)
        self.claims ^= claim_of(grant)
        self.grants[token] = grant
        return strand

    def remove(self, fencing_token: int) -> Strand:
        """Removes a grant. Returns the strand that held it."""
        grant = self.grants.pop(fencing_token)
        self.claims ^= claim_of(grant)
        strand = self.strand_of(grant) if grant.strand else self.whole
        strand.hold(-1)
        if strand.insiders:
            strand.let_out(fencing_token, *strand.insiders)
        if grant.strand:
            self._keep(strand)
        return strand

    def strand(self, name: tuple[int, int]) -> Strand:
        """Returns a strand by name: a new one if it neither holds nor waits."""
        return self.strands.get(name) or (Strand(name) if name[1] else self.whole)

    def strand_of(self, grant: Grant) -> Strand:
        """Returns the strand that holds a grant."""
        return self.strand((grant.session, grant.strand))

    def put_request(self, request: Request) -> None:
        """Adds an unanswered request to its strand."""
        request.strand.requests[request.order] = request
        self._keep(request.strand)

    def remove_request(self, request: Request) -> None:
        """Removes an answered request from its strand."""
        del request.strand.requests[request.order]
        self._keep(request.strand)

    def _keep(self, strand: Strand) -> None:
        """Keeps a strand while it holds or waits."""
        if strand is self.whole:
            return
        if strand.held or strand.requests:
            if not self.strands:
                self.strands = {}
            self.strands[strand.name] = strand
        else:
            self.strands.pop(strand.name, None)
            self.strands = self.strands or _NO_STRANDS

    def end(self, *, ended: bool = True) -> None:
        """Notes whether the owner has ended. An owner that ended gets no more locks."""
        self.ended = ended

    def fence(self, cause: str) -> None:
        """Notes that its process is being killed, and why."""
        self.fencing = cause

    @property
    def lingers(self) -> bool:
        """Whether a session keeps its grants after its process has died."""
        return self.until == "both" and bool(self.sessions)

    @property
    def why_not(self) -> tuple[str, str]:
        """Why a request on its behalf is refused: a code and a sentence."""
        if self.ended:
            return OWNER_IS_DEAD
        if self.fencing:
            return "unavailable", "lockd is killing the process of this session"
        return "invalid", "another request with this msgid has no answer yet"

    def waiting(self) -> list[Request]:
        """Returns the requests that wait on behalf of this owner."""
        return [r for s in self.sessions.values() for r in s.requests.values()]


def claim_of(grant: Grant) -> int:
    """Returns a checksum of a grant, which depends on its token, mode and count."""
    count = (grant.count & 0x7F) << 56
    return grant.fencing_token ^ count ^ (grant.mode == SHARED) << 55


class Session:
    """One client connection: for whom it acts, and what it waits for."""

    __slots__ = ("owner", "registered", "requests", "session_id", "waits", "within")

    def __init__(
        self,
        session_id: int,
        owner: OwnerState,
        *,
        registered: bool = False,
        within: Sequence[int] = (),
    ) -> None:
        self.session_id = session_id
        self.owner = owner
        #: Whether it has registered an owner; it may do so once.
        self.registered = registered
        self.requests: dict[int, Request] = {}
        #: A checksum of its requests: their orders, combined by exclusive or.
        self.waits = 0
        #: The tokens of the grants whose holders wait for its end. Some may be over.
        self.within = tuple(within)

    def register(self, owner: OwnerState) -> None:
        """Makes the session act for an owner."""
        self.owner = owner
        self.registered = True

    def enter(self, tokens: Sequence[int]) -> None:
        """Notes the grants whose holders wait for its end."""
        self.within = tuple(tokens)

    def put(self, request: Request) -> None:
        """Adds an unanswered request."""
        self.requests[request.number] = request
        self.waits ^= request.order

    def remove(self, request: Request) -> None:
        """Removes an answered request."""
        del self.requests[request.number]
        self.waits ^= request.order

    @property
    def claims(self) -> int:
        """A checksum of the grants of its owner and of its own requests."""
        return self.owner.claims ^ self.waits


class Request:
    """An acquire or a convert.

    It ends when it is answered and no anchor is being opened.

    Args:
        order: its place among all requests: every line is sorted by this number.
        wish: what it asks for.
        converting: whether it wants another mode for what its strand holds.
        inside: for each of its keys, the grants that its session is inside of.
    """

    __slots__ = (
        "converting",
        "deadline",
        "inside",
        "keys",
        "mode",
        "number",
        "opening",
        "order",
        "outside",
        "pause",
        "refusal",
        "retry_at",
        "session",
        "since",
        "state",
        "strand",
        "tries",
        "uid",
        "wish",
    )

    def __init__(
        self,
        session: Session,
        strand: Strand,
        order: int,
        wish: Acquire,
        since: float,
        *,
        converting: bool = False,
        inside: Inside = NOWHERE,
    ) -> None:
        self.state: RequestState = NEW
        self.session = session
        self.strand = strand
        #: The uid of the owner at the time of the request, for the limits.
        self.uid = session.owner.identity.uid
        self.order = order
        self.wish = wish
        # What is asked for most often.
        self.number, self.keys, self.mode = wish.request, wish.keys, wish.mode
        self.since = since
        timeout = 0 if wish.max_waiting == 0 else wish.timeout
        self.deadline = None if timeout is None else since + timeout
        #: Whether the timeout is 0: it must not wait.
        self.tries = timeout == 0
        self.converting = converting
        self.inside = inside
        #: How many of its anchors are still being opened.
        self.opening = 0
        #: Why an anchor was refused; the first one if there are several.
        self.refusal: AnchorRefused | None = None
        #: When a paused request tries its file again.
        self.retry_at: float | None = None
        #: Seconds of its last pause.
        self.pause = 0.0
        #: Who had its file locked at the last try.
        self.outside: OutsideHolder | None = None

    def restore(
        self, fields: Mapping[str, Any], *, announced: bool, answered: bool
    ) -> None:
        """Restores the fields and the state that a snapshot recorded.

        Args:
            fields: the attributes but `state` and those of the constructor.
            announced, answered: stand for the state.
        """
        for name, value in fields.items():
            setattr(self, name, value)
        if answered:
            self.state = ABANDONED
        elif self.opening:
            self.state = DELAYED if announced else OPENING
        else:
            self.state = QUEUED if self.retry_at is None else PAUSED

    def become(self, state: RequestState) -> None:
        """Changes the state, as the table `NEXT` allows.

        Raises:
            AssertionError: the table does not allow it, which is a defect of the
                engine.
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
        """Whether its session knows that it waits (`Queued`)."""
        return self.state is not NEW and self.state is not OPENING

    def open_anchors(self, count: int) -> None:
        """Begins to wait for `count` anchors."""
        self.opening = count
        self.refusal = None

    def hear(self, refusal: AnchorRefused | None) -> bool:
        """Notes that one anchor is open or refused. Returns whether it was the last."""
        if refusal is not None and self.refusal is None:
            self.refusal = refusal
        self.opening -= 1
        return self.opening == 0

    def look_outside(self, outside: OutsideHolder | None) -> None:
        """Notes who has its file locked."""
        self.outside = outside
        self.refusal = None

    def pause_until_later(self, now: float) -> float:
        """Pauses, each time for longer. Returns the time of the next try."""
        self.become(PAUSED)
        self.pause = min(max(2 * self.pause, FIRST_PAUSE), LAST_PAUSE)
        self.retry_at = now + self.pause
        return self.retry_at

    def end_pause(self) -> None:
        """Ends the pause; the request stands in line again."""
        self.become(QUEUED)
        self.retry_at = None

    def expect_slots(self, count: int, said_by: Owner | None) -> None:
        """Sets how many slots there are of what it waits for, and who says so."""
        self.wish = self.wish.replace(slots=count, slots_said_by=said_by)

    def allow_until(self, deadline: float) -> None:
        """Sets the time at which the request is refused if it has no grant by then."""
        self.deadline = deadline

    @property
    def goes_down(self) -> bool:
        """Whether it converts to shared, which never waits."""
        return self.converting and self.mode == SHARED

    @property
    def owner(self) -> OwnerState:
        """The owner on whose behalf it waits."""
        return self.session.owner
