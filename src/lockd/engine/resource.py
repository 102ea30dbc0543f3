"""One resource: its holders, its three lines of requests, the state of its anchor.

A resource exists while somebody holds it, waits for it, or its anchor is open. The
requests of sessions inside its grants stand in `inner`, those of holders that want
another mode in `converting`, all others in `waiting`. They are served in this order: a
holder waits for the end of those inside, and all others wait for the holder. If the
resource needs an anchor, the first request leaves the line and becomes `pending` until
the anchor answers. Nobody else moves meanwhile.

All holders have one mode. Of exclusive ones, each is inside all those before it. They
are a *chain*, and share the anchor.

`anchor` is the mode in which the anchor is held outside; None means closed.
`anchor_wanted` is the mode that the pending request asked for. While nothing is
pending, the anchor has the mode of the holders.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from itertools import chain, islice
from typing import Final

from lockd.engine.commands import Acquire
from lockd.engine.effects import Grant, Situation, Waiter
from lockd.engine.request_state import ABANDONED
from lockd.engine.session import Request, Strand
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey

COMPATIBLE: Final[frozenset[tuple[Mode, Mode]]] = frozenset({(SHARED, SHARED)})
"""The pairs of modes that two strands may hold at once. Any other pair excludes."""

MAX_NAMED: Final = 16
"""An answer names at most this many holders and waiters (protocol 4.3)."""

#: Shared by all resources where nobody waits, to save memory.
_NOBODY: Final[OrderedDict[Request, None]] = OrderedDict()


def compatible(held: Mode, wanted: Mode) -> bool:
    """Returns whether one strand may get `wanted` while another holds `held`."""
    return (held, wanted) in COMPATIBLE


class Resource:
    """One resource of a lockspace."""

    __slots__ = (
        "anchor",
        "anchor_wanted",
        "converting",
        "holders",
        "inner",
        "key",
        "pending",
        "waiting",
    )

    def __init__(self, key: ResourceKey) -> None:
        self.key = key
        #: By strand, in the order of their grants.
        self.holders: dict[Strand, Grant] = {}
        #: Those inside most grants first: the holders of the inner ones wait for them.
        self.inner = _NOBODY
        self.converting = _NOBODY
        self.waiting = _NOBODY
        self.anchor: Mode | None = None
        self.anchor_wanted: Mode | None = None
        #: The request for which the anchor is being opened; it may be abandoned.
        self.pending: Request | None = None

    def __repr__(self) -> str:
        return (
            f"<Resource {self.key} holders={len(self.holders)} "
            f"inner={len(self.inner)} converting={len(self.converting)} "
            f"waiting={len(self.waiting)} anchor={self.anchor} "
            f"pending={self.pending is not None}>"
        )

    @property
    def mode(self) -> Mode | None:
        """The mode in which it is held; None while it is free."""
        for grant in self.holders.values():
            return grant.mode
        return None

    @property
    def is_idle(self) -> bool:
        """Whether it has no holders, no requests and no opening anchor."""
        return not (
            self.holders
            or self.pending
            or self.converting
            or self.waiting
            or self.inner
        )

    @property
    def has_line(self) -> bool:
        """Whether a new request would overtake another."""
        return bool(self.pending or self.converting or self.waiting or self.inner)

    def front(self) -> Request | None:
        """Returns the first request in line.

        A convert to shared has nothing to wait for.
        """
        for request in self.inner:
            convert = next(iter(self.converting), None)
            return convert if convert and convert.goes_down else request
        for request in self.converting or self.waiting:
            return request
        return None

    def admits(self, mode: Mode, strand: Strand) -> bool:
        """Returns whether the other holders allow a strand to hold a mode."""
        holders = self.holders
        if not holders:
            return True
        if strand in holders:
            return len(holders) == 1 or mode == SHARED
        return compatible(next(iter(holders.values())).mode, mode)

    def lets_pass(self, request: Request) -> bool:
        """Returns whether a request can be granted now, as far as this resource goes.

        The request may be in the line, or about to join it. A request from inside goes
        before converts, and a convert before acquires.
        """
        if request.inside:
            return self.pending is None and self._admits_inside(request)
        if self.inner and not request.goes_down:
            return False
        line = self.converting
        if not line and not request.converting:
            line = self.waiting
        return (
            self.pending is None
            and next(iter(line), request) is request
            and self.admits(request.mode, request.strand)
        )

    def _admits_inside(self, request: Request) -> bool:
        """Returns whether all that exclude a request are grants that it is inside of.

        Nobody that is inside as many of them stands before it.
        """
        first = next(iter(self.inner), request)
        if first is not request and self._place(first) < self._place(request):
            return False
        around = request.inside[self.key]
        return self.admits(request.mode, request.strand) or all(
            grant.fencing_token in around or strand is request.strand
            for strand, grant in self.holders.items()
        )

    def _place(self, request: Request) -> tuple[int, int]:
        """Returns what sorts the requests from inside."""
        return -len(request.inside[self.key]), request.order

    def around(self, tokens: Collection[int]) -> tuple[int, ...]:
        """Returns the tokens of those grants, and of all that these are inside of."""
        found: set[int] = set()
        for grant in self.holders.values():
            if grant.fencing_token in tokens:
                found.update(grant.inside, (grant.fencing_token,))
        return tuple(sorted(found))

    def still_around(self, request: Request) -> tuple[int, ...]:
        """Returns the tokens around a request that are held, or have holders inside."""
        around = request.inside.get(self.key)
        if not around:
            return ()
        holders = self.holders.values()
        held = {x for grant in holders for x in (grant.fencing_token, *grant.inside)}
        return tuple(token for token in around if token in held)

    def joined_by(self, request: Request) -> tuple[Mode, bool, tuple[int, ...]]:
        """Returns how a request from inside holds: mode, whole, and what is around it.

        If all around it has ended, its anchor may still be open, for this request.
        """
        around, whole = self.still_around(request), request.wish.whole
        if around:
            whole = whole or any(grant.whole for grant in self.holders.values())
        return self.mode or self.anchor or request.mode, whole, around

    def is_inside(self, request: Request, strand: Strand) -> bool:
        """Returns whether a request is inside what a strand holds here."""
        grant = self.holders.get(strand)
        return grant is not None and grant.fencing_token in request.inside[self.key]

    def has_inside(self, grant: Grant) -> bool:
        """Returns whether other holders are inside a grant."""
        return any(grant.fencing_token in x.inside for x in self.holders.values())

    def uncovered(self) -> list[Request]:
        """Returns the requests that want more than is held by those around them."""
        return [
            request
            for request in self.inner
            if not self.covers(request.wish) and self.around(request.inside[self.key])
        ]

    def covers(self, wish: Acquire) -> bool:
        """Returns whether what is held allows all that a request from inside wants."""
        if wish.mode == EXCLUSIVE and self.mode == SHARED:
            return False
        return not wish.whole or any(grant.whole for grant in self.holders.values())

    def mode_for(self, request: Request) -> Mode:
        """Returns the mode that a request is to get: inside, that of the holders."""
        if request.inside and EXCLUSIVE in (self.mode, self.anchor_wanted):
            return EXCLUSIVE if self.around(request.inside[self.key]) else request.mode
        return request.mode

    def enqueue(self, request: Request) -> None:
        """Puts a request at the end of its line."""
        if request.inside:
            self._enqueue_inside(request)
        elif request.converting:
            if not self.converting:
                self.converting = OrderedDict()
            self.converting[request] = None
        else:
            if not self.waiting:
                self.waiting = OrderedDict()
            self.waiting[request] = None

    def _enqueue_inside(self, request: Request) -> None:
        line = self.inner = self.inner or OrderedDict()
        last = next(reversed(line), request)
        line[request] = None
        if self._place(last) > self._place(request):
            self.inner = OrderedDict.fromkeys(sorted(line, key=self._place))

    def line_of(self, request: Request) -> OrderedDict[Request, None]:
        """Returns the line where a request stands, or would stand."""
        if request.inside:
            return self.inner
        return self.converting if request.converting else self.waiting

    def enqueue_first(self, request: Request) -> None:
        """Puts a request back at the head of its line."""
        self.enqueue(request)
        self.line_of(request).move_to_end(request, last=False)

    def dequeue(self, request: Request) -> None:
        """Removes a request from its line, if it is there."""
        if request.inside:
            self.inner.pop(request, None)
            self.inner = self.inner or _NOBODY
        elif request.converting:
            self.converting.pop(request, None)
            self.converting = self.converting or _NOBODY
        else:
            self.waiting.pop(request, None)
            self.waiting = self.waiting or _NOBODY

    def line(self) -> Iterator[Request]:
        """Yields all waiting requests in the order in which they will be served."""
        pending = () if self.pending is None else (self.pending,)
        unanswered = (r for r in pending if r.state is not ABANDONED)
        return chain(unanswered, self.queued())

    def queued(self) -> Iterator[Request]:
        """Yields the requests that stand in the three lines."""
        return chain(self.inner, self.converting, self.waiting)

    def line_length(self) -> int:
        """Returns how many requests wait."""
        pending = self.pending
        opening = pending is not None and pending.state is not ABANDONED
        return opening + len(self.inner) + len(self.converting) + len(self.waiting)

    def count_before(self, request: Request) -> int:
        """Returns how many wait before a request that is about to join the line."""
        return len(self.inner) if request.inside else self.line_length()

    # The anchor.

    def open_anchor(self, request: Request, mode: Mode) -> None:
        """Notes that the anchor is being opened, for a request that left the line."""
        self.pending = request
        self.anchor_wanted = mode

    def anchor_is(self, mode: Mode | None) -> None:
        """Notes the mode in which the anchor is held."""
        self.anchor = mode

    def end_opening(self) -> None:
        """Notes that the anchor has answered; the line moves again."""
        self.pending = self.anchor_wanted = None

    def situation(self, but: Request | None = None) -> Situation:
        """Returns the holders and waiters, without the request `but`."""
        waiters = (_waiter(self, r) for r in self.line() if r is not but)
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
        return request is self.pending or request in self.line_of(request)


def _waiter(resource: Resource, request: Request) -> Waiter:
    return Waiter(
        request.owner.identity,
        request.session.session_id,
        request.mode,
        request.since,
        request.converting,
        request.wish.label,
        request.wish.reason,
        request.strand.number,
        request.inside.get(resource.key, ()),
    )
