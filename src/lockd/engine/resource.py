"""One resource: its holders, its two lines of requests, the state of its anchor.

Theory of operation. A resource exists while somebody holds it, waits for it, or its
anchor is open. Requests stand in `converting` (holders that want another mode) or in
`waiting`; the front is the first of `converting`, or else of `waiting`. Where an
anchor is needed, the request whose turn it is leaves the line and becomes `pending`
until the anchor's answer comes; meanwhile nobody else moves.

The state of the anchor is `anchor`: None while it is closed, else the mode in which it
is held outside; `anchor_wanted` is what the pending request asked for. When nothing is
pending, the anchor's mode is the holders' mode.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, islice
from typing import Final

from lockd.engine.effects import Grant, Situation, Waiter
from lockd.engine.request_state import ABANDONED
from lockd.engine.session import OwnerState, Request
from lockd.terms import SHARED, Mode, ResourceKey

COMPATIBLE: Final[frozenset[tuple[Mode, Mode]]] = frozenset({(SHARED, SHARED)})
"""The pairs of modes that two owners may hold at once; any other pair excludes."""

MAX_NAMED: Final = 16
"""How many holders and waiters an answer names: the rest is a number (protocol 4.3)."""

#: An empty line costs a resource nothing; a real one is made for the first who waits.
_NOBODY: Final[OrderedDict[Request, None]] = OrderedDict()


def compatible(held: Mode, wanted: Mode) -> bool:
    """Tells whether one owner may get `wanted` while another holds `held`."""
    return (held, wanted) in COMPATIBLE


class Resource:
    """The thing that is locked."""

    __slots__ = (
        "anchor",
        "anchor_wanted",
        "converting",
        "holders",
        "key",
        "pending",
        "waiting",
    )

    def __init__(self, key: ResourceKey) -> None:
        self.key = key
        #: By owner, in the order of their grants.
        self.holders: dict[int, Grant] = {}
        self.converting = _NOBODY
        self.waiting = _NOBODY
        self.anchor: Mode | None = None
        self.anchor_wanted: Mode | None = None
        #: The request for which the anchor is being opened; it may be abandoned by now.
        self.pending: Request | None = None

    def __repr__(self) -> str:
        return (
            f"<Resource {self.key} holders={len(self.holders)} "
            f"converting={len(self.converting)} waiting={len(self.waiting)} "
            f"anchor={self.anchor} pending={self.pending is not None}>"
        )

    @property
    def mode(self) -> Mode | None:
        """The mode in which it is held; None while it is free."""
        for grant in self.holders.values():
            return grant.mode
        return None

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds it, waits for it, or is having its anchor opened."""
        return not (self.holders or self.pending or self.converting or self.waiting)

    @property
    def has_line(self) -> bool:
        """Whether a newcomer would overtake somebody."""
        return bool(self.pending or self.converting or self.waiting)

    def front(self) -> Request | None:
        """Returns the request whose turn is next."""
        for request in self.converting or self.waiting:
            return request
        return None

    def admits(self, mode: Mode, owner_id: int) -> bool:
        """Tells whether the holders leave room for an owner to hold a mode."""
        holders = self.holders
        if not holders:
            return True
        if owner_id in holders:
            return len(holders) == 1 or mode == SHARED
        return compatible(next(iter(holders.values())).mode, mode)

    def lets_pass(self, request: Request) -> bool:
        """Tells whether nobody and nothing here is before a request.

        It may stand in the line or be about to; a convert goes before who waits.
        """
        line = self.converting
        if not line and not request.converting:
            line = self.waiting
        return (
            self.pending is None
            and next(iter(line), request) is request
            and self.admits(request.mode, request.owner.owner_id)
        )

    def enqueue(self, request: Request) -> None:
        """Puts a request at the end of its line."""
        if request.converting:
            if not self.converting:
                self.converting = OrderedDict()
            self.converting[request] = None
        else:
            if not self.waiting:
                self.waiting = OrderedDict()
            self.waiting[request] = None

    def enqueue_first(self, request: Request) -> None:
        """Puts a request back at the head of its line."""
        self.enqueue(request)
        line = self.converting if request.converting else self.waiting
        line.move_to_end(request, last=False)

    def dequeue(self, request: Request) -> None:
        """Takes a request out of its line, wherever it stands in it."""
        if request.converting:
            self.converting.pop(request, None)
            self.converting = self.converting or _NOBODY
        else:
            self.waiting.pop(request, None)
            self.waiting = self.waiting or _NOBODY

    def line(self) -> Iterator[Request]:
        """Goes through all requests in the order of their turns."""
        pending = () if self.pending is None else (self.pending,)
        unanswered = (r for r in pending if r.state is not ABANDONED)
        return chain(unanswered, self.converting, self.waiting)

    def line_length(self) -> int:
        """Returns how many requests wait."""
        pending = self.pending
        opening = pending is not None and pending.state is not ABANDONED
        return opening + len(self.converting) + len(self.waiting)

    def convert_of(self, owner: OwnerState) -> Request | None:
        """Returns the request by which a holder wants another mode."""
        if self.converting or self.pending is not None:
            for request in self.line():
                if request.converting and request.owner is owner:
                    return request
        return None

    # The anchor.

    def open_anchor(self, request: Request, mode: Mode) -> None:
        """Notes that the anchor is being opened, for a request that left the line."""
        self.pending = request
        self.anchor_wanted = mode

    def anchor_is(self, mode: Mode | None) -> None:
        """Notes in which mode the anchor is held."""
        self.anchor = mode

    def end_opening(self) -> None:
        """Lets others move: nothing more is awaited of the anchor."""
        self.pending = self.anchor_wanted = None

    def situation(self, but: Request | None = None) -> Situation:
        """Describes holders and waiters, leaving out the request that asks."""
        waiters = (_waiter(r) for r in self.line() if r is not but)
        front = self.front()
        return Situation(
            self.key,
            tuple(islice(self.holders.values(), MAX_NAMED)),
            len(self.holders),
            tuple(islice(waiters, MAX_NAMED)),
            self.line_length() - (but is not None and self._is_in_line(but)),
            None if front is None or front is but else front.outside,
        )

    def _is_in_line(self, request: Request) -> bool:
        return (
            request is self.pending
            or request in self.converting
            or request in self.waiting
        )


def _waiter(request: Request) -> Waiter:
    return Waiter(
        request.owner.identity,
        request.session.session_id,
        request.mode,
        request.since,
        request.converting,
        request.label,
        request.reason,
    )
