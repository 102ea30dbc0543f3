"""Who waits for whom, and whether a new wait would close a cycle.

The edges are derived from the resources on every search. A request waits for every
holder that its mode excludes, and for every request that is served before it:

- It waits for an *owner*: a holder, or an owner that becomes a holder before the
  request is served. The wait ends when all requests of that owner are granted.
- A shared request that waits behind a shared *request* only waits for its grant. A
  request for one resource is granted at once if nothing else is before it, so it is no
  obstacle. A request for several resources may wait elsewhere.

The engine refuses requests that would close a cycle, so the graph has none. So a new
cycle leads through the owner of the new request. No search is needed if nobody can wait
for that owner.
"""

from collections.abc import Iterator, Mapping
from itertools import takewhile

from lockd.engine.effects import WaitEdge
from lockd.engine.resource import Resource, compatible
from lockd.engine.session import OwnerState, Request
from lockd.terms import ResourceKey

Owners = Mapping[int, OwnerState]
Resources = Mapping[ResourceKey, Resource]


def find_cycle(
    start: Request, resources: Resources, owners: Owners
) -> tuple[WaitEdge, ...]:
    """Returns the cycle that leads from a queued request back to its own owner.

    The result is empty without a cycle. The first edge is the request's own. Each edge
    waits for the owner of the next edge, and the last for the owner of the first.
    """
    goal = start.owner
    if not goal.grants and goal.waiting_count < 2:
        return ()
    came_from: dict[Request, tuple[Request, ResourceKey]] = {}
    seen: set[int] = set()
    frontier = [start]
    while frontier:
        request = frontier.pop()
        for key, obstacle in obstacles(request, resources, owners):
            if obstacle is goal or obstacle is start:
                return _edges(request, key, came_from)
            if isinstance(obstacle, Request):
                next_ones = [obstacle]
            elif obstacle.owner_id in seen:
                continue
            else:
                seen.add(obstacle.owner_id)
                next_ones = obstacle.waiting()
            for other in next_ones:
                if other not in came_from:
                    came_from[other] = (request, key)
                    frontier.append(other)
    return ()


def obstacles(
    request: Request, resources: Resources, owners: Owners
) -> Iterator[tuple[ResourceKey, OwnerState | Request]]:
    """Yields what a request waits for, each with the resource where it waits."""
    for key in request.keys:
        resource = resources[key]
        if resource.pending is request:
            continue
        for owner_id in _excluding_holders(request, resource):
            yield key, owners[owner_id]
        for other in takewhile(lambda other: other is not request, resource.line()):
            if not compatible(other.mode, request.mode):
                yield key, other.owner
            elif len(other.keys) > 1:
                yield key, other


def _excluding_holders(request: Request, resource: Resource) -> Iterator[int]:
    mode = resource.mode
    if mode is None or compatible(mode, request.mode):
        return
    own = request.owner.owner_id
    for owner_id in resource.holders:
        if not (request.converting and owner_id == own):
            yield owner_id


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
    return WaitEdge(request.owner.identity, request.session.session_id, key)
