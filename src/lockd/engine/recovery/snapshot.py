"""The engine from plain data: a daemon continues with the state of its predecessor.

`records` has the other direction, in pieces: what changed.

Plain means dicts, lists, texts, numbers, booleans and None, so any encoding can carry
it. Times are absolute: the successor must use the same clock. Sessions, owners and
requests keep their numbers, and lines keep their order.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import convert, structs, to_builtins

from lockd.engine.changes import COUNTS
from lockd.engine.commands import Acquire, AddLockspace, AnchorRefused, Owner
from lockd.engine.effects import Grant, LastHolder
from lockd.engine.lock_engine import LockEngine
from lockd.engine.lock_state import LockState
from lockd.engine.recovery.mending import mend
from lockd.engine.recovery.shapes import (
    GrantRecord,
    LastRecord,
    Loaded,
    OwnerRecord,
    RequestRecord,
    ResourceRecord,
)
from lockd.engine.resource import Resource
from lockd.engine.session import OwnerState, Request, Session
from lockd.terms import SLOT, OutsideHolder, ResourceKey

VERSION: Final = 5
"""Rises with every addition to the data that `load` reads."""

READABLE_FROM: Final = 5
"""The oldest version whose `load` reads the data as it is now."""

OLDEST: Final = 1
"""The oldest version that `load` reads."""

Plain = dict[str, Any]


_LISTS = (
    "lockspaces",
    "owners",
    "sessions",
    "requests",
    "resources",
    "last_holders",
)
_REQUEST_FIELDS = (
    "order",
    "uid",
    "since",
    "deadline",
    "tries",
    "converting",
    "opening",
    "retry_at",
    "pause",
)
_RESTORED = (*_REQUEST_FIELDS, "refusal", "outside")
_HEARS = ("max_hold", "wanted")
_SLOTS = ("slots", "slot", "slots_said_by")
_WISH_FIELDS = ("mode", "create", "label", "reason", "whole", *_HEARS, *_SLOTS)


def load(data: Plain, last_token: int = 0) -> Loaded:
    """Returns an engine in the recorded state.

    A record that is missing or unreadable affects only the sessions it belongs to.

    Args:
        data: the result of `records.assemble`.
        last_token: new fencing tokens will be greater than this, and than all recorded
            ones.

    Raises:
        ValueError: the data has an unreadable version, or is no snapshot.
    """
    _check_version(data)
    counts = dict(data["counts"])
    last_token = max(last_token, counts.pop("last_token"))
    state = LockState(last_token, **{name: counts[name] for name in COUNTS[1:]})
    requests: dict[int, Request] = {}
    readers: dict[str, Callable[[Any], None]] = {
        "lockspaces": lambda x: state.add_lockspace(convert(x, AddLockspace)),
        "owners": lambda x: _load_owner(state, x),
        "sessions": lambda x: _load_session(state, *x),
        "requests": lambda x: _load_request(state, x, requests),
        "resources": lambda x: _load_resource(state, x, requests),
        "last_holders": lambda x: _load_last_holder(state, x),
    }
    problems = [str(x) for x in data.get("problems", [])]
    damaged: list[int] = []
    for kind, read in readers.items():
        if kind == "sessions":
            problems += _load_holders(state)
        for index, record in enumerate(data[kind]):
            try:
                read(record)
            except Exception as error:
                problems.append(f"record {index} of {kind}: {error!r}")
                damaged += _whose(record) if kind == "requests" else []
    losses = mend(state, known=bool(problems))
    for grant in state.grants():
        state.usage.add_grant(grant)
    damaged = [
        x for x in dict.fromkeys(damaged + losses.sessions) if x in state.sessions
    ]
    problems += losses.problems
    return Loaded(LockEngine(state=state), problems, damaged, losses.orphans)


def _whose(request: Any) -> list[int]:
    """Returns the session of a request that could not be read."""
    session = request.get("session") if isinstance(request, dict) else None
    return [session] if isinstance(session, int) else []


def _check_version(data: Plain) -> None:
    try:
        version, readable_from = int(data["version"]), int(data["readable_from"])
        complete = all(isinstance(data[name], list) for name in _LISTS)
        complete &= all(type(data["counts"][name]) is int for name in COUNTS)
    except (LookupError, TypeError, ValueError):
        complete = False
    if not complete:
        raise ValueError("this is no snapshot")
    if version < OLDEST or readable_from > VERSION:
        raise ValueError(
            f"a snapshot of version {version} cannot be read, "
            f"only versions {OLDEST} to {VERSION}"
        )


def dump_session(session: Session) -> list[Any]:
    """Returns a session without its requests."""
    return [
        session.session_id,
        session.owner.owner_id,
        session.registered,
        list(session.within),
    ]


def dump_owner(owner: OwnerState) -> Plain:
    """Returns an owner without its grants."""
    return {
        "owner_id": owner.owner_id,
        "identity": to_builtins(owner.identity),
        "is_process": owner.is_process,
        "on_disconnect": owner.on_disconnect,
        "until": owner.until,
        "fencing": owner.fencing,
        "ended": owner.ended,
    }


def dump_grant(grant: Grant) -> GrantRecord:
    """Returns a grant as it is recorded."""
    return GrantRecord(
        grant.key,
        grant.owner_id,
        grant.owner,
        grant.session,
        grant.mode,
        grant.fencing_token,
        grant.since,
        grant.count,
        grant.label,
        grant.reason,
        grant.strand,
        grant.whole,
        grant.notices,
        grant.slot,
        grant.slots,
        grant.slots_said_by,
        grant.inside,
    )


def load_grant(record: GrantRecord) -> Grant:
    """Returns the grant that was recorded."""
    return Grant(
        record.key,
        record.owner_id,
        record.owner,
        record.session,
        record.mode,
        record.fencing_token,
        record.since,
        record.count,
        record.label,
        record.reason,
        record.strand,
        record.whole,
        record.notices,
        record.slot,
        record.slots,
        record.slots_said_by,
        record.inside,
    )


def dump_last(last: LastHolder) -> LastRecord:
    """Returns a last holder as it is recorded."""
    return LastRecord(dump_grant(last.grant), last.ended, last.cause, last.outcome)


def _load_last_holder(state: LockState, data: Any) -> None:
    last = convert(data, LastRecord)
    grant = load_grant(last.grant)
    state.last_holders[grant.key] = LastHolder(
        grant, last.ended, last.cause, last.outcome
    )


def _load_owner(state: LockState, data: Plain) -> None:
    record = convert(data, OwnerRecord)
    owner = OwnerState(
        record.owner_id,
        record.identity,
        is_process=record.is_process,
        on_disconnect=record.on_disconnect,
        until=record.until,
        fencing=record.fencing,
        ended=record.ended,
    )
    for grant in record.grants:
        owner.put(load_grant(grant))
    state.add_owner(owner)


def _load_holders(state: LockState) -> list[str]:
    """Adds the holders of all resources: the grants, in the order of their tokens.

    Returns what is wrong, a sentence each.
    """
    problems = []
    found = [(x, grant) for x in state.owners.values() for grant in x.grants.values()]
    found.sort(key=lambda x: x[1].fencing_token)
    with_slots: dict[ResourceKey, Resource] = {}
    for owner, grant in found:
        try:
            resource = _resource(state, grant.key)
        except ValueError as error:
            problems.append(f"grant {grant.fencing_token}: {error}")
            continue
        resource.holders[owner.strand_of(grant)] = grant
        if grant.slot is not None:
            with_slots[grant.key] = resource
    for resource in with_slots.values():
        resource.count_slots_again()
    return problems


def _resource(state: LockState, key: ResourceKey) -> Resource:
    """Returns a resource, which may be new."""
    resource = state.resources.get(key)
    if resource is None:
        if key.lockspace not in state.lockspaces:
            raise ValueError("its lockspace could not be read")
        resource = state.resources[key] = Resource(key)
    return resource


def _load_session(
    state: LockState,
    session_id: int,
    owner_id: int,
    registered: bool,
    within: Sequence[int] = (),
) -> None:
    owner, tokens = state.owners[owner_id], convert(within, list[int])
    session = Session(session_id, owner, registered=registered, within=tokens)
    state.add_session(session)


def dump_request(request: Request) -> Plain:
    """Returns a request without its places in the lines."""
    return {
        "session": request.session.session_id,
        "strand": list(request.strand.name),
        "owner": request.owner.owner_id,
        "number": request.number,
        "keys": [list(key) for key in request.keys],
        "inside": [list(request.inside[key]) for key in request.keys if request.inside],
        "refusal": _dump_refusal(request.refusal),
        "outside": _dump_outside(request.outside),
        **{name: getattr(request, name) for name in _REQUEST_FIELDS},
        **{name: getattr(request.wish, name) for name in _WISH_FIELDS[:-1]},
        "slots_said_by": to_builtins(request.wish.slots_said_by),
        "announced": request.is_announced,
        "answered": request.is_answered,
    }


def _dump_refusal(refusal: AnchorRefused | None) -> Plain | None:
    if refusal is None:
        return None
    plain: Plain = to_builtins(refusal)
    return plain | {"outside": _dump_outside(refusal.outside)}


def _dump_outside(outside: OutsideHolder | None) -> list[Any] | None:
    # Older readers accept three fields. The next try finds the name again.
    return None if outside is None else list(outside[:3])


def _load_request(state: LockState, data: Plain, requests: dict[int, Request]) -> None:
    record = convert(data, RequestRecord)
    known = state.sessions.get(record.session)
    if known is None and not record.answered:
        raise ValueError("it waits for a session that could not be read")
    # The session of an answered request may be closed.
    session = known or Session(
        record.session,
        state.owners.get(record.owner)
        or OwnerState(record.owner, Owner(name="", pid=0, uid=0)),
    )
    if record.mode == SLOT and record.slots is None:
        raise ValueError("it waits for one of an unknown number of slots")
    if record.mode == SLOT and record.inside and record.slot is None:
        raise ValueError("it is inside an unknown slot")
    fields = structs.asdict(record)
    wish = Acquire(
        record.session,
        record.number,
        record.keys,
        strand=record.strand[1],
        **{name: fields[name] for name in _WISH_FIELDS},
    )
    strand = session.owner.strand(record.strand)
    # It is inside grants of all its keys, or of none.
    inside = dict(zip(record.keys, record.inside or (), strict=bool(record.inside)))
    request = Request(session, strand, record.order, wish, record.since, inside=inside)
    request.restore(
        {name: fields[name] for name in _RESTORED},
        announced=record.announced,
        answered=record.answered,
    )
    if not request.is_answered:
        if request.number in session.requests:
            raise ValueError("another request of its session has the same number")
        state.add_request(request)
    requests[request.order] = request


def _load_resource(
    state: LockState, data: Plain | ResourceRecord, requests: dict[int, Request]
) -> None:
    record = convert(data, ResourceRecord)
    resource = _resource(state, record.key)
    missing = 0
    for order in [*record.converting, *record.waiting]:
        if order in requests:
            resource.enqueue(requests[order])
        else:
            missing += 1
    resource.anchor_is(record.anchor)
    if record.pending is not None:
        if record.pending in requests:
            pending = requests[record.pending]
            resource.open_anchor(pending, record.anchor_wanted or pending.mode)
            if record.whole:
                resource.stay_whole()
        else:
            missing += 1
    if missing:
        raise ValueError(f"{missing} of those at it could not be read")
