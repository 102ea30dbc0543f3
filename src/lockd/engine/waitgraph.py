"""Who waits for whom, and whether a new wait would close a cycle.

The edges are derived from the resources on every search, and each is looked at once: a
search takes as long as there are places in the lines that it reaches. A request waits
for every holder that its mode excludes, and for every request that is served before it:

- It waits for a *strand*: a holder, or one that becomes a holder before the request is
  served. The wait ends when all requests of that strand are granted.
- A strand waits for the end of each *session* that is inside one of its grants: a
  program that holds a lock waits for the programs that it starts. The session ends when
  all its requests are granted.
- A request from inside waits for no grant that it is inside of. It is served before
  all others, which then wait for its strand too.
- A shared request that waits behind a shared *request* only waits for its grant. A
  request for one resource is granted at once if nothing else is before it, so it is no
  obstacle. A request for several resources may wait elsewhere.
- A request for a slot waits for *any one* of the slots, not for all who hold one. A
  request for a slot before it goes first, takes a slot, and gives it back when its
  strand ends. So the request gets a slot, unless all slots are taken by strands that
  never end: those of holders, and of requests for a slot that stand before it.

The search treats a wait for a slot as a wait for all of them. So without a cycle,
nothing waits for ever. If there is a cycle with such a wait, `_Play` decides: it plays
on, grants and ends all it can, and so finds who waits for ever. The order of these
steps does not matter, because an end never harms others. If the new request is left,
the cycle leads through others that are left. All of this is rare: it costs nothing
where nobody waits for a slot.

The engine refuses requests that would close a cycle, so the graph has none. So a new
cycle leads through the strand or the session of the new request. No search is needed if
nobody can wait for them. A convert goes before acquires, so these then wait for its
strand too, and a new cycle may lead through anything for which the strand waits.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from lockd.engine.effects import Grant, WaitEdge
from lockd.engine.resource import Resource, compatible
from lockd.engine.session import Request, Session, Strand
from lockd.terms import SHARED, SLOT, Mode, ResourceKey

Resources = Mapping[ResourceKey, Resource]


Link = tuple[Request, ResourceKey, Grant | None]
"""A request, the resource where it waits, and the grant inside which what it waits for
goes on; None if it waits for the strand or the request itself."""


def find_cycle(request: Request, resources: Resources) -> tuple[WaitEdge, ...]:
    """Returns the cycle that a queued request closes.

    The result is empty without a cycle. Each edge waits for the strand of the next
    edge, and the last for the strand of the first; or for a strand that waits for the
    session of the next edge (`WaitEdge.inside`).
    """
    if _is_awaited(request):
        return _search({request: None}, request.strand, request.session, resources)
    return ()


def _is_awaited(request: Request) -> bool:
    """Returns whether anybody may wait for the strand or the session of a request."""
    strand, session = request.strand, request.session
    is_awaited = strand.held or len(strand.requests) > 1 or session.within
    # A request for several may stand at the head of a line again, before others.
    return bool(is_awaited or len(request.keys) > 1)


def find_cycles(
    requests: Sequence[Request], resources: Resources
) -> Iterator[tuple[Request, tuple[WaitEdge, ...]]]:
    """Yields those of some requests that wait in a cycle, each with its cycle.

    The caller removes each of them before it takes the next.

    Args:
        requests: wait, and any new cycle leads through one of them.
        resources: all resources.
    """
    left = _Play(requests, resources, None).left()
    for place, request in enumerate(requests, 1):
        if request in left and _is_awaited(request):
            strand, session = request.strand, request.session
            search = _Search(resources, left)
            if cycle := _find({request: None}, strand, session, search):
                yield request, tuple(_edge(*link) for link in cycle)
                left = _Play(requests[place:], resources, None).left()


def find_cycle_through(
    strand: Strand, resources: Resources, *, but: Request
) -> tuple[WaitEdge, ...]:
    """Returns a cycle through a strand for which others begin to wait.

    Args:
        but: a request of the strand that does not count.
    """
    starts = dict(strand.awaited())
    starts.pop(but, None)
    return _search(starts, strand, None, resources, but)


def _search(
    starts: Mapping[Request, Grant | None],
    goal: Strand,
    session: Session | None,
    resources: Resources,
    but: Request | None = None,
) -> tuple[WaitEdge, ...]:
    """Returns a path from a start to whatever waits for it, or ().

    Args:
        starts: the requests, each with the grant inside which `goal` waits for it.
        goal: the strand that waits for the starts.
        session: the session of the only start: who waits for its end waits for the
            start, too. None if there may be several starts.
        but: a request of the goal that does not count.
    """
    cycle = _find(starts, goal, session, _Search(resources))
    if any(request.mode == SLOT for request, _, _ in cycle):
        left = _Play(starts, resources, but).left()
        starts = {
            request: grant for request, grant in starts.items() if request in left
        }
        cycle = _find(starts, goal, session, _Search(resources, left))
    return tuple(_edge(*link) for link in cycle)


def _find(
    starts: Mapping[Request, Grant | None],
    goal: Strand,
    session: Session | None,
    search: "_Search",
) -> list[Link]:
    """Returns the links of a path from a start to whatever waits for it, or []."""
    came_from: dict[Request, Link] = {}
    seen: set[Strand] = set()
    frontier = list(starts)
    reached = set(starts)
    while frontier:
        request = frontier.pop()
        for key, obstacle in search.obstacles(request):
            if obstacle is goal:
                start = request
                while start in came_from:
                    start = came_from[start][0]
                return _links((request, key, starts[start]), came_from)
            # A grant of one of several old requests closes no new cycle.
            if session and obstacle in starts:
                return _links((request, key, None), came_from)
            if isinstance(obstacle, Request):
                next_ones: Iterable[tuple[Request, Grant | None]] = [(obstacle, None)]
            elif obstacle in seen:
                continue
            else:
                seen.add(obstacle)
                if session and session.session_id in obstacle.insiders:
                    _, grants = obstacle.insiders[session.session_id]
                    last = request, key, next(iter(grants.values()))
                    return _links(last, came_from)
                next_ones = obstacle.awaited()
            for other, grant in next_ones:
                if other not in reached:
                    reached.add(other)
                    came_from[other] = (request, key, grant)
                    frontier.append(other)
    return []


Obstacle = Strand | Request


class _Search:
    """Finds what requests wait for, each obstacle once.

    Args:
        resources: all resources.
        only: the obstacles that count; None: all.
    """

    def __init__(
        self, resources: Resources, only: Collection[Obstacle] | None = None
    ) -> None:
        self._resources = resources
        self._only = only
        self._known: dict[ResourceKey, _Known] = {}

    def obstacles(self, request: Request) -> Iterator[tuple[ResourceKey, Obstacle]]:
        """Yields what a request waits for, each with the resource where it waits.

        Skips what earlier calls have yielded.
        """
        found, only = self._all_obstacles(request), self._only
        return found if only is None else (x for x in found if x[1] in only)

    def _all_obstacles(
        self, request: Request
    ) -> Iterator[tuple[ResourceKey, Obstacle]]:
        for key in request.keys:
            resource = self._resources[key]
            if resource.pending is request or request.goes_down:
                continue
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = _Known(resource)
            for strand in known.holders_before(request):
                yield key, strand
            mode, behind_own = resource.mode_for(request), False
            for other in known.line_before(request, mode):
                if not compatible(resource.mode_for(other), mode):
                    behind_own |= other.strand is request.strand
                    yield key, _obstacle(request, resource, other)
                elif len(other.keys) > 1 or behind_own:
                    # It may wait for what this request does not wait for.
                    yield key, other


def _obstacle(request: Request, resource: Resource, other: Request) -> Strand | Request:
    """Returns for what a request waits that is excluded by one before it.

    That is its strand, unless it is the request's own, or the request is inside what
    that strand holds.
    """
    if other.strand is request.strand or (
        request.inside and resource.is_inside(request, other.strand)
    ):
        return other
    return other.strand


class _Known:
    """What a search knows of one resource."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._mode = resource.mode
        #: The holders that were no obstacle so far.
        self._holders = list(resource.holders)
        self._line = list(resource.line())
        self._places = {request: place for place, request in enumerate(self._line)}
        #: Up to which place the line was an obstacle, by the mode of a request and the
        #: grants around it; and those that were none, as they are of the same strand.
        self._reached: dict[tuple[Mode, tuple[int, ...]], int] = {}
        self._own: dict[tuple[Mode, tuple[int, ...]], list[Request]] = {}

    def holders_before(self, request: Request) -> list[Strand]:
        """Returns the strands whose grants a request waits for, each once."""
        resource = self._resource
        if self._mode is None or compatible(self._mode, resource.mode_for(request)):
            return []
        own = request.strand if request.converting or request.inside else None
        left: list[Strand] = []
        found: list[Strand] = []
        for strand in self._holders:
            inside = request.inside and resource.is_inside(request, strand)
            (left if inside or strand is own else found).append(strand)
        self._holders = left
        return found

    def line_before(self, request: Request, mode: Mode) -> list[Request]:
        """Returns the requests before this one that may be new obstacles.

        They are the same obstacles to all requests in one mode that are inside the same
        grants, but for those of the same strand.
        """
        place = self._places.get(request, len(self._line))
        alike = mode, request.inside.get(self._resource.key, ())
        begin, own = self._reached.get(alike, 0), self._own.get(alike, [])
        self._reached[alike] = max(begin, place)
        found = [other for other in own if other.strand is not request.strand]
        new = self._line[begin:place]
        self._own[alike] = [
            other for other in (*own, *new) if other.strand is request.strand
        ]
        return found + new


class _Play:
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
        self._reach(_Search(resources), but)
        keys = {key for request in self._waiting for key in request.keys}
        self._played = {key: _Played(resources[key], self._waiting) for key in keys}
        #: Where each request stands, and what each strand holds.
        self._places: dict[Request, list[_Played]] = {x: [] for x in self._waiting}
        self._held: dict[Strand, list[_Played]] = {x: [] for x in self._awaited}
        for played in self._played.values():
            for request in played.line:
                self._places[request].append(played)
            for strand in played.holders:
                self._held.setdefault(strand, []).append(played)

    def _reach(self, search: _Search, but: Request | None) -> None:
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
                request_or_none = unsettled.pop().first
                if request_or_none and self._may_go(request_or_none):
                    granted.append(request_or_none)
        return {*self._waiting, *(x for x, count in self._awaited.items() if count)}

    def _may_go(self, request: Request) -> bool:
        places = self._places[request]
        return all(x.first is request and x.admits(request) for x in places)

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
        line: the requests that wait for it.
        holders: the mode of each holder, and whether it has one of the slots. (It does
            not if its number is too great, because there once were more.)
    """

    def __init__(self, resource: Resource, waiting: Collection[Request]) -> None:
        # A convert to shared waits for nobody.
        line = sorted(resource.line(), key=lambda request: not request.goes_down)
        self.line = deque(x for x in line if x in waiting)
        self._resource = resource
        slots = 0 if resource.slots is None else resource.slots.count
        self.holders: dict[Strand, tuple[Mode, bool]] = {
            strand: (grant.mode, grant.slot is not None and grant.slot < slots)
            for strand, grant in resource.holders.items()
        }
        self._free = slots - sum(has_slot for _, has_slot in self.holders.values())

    @property
    def first(self) -> Request | None:
        """The first in line."""
        return self.line[0] if self.line else None

    def admits(self, request: Request) -> bool:
        """Returns whether the other holders allow a request to be granted."""
        if not self.holders:
            return True
        if request.inside:
            return self._admits_inside(request)
        held, _ = next(iter(self.holders.values()))
        if request.strand in self.holders:
            return len(self.holders) == 1 or held == request.mode == SHARED
        if held == request.mode == SLOT:
            return self._free > 0
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
        """Grants the first in line."""
        self.line.popleft()
        mode = self._resource.mode_for(request)
        self.holders[request.strand] = mode, mode == SLOT
        self._free -= request.mode == SLOT

    def end(self, strand: Strand) -> None:
        """Ends what a strand holds."""
        _, has_slot = self.holders.pop(strand, (None, False))
        self._free += has_slot


def _links(last: Link, came_from: Mapping[Request, Link]) -> list[Link]:
    links = [last]
    while (request := links[-1][0]) in came_from:
        links.append(came_from[request])
    return links[::-1]


def _edge(request: Request, key: ResourceKey, inside: Grant | None) -> WaitEdge:
    return WaitEdge(
        request.owner.identity,
        request.session.session_id,
        key,
        request.strand.number,
        inside,
    )
