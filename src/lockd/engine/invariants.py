"""The laws of the lock table, checked against its state.

The checks share no logic with the engine. They work out compatibility, order and cycles
in the plainest way, however slow.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import xor

from lockd.engine.effects import Grant
from lockd.engine.lock_engine import LockEngine
from lockd.engine.request_state import PAUSED
from lockd.engine.resource import Resource
from lockd.engine.session import OwnerState, Request, Session, claim_of
from lockd.terms import Mode, ResourceKey

Party = tuple[int, int, int]
"""Who holds or waits: an owner, and one of its strands by session and number."""

Held = tuple[Mode, int | None, int]
"""In which mode somebody holds, which slot, and the token; 0 for a future grant."""


class BrokenLawError(AssertionError):
    """Raised when the table breaks a law: a defect of the engine."""


def check(engine: LockEngine) -> None:
    """Checks every law between two commands.

    Raises:
        BrokenLawError: lists all broken laws, one a line.
    """
    broken = list(_broken_laws(engine))
    if broken:
        raise BrokenLawError("\n".join([repr(engine), *broken]))


def _broken_laws(engine: LockEngine) -> Iterator[str]:
    for resource in engine.state.resources.values():
        yield from _broken_at(engine, resource)
    yield from _broken_owners(engine)
    yield from _broken_requests(engine)
    yield from _broken_tokens(engine)
    yield from _cycles(engine)
    if engine.table.has_work:
        yield "work was left undone"


def _broken_at(engine: LockEngine, resource: Resource) -> Iterator[str]:
    name = str(resource.key)
    modes = [grant.mode for grant in resource.holders.values()]
    if len(set(modes)) > 1:
        yield f"{name}: it is held in several modes: {modes}"
    if "exclusive" in modes:
        yield from _broken_chain(name, list(resource.holders.values()))
    yield from _broken_slots(engine, resource)
    line = _queue(resource)
    if not modes and not line and resource.pending is None:
        yield f"{name}: is kept though nobody needs it"
    if resource.pending is None:
        yield from _broken_anchor(engine, resource, modes)
        if any(r.converting and r.mode == "shared" for r in line):
            yield f"{name}: a convert to shared waits though no anchor is being opened"
        heads = {request.wish.slot: request for request in reversed(line)}
        if any(_could_go(engine, request) for request in heads.values()):
            yield f"{name}: the first in line waits though nothing is in its way"
    inner = list(resource.inner)
    places = [(-max(r.inside[resource.key]), r.order) for r in inner]
    if places != sorted(places):
        yield f"{name}: those inside are out of turn: {places}"
    if any(x.inside for x in line if x not in inner and x.wish.slot is None):
        yield f"{name}: a request from inside stands behind others"
    for part in (list(resource.converting), list(resource.waiting)):
        turns = [request.order for request in part]
        if turns != sorted(turns):
            yield f"{name}: the line is out of turn: {turns}"
    for request in line:
        if request.is_answered:
            yield f"{name}: an answered request is still in line"
        holders = {_party(grant) for grant in resource.holders.values()}
        if request.converting and _party_of(request) not in holders:
            yield f"{name}: who wants to convert holds nothing"


def _broken_slots(engine: LockEngine, resource: Resource) -> Iterator[str]:
    name = str(resource.key)
    held = [grant for grant in resource.holders.values() if grant.mode == "slot"]
    waiting = [request for request in _queue(resource) if request.mode == "slot"]
    numbers = {grant.slot for grant in held}
    if None in numbers:
        yield f"{name}: somebody holds no slot"
    for number in numbers:
        yield from _broken_chain(name, [x for x in held if x.slot == number])
    if any((x.wish.slot is None) != (not x.inside) for x in waiting):
        yield f"{name}: a request is inside an unknown slot, or outside its slot"
    if any(x.wish.slot is not None for x in resource.waiting):
        yield f"{name}: a request from inside a slot stands behind others"
    slots = {(grant.slots, grant.slots_said_by) for grant in held}
    slots |= {(x.wish.slots, x.wish.slots_said_by) for x in waiting}
    if len(slots) > 1:
        yield f"{name}: it has several numbers of slots: {slots}"
    known = resource.slots
    if known is None:
        if slots:
            yield f"{name}: nobody knows how many slots it has"
        return
    for number, line in known.lines.items():
        places = [(-max(r.inside[resource.key]), r.order) for r in line]
        if places != sorted(places) or {x.wish.slot for x in line} != {number}:
            yield f"{name}: those inside slot {number} are out of turn: {places}"
    chains = {x: [y.fencing_token for y in held if y.slot == x] for x in known.chains}
    if {x: set(tokens) for x, tokens in chains.items()} != known.chains or any(
        grant.inside and grant.slot not in chains for grant in held
    ):
        yield f"{name}: {known.chains} are not the chains of its slots"
    taken = sum(1 << (number or 0) for number in numbers)
    says = {(known.count, known.said_by)}
    if (says, known.taken, known.waiting) != (slots, taken, len(waiting)):
        yield f"{name}: other slots are counted: {slots}, {numbers}, {len(waiting)}"
    found = engine.situation(resource.key)
    below = [number for number in numbers if (number or 0) < known.count]
    beyond = len(numbers) - len(below)
    if (found.slots_taken, found.slots_removed) != (len(below), beyond):
        yield f"{name}: {found.slots_taken}, {found.slots_removed} are counted"
    if engine.state.configured_slots(resource.key) not in (None, known.count):
        yield f"{name}: {known.count} slots are not what is configured"


def _broken_chain(name: str, grants: Sequence[Grant]) -> Iterator[str]:
    """Exclusive holders are one chain: each is inside all that came before it."""
    tokens = sorted(grant.fencing_token for grant in grants)
    for grant in grants:
        before = [token for token in tokens if token < grant.fencing_token]
        if not set(before) <= set(grant.inside):
            token = grant.fencing_token
            yield f"{name}: {token} is held beside {before}, inside {grant.inside}"


def _broken_anchor(
    engine: LockEngine, resource: Resource, modes: Sequence[str]
) -> Iterator[str]:
    anchored = engine.state.lockspaces[resource.key.lockspace].anchored
    expected = modes[0] if anchored and modes else None
    if resource.anchor != expected:
        yield f"{resource.key}: held as {modes}, but anchored {resource.anchor}"


def _could_go(engine: LockEngine, request: Request) -> bool:
    """Returns whether a request is first everywhere and no holder excludes it."""
    if request.state is PAUSED:
        return False
    goes_down = request.converting and request.mode == "shared"
    for key in request.keys:
        resource = engine.state.resources[key]
        is_first = goes_down or _is_first(request, _queue(resource))
        if resource.pending is not None or not is_first:
            return False
        others = {
            party: (grant.mode, grant.slot, grant.fencing_token)
            for grant in resource.holders.values()
            if (party := _party(grant)) != _party_of(request)
            and grant.fencing_token not in request.inside.get(key, ())
        }
        if not _fits(request, others):
            return False
    return True


def _fits(request: Request, others: Mapping[Party, Held]) -> bool:
    """Returns whether nobody else excludes a request."""
    modes = {mode for mode, *_ in others.values()}
    if request.wish.slot is not None:
        return request.wish.slot not in {slot for _, slot, _ in others.values()}
    if request.mode == "slot":
        return modes <= {"slot"} and _free_slot(others) < (request.wish.slots or 0)
    return not modes or modes == {request.mode} == {"shared"}


def _free_slot(others: Mapping[Party, Held]) -> int:
    """Returns the lowest number that nobody has."""
    taken = {number for _, number, _ in others.values()}
    return next(number for number in range(len(others) + 1) if number not in taken)


def _broken_owners(engine: LockEngine) -> Iterator[str]:
    by_holder = {
        (grant.owner_id, grant.fencing_token, key)
        for key, resource in engine.state.resources.items()
        for grant in resource.holders.values()
    }
    by_owner = {
        (owner_id, token, grant.key)
        for owner_id, owner in engine.state.owners.items()
        for token, grant in owner.grants.items()
    }
    if by_holder != by_owner:
        yield f"owners and resources disagree: {by_holder ^ by_owner}"
    for owner_id, owner in engine.state.owners.items():
        if not owner.sessions and not owner.grants:
            yield f"owner {owner_id} is kept though nobody needs it"
        may_outlive = owner.is_process or owner.fencing is not None
        if owner.grants and not owner.sessions and not may_outlive:
            yield f"owner {owner_id} holds locks after its session ended"
        if owner.grants and not owner.sessions and owner.ended and not owner.fencing:
            yield f"owner {owner_id} holds locks though it ended with its sessions"
        yield from _broken_strands(owner)
        if owner.claims != reduce(xor, map(claim_of, owner.grants.values()), 0):
            yield f"owner {owner_id} claims something else than it holds"
    inside = {
        (grant.fencing_token, session.session_id)
        for owner in engine.state.owners.values()
        for strand in (owner.whole, *owner.strands.values())
        for session, grants in strand.insiders.values()
        for grant in grants.values()
    }
    held = {x for owner in engine.state.owners.values() for x in owner.grants}
    expected = {
        (token, session.session_id)
        for session in engine.state.sessions.values()
        for token in session.within
        if token in held
    }
    if inside != expected:
        yield f"inside grants are {inside}, not {expected}"
    for session in engine.state.sessions.values():
        if session.waits != reduce(
            xor, (x.order for x in session.requests.values()), 0
        ):
            yield f"session {session.session_id} claims to wait for something else"
        if engine.state.owners.get(session.owner.owner_id) is not session.owner:
            yield f"session {session.session_id} acts for an owner that is not there"


def _broken_strands(owner: OwnerState) -> Iterator[str]:
    held = Counter(_party(grant) for grant in owner.grants.values())
    waiting: Counter[Party] = Counter()
    for session in owner.sessions.values():
        waiting.update(_party_of(request) for request in session.requests.values())
    counted = {}
    for strand in (owner.whole, *owner.strands.values()):
        counts = strand.held, len(strand.requests)
        if any(counts):
            counted[owner.owner_id, *strand.name] = counts
        elif strand is not owner.whole:
            yield f"strand {strand.name} of owner {owner.owner_id} is kept for nothing"
    expected = {party: (held[party], waiting[party]) for party in {*held, *waiting}}
    if counted != expected:
        yield f"strands of owner {owner.owner_id}: {counted}, not {expected}"


def _broken_requests(engine: LockEngine) -> Iterator[str]:
    tracked = {r for s in engine.state.sessions.values() for r in s.requests.values()}
    if engine.waiting != len(tracked):
        yield f"{engine.waiting} are counted as waiting, not {len(tracked)}"
    waiting = Counter(request.uid for request in tracked)
    if engine.waiting_by_user != waiting:
        yield f"{engine.waiting_by_user} are counted as waiting, not {waiting}"
    yield from _broken_texts(engine, tracked)
    timed = {(when, order) for when, order, _ in engine.state.deadlines}
    for request in tracked:
        for key in request.keys:
            resource = engine.state.resources.get(key)
            if resource is None or (
                resource.pending is not request and request not in _queue(resource)
            ):
                yield f"{key}: a request waits that is not in line"
        deadline = request.deadline if request.is_announced else None
        if deadline is not None and (deadline, request.order) not in timed:
            yield f"{request.keys}: a request would wait beyond its time"
    yield from _broken_notices(engine, timed)


def _broken_notices(engine: LockEngine, timed: set[tuple[float, int]]) -> Iterator[str]:
    """Checks what holders were told: whether they are late, or somebody waits."""
    for resource in engine.state.resources.values():
        listeners = set()
        for strand, grant in resource.holders.items():
            notices, name = grant.notices, f"{grant.key} of {grant.owner.name}"
            if notices is None:
                continue
            due = notices.due, -grant.fencing_token
            if notices.overdue and notices.due is None:
                yield f"{name}: is overdue without a time"
            if not notices.overdue and notices.due is not None and due not in timed:
                yield f"{name}: would never be overdue"
            if notices.wanted_to is None:
                continue
            listeners.add(strand)
            wanted = any(
                {grant.mode, request.mode} != {"shared"}
                and _party_of(request) != _party(grant)
                and grant.fencing_token not in request.inside.get(resource.key, ())
                and request.wish.slot in (None, grant.slot)
                for request in _queue(resource)
            )
            if notices.wanted != wanted and resource not in engine.state.listened:
                yield f"{name}: was told last that wanted is {notices.wanted}"
        sharing = sum(request.mode == "shared" for request in resource.waiting)
        if resource.sharing != sharing:
            yield f"{resource.key}: {sharing} wait to share, not {resource.sharing}"
        if set(resource.listeners) != listeners:
            yield f"{resource.key}: {len(resource.listeners)} listen"


def _broken_texts(engine: LockEngine, tracked: set[Request]) -> Iterator[str]:
    said: Counter[int] = Counter()
    for request in tracked:
        if not request.converting:
            names = [key.resource for key in request.keys]
            said[request.uid] += _bytes_said(
                names, request.wish.label, request.wish.reason
            )
    for owner in engine.state.owners.values():
        for grant in owner.grants.values():
            names = [grant.key.resource]
            said[grant.owner.uid] += _bytes_said(names, grant.label, grant.reason)
    # `Counter` keeps entries of 0; `+` drops them.
    if engine.text_by_user != +said:
        yield f"{dict(engine.text_by_user)} bytes are counted as said, not {said}"


def _bytes_said(names: Sequence[str], label: str | None, reason: str | None) -> int:
    several = len(names) > 1
    found = 0
    for name in names:
        length = len(name.encode())
        found += length if several or length > 255 else 0
        found += len((label or "").encode()) + len((reason or "").encode())
    return found


def _broken_tokens(engine: LockEngine) -> Iterator[str]:
    tokens = [token for owner in engine.state.owners.values() for token in owner.grants]
    if len(tokens) != len(set(tokens)):
        yield "a fencing token is held twice"
    if engine.held != len(tokens):
        yield f"{engine.held} grants are counted, not {len(tokens)}"
    holders = {
        token: owner for owner in engine.state.owners.values() for token in owner.grants
    }
    if engine.state.holder_of != holders:
        yield "the index of owners by fencing token is wrong"
    grants = [
        x for owner in engine.state.owners.values() for x in owner.grants.values()
    ]
    held = Counter(grant.owner.uid for grant in grants)
    for session in engine.state.sessions.values():
        for request in session.requests.values():
            if len(request.keys) > 1:
                held[request.uid] += len(request.keys)
    if engine.held_by_user != held:
        yield f"{engine.held_by_user} grants are counted by user, not {held}"
    if tokens and max(tokens) > engine.last_token:
        yield f"a fencing token is ahead of the last one, {engine.last_token}"


def _cycles(engine: LockEngine) -> Iterator[str]:
    """Finds requests that no release can help.

    Simulates the future: grants every request with nothing before it, and releases
    everything of every strand that waits for nothing. The requests that remain form a
    cycle.
    """
    lines = {key: _line(resource) for key, resource in engine.state.resources.items()}
    held = {
        key: {
            _party(x): (x.mode, x.slot, x.fencing_token)
            for x in resource.holders.values()
        }
        for key, resource in engine.state.resources.items()
    }
    left = {request for line in lines.values() for request in line}
    grants = {
        grant.fencing_token: grant
        for resource in engine.state.resources.values()
        for grant in resource.holders.values()
    }
    while left:
        granted = [r for r in left if all(_is_free(r, lines, held, k) for k in r.keys)]
        # Nobody takes a slot before those inside it.
        granted.sort(key=lambda request: not request.inside)
        for request in granted[:1]:
            left.remove(request)
            for key in request.keys:
                lines[key].remove(request)
                own, modes = _party_of(request), [x for x, *_ in held[key].values()]
                inside = request.inside and "exclusive" in modes
                mode: Mode = "exclusive" if inside else request.mode
                slot = request.wish.slot
                if mode == "slot" and slot is None:
                    slot = _free_slot(held[key])
                _, _, token = held[key].get(own, (None, None, 0))
                held[key][own] = mode, slot, token
        waiting = {_party_of(request) for request in left}
        for session in {request.session for request in left}:
            waiting |= _waits_for(session, grants)
        done = {own for parties in held.values() for own in parties} - waiting
        held = {
            key: {own: x for own, x in parties.items() if own in waiting}
            for key, parties in held.items()
        }
        if not granted and not done:
            yield f"requests wait for each other: {sorted(r.order for r in left)}"
            return


def _waits_for(session: Session, grants: Mapping[int, Grant]) -> set[Party]:
    """Returns the holders that wait for the end of a session."""
    return {_party(grants[token]) for token in session.within if token in grants}


def _party(grant: Grant) -> Party:
    session = grant.session if grant.strand else 0
    return grant.owner_id, session, grant.strand


def _party_of(request: Request) -> Party:
    return request.owner.owner_id, *request.strand.name


def _line(resource: Resource) -> list[Request]:
    pending = resource.pending
    first = [] if pending is None or pending.is_answered else [pending]
    return first + _queue(resource)


def _queue(resource: Resource) -> list[Request]:
    lines = resource.slots.lines.values() if resource.slots else ()
    in_slots = [request for line in lines for request in line]
    return [*in_slots, *resource.inner, *resource.converting, *resource.waiting]


def _is_first(request: Request, line: Sequence[Request]) -> bool:
    """Returns whether a request is the first in line; or the first inside its slot."""
    alike = [other for other in line if other.wish.slot == request.wish.slot]
    return alike[0] is request


def _is_free(
    request: Request,
    lines: Mapping[ResourceKey, list[Request]],
    held: Mapping[ResourceKey, Mapping[Party, Held]],
    key: ResourceKey,
) -> bool:
    own, around = _party_of(request), request.inside.get(key, ())
    others = {
        party: x
        for party, x in held[key].items()
        if party != own and x[2] not in around
    }
    if request.converting and request.mode == "shared":
        return not others
    return _is_first(request, lines[key]) and _fits(request, others)
