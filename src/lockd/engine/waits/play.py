"""What happens if nobody asks for more: finds who waits for ever."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, count

from lockd.engine.resource import Resource, compatible
from lockd.engine.session import Request, Strand
from lockd.engine.waits.obstacles import Obstacle, Resources, Search
from lockd.terms import SHARED, SLOT, Mode


class Play:
    """What happens if nobody asks for more, and all release what they can.

    It grants each request that can be granted. It ends each strand that waits for
    nothing, and with it what the strand holds. Each step is taken once.

    Args:
        starts: the requests to play for. Others count if the starts wait for them.
        resources: all resources.
        but: a request that counts as granted.
    """

    def __init__(
        self, starts: Iterable[Request], resources: Resources, but: Request | None
    ) -> None:
        #: The requests that wait.
        self._waiting = set(starts)
        #: For how many requests each strand waits; and the strands that wait for each.
        self._awaited: dict[Strand, int] = {}
        self._awaiting: dict[Request, list[Strand]] = {}
        self._reach(Search(resources), but)
        keys = {key for request in self._waiting for key in request.keys}
        self._played = {key: _Played(resources[key], self._waiting) for key in keys}
        #: Where each request stands, and what each strand holds.
        self._places: dict[Request, list[_Played]] = {x: [] for x in self._waiting}
        self._held: dict[Strand, list[_Played]] = {x: [] for x in self._awaited}
        for played in self._played.values():
            for request in played.queued():
                self._places[request].append(played)
            for strand in played.holders:
                self._held.setdefault(strand, []).append(played)

    def _reach(self, search: Search, but: Request | None) -> None:
        """Finds all that the starts wait for."""
        frontier = list(self._waiting)
        while frontier:
            for _, obstacle in search.obstacles(frontier.pop()):
                if isinstance(obstacle, Request):
                    found = {obstacle: None}
                elif obstacle in self._awaited:
                    continue
                else:
                    found = dict.fromkeys(x for x, _ in obstacle.awaited())
                    if but is not None:
                        found.pop(but, None)
                    self._awaited[obstacle] = len(found)
                    for request in found:
                        self._awaiting.setdefault(request, []).append(obstacle)
                new = found.keys() - self._waiting
                self._waiting |= new
                frontier += new

    def left(self) -> set[Obstacle]:
        """Returns the requests that are never granted, and the strands that await one.

        Can be called once.
        """
        unsettled = list(self._played.values())
        granted = [request for request, places in self._places.items() if not places]
        ended = [strand for strand, count in self._awaited.items() if not count]
        while unsettled or granted or ended:
            if granted:
                ended += self._grant(request := granted.pop())
                unsettled += self._places[request]
            elif ended:
                strand = ended.pop()
                for played in self._held.pop(strand):
                    played.end(strand)
                    unsettled.append(played)
            else:
                played = unsettled[-1]
                if not played.heads:
                    unsettled.pop()
                elif self._may_go(request := played.heads.pop()):
                    granted.append(request)
        return {*self._waiting, *(x for x, count in self._awaited.items() if count)}

    def _may_go(self, request: Request) -> bool:
        places = self._places[request]
        return all(x.is_first(request) and x.admits(request) for x in places)

    def _grant(self, request: Request) -> Iterator[Strand]:
        """Grants a request. Yields the strands that wait for nothing now."""
        self._waiting.remove(request)
        for played in self._places[request]:
            played.grant(request)
            self._held.setdefault(request.strand, []).append(played)
        for strand in self._awaiting.get(request, ()):
            self._awaited[strand] -= 1
            if not self._awaited[strand]:
                yield strand


class _Played:
    """One resource in a play.

    Args:
        resource: the resource.
        waiting: the requests that count.

    Attributes:
        heads: the requests that became the first of a line since they were looked at,
            or whose obstacles became fewer.
        holders: the mode and the slot of each holder. Slots that are granted here have
            numbers below 0.
    """

    def __init__(self, resource: Resource, waiting: Collection[Request]) -> None:
        # A convert to shared waits for nobody.
        line = sorted(resource.line(), key=lambda request: not request.goes_down)
        #: By slot, those from inside it; None: all others.
        self._lines: dict[int | None, deque[Request]] = {None: deque()}
        for request in line:
            if request in waiting:
                self._lines.setdefault(request.wish.slot, deque()).append(request)
        self.heads = [line[0] for line in self._lines.values() if line]
        self._resource = resource
        self._slots = 0 if resource.slots is None else resource.slots.count
        self.holders: dict[Strand, tuple[Mode, int | None]] = {
            strand: (grant.mode, grant.slot)
            for strand, grant in resource.holders.items()
        }
        #: The holders of each slot that somebody holds or waits inside of.
        self._in_slot: dict[int, set[Strand]] = {
            slot: set() for slot in self._lines if slot is not None
        }
        for strand, (_, slot) in self.holders.items():
            if slot is not None:
                self._in_slot.setdefault(slot, set()).add(strand)
        self._free = self._slots - sum(slot < self._slots for slot in self._in_slot)
        self._new_slots = count(-1, -1)

    def queued(self) -> Iterator[Request]:
        """Yields the requests that wait."""
        return chain.from_iterable(self._lines.values())

    def is_first(self, request: Request) -> bool:
        """Returns whether a request is the first in its line."""
        line = self._lines[request.wish.slot]
        return bool(line) and line[0] is request

    def admits(self, request: Request) -> bool:
        """Returns whether the other holders allow a request to be granted."""
        if request.wish.slot is not None:
            return all(
                strand is request.strand or self._resource.is_inside(request, strand)
                for strand in self._in_slot[request.wish.slot]
            )
        if request.mode == SLOT and self._in_slot:
            return self._free > 0
        if not self.holders:
            # Those inside a slot go first.
            return not self._in_slot
        if request.inside:
            return self._admits_inside(request)
        held, _ = next(iter(self.holders.values()))
        if request.strand in self.holders:
            return len(self.holders) == 1 or held == request.mode == SHARED
        return compatible(held, request.mode)

    def _admits_inside(self, request: Request) -> bool:
        mode = self._resource.mode_for(request)
        return all(
            compatible(held, mode)
            or strand is request.strand
            or self._resource.is_inside(request, strand)
            for strand, (held, _) in self.holders.items()
        )

    def grant(self, request: Request) -> None:
        """Grants the first in a line."""
        slot = request.wish.slot
        self._lines[slot].popleft()
        mode = self._resource.mode_for(request)
        if mode == SLOT:
            if slot is None:
                slot = next(self._new_slots)
                self._free -= 1
            self._in_slot.setdefault(slot, set()).add(request.strand)
        self.holders[request.strand] = mode, slot
        self._look_at(request.wish.slot)

    def end(self, strand: Strand) -> None:
        """Ends what a strand holds."""
        _, slot = self.holders.pop(strand, (None, None))
        if slot is not None:
            self._in_slot[slot].remove(strand)
            if self._lines.get(slot):
                self._look_at(slot)
            elif not self._in_slot[slot]:
                del self._in_slot[slot]
                self._free += slot < self._slots
        self._look_at(None)

    def _look_at(self, slot: int | None) -> None:
        line = self._lines.get(slot)
        if line:
            self.heads.append(line[0])
