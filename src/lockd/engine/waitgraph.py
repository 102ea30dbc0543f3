"""Who waits for whom, and whether a wait would close a cycle.

The edges are derived from the resources each time. A request waits for every holder
that its mode excludes, and for every request that is served before it:

- An *owner* has to come to its end: a holder, and whoever will be one before the
  request is served. It does so when all its own requests are granted.
- Of a shared *request* before a shared one only the grant is waited for: its owner may
  hold on. A request for one resource is granted as soon as nothing else is before it,
  so it is no obstacle; one for several may wait elsewhere.

A request that would close a cycle is refused, so the graph has no cycles; therefore a
new one must lead through the request's own owner, and an owner for which nobody can be
waiting needs no search.
"""

from collections.abc import Iterator, Mapping
from itertools import takewhile

from lockd.engine.effects import Wait
from lockd.engine.resource import Resource, compatible
from lockd.engine.session import OwnerState, Request
from lockd.terms import ResourceKey

Owners = Mapping[int, OwnerState]
Resources = Mapping[ResourceKey, Resource]


def find_cycle(
    start: Request, resources: Resources, owners: Owners
) -> tuple[Wait, ...]:
    """Returns the cycle that leads from a queued request back to its own owner.

    Empty if there is none. The first link is the request's own, each link waits for
    the next one's owner, the last for the first's.
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
                return _links(request, key, came_from)
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
    """Goes through what a request waits for, and where."""
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


def _links(
    last: Request,
    key: ResourceKey,
    came_from: Mapping[Request, tuple[Request, ResourceKey]],
) -> tuple[Wait, ...]:
    links = [_link(last, key)]
    request = last
    while request in came_from:
        request, key = came_from[request]
        links.append(_link(request, key))
    return tuple(reversed(links))


def _link(request: Request, key: ResourceKey) -> Wait:
    return Wait(request.owner.identity, request.session.session_id, key)
