"""Who waits for whom, and whether a new wait would close a cycle.

The edges are derived from the resources on every search, and each is looked at once: a
search takes as long as there are places in the lines that it reaches. A request waits
for every holder that its mode excludes, and for every request that is served before it:

- It waits for a *strand*: a holder, or one that becomes a holder before the request is
  served. The wait ends when all requests of that strand are granted.
- A strand waits for the end of each *session* that is inside one of its grants: a
  program that holds a lock waits for the programs that it starts. The session ends when
  all its requests are granted.
- A shared request that waits behind a shared *request* only waits for its grant. A
  request for one resource is granted at once if nothing else is before it, so it is no
  obstacle. A request for several resources may wait elsewhere.

The engine refuses requests that would close a cycle, so the graph has none. So a new
cycle leads through the strand or the session of the new request. No search is needed if
nobody can wait for them. A convert goes before acquires, so these then wait for its
strand too, and a new cycle may lead through anything for which the strand waits.
"""

from collections.abc import Iterable, Iterator, Mapping

from lockd.engine.effects import Grant, WaitEdge
from lockd.engine.resource import Resource, compatible
from lockd.engine.session import Request, Session, Strand
from lockd.terms import EXCLUSIVE, ResourceKey

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
    strand, session = request.strand, request.session
    is_awaited = strand.held or len(strand.requests) > 1 or session.within
    # A request for several may stand at the head of a line again, before others.
    if is_awaited or len(request.keys) > 1:
        return _search({request: None}, strand, session, resources)
    return ()


def find_cycle_through(
    strand: Strand, resources: Resources, *, but: Request
) -> tuple[WaitEdge, ...]:
    """Returns a cycle through a strand for which others begin to wait.

    Args:
        but: a request of the strand that does not count.
    """
    starts = dict(strand.awaited())
    starts.pop(but, None)
    return _search(starts, strand, None, resources)


def _search(
    starts: Mapping[Request, Grant | None],
    goal: Strand,
    session: Session | None,
    resources: Resources,
) -> tuple[WaitEdge, ...]:
    """Returns a path from a start to whatever waits for it, or ().

    Args:
        starts: the requests, each with the grant inside which `goal` waits for it.
        goal: the strand that waits for the starts.
        session: the session of the only start: who waits for its end waits for the
            start, too. None if there may be several starts.
    """
    search = _Search(resources)
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
                return _edges((request, key, starts[start]), came_from)
            # A grant of one of several old requests closes no new cycle.
            if session and obstacle in starts:
                return _edges((request, key, None), came_from)
            if isinstance(obstacle, Request):
                next_ones: Iterable[tuple[Request, Grant | None]] = [(obstacle, None)]
            elif obstacle in seen:
                continue
            else:
                seen.add(obstacle)
                if session and session.session_id in obstacle.inside:
                    _, grants = obstacle.inside[session.session_id]
                    last = request, key, next(iter(grants.values()))
                    return _edges(last, came_from)
                next_ones = obstacle.awaited()
            for other, grant in next_ones:
                if other not in reached:
                    reached.add(other)
                    came_from[other] = (request, key, grant)
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


def _edges(last: Link, came_from: Mapping[Request, Link]) -> tuple[WaitEdge, ...]:
    links = [last]
    while (request := links[-1][0]) in came_from:
        links.append(came_from[request])
    return tuple(_edge(*link) for link in reversed(links))


def _edge(request: Request, key: ResourceKey, inside: Grant | None) -> WaitEdge:
    return WaitEdge(
        request.owner.identity,
        request.session.session_id,
        key,
        request.strand.number,
        inside,
    )
