"""Repairs the state of an engine after a part of it could not be read.

The result names every session that lost something. The caller must end it: no client
may rely on a lock or a place that is lost. A complete state stays unchanged.
"""

from collections.abc import Iterator

from lockd.engine.effects import Grant
from lockd.engine.lock_state import LockState
from lockd.engine.recovery.shapes import Losses
from lockd.engine.request_state import PAUSED
from lockd.engine.resource import Resource
from lockd.engine.session import OwnerState, Request
from lockd.engine.waits.cycles import find_cycle
from lockd.names import quoted
from lockd.terms import SHARED, SLOT


def mend(state: LockState, *, known: bool) -> Losses:
    """Drops what contradicts the rest.

    Args:
        state: loaded, and not yet used.
        known: whether something is known to be missing.
    """
    losses = Losses([], [], [])
    _drop_grants(state, losses)
    for resource in state.resources.values():
        _agree_on_slots(state, resource, losses)
    waited_for = [x for x in state.resources.values() if x.has_line]
    suspects = [
        request for resource in waited_for for request in _suspects(state, resource)
    ]
    for request in state.all_requests():
        if not _is_in_place(state, request):
            _drop_request(state, losses, request, "it has lost its place")
            if request.is_answered:
                suspects += _beside(state, request)
    for resource in waited_for:
        suspects += _stuck(resource)
    for request in dict.fromkeys(suspects):
        _drop_request(state, losses, request, "somebody before it may be missing")
    for resource in list(state.resources.values()):
        _put_in_order(state, resource)
    if known or losses.problems:
        _break_circles(state, losses)
    losses.orphans.extend(
        owner.owner_id
        for owner in state.owners.values()
        if not owner.sessions
        and not (owner.grants and _may_outlive_its_sessions(owner))
    )
    return losses


def _may_outlive_its_sessions(owner: OwnerState) -> bool:
    return owner.fencing is not None or (owner.is_process and not owner.ended)


def _drop_grants(state: LockState, losses: Losses) -> None:
    for resource in state.resources.values():
        if len(resource.holders) > 1:
            _drop_incompatible(resource)
    for owner in state.owners.values():
        for token, grant in list(owner.grants.items()):
            if state.held_by(owner.strand_of(grant), grant.key) is not grant:
                owner.remove(token)
                losses.problems.append(f"grant {token} contradicts the others")
                losses.sessions.extend(owner.sessions)
    counted, held = state.held, state.count_again()
    if counted != held:
        losses.problems.append(f"{counted} grants are counted, {held} are there")


def _drop_incompatible(resource: Resource) -> None:
    """Removes holders that exclude the youngest one, or the youngest of their slot.

    What that one is inside of does not exclude it.
    """
    modes = {grant.mode for grant in resource.holders.values()}
    if modes == {SHARED}:
        return
    youngest = max(resource.holders.values(), key=lambda grant: grant.fencing_token)
    in_slot: dict[int | None, Grant] = {}
    for strand, grant in sorted(
        resource.holders.items(), key=lambda entry: -entry[1].fencing_token
    ):
        first, beside = youngest, {grant.mode, youngest.mode}
        if beside == {SLOT}:
            first = in_slot.setdefault(grant.slot, grant)
        if not (
            grant is first or grant.fencing_token in first.inside or beside == {SHARED}
        ):
            del resource.holders[strand]
    resource.count_slots_again()


def _agree_on_slots(state: LockState, resource: Resource, losses: Losses) -> None:
    """Makes all who hold or want a slot expect the same number of them.

    Records of different age may disagree.
    """
    if resource.slots is None:
        return
    known = resource.slots
    count = state.configured_slots(resource.key) or known.count
    said_by = known.said_by if count == known.count else None
    grants = [grant for grant in resource.holders.values() if grant.slot is not None]
    said = {(grant.slots, grant.slots_said_by) for grant in grants}
    # A grant that was dropped may have said how many there are.
    said.add((known.count, known.said_by))
    wishes = [request.wish for request in resource.wanting_slots()]
    said |= {(wish.slots, wish.slots_said_by) for wish in wishes}
    if said != {(count, said_by)}:
        name = quoted(str(resource.key))
        losses.problems.append(f"not all records agree on the slots of {name}")
        state.change_slots(resource, count, said_by)


def _is_in_place(state: LockState, request: Request) -> bool:
    """Returns whether a request is opening, or in line, at each of its keys."""
    if not all(key in state.resources for key in request.keys):
        return False
    resources = [state.resources[key] for key in request.keys]
    if request.converting and not (
        request.is_answered or all(request.strand in x.holders for x in resources)
    ):
        return False
    if request.mode == SLOT and any(request.strand in x.holders for x in resources):
        return False
    if any(resource.pending is request for resource in resources):
        return all(resource.pending is request for resource in resources)
    return all(request in x.line_of(request) for x in resources)


def _suspects(state: LockState, resource: Resource) -> list[Request]:
    """Returns the whole line if its first request waits with nothing before it."""
    front = resource.front()
    if front is None or front.state is PAUSED:
        return []
    for key in front.keys:
        other = state.resources.get(key)
        if other is None or not other.lets_pass(front):
            return []
    return list(resource.queued())


def _stuck(resource: Resource) -> list[Request]:
    """Returns the converts to shared that wait though no anchor is being opened."""
    if resource.pending is not None:
        return []
    return [x for x in resource.converting if x.goes_down and not resource.lets_pass(x)]


def _beside(state: LockState, request: Request) -> Iterator[Request]:
    for key in request.keys:
        if key in state.resources:
            yield from state.resources[key].queued()


def _drop_request(state: LockState, losses: Losses, request: Request, why: str) -> None:
    """Removes a request from its places. The end of its session answers it."""
    session = request.session.session_id
    losses.problems.append(f"request {request.order} of session {session}: {why}")
    if not request.is_answered:
        losses.sessions.append(session)
    for key in request.keys:
        resource = state.resources.get(key)
        if resource is not None:
            resource.dequeue(request)
            if resource.pending is request:
                resource.end_opening()


def _put_in_order(state: LockState, resource: Resource) -> None:
    if resource.pending is None:
        anchored = state.lockspaces[resource.key.lockspace].anchored
        resource.anchor_is(resource.mode if anchored else None)
    if resource.is_idle:
        del state.resources[resource.key]


def _break_circles(state: LockState, losses: Losses) -> None:
    requests = list(state.requests())
    # A dropped request may name a resource that no longer exists.
    resources = {key: Resource(key) for request in requests for key in request.keys}
    resources |= state.resources
    for request in requests:
        if find_cycle(request, resources):
            session = request.session.session_id
            losses.problems.append(f"session {session} waits for itself")
            losses.sessions.append(session)
