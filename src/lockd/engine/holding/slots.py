"""The slots of a resource: which are held, and who waits inside which."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Final

from lockd.engine.commands import Acquire, Owner
from lockd.engine.effects import Grant
from lockd.engine.session import Request
from lockd.terms import ResourceKey

#: Shared by all that have none, to save memory.
_NO_CHAINS: Final[dict[int, set[int]]] = {}
_NO_LINES: Final[dict[int, OrderedDict[Request, None]]] = {}
_NOBODY: Final[OrderedDict[Request, None]] = OrderedDict()


class Slots:
    """The slots of a resource that somebody holds or waits for in slot mode.

    The holders of one slot are a *chain*: each is inside all those before it. Requests
    from inside a slot stand in a line of that slot, and exclude nobody elsewhere.
    """

    __slots__ = ("chains", "count", "lines", "said_by", "taken", "waiting")

    def __init__(self, count: int, said_by: Owner | None) -> None:
        #: How many there are. Greater numbers may be held if there once were more.
        self.count = count
        #: Who has said so first; None: the configuration.
        self.said_by = said_by
        #: The numbers that are held, a bit for each.
        self.taken = 0
        #: How many requests wait for one.
        self.waiting = 0
        #: The tokens of the holders of each slot that has some inside others.
        self.chains = _NO_CHAINS
        #: The requests from inside each slot.
        self.lines = _NO_LINES

    @property
    def first_free(self) -> int:
        """The lowest number that is not held, which may be too great (`has_free`)."""
        return (~self.taken & (self.taken + 1)).bit_length() - 1

    @property
    def has_free(self) -> bool:
        """Whether a slot is free."""
        return self.first_free < self.count

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds or wants one."""
        return not (self.taken or self.waiting)

    def change(self, count: int, said_by: Owner | None) -> None:
        """Sets how many there are, and who says so."""
        self.count, self.said_by = count, said_by

    def wait(self, change: int) -> None:
        """Counts requests that wait for one."""
        self.waiting += change

    # Holders.

    def take(self, wish: Acquire, token: int, holders: Iterable[Grant]) -> int:
        """Takes the lowest slot that is free, or the one around. Returns its number.

        Args:
            wish: says which slot it is inside of.
            token: the fencing token of the new holder.
            holders: all others.
        """
        number = self.first_free
        if wish.slot is not None:
            number = wish.slot
            self.chains = self.chains or {}
            if number not in self.chains:
                around = {x.fencing_token for x in holders if x.slot == number}
                self.chains[number] = around
            self.chains[number].add(token)
        self.taken |= 1 << number
        return number

    def free(self, number: int, token: int) -> None:
        """Notes that a holder of a slot has ended. The last one frees the slot."""
        left = self.chains.get(number)
        if left is not None:
            left.discard(token)
            if left:
                return
            del self.chains[number]
        self.taken &= ~(1 << number)

    def count_again(self, held: Collection[Grant]) -> None:
        """Notes who holds which, as after a loss."""
        self.taken = 0
        by_slot: dict[int, set[int]] = {}
        for grant in held:
            self.taken |= 1 << (grant.slot or 0)
            by_slot.setdefault(grant.slot or 0, set()).add(grant.fencing_token)
        inner = {grant.slot for grant in held if grant.inside}
        chains = {x: y for x, y in by_slot.items() if x in inner or len(y) > 1}
        self.chains = chains or _NO_CHAINS

    # Lines.

    def line(self, number: int) -> OrderedDict[Request, None]:
        """Returns the line of the requests from inside a slot."""
        return self.lines.get(number, _NOBODY)

    def enqueue(self, request: Request, key: ResourceKey) -> None:
        """Puts a request from inside a slot into the line of the slot."""
        number = request.wish.slot
        assert number is not None, "it is inside a slot"
        self.lines = self.lines or {}
        self.lines[number] = joined(self.line(number), request, key)
        self.waiting += 1

    def dequeue(self, request: Request) -> None:
        """Removes a request from the line of its slot, if it is there."""
        number = request.wish.slot
        assert number is not None, "it is inside a slot"
        line = self.line(number)
        if request in line:
            del line[request]
            self.waiting -= 1
            if not line:
                del self.lines[number]

    def admits(self, request: Request, key: ResourceKey) -> bool:
        """Returns whether a request from inside a slot waits for nobody."""
        number = request.wish.slot
        assert number is not None, "it is inside a slot"
        first = next(iter(self.line(number)), request)
        if first is not request and place(first, key) < place(request, key):
            return False
        around = request.inside[key]
        return all(token in around for token in self.chains.get(number, ()))

    def ready(self, key: ResourceKey) -> Request | None:
        """Returns a request from inside a slot that waits for nobody."""
        heads = (next(iter(line)) for line in self.lines.values())
        return next((x for x in heads if self.admits(x, key)), None)

    def queued(self) -> Iterator[Request]:
        """Yields the requests from inside all slots."""
        return chain.from_iterable(self.lines.values())

    def line_length(self) -> int:
        """Returns how many wait inside all slots."""
        return sum(map(len, self.lines.values()))


def place(request: Request, key: ResourceKey) -> tuple[int, int]:
    """Returns what sorts the requests from inside the grants of a resource."""
    return -request.inside[key][-1], request.order


def joined(
    line: OrderedDict[Request, None], request: Request, key: ResourceKey
) -> OrderedDict[Request, None]:
    """Puts a request from inside into a line, which may be the shared empty one."""
    line = line or OrderedDict()
    last = next(reversed(line), request)
    line[request] = None
    if place(last, key) > place(request, key):
        return OrderedDict.fromkeys(sorted(line, key=lambda x: place(x, key)))
    return line
