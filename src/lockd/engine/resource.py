"""One resource: its holders, its three lines of requests, the state of its anchor.

A resource exists while somebody holds it, waits for it, or its anchor is open. The
requests of sessions inside its grants stand in `inner`, those of holders that want
another mode in `converting`, all others in `waiting`. They are served in this order: a
holder waits for the end of those inside, and all others wait for the holder. If the
resource needs an anchor, the first request leaves the line and becomes `pending` until
the anchor answers. Nobody else moves meanwhile.

All holders have one mode. Of exclusive ones, each is inside all those before it. They
are a *chain*, and share the anchor. In slot mode, the holders of each slot are a chain,
and each slot has an inner line of its own (`slots`).

`anchor` is the mode in which the anchor is held outside; None means closed.
`anchor_wanted` is the mode that the pending request asked for. While nothing is
pending, the anchor has the mode of the holders.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from itertools import chain, islice
from typing import Final

from lockd.engine.commands import Acquire, Owner
from lockd.engine.effects import Grant, Situation, Waiter
from lockd.engine.holding.holders import Holders
from lockd.engine.holding.slots import Slots, joined, place
from lockd.engine.request_state import ABANDONED
from lockd.engine.session import Request, Strand
from lockd.hints import mypyc_attr
from lockd.terms import EXCLUSIVE, SHARED, SLOT, Mode, ResourceKey

COMPATIBLE: Final[frozenset[tuple[Mode, Mode]]] = frozenset({(SHARED, SHARED)})
"""The pairs of modes that any number of strands may hold at once. In slot mode, as many
may hold it as there are slots. Any other pair excludes."""

MAX_NAMED: Final = 16
"""An answer names at most this many holders and waiters (protocol 4.3)."""

#: Shared by all resources where nobody waits, or listens, to save memory.
_NOBODY: Final[OrderedDict[Request, None]] = OrderedDict()
_NO_LISTENERS: Final[dict[Strand, None]] = {}

Seekers = tuple[Strand | Request | None, ...]
"""Who waits until holders release it. None: somebody waits for each of them."""


def compatible(held: Mode, wanted: Mode) -> bool:
    """Returns whether one strand may get `wanted` while any others hold `held`."""
    return (held, wanted) in COMPATIBLE


@mypyc_attr(acyclic=True)
class Resource:
    """One resource of a lockspace."""

    __slots__ = (
        "anchor",
        "anchor_wanted",
        "converting",
        "holders",
        "inner",
        "key",
        "listeners",
        "pending",
        "seekers_told",
        "sharing",
        "slots",
        "stays_whole",
        "waiting",
    )

    def __init__(self, key: ResourceKey) -> None:
        self.key = key
        self.holders = Holders()
        #: Those inside the latest grant first: its holder waits for them.
        self.inner = _NOBODY
        self.converting = _NOBODY
        self.waiting = _NOBODY
        #: The holders that hear whether somebody waits for them.
        self.listeners = _NO_LISTENERS
        #: Of whom they have heard, but for those that are new.
        self.seekers_told: Seekers = ()
        #: How many of `waiting` want to share.
        self.sharing = 0
        self.anchor: Mode | None = None
        self.anchor_wanted: Mode | None = None
        #: The request for which the anchor is being opened; it may be abandoned.
        self.pending: Request | None = None
        #: Whether a request from inside that moved up gets a whole anchor by that.
        self.stays_whole = False
        #: None if nobody holds it or waits for it in slot mode.
        self.slots: Slots | None = None

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
        first = self.holders.first
        return None if first is None else first.mode

    @property
    def is_idle(self) -> bool:
        """Whether it has no holders, no requests and no opening anchor."""
        return not (
            self.holders
            or self.pending
            or self.converting
            or self.waiting
            or self.inner
            or (self.slots and self.slots.lines)
        )

    @property
    def has_line(self) -> bool:
        """Whether somebody waits."""
        return self.has_outer_line or bool(self.slots and self.slots.lines)

    @property
    def has_outer_line(self) -> bool:
        """Whether a new request from outside would overtake another.

        Those inside a slot wait for that slot only, and are never overtaken.
        """
        return bool(self.pending or self.converting or self.waiting or self.inner)

    def front(self) -> Request | None:
        """Returns the first request in line; of those inside slots, one that can go.

        A convert to shared has nothing to wait for.
        """
        if self.slots and (ready := self.slots.ready(self.key)):
            return ready
        for request in self.inner:
            convert = next(iter(self.converting), None)
            return convert if convert and convert.goes_down else request
        for request in self.converting or self.waiting:
            return request
        return None

    def admits(self, mode: Mode, strand: Strand) -> bool:
        """Returns whether the other holders allow a strand to hold a mode."""
        holders, held = self.holders, self.mode
        if held is None:
            return True
        if strand in holders:
            return len(holders) == 1 or held == mode == SHARED
        if held == SLOT:
            return mode == SLOT and self.slots is not None and self.slots.has_free
        return compatible(held, mode)

    def lets_pass(self, request: Request) -> bool:
        """Returns whether a request can be granted now, as far as this resource goes.

        The request may be in the line, or about to join it. A request from inside goes
        before converts, and a convert before acquires.
        """
        if request.wish.slot is not None:
            return self.slots is None or self.slots.admits(request, self.key)
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

        Nobody inside a later one, or the same, stands before it, and no convert down.
        """
        if next(iter(self.converting), request).goes_down:
            return False
        first = next(iter(self.inner), request)
        if first is not request and place(first, self.key) < place(request, self.key):
            return False
        around = request.inside[self.key]
        return self.admits(request.mode, request.strand) or all(
            grant.fencing_token in around or strand is request.strand
            for strand, grant in self.holders.items()
        )

    def around(self, tokens: Collection[int]) -> tuple[int, ...]:
        """Returns the tokens of those grants, and of all that these are inside of.

        Of several slots, only the one that was granted last counts.
        """
        found: set[int] = set()
        meant = [x for x in self.holders.values() if x.fencing_token in tokens]
        for grant in meant:
            if grant.slot == meant[-1].slot:
                found.update(grant.inside, (grant.fencing_token,))
        return tuple(sorted(found))

    def slot_inside(self, tokens: Collection[int]) -> int | None:
        """Returns the slot that one is in who is inside these grants."""
        held = self.holders.values()
        return next((x.slot for x in held if x.fencing_token in tokens), None)

    def still_around(self, request: Request) -> tuple[int, ...]:
        """Returns the tokens around a request that are held, or have holders inside."""
        around = request.inside.get(self.key)
        if not around:
            return ()
        holders = self.holders.values()
        held = {x for grant in holders for x in (grant.fencing_token, *grant.inside)}
        return tuple(token for token in around if token in held)

    def join(self, request: Request) -> bool:
        """Returns whether a request from inside that moves up gets the anchor as it is.

        It does so if anything around it is left. The anchor then stays as it is for
        this request, even if all around it ends while others are opened.
        """
        joins = bool(self.still_around(request))
        self.stays_whole = joins and any(x.whole for x in self.holders.values())
        return joins

    def gets_whole(self, request: Request) -> bool:
        """Returns whether a request that moved up gets the anchor whole."""
        return request.wish.whole or (bool(request.inside) and self.stays_whole)

    def joined_by(self, request: Request) -> tuple[Mode, bool, tuple[int, ...]]:
        """Returns how a request from inside holds: mode, whole, and what is around it.

        If all around it has ended, its anchor may still be open, for this request.
        """
        mode = self.mode or self.anchor or request.mode
        return mode, self.gets_whole(request), self.still_around(request)

    def is_inside(self, request: Request, strand: Strand) -> bool:
        """Returns whether a request is inside what a strand holds here."""
        grant = self.holders.get(strand)
        return grant is not None and grant.fencing_token in request.inside[self.key]

    def has_inside(self, grant: Grant) -> bool:
        """Returns whether others hold it inside a grant, or are about to."""
        inside = (self._pending_inside, *(x.inside for x in self.holders.values()))
        return any(grant.fencing_token in tokens for tokens in inside)

    def uncovered(self) -> list[Request]:
        """Returns the requests that want more than is held by those around them."""
        return [
            request
            for request in self.inner
            if not self.covers(request.wish) and self.around(request.inside[self.key])
        ]

    def covers(self, wish: Acquire) -> bool:
        """Returns whether what is held allows all that a request from inside wants."""
        if SLOT in (wish.mode, self.mode):
            return wish.mode == self.mode
        if wish.mode == EXCLUSIVE and self.mode == SHARED:
            return False
        return not wish.whole or any(grant.whole for grant in self.holders.values())

    def mode_for(self, request: Request) -> Mode:
        """Returns the mode that a request is to get: inside, that of the holders."""
        if not (request.inside and EXCLUSIVE in (self.mode, self.anchor_wanted)):
            return request.mode
        joins = request is self.pending or self.around(request.inside[self.key])
        return EXCLUSIVE if joins else request.mode

    def enqueue(self, request: Request) -> None:
        """Puts a request at the end of its line."""
        if request.inside:
            self._enqueue_inside(request)
        elif request.converting:
            self.converting = self.converting or OrderedDict()
            self.converting[request] = None
        else:
            self.waiting = self.waiting or OrderedDict()
            self.waiting[request] = None
            self.sharing += request.mode == SHARED
            if request.mode == SLOT:
                self._with_slots(request.wish).wait(1)

    def _enqueue_inside(self, request: Request) -> None:
        if request.wish.slot is not None:
            self._with_slots(request.wish).enqueue(request, self.key)
        else:
            self.inner = joined(self.inner, request, self.key)

    def line_of(self, request: Request) -> OrderedDict[Request, None]:
        """Returns the line where a request stands, or would stand."""
        if request.wish.slot is not None:
            return self.slots.line(request.wish.slot) if self.slots else _NOBODY
        if request.inside:
            return self.inner
        return self.converting if request.converting else self.waiting

    def enqueue_first(self, request: Request) -> None:
        """Puts a request back at the head of its line."""
        self.enqueue(request)
        if not request.inside:  # these are sorted
            self.line_of(request).move_to_end(request, last=False)

    def dequeue(self, request: Request) -> None:
        """Removes a request from its line, if it is there."""
        slots = self.slots
        if request.wish.slot is not None:
            if slots is not None:
                slots.dequeue(request)
                self._forget_slots()
        elif request.inside:
            self.inner.pop(request, None)
            self.inner = self.inner or _NOBODY
        elif request.converting:
            self.converting.pop(request, None)
            self.converting = self.converting or _NOBODY
        elif request in self.waiting:
            del self.waiting[request]
            self.sharing -= request.mode == SHARED
            self.waiting = self.waiting or _NOBODY
            if slots is not None and request.mode == SLOT:
                slots.wait(-1)
                self._forget_slots()

    def line(self) -> Iterator[Request]:
        """Yields all waiting requests in the order in which they will be served."""
        pending = () if self.pending is None else (self.pending,)
        unanswered = (r for r in pending if r.state is not ABANDONED)
        return chain(unanswered, self.queued())

    def queued(self) -> Iterator[Request]:
        """Yields the requests that stand in the lines."""
        inner = self.slots.queued() if self.slots else ()
        return chain(inner, self.inner, self.converting, self.waiting)

    def line_length(self) -> int:
        """Returns how many requests wait."""
        pending = self.pending
        opening = pending is not None and pending.state is not ABANDONED
        inner = len(self.inner) + (self.slots.line_length() if self.slots else 0)
        return opening + inner + len(self.converting) + len(self.waiting)

    def count_before(self, request: Request) -> int:
        """Returns how many wait before a request that is about to join the line."""
        inside = len(self.line_of(request)) + bool(self._pending_inside)
        return inside if request.inside else self.line_length()

    @property
    def _pending_inside(self) -> tuple[int, ...]:
        """What is around the pending request, if that has no answer."""
        pending = self.pending
        waits = pending is not None and not pending.is_answered
        return pending.inside.get(self.key, ()) if pending and waits else ()

    # Holders that listen.

    def listen(self, strand: Strand) -> None:
        """Notes that a holder hears whether somebody waits for it."""
        self.listeners = self.listeners or {}
        self.listeners[strand] = None

    def stop_listening(self, strand: Strand) -> None:
        """Notes that a strand does not hold it any more."""
        self.listeners.pop(strand, None)
        self.listeners = self.listeners or _NO_LISTENERS

    def to_tell(self, seekers: Seekers, new: list[Strand]) -> list[Strand]:
        """Returns which listeners may have to hear of these, and notes that they do."""
        told, self.seekers_told = self.seekers_told, seekers
        whom = new if told == seekers else self.listeners
        return [strand for strand in whom if strand in self.listeners]

    # Slots.

    def take_slot(self, wish: Acquire, token: int) -> int:
        """Takes the lowest slot that is free, or the one around. Returns its number.

        `wish` says how many there are if nobody held or waited for one until now.
        """
        return self._with_slots(wish).take(wish, token, self.holders.values())

    def free_slot(self, number: int, token: int) -> None:
        """Frees a slot, unless others hold it inside."""
        if self.slots is not None:
            self.slots.free(number, token)
            self._forget_slots()

    def count_slots_again(self) -> None:
        """Notes which slots its holders have, as after a loss."""
        held = [grant for grant in self.holders.values() if grant.slot is not None]
        if held:
            self._with_slots(held[0])
        if self.slots is not None:
            self.slots.count_again(held)
            self._forget_slots()

    def change_slots(self, count: int, said_by: Owner | None) -> None:
        """Changes how many there are for those who hold or want one."""
        self.slots = self.slots or Slots(count, said_by)
        self.slots.change(count, said_by)

    def _with_slots(self, one: Acquire | Grant) -> Slots:
        if self.slots is None:
            assert one.slots is not None, "who asks for a slot knows how many there are"
            self.slots = Slots(one.slots, one.slots_said_by)
        return self.slots

    def _forget_slots(self) -> None:
        """Forgets how many there are, once nobody holds or wants one."""
        if self.slots is not None and self.slots.is_idle:
            self.slots = None

    def wanting_slots(self) -> list[Request]:
        """Returns the requests that wait for a slot."""
        return [request for request in self.queued() if request.mode == SLOT]

    # The anchor.

    def open_anchor(self, request: Request, mode: Mode) -> None:
        """Notes that the anchor is being opened, for a request that left the line."""
        self.pending = request
        self.anchor_wanted = mode

    def stay_whole(self) -> None:
        """Notes that the anchor stays whole for the pending request from inside."""
        self.stays_whole = True

    def anchor_is(self, mode: Mode | None) -> None:
        """Notes the mode in which the anchor is held."""
        self.anchor = mode

    def end_opening(self) -> None:
        """Notes that the anchor has answered; the line moves again."""
        self.pending = self.anchor_wanted = None

    def situation(self, but: Request | None = None) -> Situation:
        """Returns the holders and waiters, without the request `but`."""
        waiters = (_waiter(self, r) for r in self.line() if r is not but)
        front, slots = self.front(), self.slots
        return Situation(
            self.key,
            tuple(islice(self.holders.values(), MAX_NAMED)),
            len(self.holders),
            tuple(islice(waiters, MAX_NAMED)),
            self.line_length() - (but is not None and self._is_in_line(but)),
            None if front is None or front is but else front.outside,
            None if slots is None else slots.count,
            0 if slots is None else slots.taken,
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
