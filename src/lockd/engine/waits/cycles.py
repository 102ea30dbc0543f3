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
- A request from inside a slot waits for that slot only: for the holders of it that it
  is not inside of, and for those inside the slot before it.
- A shared request that waits behind a shared *request* only waits for its grant. A
  request for one resource is granted at once if nothing else is before it, so it is no
  obstacle. A request for several resources may wait elsewhere.
- A request for a slot waits for *any one* of the slots, not for all who hold one. A
  request for a slot before it goes first, takes a slot, and gives it back when its
  strand ends. So the request gets a slot, unless all slots are taken by strands that
  never end: those of holders, and of requests for a slot that stand before it.

The search treats a wait for a slot as a wait for all of them. So without a cycle,
nothing waits for ever. If there is a cycle with such a wait, `Play` decides: it plays
on, grants and ends all it can, and so finds who waits for ever. The order of these
steps does not matter, because an end never harms others. If the new request is left,
the cycle leads through others that are left. All of this is rare: it costs nothing
where nobody waits for a slot.

The engine refuses requests that would close a cycle, so the graph has none. So a new
cycle leads through the strand or the session of the new request. No search is needed if
nobody can wait for them. A convert goes before acquires, so these then wait for its
strand too, and a new cycle may lead through anything for which the strand waits.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from lockd.engine.effects import Grant, WaitEdge
from lockd.engine.session import Request, Session, Strand
from lockd.engine.waits.obstacles import Resources, Search
from lockd.engine.waits.play import Play
from lockd.terms import SLOT, ResourceKey

Link = tuple[Request, ResourceKey, Grant | None]
"""A request, the resource where it waits, and the grant inside which others do what it
waits for; None if it waits for the strand or the request itself."""


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
    left = Play(requests, resources, None).left()
    for place, request in enumerate(requests, 1):
        if request in left and _is_awaited(request):
            strand, session = request.strand, request.session
            search = Search(resources, left)
            if cycle := _find({request: None}, strand, session, search):
                yield request, tuple(_edge(*link) for link in cycle)
                left = Play(requests[place:], resources, None).left()


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
    cycle = _find(starts, goal, session, Search(resources))
    if any(request.mode == SLOT for request, _, _ in cycle):
        left = Play(starts, resources, but).left()
        starts = {
            request: grant for request, grant in starts.items() if request in left
        }
        cycle = _find(starts, goal, session, Search(resources, left))
    return tuple(_edge(*link) for link in cycle)


def _find(
    starts: Mapping[Request, Grant | None],
    goal: Strand,
    session: Session | None,
    search: Search,
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
