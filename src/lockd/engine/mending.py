"""Brings together what is left of an engine when something of it could not be read.

Whoever lost something is named, so that its session can be ended: nobody may go on as
if it held or waited for what nobody knows of. Where all is there, nothing happens.
"""

from collections.abc import Iterator

from msgspec import Struct

from lockd.engine.lock_engine import LockEngine
from lockd.engine.resource import Resource
from lockd.engine.session import Request, claim_of
from lockd.engine.waitgraph import find_cycle


class Losses(Struct):
    """What is missing.

    Attributes:
        problems: a sentence each.
        sessions: lost a grant or a place in a line, or stand where somebody may be
            missing; the laws hold when they are closed.
        orphans: owners whose session is missing, or that nobody needs.
    """

    problems: list[str]
    sessions: list[int]
    orphans: list[int]


def mend(engine: LockEngine, *, known: bool) -> Losses:
    """Drops what has lost its counterpart.

    Args:
        engine: loaded, and not yet used.
        known: whether something is known to be missing.
    """
    losses = Losses([], [], [])
    _drop_grants(engine, losses)
    suspects = [
        request
        for resource in engine.resources.values()
        if resource.converting or resource.waiting
        for request in _suspects(engine, resource)
    ]
    for request in _all_requests(engine):
        if not _is_in_place(engine, request):
            _drop_request(engine, losses, request, "it has lost its place")
            if request.answered:
                suspects += _beside(engine, request)
    for request in dict.fromkeys(suspects):
        _drop_request(engine, losses, request, "somebody before it may be missing")
    for resource in list(engine.resources.values()):
        _put_in_order(engine, resource)
    if known or losses.problems:
        _break_circles(engine, losses)
    losses.orphans += [
        owner.owner_id
        for owner in engine.owners.values()
        if not owner.sessions
        and not (owner.grants and (owner.is_process or owner.fencing))
    ]
    return losses


def _drop_grants(engine: LockEngine, losses: Losses) -> None:
    for resource in engine.resources.values():
        if len(resource.holders) > 1:
            _drop_incompatible(resource)
    for owner in engine.owners.values():
        for token, grant in list(owner.grants.items()):
            resource_or_none = engine.resources.get(grant.key)
            holders = resource_or_none.holders if resource_or_none else {}
            if holders.get(owner.owner_id) is not grant:
                del owner.grants[token]
                owner.claims ^= claim_of(grant)
                losses.problems.append(f"grant {token} contradicts the others")
                losses.sessions += owner.sessions
    held = sum(len(owner.grants) for owner in engine.owners.values())
    if engine.held != held:
        losses.problems.append(f"{engine.held} grants are counted, {held} are there")
        engine.ended = engine.granted - held


def _drop_incompatible(resource: Resource) -> None:
    """Lets the youngest of holders stay that exclude each other."""
    modes = [grant.mode for grant in resource.holders.values()]
    if "exclusive" not in modes:
        return
    youngest = max(resource.holders.values(), key=lambda grant: grant.fencing_token)
    for owner_id, grant in list(resource.holders.items()):
        if grant is not youngest and "exclusive" in (grant.mode, youngest.mode):
            del resource.holders[owner_id]


def _all_requests(engine: LockEngine) -> list[Request]:
    requests = {r: None for s in engine.sessions.values() for r in s.requests.values()}
    pending = (resource.pending for resource in engine.resources.values())
    return list(requests | dict.fromkeys(filter(None, pending)))


def _is_in_place(engine: LockEngine, request: Request) -> bool:
    """Tells whether a request is opening, or else in line, at each of its keys."""
    if not all(key in engine.resources for key in request.keys):
        return False
    resources = [engine.resources[key] for key in request.keys]
    if request.converting and not request.answered:
        owner_id = request.owner.owner_id
        if not all(owner_id in resource.holders for resource in resources):
            return False
    if any(resource.pending is request for resource in resources):
        return all(resource.pending is request for resource in resources)
    return all(
        request in (x.converting if request.converting else x.waiting)
        for x in resources
    )


def _suspects(engine: LockEngine, resource: Resource) -> list[Request]:
    """Returns a whole line whose first has nobody before it, and yet waits."""
    front = resource.front()
    if front is None or front.retry_at is not None:
        return []
    for key in front.keys:
        other = engine.resources.get(key)
        if other is None or not engine._lets_pass(other, front):
            return []
    return [*resource.converting, *resource.waiting]


def _beside(engine: LockEngine, request: Request) -> Iterator[Request]:
    for key in request.keys:
        if key in engine.resources:
            yield from engine.resources[key].converting
            yield from engine.resources[key].waiting


def _drop_request(
    engine: LockEngine, losses: Losses, request: Request, why: str
) -> None:
    """Takes a request from its places; it is answered by the end of its session."""
    session = request.session.session_id
    losses.problems.append(f"request {request.order} of session {session}: {why}")
    if not request.answered:
        losses.sessions.append(session)
    for key in request.keys:
        resource = engine.resources.get(key)
        if resource is not None:
            resource.dequeue(request)
            if resource.pending is request:
                resource.pending = resource.anchor_wanted = None


def _put_in_order(engine: LockEngine, resource: Resource) -> None:
    if resource.pending is None:
        anchored = engine.lockspaces[resource.key.lockspace].anchored
        resource.anchor = resource.mode if anchored else None
    if resource.is_idle:
        del engine.resources[resource.key]


def _break_circles(engine: LockEngine, losses: Losses) -> None:
    requests = [r for s in engine.sessions.values() for r in s.requests.values()]
    # A request that was dropped may name a resource that is not there any more.
    resources = {key: Resource(key) for request in requests for key in request.keys}
    resources |= engine.resources
    for request in requests:
        if find_cycle(request, resources, engine.owners):
            session = request.session.session_id
            losses.problems.append(f"session {session} waits for itself")
            losses.sessions.append(session)
