"""One resource: its holders, its two lines of requests, the state of its anchor.

A resource exists while somebody holds it, waits for it, or its anchor is open. The
requests of holders that want another mode stand in `converting`, all others in
`waiting`. `converting` is served first. If the resource needs an anchor, the first
request leaves the line and becomes `pending` until the anchor answers. Nobody else
moves meanwhile.

`anchor` is the mode in which the anchor is held outside; None means closed.
`anchor_wanted` is the mode that the pending request asked for. While nothing is
pending, the anchor has the mode of the holders.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, islice
from typing import Final

from lockd.engine.commands import Owner
from lockd.engine.effects import Grant, Situation, Waiter
from lockd.engine.request_state import ABANDONED
from lockd.engine.session import Request, Strand
from lockd.terms import SHARED, SLOT, Mode, ResourceKey

COMPATIBLE: Final[frozenset[tuple[Mode, Mode]]] = frozenset({(SHARED, SHARED)})
"""The pairs of modes that any number of strands may hold at once. In slot mode, as many
may hold it as there are slots. Any other pair excludes."""

MAX_NAMED: Final = 16
"""An answer names at most this many holders and waiters (protocol 4.3)."""

#: Shared by all resources where nobody waits, or listens, to save memory.
_NOBODY: Final[OrderedDict[Request, None]] = OrderedDict()
_NO_LISTENERS: Final[dict[Strand, None]] = {}


def compatible(held: Mode, wanted: Mode) -> bool:
    """Returns whether one strand may get `wanted` while any others hold `held`."""
    return (held, wanted) in COMPATIBLE


class Slots:
    """The slots of a resource that somebody holds or waits for in slot mode."""

    __slots__ = ("count", "taken", "waiting")

    def __init__(self, count: int) -> None:
        #: How many there are. Greater numbers may be held if there once were more.
        self.count = count
        #: The numbers that are held, a bit for each.
        self.taken = 0
        #: How many requests wait for one.
        self.waiting = 0

    @property
    def first_free(self) -> int:
        """The lowest number that is not held, which may be too great (`has_free`)."""
        return (~self.taken & (self.taken + 1)).bit_length() - 1

    @property
    def has_free(self) -> bool:
        """Whether a slot is free."""
        return self.first_free < self.count


class Resource:
    """One resource of a lockspace."""

    __slots__ = (
        "anchor",
        "anchor_wanted",
        "converting",
        "holders",
        "key",
        "listeners",
        "pending",
        "seekers_told",
        "slots",
        "waiting",
    )

    def __init__(self, key: ResourceKey) -> None:
        self.key = key
        #: By strand, in the order of their grants.
        self.holders: dict[Strand, Grant] = {}
        self.converting = _NOBODY
        self.waiting = _NOBODY
        #: The holders that hear whether somebody waits for them.
        self.listeners = _NO_LISTENERS
        #: What all of them have heard; None if one has not.
        self.seekers_told: tuple[Strand, ...] | None = None
        self.anchor: Mode | None = None
        self.anchor_wanted: Mode | None = None
        #: The request for which the anchor is being opened; it may be abandoned.
        self.pending: Request | None = None
        #: None if nobody holds it or waits for it in slot mode.
        self.slots: Slots | None = None

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
        """Whether it has no holders, no requests and no opening anchor."""
        return not (self.holders or self.pending or self.converting or self.waiting)

    @property
    def has_line(self) -> bool:
        """Whether a new request would overtake another."""
        return bool(self.pending or self.converting or self.waiting)

    def front(self) -> Request | None:
        """Returns the first request in line."""
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
        held = next(iter(holders.values())).mode
        if held == SLOT:
            return mode == SLOT and self.slots is not None and self.slots.has_free
        return compatible(held, mode)

    def lets_pass(self, request: Request) -> bool:
        """Returns whether a request can be granted now, as far as this resource goes.

        The request may be in the line, or about to join it. A convert goes before
        acquires.
        """
        line = self.converting
        if not line and not request.converting:
            line = self.waiting
        return (
            self.pending is None
            and next(iter(line), request) is request
            and self.admits(request.mode, request.strand)
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
            if request.mode == SLOT:
                self._with_slots(request.wish.slots).waiting += 1

    def enqueue_first(self, request: Request) -> None:
        """Puts a request back at the head of its line."""
        self.enqueue(request)
        line = self.converting if request.converting else self.waiting
        line.move_to_end(request, last=False)

    def dequeue(self, request: Request) -> None:
        """Removes a request from its line, if it is there."""
        if request.converting:
            self.converting.pop(request, None)
            self.converting = self.converting or _NOBODY
        elif request in self.waiting:
            del self.waiting[request]
            self.waiting = self.waiting or _NOBODY
            if self.slots is not None and request.mode == SLOT:
                self.slots.waiting -= 1
                self._forget_slots()

    def line(self) -> Iterator[Request]:
        """Yields all waiting requests in the order in which they will be served."""
        pending = () if self.pending is None else (self.pending,)
        unanswered = (r for r in pending if r.state is not ABANDONED)
        return chain(unanswered, self.converting, self.waiting)

    def line_length(self) -> int:
        """Returns how many requests wait."""
        pending = self.pending
        opening = pending is not None and pending.state is not ABANDONED
        return opening + len(self.converting) + len(self.waiting)

    # Holders that listen.

    def listen(self, strand: Strand) -> None:
        """Notes that a holder hears whether somebody waits for it."""
        if not self.listeners:
            self.listeners = {}
        self.listeners[strand] = None
        self.seekers_told = None

    def stop_listening(self, strand: Strand) -> None:
        """Notes that a strand holds it no more."""
        self.listeners.pop(strand, None)
        self.listeners = self.listeners or _NO_LISTENERS

    def seekers(self) -> tuple[Strand, ...]:
        """Returns strands that wait until holders release it.

        One that is no holder waits for each of them. A holder that wants another mode
        waits for all others, so two such stand for any number.
        """
        mode, found = self.mode, dict[Strand, None]()
        for request in chain(self.converting, self.waiting):
            if mode is None or compatible(mode, request.mode):
                continue
            if request.strand not in self.holders:
                return (request.strand,)
            found[request.strand] = None
            if len(found) > 1:
                break
        return tuple(found)

    def hears_of(self, seekers: tuple[Strand, ...]) -> bool:
        """Returns whether these are new to some listener, and notes that all hear."""
        new = self.seekers_told != seekers
        self.seekers_told = seekers
        return new

    # Slots.

    def take_slot(self, count: int | None) -> int:
        """Takes the lowest slot that is free. Returns its number.

        Args:
            count: how many there are, if nobody held or waited for one until now.
        """
        slots = self._with_slots(count)
        number = slots.first_free
        slots.taken |= 1 << number
        return number

    def free_slot(self, number: int) -> None:
        """Frees a slot."""
        if self.slots is not None:
            self.slots.taken &= ~(1 << number)
            self._forget_slots()

    def count_slots_again(self) -> None:
        """Notes which slots its holders have, as after a loss."""
        held = [grant for grant in self.holders.values() if grant.slot is not None]
        if held:
            self._with_slots(held[0].slots)
        if self.slots is not None:
            self.slots.taken = sum(1 << (grant.slot or 0) for grant in held)
            self._forget_slots()

    def change_slots(self, count: int) -> None:
        """Changes how many there are."""
        self._with_slots(count).count = count

    def _with_slots(self, count: int | None) -> Slots:
        if self.slots is None:
            assert count is not None, "who asks for a slot knows how many there are"
            self.slots = Slots(count)
        return self.slots

    def _forget_slots(self) -> None:
        """Forgets how many there are, once nobody holds or wants one."""
        if self.slots is not None and not (self.slots.taken or self.slots.waiting):
            self.slots = None

    def wanting_slots(self) -> list[Request]:
        """Returns the requests that wait for a slot."""
        return [request for request in self.waiting if request.mode == SLOT]

    def first_with_slots(self) -> Owner | None:
        """Returns the eldest holder of a slot, or else the first who waits for one."""
        for grant in self.holders.values():
            if grant.slot is not None:
                return grant.owner
        return next((x.owner.identity for x in self.wanting_slots()), None)

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
        waiters = (_waiter(r) for r in self.line() if r is not but)
        front = self.front()
        return Situation(
            self.key,
            tuple(islice(self.holders.values(), MAX_NAMED)),
            len(self.holders),
            tuple(islice(waiters, MAX_NAMED)),
            self.line_length() - (but is not None and self._is_in_line(but)),
            None if front is None or front is but else front.outside,
            None if self.slots is None else self.slots.count,
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
        request.wish.label,
        request.wish.reason,
        request.strand.number,
    )
