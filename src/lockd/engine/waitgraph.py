"""Who waits for whom, and whether a new wait would close a cycle.

The edges are derived from the resources on every search, and each is looked at once: a
search takes as long as there are places in the lines that it reaches. A request waits
for every holder that its mode excludes, and for every request that is served before it:

- It waits for a *strand*: a holder, or one that becomes a holder before the request is
  served. The wait ends when all requests of that strand are granted.
- A shared request that waits behind a shared *request* only waits for its grant. A
  request for one resource is granted at once if nothing else is before it, so it is no
  obstacle. A request for several resources may wait elsewhere.

The engine refuses requests that would close a cycle, so the graph has none. So a new
cycle leads through the strand of the new request. No search is needed if nobody can
wait for that strand.
"""

from collections.abc import Iterator, Mapping, Sequence

from lockd.engine.effects import WaitEdge
from lockd.engine.resource import Resource, compatible
from lockd.engine.session import Request, Strand
from lockd.terms import EXCLUSIVE, ResourceKey

Resources = Mapping[ResourceKey, Resource]


def find_cycle(starts: Sequence[Request], resources: Resources) -> tuple[WaitEdge, ...]:
    """Returns a cycle that leads from a queued request back to its strand.

    The result is empty without a cycle. Each edge waits for the strand of the next
    edge, and the last for the strand of the first.

    Args:
        starts: requests of one strand. The first edge is one of them.
    """
    goal = starts[0].strand
    if not goal.held and len(goal.requests) < 2:
        return ()
    search = _Search(resources)
    came_from: dict[Request, tuple[Request, ResourceKey]] = {}
    seen: set[Strand] = set()
    frontier = list(starts)
    reached = set(starts)
    while frontier:
        request = frontier.pop()
        for key, obstacle in search.obstacles(request):
            # A grant of one of several old requests closes no new cycle.
            if obstacle is goal or (obstacle is starts[0] and len(starts) == 1):
                return _edges(request, key, came_from)
            if isinstance(obstacle, Request):
                next_ones = [obstacle]
            elif obstacle in seen:
                continue
            else:
                seen.add(obstacle)
                next_ones = list(obstacle.requests.values())
            for other in next_ones:
                if other not in reached:
                    reached.add(other)
                    came_from[other] = (request, key)
                    frontier.append(other)
    return ()


class _Search:
    """Finds what requests wait for, each obstacle once."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._known: dict[ResourceKey, _Known] = {}

    def obstacles(
        self, request: Request
    ) -> Iterator[tuple[ResourceKey, Strand | Request]]:
        """Yields what a request waits for, each with the resource where it waits.

        Skips what earlier calls have yielded.
        """
        for key in request.keys:
            resource = self._resources[key]
            if resource.pending is request:
                continue
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = _Known(resource)
            for strand in known.holders_before(request):
                yield key, strand
            for other in known.line_before(request):
                if not compatible(other.mode, request.mode):
                    yield key, other.strand
                elif len(other.keys) > 1:
                    yield key, other


class _Known:
    """What a search knows of one resource."""

    def __init__(self, resource: Resource) -> None:
        self._mode = resource.mode
        #: The holders that were no obstacle so far.
        self._holders = list(resource.holders)
        self._line = list(resource.line())
        self._places = {request: place for place, request in enumerate(self._line)}
        #: Up to which place the line was an obstacle: of any request, and of an
        #: exclusive one, which waits for more.
        self._reached = self._reached_exclusive = 0

    def holders_before(self, request: Request) -> list[Strand]:
        """Returns the strands whose grants a request waits for, each once."""
        if self._mode is None or compatible(self._mode, request.mode):
            return []
        own = request.strand if request.converting else None
        found = [strand for strand in self._holders if strand is not own]
        self._holders = [strand for strand in self._holders if strand is own]
        return found

    def line_before(self, request: Request) -> list[Request]:
        """Returns the requests before this one that may be new obstacles."""
        place = self._places.get(request, len(self._line))
        begin = self._reached
        if request.mode == EXCLUSIVE:
            begin = self._reached_exclusive
            self._reached_exclusive = max(begin, place)
        self._reached = max(self._reached, place)
        return self._line[begin:place]


def _edges(
    last: Request,
    key: ResourceKey,
    came_from: Mapping[Request, tuple[Request, ResourceKey]],
) -> tuple[WaitEdge, ...]:
    edges = [_edge(last, key)]
    request = last
    while request in came_from:
        request, key = came_from[request]
        edges.append(_edge(request, key))
    return tuple(reversed(edges))


def _edge(request: Request, key: ResourceKey) -> WaitEdge:
    return WaitEdge(
        request.owner.identity,
        request.session.session_id,
        key,
        request.strand.number,
    )
